//! A template is a contract: one that is broken stops init, with a reason that its author
//! understands, and one that asks for what is not there fails its documents with the reason.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

use crate::support::templates::{MANIFEST, Templates, note, outcome};
use crate::support::{INPUT, OUTPUT, Stage, record, record_of, run};
use pressrun::config::Config;
use pressrun::function::outcome::{ErrorCode, Outcome};
use serde_json::{Value, json};

/// A font that is not among the embedded ones.
fn inter() -> Vec<u8> {
    fs::read(crate::support::real_templates().join("fonts/Inter-Regular.ttf")).unwrap()
}

#[test]
fn a_broken_template_stops_init_with_its_file_and_what_is_wrong() {
    run(async {
        let schema = |schema: &str| {
            Templates::with("#data.text").and_section("schema = \"schema.json\"").and("note/schema.json", schema)
        };
        let without = |file: &str| {
            let templates = Templates::with("#data.text");
            fs::remove_file(templates.path(file)).unwrap();
            templates
        };
        for (templates, expected) in [
            (Templates::with("#data.text").and("note/typst.toml", "[package"), "note/typst.toml: TOML parse error"),
            (
                Templates::with("#data.text").and("note/typst.toml", "[package]\nversion = 1"),
                "note/typst.toml: invalid type: integer `1`, expected ",
            ),
            (
                Templates::with("#data.text").and("note/typst.toml", "[package]\ncompiler = \"0.99.0\""),
                "note/typst.toml: compiler = \"0.99.0\": the template is for Typst 0.99.0 or newer, and this is Typst 0.",
            ),
            (
                Templates::with("#data.text").and_section("tagd = true"),
                "note/typst.toml: [tool.pressrun]: unknown field `tagd`, expected one of",
            ),
            (
                Templates::with("#data.text").and_section("standards = [\"a-2b\", \"a-3b\"]"),
                "note/typst.toml: [tool.pressrun] standards: choose at most one PDF/A standard",
            ),
            (without("note/main.typ"), "note/main.typ: the entrypoint that typst.toml names is not there; write it"),
            (
                Templates::with("#data.text").and("other/src/cv.typ", "x"),
                "other/main.typ: is not there; write it, or a typst.toml that names the file to compile under \
                 [package], as entrypoint = \"src/cv.typ\"",
            ),
            (without("note/sample.json"), "note/sample.json: is not there; write data such as a message brings"),
            (
                Templates::with("#data.text").and_section("schema = \"schema.json\""),
                "note/schema.json: cannot be read: No such file",
            ),
            (schema("{"), "note/schema.json: is not JSON: EOF while parsing"),
            (
                schema("{\"propertys\": {}}"),
                "note/schema.json: has at its top what is no keyword of JSON Schema 2020-12: propertys",
            ),
            (
                schema("{\"required\": [\"txt\"]}"),
                "template note: its sample.json cannot be rendered\nerror: note/sample.json: at the top: \"txt\" is a required property",
            ),
            (
                Templates::with("#data.text").and("note/schema.json", "{}"),
                "note/schema.json: is not used: typst.toml has to name it",
            ),
            (
                Templates::with("#data.text").and_section("schema = \"../schema.json\""),
                "lies outside of the template's folder, where the schema is expected",
            ),
            (Templates::with("#data.txt"), "note/main.typ:2:6"),
            (Templates::with("#data.text").and("note/sample.json", "{\n  \"text\": \n}"), "note/sample.json:3:"),
            (
                Templates::with("#image(\"/files/logo.png\")"),
                "the template's folder files has no \"logo.png\"; there are: no files",
            ),
            (
                Templates::with("#data.text").and("fonts/broken.ttf", "no font"),
                "fonts/broken.ttf: is not a font that Typst can read",
            ),
            (
                Templates::with("#data.text").and("note/broken.otf", "no font"),
                "note/broken.otf: is not a font that Typst can read",
            ),
        ] {
            let reason = templates.refused().await;
            assert!(reason.contains(expected), "expected {expected:?} in {reason:?}");
        }
    });
}

#[test]
fn every_broken_template_is_named_at_once() {
    run(async {
        let templates = Templates::with("#data.text")
            .and("one/typst.toml", "[package")
            .and("two/typst.toml", MANIFEST)
            .and("two/main.typ", "#data");
        let reason = templates.refused().await;
        assert!(reason.contains("one/typst.toml: ") && reason.contains("two/sample.json: "), "{reason}");
        templates.write("one/typst.toml", MANIFEST);
        for name in ["one", "two"] {
            templates.write(&format!("{name}/main.typ"), "#x");
            templates.write(&format!("{name}/sample.json"), "{}");
        }
        let reason = templates.refused().await;
        assert!(reason.contains("one/main.typ:1:1") && reason.contains("two/main.typ:1:1"), "{reason}");
    });
}

#[test]
fn a_link_out_of_a_template_stops_init() {
    run(async {
        let templates = Templates::with("#read(\"passwd\")");
        symlink("/etc/passwd", templates.path("note/passwd")).unwrap();
        let reason = templates.refused().await;
        assert!(reason.contains("note/passwd: is a link that leads out of its folder"), "{reason}");
    });
}

#[test]
fn data_that_break_the_schema_are_refused_with_every_place() {
    run(async {
        let schema = json!({
            "additionalProperties": false,
            "properties": {"text": {"maxLength": 6}, "day": {"format": "date"}, "sum": {"type": "string"}},
        });
        let templates = Templates::with("#data.text")
            .and_section("schema = \"schema.json\"")
            .and("note/schema.json", schema.to_string());
        let failure = templates.failure(json!({"text": "too long", "day": "31.12.2026", "sum": 1.5})).await;
        assert_eq!(failure.code, ErrorCode::InvalidData);
        let mut told: Vec<&str> = failure.diagnostics.iter().map(|violation| violation.message.as_str()).collect();
        told.sort_unstable();
        assert_eq!(
            told,
            [
                "/day: value is not a \"date\"; found a string of length 10",
                "/sum: value is not of type \"string\"; found a number",
                "/text: value is longer than 6 characters; found a string of length 8",
            ]
        );
        assert!(
            failure.message.ends_with(" (and 2 more)") && failure.message.lines().count() == 1,
            "{}",
            failure.message
        );
    });
}

#[test]
fn a_family_that_is_not_there_is_an_error_unless_the_template_says_otherwise() {
    run(async {
        let body = "#if data.text == \"fancy\" { text(font: (\"Inter\", \"Roboto\"))[fancy] } else { data.text }";
        let failure = Templates::with(body).failure(note("fancy")).await;
        assert_eq!(failure.code, ErrorCode::TypstError);
        assert!(
            failure
                .message
                .starts_with("note/main.typ:2:38: error: unknown font family: inter, roboto (hint: add the font"),
            "{}",
            failure.message
        );

        let allowed = Templates::with(body).and_section("allow-missing-fonts = true").stored(note("fancy")).await;
        assert!(allowed.warnings[0].message.contains("unknown font family"), "{:?}", allowed.warnings);
        let boxes = Templates::with(body).and_section("allow-missing-glyphs = true").failure(note("fancy")).await;
        assert!(boxes.message.contains("unknown font family"), "{}", boxes.message);

        for font in ["fonts/Inter.ttf", "note/Inter.ttf", "note/assets/Inter.ttf"] {
            let stored = Templates::with(body).and(font, inter()).stored(note("fancy")).await;
            assert!(stored.warnings.is_empty(), "{font}: {:?}", stored.warnings);
        }
        let of_another = Templates::with("#data.text").and("note/Inter.ttf", inter());
        of_another.write("other/typst.toml", MANIFEST);
        of_another.write("other/main.typ", "#text(font: \"Inter\")[x]");
        of_another.write("other/sample.json", "{}");
        assert!(of_another.refused().await.contains("other/main.typ:1:"), "fonts of one template are not another's");
    });
}

#[test]
fn characters_without_a_font_are_an_error_and_never_boxes() {
    run(async {
        let templates = Templates::with("#data.text");
        for (text, named) in [
            ("Zürich 東京", "\"京\" (U+4EAC) and \"東\" (U+6771)"),
            ("ภาษาไทย", "U+0E"),
            ("good 👍", "U+1F44D"),
            ("nul \u{0}", "U+0000"),
        ] {
            let failure = templates.failure(note(text)).await;
            assert_eq!(failure.code, ErrorCode::TypstError, "{text}");
            assert!(failure.message.contains("(hint: the data have them at /text)"), "{}", failure.message);
            assert!(
                failure.message.starts_with("note/main.typ:2:1: error: no font has ")
                    && failure.message.contains(named),
                "{}",
                failure.message
            );
        }
        for text in [
            "Zürich Ελλάδα Москва שלום Việt",
            "a\u{200b}b\u{ad}c\u{202e}d\u{2066}e\u{feff}",
            "e\u{301}\u{328}",
            "a\tb\nc\r\nd",
        ] {
            let stored = templates.stored(note(text)).await;
            assert!(stored.warnings.is_empty(), "{text:?}: {:?}", stored.warnings);
        }
        let boxes = Templates::with("#data.text").and_section("allow-missing-glyphs = true").stored(note("東京")).await;
        assert!(boxes.warnings[0].message.starts_with("printed as boxes"), "{:?}", boxes.warnings);
    });
}

#[test]
fn text_that_would_vanish_is_an_error() {
    run(async {
        let body = "#if data.text != \"sample\" { text(font: \"Nowhere Sans\", fallback: false, data.text) }";
        let failure = Templates::with(body).failure(note("gone")).await;
        assert!(failure.message.contains("unknown font family: nowhere sans"), "{}", failure.message);
        let body = "#text(font: \"DejaVu Sans Mono\", fallback: false, data.text)";
        let failure = Templates::with(body).failure(note("שלום")).await;
        assert!(failure.message.contains("no font has"), "{}", failure.message);
    });
}

#[test]
fn an_unlike_font_is_a_warning_that_names_it() {
    run(async {
        let stored = Templates::with("#data.text").stored(note("السلام")).await;
        let warning = &stored.warnings[0];
        assert!(!warning.is_error);
        assert_eq!((warning.line, warning.column), (Some(2), Some(1)));
        assert!(
            warning.message.starts_with("printed in DejaVu Sans Mono, which the template does not name"),
            "{warning}"
        );
        let named = Templates::with("#set text(font: (\"Libertinus Serif\", \"DejaVu Sans Mono\"))\n#data.text");
        assert!(named.stored(note("السلام")).await.warnings.is_empty(), "it was asked for");
        let code = Templates::with("#raw(data.text) $ x^2 in RR $ → ✓");
        assert!(code.stored(note("let x = 1;")).await.warnings.is_empty(), "Typst's defaults for code and equations");
    });
}

#[test]
fn a_layout_that_does_not_converge_is_an_error() {
    run(async {
        let body = "#let s = state(\"s\", 1)\n#if data.text == \"never\" { context { s.update(s.final() + 1); [#s.final()] } }";
        let failure = Templates::with(body).failure(note("never")).await;
        assert_eq!(failure.code, ErrorCode::TypstError);
        assert!(
            failure.message.starts_with("error: document did not converge within five attempts"),
            "{}",
            failure.message
        );
        assert!(failure.diagnostics.iter().any(|diagnostic| diagnostic.file.is_some()), "{failure:?}");
    });
}

#[test]
fn hints_that_only_a_command_line_could_follow_are_left_out() {
    run(async {
        let failure =
            Templates::with("#if data.text != \"sample\" { read(data.text) }").failure(note("../../etc/passwd")).await;
        assert!(
            failure
                .message
                .starts_with("note/main.typ:2:33: error: path `\"<value of /text>\"` would escape the project root"),
            "{}",
            failure.message
        );
        assert!(!failure.diagnostics[0].text.contains("--root"), "{}", failure.diagnostics[0].text);
        assert!(failure.diagnostics[0].text.contains("hint: cannot access files outside of the project sandbox"));
    });
}

#[test]
fn packages_lie_where_typst_keeps_them() {
    run(async {
        let body = "#import \"@preview/greeter:0.2.0\": greet\n#greet(data.text)";
        let templates = Templates::with(body);
        let reason = templates.refused().await;
        let expected = templates.path("packages/preview/greeter/0.2.0");
        assert!(
            reason
                .contains(&format!("@preview/greeter:0.2.0 is not there: it was looked for in {}", expected.display())),
            "{reason}"
        );

        for namespace in ["preview", "local"] {
            let folder = format!("packages/{namespace}/greeter/0.2.0");
            let manifest = MANIFEST.replace("note", "greeter").replace("1.0.0", "0.2.0").replace("main.typ", "lib.typ");
            let templates = Templates::with(&body.replace("preview", namespace))
                .and(&format!("{folder}/typst.toml"), manifest)
                .and(&format!("{folder}/lib.typ"), "#let greet(name) = [Hello #name, #read(\"greeting.txt\")]")
                .and(&format!("{folder}/greeting.txt"), "how are you?");
            assert!(templates.stored(note("you")).await.warnings.is_empty());
        }
        let odd = Templates::with("#data.text").and("packages/preview/greeter/latest/lib.typ", "");
        let reason = odd.refused().await;
        assert!(
            reason.contains("is not a package's folder") && reason.contains("<namespace>/<name>/<version>"),
            "{reason}"
        );
    });
}

#[test]
fn files_come_from_the_message_and_never_from_another() {
    run(async {
        let logo = |colour: &str| {
            format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"9\" height=\"9\"><rect width=\"9\" height=\"9\" fill=\"{colour}\"/></svg>"
            )
        };
        let templates =
            Templates::with("#data.text #image(\"/files/logo.svg\")").and("note/files/logo.svg", logo("gray"));
        let mut stage = templates.stage().await;
        stage.s3.put(INPUT, "customers/1/logo.svg", logo("red"));
        stage.s3.put(INPUT, "customers/2/logo.svg", logo("blue"));
        let message = |files: Value| json!({"template": "note", "data": note("x"), "files": files}).to_string();
        let with_logo = |customer: &str| message(json!({"logo.svg": format!("customers/{customer}/logo.svg")}));
        for id in ["red", "again", "blue"] {
            let customer = if id == "blue" { "2" } else { "1" };
            assert!(
                matches!(outcome(&mut stage, record_of(id, with_logo(customer))).await, Outcome::Stored(_)),
                "{id}"
            );
        }
        let size = |id: &str| stage.pdf("note", id).unwrap().len();
        assert_eq!(size("red"), size("again"));

        for (body, expected) in [
            (message(json!({})), "the message's files have no \"logo.svg\"; there are: no files"),
            (
                message(json!({"lgo.svg": "customers/1/logo.svg"})),
                "the message's files have no \"logo.svg\"; there are: lgo.svg",
            ),
            (with_logo("3"), "there is no object \"customers/3/logo.svg\" in the bucket \"input\""),
            (message(json!({"../logo.svg": "x"})), "files \"../logo.svg\": a name has"),
        ] {
            let Outcome::PermanentFailure(failure) = outcome(&mut stage, record_of("m", body)).await else {
                panic!("{expected}")
            };
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
    });
}

#[test]
fn the_files_of_a_message_are_bounded_together() {
    run(async {
        let templates = Templates::with(
            "#data.text #data.at(\"names\", default: ()).map(name => str(read(\"/files/\" + name, encoding: none).len())).join(\" \")",
        );
        let mut stage = templates.stage().await;
        stage.s3.put(INPUT, "half", "x".repeat(512 * 1024));
        let body = |names: &[&str]| {
            let files: Value =
                names.iter().map(|name| ((*name).to_owned(), json!("half"))).collect::<serde_json::Map<_, _>>().into();
            json!({"template": "note", "data": {"text": "x", "names": names}, "files": files}).to_string()
        };
        assert!(matches!(outcome(&mut stage, record_of("two", body(&["a", "b"]))).await, Outcome::Stored(_)));
        let Outcome::PermanentFailure(failure) = outcome(&mut stage, record_of("three", body(&["a", "b", "c"]))).await
        else {
            panic!("too large")
        };
        assert!(
            failure.message.contains("more than the 1048576 bytes that MAX_DATA_BYTES allows; \"c\" is one too many"),
            "{}",
            failure.message
        );

        let config = Config { input_bucket: None, ..templates.config() };
        let mut stage = Stage::with(config).await;
        let Outcome::PermanentFailure(failure) = outcome(&mut stage, record_of("no-bucket", body(&["a"]))).await else {
            panic!("no bucket")
        };
        assert!(failure.message.contains("INPUT_BUCKET"), "{}", failure.message);
    });
}

#[test]
fn what_a_message_brings_is_never_run() {
    run(async {
        let templates = Templates::with("#if data.text == \"run\" { include \"/files/code.typ\" }");
        let mut stage = templates.stage().await;
        stage.s3.put(INPUT, "code.typ", "#panic()");
        let body = json!({"template": "note", "data": note("run"), "files": {"code.typ": "code.typ"}}).to_string();
        let Outcome::PermanentFailure(failure) = outcome(&mut stage, record_of("m", body)).await else {
            panic!("it ran")
        };
        assert!(failure.message.contains("what a message brings is data"), "{}", failure.message);
    });
}

/// Typst counts the paths of all files that a process has ever read, up to 65,535. Here messages
/// bring that many, each under a name of its own.
#[test]
fn names_that_messages_choose_are_not_used_up() {
    const MESSAGES: usize = 4200;
    run(async {
        let body = "#for name in data.at(\"names\", default: ()) { let _ = read(\"/files/\" + name) }";
        let mut stage = Templates::with(body).stage().await;
        stage.s3.put(INPUT, "x", "x");
        let documents = (0..MESSAGES).map(|message| {
            let names: Vec<String> = (0..16).map(|file| format!("{message}-{file}")).collect();
            let files: BTreeMap<&str, &str> = names.iter().map(|name| (name.as_str(), "x")).collect();
            let body = json!({"template": "note", "data": {"text": "", "names": names}, "files": files});
            record_of(&message.to_string(), body.to_string())
        });
        assert_eq!(stage.handle(documents.collect()).await, [""; 0]);
        assert_eq!(stage.s3.keys(OUTPUT).len(), MESSAGES);
    });
}

#[test]
fn two_documents_with_the_same_title_have_different_ids() {
    run(async {
        let templates = Templates::with("#set document(title: \"Same\", author: \"Same\")\n#data.text");
        let mut stage = templates.stage().await;
        stage.handle(vec![record("a", "note", note("x")), record("b", "note", note("x"))]).await;
        let id = |message: &str| {
            let pdf = stage.pdf("note", message).unwrap();
            let text = String::from_utf8_lossy(&pdf).into_owned();
            text[text.rfind("/ID").expect("the trailer has an id")..].chars().take(80).collect::<String>()
        };
        assert_ne!(id("a"), id("b"));
    });
}
