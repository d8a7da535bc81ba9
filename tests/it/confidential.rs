//! What a message brings, its data and its files, stays out of errors and so out of the log, however Typst or a
//! template quotes it; and what Typst says itself stays whole.

use crate::support::templates::{Templates, outcome};
use crate::support::{INPUT, Stage, log, record_of, run};
use pressrun::function::outcome::{Failure, Outcome};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

/// How many markers are planted in each kind of file.
const MARKERS: usize = 3;

/// Every way in which a template reads a file, with a file that makes Typst quote it. `MARKER` stands for what is
/// secret.
const QUOTES: [(&str, &str, &str); 30] = [
    ("csv", "csv(file)", "name,sum\nMARKER,1,2\n"),
    ("csv quoted", "csv(file)", "name,sum\n\"MARKER\",1,2\n"),
    ("csv keys", "csv(file, row-type: dictionary).at(0).nowhere", "MARKER,sum\n1,2\n"),
    ("json", "json(file)", "{\"MARKER\": MARKER}"),
    ("json number", "json(file)", "{\"a\": \"MARKER\" 1}"),
    ("json key", "json(file).nowhere", "{\"MARKER\": 1}"),
    ("json type", "1 + json(file)", "\"MARKER\""),
    ("xml tag", "xml(file)", "<a><MARKER></b></a>"),
    ("xml attribute", "xml(file)", "<a MARKER='1' MARKER='2'/>"),
    ("xml entity", "xml(file)", "<a>&MARKER;</a>"),
    ("xml namespace", "xml(file)", "<MARKER:a/>"),
    ("yaml", "yaml(file)", "a: MARKER\n  b: [MARKER\n"),
    ("yaml alias", "yaml(file)", "a: *MARKER\n"),
    ("toml", "toml(file)", "MARKER = MARKER\n"),
    ("toml key", "toml(file)", "MARKER = 1\nMARKER = 2\n"),
    ("svg", "image(file, format: \"svg\")", "<svg><MARKER></svg>"),
    ("png", "image(file, format: \"png\")", "MARKER"),
    ("picture", "image(file)", "MARKER"),
    ("panic", "panic(read(file))", "MARKER"),
    ("panic with words", "panic(\"cannot use\", read(file), csv(file))", "so MARKER, and more"),
    ("panic with a part", "panic(read(file).slice(1))", "MARKER"),
    ("panic with a change", "panic(upper(read(file)) + lower(read(file)) + read(file).rev())", "MARKER"),
    ("panic in content", "panic([secret: #read(file)])", "MARKER"),
    ("panic with bytes", "panic(array(read(file, encoding: none)))", "MARKER"),
    ("assert", "assert(false, message: \"not \" + read(file))", "MARKER"),
    ("assert equal", "assert.eq(read(file), \"x\")", "MARKER"),
    ("number", "int(read(file))", "MARKER"),
    ("key", "(a: 1).at(read(file))", "MARKER"),
    ("code", "eval(read(file))", "MARKER + MARKER.x"),
    ("path", "read(\"/files/\" + read(file))", "MARKER"),
];

/// A template that reads the file `x` in the way that its data name.
fn reader() -> Templates {
    let acts = QUOTES.map(|(name, act, _)| format!("if act == \"{name}\" {{ [#{{ {act} }}] }}")).join("\n");
    Templates::with(&format!("#let file = \"/files/x\"\n#let act = data.at(\"act\", default: none)\n#{{\n{acts}\n}}"))
}

async fn failure(stage: &mut Stage, act: &str, content: &str, data: Value) -> Failure {
    stage.s3.put(INPUT, "x", content.to_owned());
    let data = json!({"act": act, "text": "x", "more": data});
    let body = json!({"template": "note", "data": data, "files": {"x": "x"}}).to_string();
    match outcome(stage, record_of("m", body)).await {
        Outcome::PermanentFailure(failure) => failure,
        other => panic!("{act}: {other:?}"),
    }
}

/// Everything that has been logged, and may be logged, of a failure.
fn said(failure: &Failure) -> String {
    format!("{} {failure:?} {}", failure.message, log::take("").join("\n"))
}

/// Whether a text has a part of the marker, in whatever case, forwards, backwards or as bytes.
fn has_part_of(said: &str, marker: &str) -> bool {
    let said = said.to_lowercase();
    let backwards: String = marker.chars().rev().collect();
    let bytes: Vec<String> = marker.bytes().take(3).map(|byte| byte.to_string()).collect();
    let parts = |text: &str| -> Vec<String> {
        text.as_bytes().windows(4).map(|part| String::from_utf8_lossy(part).to_lowercase()).collect()
    };
    parts(marker).iter().chain(&parts(&backwards)).any(|part| said.contains(part.as_str()))
        || said.contains(&bytes.join(", "))
}

#[test]
fn no_byte_of_a_file_is_quoted_in_whatever_way_it_is_read() {
    run(async {
        let templates = reader();
        let mut stage = templates.stage().await;
        let mut runner = TestRunner::deterministic();
        let marker = prop_oneof!["[q-z]{6}[0-9]{3}[Q-Z]{2}", "Q[xyz]{4}[0-9]_[vw]{9}", "[xyz]{7}[öüß][0-9]{4}q"];
        for (name, _, content) in QUOTES {
            for _ in 0..MARKERS {
                let marker = marker.new_tree(&mut runner).unwrap().current();
                let ascii: String = marker.chars().filter(char::is_ascii).collect();
                let failure = failure(&mut stage, name, &content.replace("MARKER", &marker), json!(null)).await;
                let said = said(&failure);
                assert!(!has_part_of(&said, &ascii), "{name}: {marker} is in {said}");
                assert!(said.contains("note/main.typ") || said.contains("files/x"), "{name}: no place in {said}");
            }
        }
    });
}

#[test]
fn no_value_of_the_data_is_quoted_however_a_template_changes_it() {
    run(async {
        let body = "#let act = data.at(\"act\", default: none)\n#let secret = data.text\n#{\n\
            if act == \"panic\" { panic(\"cannot use\", upper(secret), secret.slice(2), data) }\n\
            if act == \"assert\" { assert(false, message: secret.rev()) }\n\
            if act == \"code\" { eval(secret) }\n\
            if act == \"family\" { text(font: secret)[x] }\n\
            if act == \"label\" { ref(label(secret)) }\n\
            if act == \"number\" { float(secret) }\n\
            if act == \"date\" { datetime.today().display(\"[\" + secret + \"]\") }\n\
            if act == \"regex\" { regex(\"(\" + secret) }\n\
            if act == \"key\" { data.at(secret) }\n\
            if act == \"path\" { read(secret) }\n\
            if act == \"package\" { eval(\"import \\\"@preview/\" + secret + \":1.0.0\\\"\") }\n}";
        let mut stage = Templates::with(body).stage().await;
        for act in ["panic", "assert", "code", "family", "label", "number", "date", "regex", "key", "path", "package"] {
            for marker in ["zyxwvq", "qZvwxq123", "Qxyzzyv_77"] {
                let data = json!({"act": act, "text": marker, "again": [marker]});
                let body = json!({"template": "note", "data": data}).to_string();
                match outcome(&mut stage, record_of("m", body)).await {
                    Outcome::PermanentFailure(failure) => {
                        assert!(!has_part_of(&said(&failure), marker), "{act}: {}", said(&failure));
                    }
                    other => panic!("{act}: {other:?}"),
                }
            }
        }
    });
}

#[test]
fn characters_of_a_file_are_counted_and_not_told() {
    run(async {
        let mut stage = Templates::with("#if data.text != \"sample\" { read(\"/files/x\") }").stage().await;
        let body = json!({"template": "note", "data": {"text": "京"}, "files": {"x": "x"}}).to_string();
        stage.s3.put(INPUT, "x", "東京 ب");
        let Outcome::PermanentFailure(failure) = outcome(&mut stage, record_of("m", body)).await else {
            panic!("it has been rendered")
        };
        let said = said(&failure);
        assert!(
            said.contains("no font has \"京\" (U+4EAC) and 1 character of the script Han (hint: add Noto Sans CJK")
        );
        assert!(said.contains("none of its fonts has 1 character of the script Arabic"), "{said}");
        assert!(!said.contains('東') && !said.contains("6771") && !said.contains('ب'), "{said}");
    });
}

#[test]
fn what_typst_says_itself_stays_whole_whatever_the_data_are() {
    run(async {
        let words = json!(["file", "not found", "failed", "message", "files", "found", "fields", "line", "expected"]);
        let templates = reader();
        let mut stage = templates.stage().await;
        for (act, content, expected) in [
            ("csv", "a,b\n1,2,3\n", "failed to parse CSV (found 3 instead of 2 fields in line 2)"),
            ("json", "{", "failed to parse JSON (EOF while parsing an object"),
            ("json key", "{\"a\": 1}", "dictionary does not contain key \"nowhere\""),
            ("xml tag", "<a>", "failed to parse XML ("),
            ("picture", "x", "unknown image format"),
            ("number", "x", "string contains invalid digits"),
            ("path", "nothing", "failed to load file (the message's files have no \"<redacted>\"; there are: x)"),
        ] {
            let failure = failure(&mut stage, act, content, words.clone()).await;
            assert!(failure.message.contains(expected), "{act}: {}", failure.message);
        }
        let templates = Templates::with("#if data.text != \"sample\" { read(\"nowhere.csv\") }");
        let failure = templates.failure(json!({"text": "file", "type": "searched at", "x": "nowhere"})).await;
        assert!(failure.message.contains("error: file not found (searched at nowhere.csv)"), "{}", failure.message);
    });
}
