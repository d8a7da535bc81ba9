//! The templates and events that pressrun comes with.

use std::fs;
use std::path::Path;

use crate::support::{Stage, config, real_templates, record, record_of, run};
use pressrun::config::Config;
use pressrun::function::deadline::Deadline;
use pressrun::function::event;
use pressrun::function::outcome::{Outcome, Stored};
use serde_json::{Value, json};

async fn stage() -> Stage {
    Stage::with(Config { templates_dir: real_templates(), ..config(2) }).await
}

async fn stored(stage: &mut Stage, records: Vec<Value>) -> Vec<Stored> {
    let records = event::parse(json!({"Records": records})).unwrap();
    let outcomes = stage.function.process_batch(records, Deadline::NONE).await;
    outcomes
        .into_iter()
        .map(|(record, outcome)| match outcome {
            Outcome::Stored(stored) => stored,
            failure => panic!("{}: {failure:?}", record.message_id),
        })
        .collect()
}

fn sample(template: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(real_templates().join(template).join("sample.json")).unwrap()).unwrap()
}

#[test]
fn every_sample_is_rendered_without_a_warning() {
    run(async {
        let mut stage = stage().await;
        let samples = ["invoice", "report", "statement"].map(|name| record(name, name, sample(name)));
        for stored in stored(&mut stage, samples.to_vec()).await {
            assert!(stored.warnings.is_empty(), "{}: {:?}", stored.key, stored.warnings);
        }
    });
}

#[test]
fn a_statement_of_a_thousand_rows_has_pages_for_them() {
    run(async {
        let mut stage = stage().await;
        let mut data = sample("statement");
        let row =
            |number: usize| json!({"date": "2026-03-02", "description": format!("Row {number}"), "amount": "1.05"});
        data["entries"] = (0..1000).map(row).collect();
        data["opening_balance"] = "0.10".into();
        // Sums are decimal: a thousand times 1.05 and a dime, to the cent.
        data["closing_balance"] = "1050.10".into();
        let pages = stored(&mut stage, vec![record("a", "statement", data.clone())]).await[0].pages;
        assert!((20..=30).contains(&pages), "{pages}");
        data["closing_balance"] = "1050.11".into();
        assert_eq!(stage.handle(vec![record("wrong", "statement", data)]).await, ["wrong"]);
    });
}

#[test]
fn values_that_look_like_markup_or_code_are_text() {
    run(async {
        let mut stage = stage().await;
        let mut data = sample("invoice");
        for (line, text) in
            ["#panic()", "$x$ *bold* _it_", "@label <label>", "../../etc/passwd", "= Heading"].iter().enumerate()
        {
            data["doc"]["lines"][line]["item"]["name"] = (*text).into();
        }
        assert_eq!(stored(&mut stage, vec![record("a", "invoice", data)]).await[0].pages, 1);
    });
}

#[test]
fn the_events_do_what_their_names_say() {
    run(async {
        let mut stage = stage().await;
        for (name, documents, failures) in
            [("batch", 5, 0), ("one-invoice", 1, 0), ("empty", 0, 0), ("fifo", 4, 0), ("partly-bad", 3, 2)]
        {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("events").join(name).with_extension("json");
            let event: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
            assert_eq!(event["Records"].as_array().unwrap().len(), documents, "{name}");
            let response = stage.function.handle(event, Deadline::NONE).await.unwrap();
            assert_eq!(response.batch_item_failures.len(), failures, "{name}");
        }
    });
}

/// What the message in README's deployment looks like.
#[test]
fn the_message_of_the_readme_is_one() {
    run(async {
        let mut stage = stage().await;
        let sample = fs::read_to_string(real_templates().join("invoice/sample.json")).unwrap();
        let body = format!(r#"{{"template": "invoice", "data": {sample}}}"#);
        assert_eq!(stage.handle(vec![record_of("a", body)]).await, [""; 0]);
    });
}
