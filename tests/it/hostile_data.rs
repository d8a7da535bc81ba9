//! Whatever the data are, a document becomes a PDF or fails for good with a reason that can be
//! read: it never crashes Typst, takes its run down, or fails for another reason next time.

use std::io::{self, Write};
use std::path::Path;
use std::{env, fs};

use crate::support::{Stage, beside_others, config, real_templates, record, record_of, run};
use pressrun::config::Config;
use pressrun::function::deadline::Deadline;
use pressrun::function::event;
use pressrun::function::outcome::{ErrorCode, Failure, Outcome};
use serde_json::{Value, json};

/// Names a folder of real invoices, GOBL envelopes, that are rendered and varied as the sample is.
const INVOICES: &str = "GOBL_INVOICES";
const BATCH_SIZE: usize = 100;
/// What documents in parts are divided by: of that there may be more than of all else.
const DIVIDED: [&str; 2] = ["/doc/lines", "/entries"];

async fn stage() -> Stage {
    Stage::with(Config { templates_dir: real_templates(), ..config(2) }).await
}

fn sample(template: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(real_templates().join(template).join("sample.json")).unwrap()).unwrap()
}

/// What is varied: a template's sample, and the real invoices if there are any.
fn originals(template: &str) -> Vec<(String, Value)> {
    let mut originals = vec![(template.to_owned(), sample(template))];
    if template == "invoice"
        && let Some(folder) = env::var_os(INVOICES)
    {
        originals.extend(invoices_in(Path::new(&folder)));
        assert!(originals.len() > 1, "{INVOICES} names a folder without invoices");
    }
    originals
}

/// The JSON files of a folder, by name.
fn invoices_in(folder: &Path) -> Vec<(String, Value)> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let json = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let name = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
    json.map(|path| (name(&path), serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap())).collect()
}

/// Sets documents in batches, and gives what failed and why.
async fn failures(stage: &mut Stage, documents: Vec<Value>) -> Vec<(String, Failure)> {
    let mut failures = Vec::new();
    for batch in documents.chunks(BATCH_SIZE) {
        let records = event::parse(json!({"Records": batch})).unwrap();
        for (record, outcome) in stage.function.process_batch(records, Deadline::NONE).await {
            match outcome {
                Outcome::Stored(_) => {}
                Outcome::PermanentFailure(failure) => failures.push((record.message_id, failure)),
                other => panic!("{}: {other:?}", record.message_id),
            }
        }
    }
    failures
}

/// The reason is one line that says where in the data or in the template.
fn assert_readable(id: &str, failure: &Failure) {
    let message = &failure.message;
    assert!(message.lines().count() == 1 && message.len() < 1500, "{id}: {message}");
    match failure.code {
        ErrorCode::InvalidData => {
            assert!(message.contains(": /") || message.contains(": at the top: "), "{id}: {message}");
        }
        ErrorCode::TypstError => {
            assert!(message.contains(".typ:") || message.contains(", on page "), "{id}: {message}");
        }
        code => panic!("{id}: {code}: {message}"),
    }
}

/// All places in a document, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    if !at.is_empty() {
        found.push(at.to_owned());
    }
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                places(member, &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        Value::Array(items) => {
            // One item shows what all of them can do.
            for (index, item) in items.iter().enumerate().take(1) {
                places(item, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

fn without(data: &Value, pointer: &str) -> Value {
    let mut data = data.clone();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match data.pointer_mut(parent).unwrap() {
        Value::Object(members) => drop(members.remove(&name.replace("~1", "/").replace("~0", "~"))),
        Value::Array(items) => drop(items.remove(name.parse().unwrap())),
        _ => unreachable!("has no members"),
    }
    data
}

fn with(data: &Value, pointer: &str, value: Value) -> Value {
    let mut data = data.clone();
    *data.pointer_mut(pointer).unwrap() = value;
    data
}

/// Sets variations of a template's data, some for each place in them.
async fn assert_all_are_borne(
    template: &str,
    vary: impl Fn(&Value, &str) -> Vec<(&'static str, Value)>,
) -> Vec<(String, Failure)> {
    let mut stage = stage().await;
    let mut all = Vec::new();
    for (name, data) in originals(template) {
        let mut pointers = Vec::new();
        places(&data, "", &mut pointers);
        let mut documents = Vec::new();
        for pointer in &pointers {
            for (how, data) in vary(&data, pointer) {
                documents.push(record(&format!("{name}{pointer} {how}"), template, data));
            }
        }
        let failures = failures(&mut stage, documents).await;
        for (id, failure) in &failures {
            assert_readable(id, failure);
        }
        all.extend(failures);
    }
    all
}

const TEMPLATES: [&str; 3] = ["invoice", "statement", "report"];

#[test]
fn a_field_that_is_not_there_is_borne() {
    run(async {
        for template in TEMPLATES {
            assert_all_are_borne(template, |data, pointer| vec![("removed", without(data, pointer))]).await;
        }
    });
}

#[test]
fn a_field_of_another_type_is_borne() {
    run(async {
        for template in TEMPLATES {
            let failures = assert_all_are_borne(template, |data, pointer| {
                let others = [
                    ("null", Value::Null),
                    ("true", json!(true)),
                    ("-1.5", json!(-1.5)),
                    ("7", json!("7")),
                    ("[]", json!([])),
                    ("[[]]", json!([[]])),
                    ("{}", json!({})),
                ];
                others.into_iter().map(|(how, value)| (how, with(data, pointer, value))).collect()
            });
            assert!(!failures.await.is_empty(), "{template} takes anything");
        }
    });
}

#[test]
fn text_of_every_kind_is_borne() {
    let texts: [(&str, &str); 10] = [
        ("empty", ""),
        ("emoji", "👩‍👩‍👧‍👦 🇬🇷"),
        ("right to left", "חשבונית فاتورة"),
        ("overrides", "\u{202e}abc\u{2066}def\u{200f}"),
        ("combining", "Z\u{351}\u{36b}\u{343}\u{36a}\u{302}a\u{489}"),
        ("nul", "a\u{0}b"),
        ("controls", "\u{1}\u{7f}\u{85}\u{9f}\u{fffe}"),
        ("lines", "a\n\n\nb\r\nc\u{2028}d\u{2029}e\u{b}f"),
        ("markup", "#panic() $x$ @label <label> *b* _i_ = h // /* \\ ` ``` [ ] { }"),
        ("no spaces", "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"),
    ];
    run(async {
        for template in TEMPLATES {
            assert_all_are_borne(template, |data, pointer| {
                let is_text = data.pointer(pointer).is_some_and(Value::is_string);
                let texts = texts.iter().filter(|_| is_text);
                texts.map(|(how, text)| (*how, with(data, pointer, (*text).into()))).collect()
            })
            .await;
        }
    });
}

#[test]
fn what_is_absurdly_large_is_never_printed() {
    run(async {
        let mut stage = stage().await;
        for template in TEMPLATES {
            let data = sample(template);
            let mut pointers = Vec::new();
            places(&data, "", &mut pointers);
            let mut documents = Vec::new();
            for pointer in &pointers {
                match data.pointer(pointer).unwrap() {
                    Value::String(_) => documents.push((pointer, with(&data, pointer, "x".repeat(1_000_000).into()))),
                    Value::Array(items) if !items.is_empty() => {
                        let too_many = if DIVIDED.contains(&&**pointer) { 200_001 } else { 50_000 };
                        documents.push((pointer, with(&data, pointer, vec![items[0].clone(); too_many].into())));
                    }
                    _ => {}
                }
            }
            let pages = pages(&mut stage, template, data.clone()).await.expect("the sample is set");
            // One after the other: they are large.
            for (pointer, data) in documents {
                match self::pages(&mut stage, template, data).await {
                    Ok(as_many) => assert_eq!(as_many, pages, "{template}{pointer} is printed, however large"),
                    Err(failure) => {
                        assert_readable(pointer, &failure);
                        assert_eq!(failure.code, ErrorCode::InvalidData, "{template}{pointer}: {}", failure.message);
                    }
                }
            }
        }
    });
}

async fn pages(stage: &mut Stage, template: &str, data: Value) -> Result<usize, Failure> {
    let records = event::parse(json!({"Records": [record("large", template, data)]})).unwrap();
    match stage.function.process_batch(records, Deadline::NONE).await.remove(0).1 {
        Outcome::Stored(stored) => Ok(stored.pages),
        Outcome::PermanentFailure(failure) => Err(failure),
        other => panic!("{other:?}"),
    }
}

#[test]
fn json_that_is_no_data_is_refused() {
    run(async {
        let mut stage = stage().await;
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        for template in TEMPLATES {
            for (how, data) in [
                ("null", "null".to_owned()),
                ("a number", "1e999".to_owned()),
                ("an array", "[]".to_owned()),
                ("a lone surrogate", r#"{"doc": "\ud800"}"#.to_owned()),
                ("nested to the limit", nested(127)),
                ("nested beyond", nested(129)),
                ("nested without end", nested(100_000)),
            ] {
                let body = format!(r#"{{"template": "{template}", "data": {data}}}"#);
                let failed = failures(&mut stage, vec![record_of(how, body)]).await;
                let (_, failure) = failed.first().unwrap_or_else(|| panic!("{template}: {how} was rendered"));
                assert!(
                    matches!(failure.code, ErrorCode::InvalidData | ErrorCode::InvalidMessage),
                    "{how}: {failure:?}"
                );
                assert!(
                    failure.message.lines().count() == 1 && failure.message.len() < 1500,
                    "{how}: {}",
                    failure.message
                );
            }
        }
    });
}

/// Renders invoices, each of which has to become a PDF without a warning.
async fn assert_rendered_without_a_warning(invoices: Vec<(String, Value)>) {
    let mut stage = stage().await;
    let documents: Vec<Value> = invoices.into_iter().map(|(name, data)| record(&name, "invoice", data)).collect();
    let records = event::parse(json!({"Records": documents})).unwrap();
    for (record, outcome) in stage.function.process_batch(records, Deadline::NONE).await {
        match outcome {
            Outcome::Stored(stored) => {
                assert!(stored.warnings.is_empty(), "{}: {:?}", record.message_id, stored.warnings);
            }
            failure => panic!("{}: {failure:?}", record.message_id),
        }
    }
}

#[test]
fn every_kind_of_invoice_is_rendered_without_a_warning() {
    run(async {
        let invoices = invoices_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/invoices"));
        assert!(invoices.len() > 15, "{}", invoices.len());
        assert_rendered_without_a_warning(invoices).await;
    });
}

#[test]
fn real_invoices_are_rendered_without_a_warning() {
    if env::var_os(INVOICES).is_none() {
        let _beside_others = beside_others();
        // Not by a macro, whose output the test harness keeps to itself.
        let said = format!("skipped: real_invoices_are_rendered_without_a_warning, since {INVOICES} names no folder\n");
        io::stderr().write_all(said.as_bytes()).unwrap();
        return;
    }
    run(async {
        assert_rendered_without_a_warning(originals("invoice")).await;
    });
}
