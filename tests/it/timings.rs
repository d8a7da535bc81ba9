//! The timings of a slow document are stored beside its PDF, and no document is worse off for that.
//!
//! What memory there is depends on what this process has, so the tests take turns.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::Duration;

use crate::support::embedded::s3::Fault;
use crate::support::{OUTPUT, Stage, config, letter, letter_to, log, received, record, run_alone};
use flate2::read::GzDecoder;
use pressrun::config::Config;
use serde_json::{Value, json};

/// What is longer than any document takes.
const NEVER: Duration = Duration::from_hours(1);

fn recording(slower_than: Duration) -> Config {
    Config { timings_slower_than: Some(slower_than), ..config(1) }
}

/// A function to which every document is slow.
async fn stage() -> Stage {
    Stage::with(recording(Duration::ZERO)).await
}

/// Returns the timings' JSON, of a message that did not choose its key.
fn json_of_timings(stage: &Stage, template: &str, message_id: &str) -> Option<String> {
    let object = stage.s3.object(OUTPUT, &format!("{template}/{message_id}.pdf.timings.json.gz"))?;
    let mut json = String::new();
    GzDecoder::new(&object.body[..]).read_to_string(&mut json).unwrap();
    Some(json)
}

/// Returns the events of the timings, each of which has begun and ended.
fn events(stage: &Stage, template: &str, message_id: &str) -> Vec<Value> {
    let events: Vec<Value> = serde_json::from_str(&json_of_timings(stage, template, message_id).unwrap()).unwrap();
    let mut open: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for event in &events {
        let thread = open.entry(event["tid"].as_u64().unwrap()).or_default();
        let name = event["name"].as_str().unwrap();
        match event["ph"].as_str() {
            Some("B") => thread.push(name),
            Some("E") => assert_eq!(thread.pop(), Some(name)),
            other => panic!("{other:?}"),
        }
    }
    assert!(open.values().all(Vec::is_empty), "{open:?}");
    events
}

/// The files that events have happened in.
fn files(events: &[Value]) -> BTreeSet<&str> {
    events.iter().filter_map(|event| event["args"]["file"].as_str()).filter(|file| *file != "unknown").collect()
}

#[test]
fn the_timings_of_a_slow_document_are_stored_beside_its_pdf() {
    run_alone(async {
        let mut stage = stage().await;
        assert_eq!(stage.handle(vec![letter("a")]).await, [""; 0]);
        assert_eq!(stage.s3.requests(), ["PUT output/letter/a.pdf", "PUT output/letter/a.pdf.timings.json.gz"]);
        assert!(stage.pdf("letter", "a").is_some());
        let timings = stage.s3.object(OUTPUT, "letter/a.pdf.timings.json.gz").unwrap();
        assert_eq!(timings.content_type.as_deref(), Some("application/gzip"));
        assert_eq!((timings.metadata["message-id"].as_str(), timings.metadata["template"].as_str()), ("a", "letter"));

        let events = events(&stage, "letter", "a");
        assert_eq!(files(&events), BTreeSet::from(["letter/main.typ"]));
        let lorem = json!({"file": "letter/main.typ", "line": 5});
        assert!(events.iter().any(|event| event["name"] == "func call" && event["args"] == lorem));
        let said = log::take("slow");
        assert_eq!(said.len(), 1, "{said:?}");
        for part in ["INFO", "messageId=\"a\"", "template=\"letter\"", "milliseconds=", "letter/a.pdf.timings.json.gz"]
        {
            assert!(said[0].contains(part), "{part}: {}", said[0]);
        }
    });
}

#[test]
fn timings_have_no_value_of_the_data() {
    run_alone(async {
        let mut stage = stage().await;
        assert_eq!(stage.handle(vec![record("a", "letter", json!({"to": "Zaphod Beeblebrox"}))]).await, [""; 0]);
        let json = json_of_timings(&stage, "letter", "a").unwrap();
        assert!(json.contains("letter/main.typ"));
        assert!(!json.contains("Zaphod") && !json.contains("Beeblebrox"), "{json}");
    });
}

#[test]
fn a_fast_document_leaves_none() {
    run_alone(async {
        for config in [config(1), recording(NEVER)] {
            let mut stage = Stage::with(config).await;
            assert_eq!(stage.handle(vec![letter("a")]).await, [""; 0]);
            assert_eq!(stage.s3.keys(OUTPUT), ["letter/a.pdf"]);
            assert_eq!(log::take("slow"), [""; 0]);
        }
    });
}

#[test]
fn the_same_bytes_are_stored_with_and_without_timings() {
    run_alone(async {
        let mut recorded = stage().await;
        let mut plain = Stage::with_workers(1).await;
        let long = || record("a", "long", json!({"sections": 12, "paragraphs": 3}));
        assert_eq!(recorded.handle(vec![long()]).await, plain.handle(vec![long()]).await);
        assert_eq!(recorded.pdf("long", "a").unwrap(), plain.pdf("long", "a").unwrap());
    });
}

#[test]
fn timings_have_nothing_of_the_documents_before() {
    run_alone(async {
        let mut stage = stage().await;
        // In one press, and so in one run but for what comes after the panic.
        let failed = stage
            .handle(vec![
                record("long", "long", json!({"sections": 3, "paragraphs": 3})),
                letter("after-long"),
                record("bad", "broken-at-line-3", json!({"broken": true})),
                letter("after-bad"),
                record("panics", "panic", json!({"rows": i64::MAX})),
                letter("after-panic"),
            ])
            .await;
        assert!(failed.contains(&"bad".to_owned()) && failed.contains(&"panics".to_owned()), "{failed:?}");
        assert_eq!(files(&events(&stage, "long", "long")), BTreeSet::from(["long/main.typ"]));
        for id in ["after-long", "after-bad", "after-panic"] {
            assert_eq!(files(&events(&stage, "letter", id)), BTreeSet::from(["letter/main.typ"]), "{id}");
        }
        assert_eq!(stage.s3.keys(OUTPUT).len(), 8, "failed documents have neither");
    });
}

#[test]
fn a_document_does_not_fail_for_the_memory_of_its_timings() {
    run_alone(async {
        let config = Stage::config_with_memory(1, 200).await;
        let mut stage = Stage::with(Config { timings_slower_than: Some(Duration::ZERO), ..config }).await;
        let large = |id: &str, calls| record(id, "calls", json!({"calls": calls, "megabytes": 60}));
        assert_eq!(stage.handle(vec![large("few", 1), large("many", 700_000)]).await, [""; 0], "{:?}", log::take(""));
        assert!(stage.pdf("calls", "few").is_some() && stage.pdf("calls", "many").is_some());
        assert!(json_of_timings(&stage, "calls", "few").is_some());
        assert_eq!(json_of_timings(&stage, "calls", "many"), None, "rendered again without");
    });
}

#[test]
fn a_document_is_stored_whatever_becomes_of_its_timings() {
    run_alone(async {
        let mut stage = stage().await;
        let long_key = format!("{}.pdf", "k".repeat(1020));
        for fault in [Fault::AccessDenied, Fault::InternalError, Fault::NoSuchBucket] {
            stage.s3.answer_all(".timings.json.gz", Some(fault));
            assert_eq!(stage.handle(vec![letter("a")]).await, [""; 0], "{fault:?}");
            assert!(stage.pdf("letter", "a").is_some());
            let said = log::take("slow, and its timings could not be stored");
            assert!(said.len() == 1 && said[0].contains("WARN") && said[0].contains("reason="), "{said:?}");
        }
        stage.s3.answer_all(".timings.json.gz", None);
        // With its suffix it is longer than S3 allows.
        assert_eq!(stage.handle(vec![letter_to("b", &long_key)]).await, [""; 0]);
        assert_eq!(log::take("slow, and its timings could not be stored").len(), 1);
        assert_eq!(stage.s3.keys(OUTPUT), [long_key, "letter/a.pdf".to_owned()]);
    });
}

#[test]
fn a_document_that_is_not_rendered_has_no_timings() {
    run_alone(async {
        let mut stage = stage().await;
        stage.handle(vec![letter("a")]).await;
        stage.s3.remove(OUTPUT, "letter/a.pdf.timings.json.gz");
        assert_eq!(stage.handle(vec![received(2, letter("a"))]).await, [""; 0]);
        assert_eq!(stage.s3.keys(OUTPUT), ["letter/a.pdf"]);
    });
}
