//! What people already have works: ordinary Typst projects, with and without a manifest, with sources in folders,
//! lists of fonts, and what other programs leave beside them. What cannot be printed as it is meant is an error.

use std::fs;
use std::time::Duration;

use crate::support::templates::{Templates, note, outcome};
use crate::support::{INPUT, OUTPUT, embedded::s3::EmbeddedS3, log, record_of, run};
use pressrun::config::Config;
use pressrun::function::Function;
use pressrun::function::outcome::Outcome;
use pressrun::render::{Renderer, pool};
use serde_json::json;

const READS: &str = "#let data = json(sys.inputs.at(\"data\", default: \"/sample.json\"))\n";

/// The warnings of the template's own sample.
fn warnings_of_sample(templates: &Templates) -> Vec<String> {
    let renderer = Renderer::load(&templates.path("")).unwrap();
    let sample = renderer.sample("note").unwrap();
    let pdf = pool::on_fixed_pool(1, || renderer.render(sample)).unwrap().unwrap();
    pdf.warnings.iter().map(ToString::to_string).collect()
}

/// A template that fails for every text but its sample's and those that have this width.
fn as_wide_as(expected: &str) -> Templates {
    Templates::with(&format!(
        "#if data.text != \"sample\" {{ context assert.eq(measure(data.text).width, measure(\"{expected}\").width) }}"
    ))
}

#[test]
fn a_template_reads_its_data_from_any_of_its_folders() {
    run(async {
        let templates = Templates::with("")
            .and("note/typst.toml", "[package]\nentrypoint = \"src/main.typ\"\n")
            .and("note/src/main.typ", format!("{READS}#include \"parts/body.typ\"\n#image(\"/logo.svg\")\n#data.text"))
            .and("note/src/parts/body.typ", format!("{READS}#assert.eq(data.text.len(), 6)"))
            .and("note/logo.svg", "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"9\" height=\"9\"/>");
        assert!(templates.stored(note("abcdef")).await.warnings.is_empty());
        let failure = templates.failure(note("abc")).await;
        assert!(failure.message.contains("note/src/parts/body.typ:2:"), "{}", failure.message);
    });
}

#[test]
fn no_file_of_a_template_is_taken_for_the_data() {
    run(async {
        let templates = Templates::with("#assert.eq(json(\"data.json\").text, \"own\")\n#data.text")
            .and("note/data.json", "{\"text\": \"own\"}");
        assert!(templates.stored(note("x")).await.warnings.is_empty());
    });
}

#[test]
fn a_template_that_never_reads_its_data_is_told_so() {
    run(async {
        let templates = Templates::with("")
            .and("note/main.typ", "#json(\"data.json\").text")
            .and("note/data.json", "{\"text\": \"own\"}");
        let warnings = warnings_of_sample(&templates);
        assert!(
            warnings.len() == 1 && warnings[0].starts_with("warning: the template does not read the data: every"),
            "{warnings:?}"
        );
        assert_eq!(warnings_of_sample(&Templates::with("#data.text")), [""; 0]);
        assert!(templates.stored(note("x")).await.warnings.is_empty(), "told at init, and not for each document");
    });
}

#[test]
fn a_folder_with_a_typst_file_and_a_sample_is_a_template() {
    run(async {
        for manifest in [None, Some(""), Some("[package]\n"), Some("\u{feff}[tool.pressrun]\ntagged = false\n")] {
            let templates = Templates::with("#data.text").and("note/sample.json", "\u{feff}{\"text\": \"sample\"}");
            match manifest {
                Some(manifest) => templates.write("note/typst.toml", manifest),
                None => fs::remove_file(templates.path("note/typst.toml")).unwrap(),
            }
            assert!(templates.stored(note("x")).await.warnings.is_empty(), "{manifest:?}");
        }
        let with_schema = Templates::with("#data.text").and("note/schema.json", "{\"required\": [\"sum\"]}");
        fs::remove_file(with_schema.path("note/typst.toml")).unwrap();
        assert!(with_schema.refused().await.contains("\"sum\" is a required property"), "the schema is used");
    });
}

#[test]
fn what_other_programs_leave_beside_templates_is_skipped_with_a_word() {
    run(async {
        let templates = Templates::with("#data.text")
            .and("node_modules/some/main.typ", "x")
            .and("__MACOSX/note/._main.typ", "x")
            .and("pictures/logo.svg", "x")
            .and("fonts/Inter.woff2", "x")
            .and("note/Inter.WOFF", "x");
        assert!(templates.stored(note("x")).await.warnings.is_empty());
        let renderer = Renderer::load(&templates.path("")).unwrap();
        let unused = renderer.unused();
        for (file, reason) in [
            ("/node_modules: ", "skipped, it is another program's"),
            ("/__MACOSX: ", "skipped, it is another program's"),
            ("/pictures: ", "skipped, it is no template: it has neither a typst.toml nor a .typ file"),
            ("/fonts/Inter.woff2: ", "Typst does not know fonts of the kind WOFF2; convert it to .ttf"),
            ("/note/Inter.WOFF: ", "Typst does not know fonts of the kind WOFF; convert it to .ttf"),
        ] {
            assert!(unused.iter().any(|told| told.contains(file) && told.contains(reason)), "{file}: {unused:?}");
        }
        assert_eq!(unused.len(), 5);
    });
}

#[test]
fn init_logs_what_is_not_used_and_what_is_not_read() {
    run(async {
        let templates = Templates::with("").and("note/main.typ", "the same for all").and("pictures/logo.svg", "x");
        let stage = templates.stage().await;
        stage.function.stop().await;
        let logged = log::take("WARN").join("\n");
        assert!(logged.contains("/pictures: skipped, it is no template"), "{logged}");
        assert!(logged.contains("template note: its sample.json: warning: the template does not read"), "{logged}");
    });
}

#[test]
fn a_half_done_template_blocks_only_itself_where_others_are_asked_for() {
    run(async {
        let templates = Templates::with("#data.text").and("half/main.typ", "#x").and("other/typst.toml", "[");
        assert!(templates.refused().await.contains("other/typst.toml"), "at a deployment it stops init");
        let asked_for = |name: &str| Config { only_templates: vec![name.to_owned()], ..templates.config() };
        let s3 = EmbeddedS3::start(&[OUTPUT]);
        let function = Function::start(asked_for("note"), s3.client()).await.expect("the template is whole");
        function.stop().await;
        let error = Function::start(asked_for("half"), s3.client()).await.err().unwrap().to_string();
        assert!(error.contains("half/main.typ") || error.contains("half/sample.json"), "{error}");
        let error = Function::start(asked_for("nowhere"), s3.client()).await.err().unwrap().to_string();
        assert!(error.contains("there is no template \"nowhere\"; there are: half, note, other"), "{error}");
    });
}

#[test]
fn an_init_near_the_limit_of_lambda_is_an_error_that_names_the_template() {
    run(async {
        let templates = Templates::with("#data.text");
        let config = Config { max_init_time: Some(Duration::from_millis(1)), ..templates.config() };
        let error = Function::start(config, EmbeddedS3::start(&[OUTPUT]).client()).await.err().unwrap().to_string();
        assert!(
            error.starts_with("init took ") && error.contains("Lambda gives it 10 s: the samples took note "),
            "{error}"
        );
    });
}

#[test]
fn a_family_that_is_not_there_is_no_matter_if_another_of_its_list_is() {
    run(async {
        let text = "#if data.text != \"sample\"";
        for body in [
            format!("{text} {{ text(font: (\"Liberation Sans\", \"Libertinus Serif\"))[x] }}"),
            format!("#let fonts = (\"Liberation Sans\", \"Libertinus Serif\")\n{text} {{ text(font: fonts)[x] }}"),
            format!(
                "#let theme = (main: (\"Liberation Sans\", \"Libertinus Serif\"))\n{text} {{ text(font: theme.main)[x] }}"
            ),
            format!(
                "#let doc(body, font: (\"Liberation Sans\", (name: \"Libertinus Serif\", covers: \"latin-in-cjk\"))) = \
                 {{ set text(font: font)\nbody }}\n{text} [#show: doc\nx]"
            ),
        ] {
            let stored = Templates::with(&body).stored(note("x")).await;
            assert!(stored.warnings.is_empty(), "{body}: {:?}", stored.warnings);
        }
        for body in [
            format!("{text} {{ text(font: (\"Liberation Sans\", \"Arial\"))[x] }}"),
            format!("#let fonts = (\"Liberation Sans\", \"Arial\")\n{text} {{ text(font: fonts)[x] }}"),
            format!("{text} {{ text(font: \"Arial\")[Libertinus Serif, \"Libertinus Serif\"] }}"),
        ] {
            let failure = Templates::with(&body).failure(note("x")).await;
            assert!(failure.message.contains("unknown font family: "), "{}", failure.message);
            assert_eq!(failure.diagnostics.len(), 1, "one for each list: {:?}", failure.diagnostics);
            let allowed = Templates::with(&body).and_section("allow-missing-fonts = true").stored(note("x")).await;
            assert!(!allowed.warnings.is_empty());
        }
        let told = warnings_of_sample(&Templates::with(
            "#set text(font: (\"Liberation Sans\", \"Libertinus Serif\"))\n#data.text",
        ));
        assert!(
            told[0].contains("unknown font family: liberation sans (hint: another font of the list is there"),
            "{told:?}"
        );
    });
}

#[test]
fn a_script_that_only_a_font_for_equations_has_is_an_error_that_names_the_font_to_add() {
    run(async {
        let templates = Templates::with("#data.text $ x^2 in RR $ and $sum_(i=1)^n a_i$ → ✓ ∑");
        for (text, font) in [
            ("हिन्दी प्रकाशन", "Noto Sans Devanagari (Debian's package fonts-noto-core)"),
            ("বাংলা", "Noto Sans Bengali (Debian's package fonts-noto-core)"),
            ("ภาษาไทย", "Noto Sans Thai (Debian's package fonts-noto-core)"),
            ("தமிழ்", "Noto Sans Tamil (Debian's package fonts-noto-core)"),
            ("東京", "Noto Sans CJK SC (Debian's package fonts-noto-cjk)"),
            ("カタカナ", "Noto Sans CJK JP (Debian's package fonts-noto-cjk)"),
            ("한국어", "Noto Sans CJK KR (Debian's package fonts-noto-cjk)"),
            ("👍", "Noto Color Emoji (Debian's package fonts-noto-color-emoji)"),
        ] {
            let failure = templates.failure(note(text)).await;
            assert!(failure.message.contains(&format!("hint: add {font} to ")), "{text}: {}", failure.message);
        }
        let stored = templates.stored(note("Zürich Ελλάδα Москва שלום → ≤")).await;
        assert!(stored.warnings.is_empty(), "{:?}", stored.warnings);
        let arabic = templates.stored(note("السلام")).await;
        assert!(arabic.warnings[0].hints[0].starts_with("add Noto Naskh Arabic ("), "{:?}", arabic.warnings);
    });
}

#[test]
fn a_tab_is_printed_as_a_space() {
    run(async {
        for (text, as_wide) in
            [("17\t42", "17 42"), ("17\u{3164}42", "17 42"), ("17\u{ffa0}42", "17 42"), ("17 42", "17 42")]
        {
            let stored = as_wide_as(as_wide).stored(note(text)).await;
            assert!(stored.warnings.is_empty(), "{text:?}: {:?}", stored.warnings);
        }
        // Data that a template takes apart are as they were.
        let taken_apart =
            Templates::with("#if data.text != \"sample\" { assert.eq(data.text.split(\"\\t\").len(), 2) }");
        taken_apart.stored(note("17\t42")).await;
    });
}

#[test]
fn a_character_that_would_vanish_is_an_error() {
    run(async {
        for (text, named) in [("17\u{7f}42", "U+007F"), ("17\u{115f}42", "U+115F"), ("17\u{1160}42", "U+1160")] {
            let failure = Templates::with("#data.text").failure(note(text)).await;
            assert!(
                failure.message.contains(&format!("nothing is printed for {named}"))
                    || failure.message.contains(&format!(
                        "nothing is printed for \"{}\" ({named})",
                        text.replace(['1', '2', '4', '7'], "")
                    )),
                "{text:?}: {}",
                failure.message
            );
            assert!(failure.message.contains("the data have them at /text"), "{}", failure.message);
        }
    });
}

#[test]
fn text_in_a_picture_that_is_not_drawn_is_an_error() {
    run(async {
        let svg =
            |inner: &str| format!("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"99\" height=\"99\">{inner}</svg>");
        let foreign = svg(
            "<foreignObject width=\"99\" height=\"99\"><p xmlns=\"http://www.w3.org/1999/xhtml\">x</p></foreignObject>",
        );
        let text = |text: &str| svg(&format!("<text y=\"20\" font-family=\"Arial\">{text}</text>"));
        let templates = Templates::with("#data.text #image(\"/files/p.svg\")").and("note/files/p.svg", text("sample"));
        let mut stage = templates.stage().await;
        let message = json!({"template": "note", "data": note("x"), "files": {"p.svg": "p.svg"}}).to_string();
        for (picture, expected) in [
            (foreign, "image contains foreign object"),
            (text("東京"), "no font has 2 characters of the script Han, which a picture has as text"),
        ] {
            stage.s3.put(INPUT, "p.svg", picture);
            let Outcome::PermanentFailure(failure) = outcome(&mut stage, record_of("m", message.clone())).await else {
                panic!("{expected}")
            };
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
        stage.s3.put(INPUT, "p.svg", text("Zürich"));
        assert!(matches!(outcome(&mut stage, record_of("n", message)).await, Outcome::Stored(_)));
    });
}
