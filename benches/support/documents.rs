//! Data of documents that there have not been before, for the shipped templates.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The folder of the shipped templates, of whichever package of this repository.
pub fn templates() -> PathBuf {
    let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("templates"));
    folders.find(|templates| templates.join("invoice").is_dir()).expect("the templates are in this repository")
}

fn sample(template: &str) -> Value {
    let text = fs::read_to_string(templates().join(template).join("sample.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// An invoice of one page and ten lines that there has not been before: number, names,
/// quantities and amounts are its own.
pub fn invoice(number: usize) -> Value {
    let mut invoice = sample("invoice");
    let document = &mut invoice["doc"];
    document["code"] = format!("B-{number:06}").into();
    document["customer"]["name"] = format!("Customer {} & Daughters", number * 7).into();
    for (index, line) in document["lines"].as_array_mut().unwrap().iter_mut().enumerate() {
        line["quantity"] = format!("{}", 1 + (number + index) % 97).into();
        line["item"]["name"] = format!("Item {} of series {}", (number * 31 + index) % 9973, number % 89).into();
        line["item"]["price"] = format!("{}.{:02}", (number + index * 13) % 500, number % 100).into();
        line["total"] = format!("{}.{:02}", (number * 17 + index) % 5000, (number * 3) % 100).into();
    }
    invoice
}

/// A statement with this many rows, each of one line, and with everything that one in parts needs.
pub fn statement(rows: usize) -> Value {
    let mut statement = sample("statement");
    let mut balance = 0;
    let (mut money_in, mut money_out) = (0, 0);
    let row = |index: usize| {
        let cents = i64::try_from((index * 37) % 900 * 100 + index % 100).unwrap();
        let moved = if index.is_multiple_of(3) { cents } else { -cents };
        *(if moved < 0 { &mut money_out } else { &mut money_in }) += moved;
        balance += moved;
        serde_json::json!({
            "date": format!("2026-{:02}-{:02}", 1 + index * 12 / rows, 1 + index % 28),
            "description": format!("Card payment no. {index}, branch {}", index % 211),
            "amount": amount(moved),
            "balance": amount(balance),
        })
    };
    statement["entries"] = (0..rows).map(row).collect();
    statement["opening_balance"] = amount(0).into();
    statement["money_in"] = amount(money_in).into();
    statement["money_out"] = amount(money_out).into();
    statement["closing_balance"] = amount(balance).into();
    statement
}

/// A decimal number with two decimals.
fn amount(cents: i64) -> String {
    format!("{}{}.{:02}", if cents < 0 { "-" } else { "" }, cents.abs() / 100, cents.abs() % 100)
}

/// A report whose sections are the sample's, that many times over: about 4.2 pages a time.
pub fn report(times: usize) -> Value {
    let mut report = sample("report");
    let sections = report["sections"].as_array().unwrap().clone();
    let copies = (0..times).flat_map(|copy| {
        sections.iter().cloned().map(move |mut section| {
            give_new_ids(&mut section, copy);
            section
        })
    });
    report["sections"] = copies.collect();
    report
}

fn give_new_ids(value: &mut Value, copy: usize) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(id) if name == "id" || name == "ref" => *id = format!("{id}-{copy}"),
                    other => give_new_ids(other, copy),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| give_new_ids(item, copy)),
        _ => {}
    }
}
