//! The templates and events that pressrun comes with.

use std::fs;
use std::path::Path;

use crate::support::templates::{Templates, copy_folder};
use crate::support::{Stage, config, real_templates, record, record_of, run};
use pressrun::config::Config;
use pressrun::function::deadline::Deadline;
use pressrun::function::event;
use pressrun::function::outcome::{Outcome, Stored};
use pressrun::render::{Document, Renderer, pool};
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

/// The shipped templates, of which one has smaller parts.
fn with_parts_of(template: &str, size: usize) -> Templates {
    let templates = Templates::with("#data.text");
    copy_folder(&real_templates(), &templates.path(""));
    let path = format!("{template}/typst.toml");
    let manifest = fs::read_to_string(templates.path(&path)).unwrap();
    let smaller = manifest.replace("size = 2000", &format!("size = {size}"));
    assert_ne!(manifest, smaller);
    templates.and(&path, smaller)
}

/// What a document says when it is rendered whole, and what each part of it says when it is rendered in three.
fn words_of(templates: &Templates, template: &str, data: &Value) -> (String, Vec<String>) {
    templates.write(&format!("{template}/sample.json"), data.to_string());
    let renderer = Renderer::load_only(&templates.path(""), &[template.to_owned()]).unwrap();
    let words = |document: Document| {
        let text = pool::on_fixed_pool(1, || renderer.text(document)).unwrap().unwrap();
        text.pieces.join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let parts: Vec<String> = renderer.sample_in_parts(template).unwrap().into_iter().map(words).collect();
    assert_eq!(parts.len(), 3);
    (words(renderer.sample(template).unwrap()), parts)
}

/// Those of the words that begin so.
fn words_with<'a>(prefix: &str, text: &'a str) -> Vec<&'a str> {
    text.split(' ').filter(|word| word.starts_with(prefix)).collect()
}

fn invoice_of_lines(count: usize) -> Value {
    let mut data = sample("invoice");
    let lines = data["doc"]["lines"].as_array().unwrap().clone();
    let line = |index: usize| {
        let mut line = lines[index % lines.len()].clone();
        line["i"] = (index + 1).into();
        line["item"]["name"] = format!("Item-{}", index + 1).into();
        line
    };
    data["doc"]["lines"] = (0..count).map(line).collect();
    data
}

#[test]
fn an_invoice_in_parts_prints_each_line_once_and_in_order_and_its_totals_once() {
    run(async {
        const LINES: usize = 90;
        let templates = with_parts_of("invoice", 30);
        let data = invoice_of_lines(LINES);
        let (whole, parts) = words_of(&templates, "invoice", &data);
        let divided = parts.join(" ");
        let items: Vec<String> = (1..=LINES).map(|number| format!("Item-{number}")).collect();
        assert_eq!(words_with("Item-", &divided), items);
        assert_eq!(divided, whole);
        for (words, places) in [
            ("Invoice", [1, 0, 0]),
            ("Lighthouse Books BV", [1, 0, 0]),
            ("Total payable €4,791.25", [0, 0, 1]),
            ("Amount due €3,791.25", [0, 0, 1]),
            ("BE68 5390 0754 7034", [0, 0, 1]),
        ] {
            assert_eq!(parts.iter().map(|part| part.matches(words).count()).collect::<Vec<_>>(), places, "{words}");
        }

        let mut stage = templates.stage().await;
        let stored = stored(&mut stage, vec![record("a", "invoice", data), record("b", "invoice", sample("invoice"))]);
        let stored = stored.await;
        assert_eq!([stored[0].parts, stored[1].parts], [Some(3), None]);
        assert!(stored[0].pages >= 6 && stored[0].warnings.is_empty(), "{stored:?}");
    });
}

#[test]
fn an_invoice_in_parts_does_not_attach_the_data_of_one() {
    run(async {
        let templates = with_parts_of("invoice", 30);
        let manifest = fs::read_to_string(templates.path("invoice/typst.toml")).unwrap();
        templates.write("invoice/typst.toml", manifest.replace("attach-data = false", "attach-data = true"));
        let mut stage = templates.stage().await;
        assert_eq!(stage.handle(vec![record("short", "invoice", invoice_of_lines(30))]).await, [""; 0]);
        let records = event::parse(json!({"Records": [record("long", "invoice", invoice_of_lines(31))]})).unwrap();
        let outcomes = stage.function.process_batch(records, Deadline::NONE).await;
        let Outcome::PermanentFailure(failure) = &outcomes[0].1 else { panic!("{:?}", outcomes[0].1) };
        assert!(failure.message.contains("an invoice in parts cannot attach its data"), "{}", failure.message);
    });
}
