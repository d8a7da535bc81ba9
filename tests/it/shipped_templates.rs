//! The templates and events that pressrun comes with.

use std::fs;
use std::path::Path;

use crate::support::files::copy_folder;
use crate::support::templates::Templates;
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
        let row = |number: usize| {
            let balance = amount(10 + 105 * (i64::try_from(number).unwrap() + 1));
            json!({"date": "2026-03-02", "description": format!("Row {number}"), "amount": "1.05", "balance": balance})
        };
        data["entries"] = (0..1000).map(row).collect();
        data["opening_balance"] = "0.10".into();
        data["money_in"] = "1050.00".into();
        data["money_out"] = "0.00".into();
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
    templates.and(&path, manifest.replace(&format!("size = {}", part_size(&manifest)), &format!("size = {size}")))
}

/// How many elements a part has, as a manifest says it.
fn part_size(manifest: &str) -> usize {
    let after = manifest.split_once("size = ").unwrap().1;
    after.split(' ').next().unwrap().parse().unwrap()
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

/// A decimal number with two decimals.
fn amount(cents: i64) -> String {
    format!("{}{}.{:02}", if cents < 0 { "-" } else { "" }, cents.abs() / 100, cents.abs() % 100)
}

/// A statement with entries as the sample has them, and everything that one in parts needs.
fn statement_of_entries(count: usize) -> Value {
    let mut data = sample("statement");
    let entries = data["entries"].as_array().unwrap().clone();
    let cents = |value: &Value| value.as_str().unwrap().replace('.', "").parse::<i64>().unwrap();
    let mut balance = cents(&data["opening_balance"]);
    let (mut money_in, mut money_out) = (0, 0);
    let entry = |index: usize| {
        let mut entry = entries[index % entries.len()].clone();
        let moved = cents(&entry["amount"]);
        *(if moved < 0 { &mut money_out } else { &mut money_in }) += moved;
        balance += moved;
        entry["description"] = format!("Entry-{}", index + 1).into();
        entry["balance"] = amount(balance).into();
        entry
    };
    data["entries"] = (0..count).map(entry).collect();
    data["money_in"] = amount(money_in).into();
    data["money_out"] = amount(money_out).into();
    data["closing_balance"] = amount(balance).into();
    data
}

/// Why a statement fails for good.
async fn why_it_fails(stage: &mut Stage, data: Value) -> String {
    let records = event::parse(json!({"Records": [record("a", "statement", data)]})).unwrap();
    let (_, outcome) = stage.function.process_batch(records, Deadline::NONE).await.remove(0);
    let Outcome::PermanentFailure(failure) = outcome else { panic!("{outcome:?}") };
    failure.message
}

#[test]
fn a_statement_in_parts_prints_each_entry_once_and_its_balances_run_through() {
    run(async {
        const ENTRIES: usize = 90;
        let templates = with_parts_of("statement", 30);
        let data = statement_of_entries(ENTRIES);
        let (whole, parts) = words_of(&templates, "statement", &data);
        let divided = parts.join(" ");
        let entries: Vec<String> = (1..=ENTRIES).map(|number| format!("Entry-{number}")).collect();
        assert_eq!(words_with("Entry-", &divided), entries);
        assert_eq!(divided, whole);
        for (words, places) in [
            ("Account statement", [1, 0, 0]),
            ("Brightwater Studios Ltd", [1, 0, 0]),
            ("Money in +163,526.44", [1, 0, 0]),
            ("Money out \u{2212}126,986.30", [1, 0, 0]),
            ("Opening balance 12,480.55", [2, 0, 0]),
            ("Closing balance 49,020.69", [1, 0, 1]),
            ("Closing balance", [1, 0, 1]),
        ] {
            assert_eq!(parts.iter().map(|part| part.matches(words).count()).collect::<Vec<_>>(), places, "{words}");
        }

        let mut stage = templates.stage().await;
        let stored =
            stored(&mut stage, vec![record("a", "statement", data), record("b", "statement", sample("statement"))]);
        let stored = stored.await;
        assert_eq!([stored[0].parts, stored[1].parts], [Some(3), None]);
        assert!(stored[0].pages >= 4 && stored[0].warnings.is_empty(), "{stored:?}");
    });
}

#[test]
fn a_balance_that_does_not_add_up_is_an_error_with_its_place_in_the_whole_statement() {
    run(async {
        let templates = with_parts_of("statement", 30);
        let mut stage = templates.stage().await;
        for (count, index, part) in [(90, 47, "in part 2 of 3: "), (30, 17, "")] {
            let mut data = statement_of_entries(count);
            let wrong = "99999.99";
            data["entries"][index]["balance"] = wrong.into();
            let message = why_it_fails(&mut stage, data).await;
            let place = format!("/entries/{index}/balance is not the balance before it plus the amount");
            assert!(message.starts_with(part) && message.contains(&place), "{message}");
            assert!(!message.contains(wrong), "{message}");
        }
    });
}

#[test]
fn sums_of_a_statement_that_do_not_add_up_are_an_error() {
    run(async {
        let templates = with_parts_of("statement", 30);
        let mut stage = templates.stage().await;
        for (key, wrong) in [("money_in", "1.23"), ("money_out", "-1.23"), ("closing_balance", "1.23")] {
            for (count, why) in [(30, "is not what the entries add up to"), (90, "is not the sum of")] {
                let mut data = statement_of_entries(count);
                data[key] = wrong.into();
                let message = why_it_fails(&mut stage, data).await;
                assert!(message.contains(why) && !message.contains("1.23"), "{count}: {message}");
            }
        }
        let mut data = statement_of_entries(90);
        for (key, other) in [("money_in", "163527.44"), ("closing_balance", "49021.69")] {
            data[key] = other.into();
        }
        let message = why_it_fails(&mut stage, data).await;
        assert!(message.contains("/closing_balance is not the balance of the last entry"), "{message}");
    });
}

#[test]
fn a_statement_of_more_entries_than_a_part_has_needs_balances_and_sums() {
    run(async {
        let manifest = fs::read_to_string(real_templates().join("statement/typst.toml")).unwrap();
        let size = part_size(&manifest);
        let mut stage = stage().await;
        let without = |count: usize, parent: &str, key: &str| {
            let mut data = statement_of_entries(count);
            data.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
            data
        };
        for (parent, key, place) in [
            ("/entries/17", "balance", "/entries/17"),
            ("", "money_in", "at the top"),
            ("", "money_out", "at the top"),
            ("", "closing_balance", "at the top"),
        ] {
            let short = record("a", "statement", without(size, parent, key));
            assert_eq!(stored(&mut stage, vec![short]).await[0].parts, None);
            let message = why_it_fails(&mut stage, without(size + 1, parent, key)).await;
            assert!(message.contains(&format!("{place}: \"{key}\" is a required property")), "{message}");
        }
        let stored = stored(&mut stage, vec![record("b", "statement", statement_of_entries(size + 1))]).await;
        assert_eq!(stored[0].parts, Some(2));
    });
}
