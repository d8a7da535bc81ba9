//! What people read, as it stands: log lines, metrics and diagnostics. Whoever changes a wording sees it here.
//!
//! After a change that is wanted, `UPDATE_EXPECT=1 cargo test --test it snapshots` writes it down.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use crate::support::embedded::s3::Fault;
use crate::support::templates::{Templates, note};
use crate::support::{Stage, config, in_group, letter, letter_to, received, record, record_of, run, run_alone};
use expect_test::expect_file;
use pressrun::config::LogSettings;
use pressrun::function::logging;
use serde_json::{Map, Value, json};

/// A log that is kept.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Takes the lines of records as JSON, sorted by message id, without what differs from time to time.
    fn lines(&self) -> String {
        let text = String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap();
        let mut lines: Vec<Map<String, Value>> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        // The others depend on the kernel and on other tests.
        lines.retain(|line| line.contains_key("messageId"));
        lines.sort_by_key(|line| line["messageId"].to_string());
        lines.iter_mut().for_each(hide_measurements);
        lines.iter().map(|line| json!(line).to_string() + "\n").collect()
    }
}

fn hide_measurements(line: &mut Map<String, Value>) {
    for (name, value) in line {
        if ["bytes", "milliseconds", "timestamp"].contains(&name.as_str()) {
            *value = format!("<{name}>").into();
        }
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn log_lines() {
    run_alone(async {
        let log = Log::default();
        let json = LogSettings::from_variables(|name| (name == "AWS_LAMBDA_LOG_FORMAT").then(|| "JSON".to_owned()));
        let writer = log.clone();
        let _subscriber = tracing::subscriber::set_default(logging::subscriber(json, move || writer.clone()));
        let mut stage = Stage::with_queues(config(1), Some("failed"), None).await;
        stage.s3.answer_all("throttled", Some(Fault::SlowDown));
        stage.handle(vec![letter("earlier")]).await;
        stage
            .handle(vec![
                letter("a-stored"),
                received(2, letter("earlier")),
                record_of("b-malformed", "{\"template\": 1"),
                record("c-unknown-template", "lettre", json!({})),
                record("d-typst-error", "broken-at-line-3", json!({"broken": true})),
                record("e-panic", "panic", json!({"rows": i64::MAX})),
                letter_to("f-throttled", "throttled.pdf"),
                in_group("group", letter_to("g-first-of-group", "throttled-too.pdf")),
                in_group("group", letter("h-second-of-group")),
                in_parts("i-in-parts"),
            ])
            .await;
        expect_file!["snapshots/log_lines.txt"].assert_eq(&log.lines());
    });
}

#[test]
fn metric_lines() {
    run_alone(async {
        let (mut stage, emitted) = Stage::with_metrics(Stage::config_with_memory(1, 200).await).await;
        stage.handle(vec![letter("stored"), record_of("malformed", "{"), in_parts("in-parts")]).await;
        let (mut documents, invocation) = emitted.take();
        documents.sort_by_key(|document| document["messageId"].to_string());
        documents.push(invocation);
        let lines: Vec<String> = documents.iter_mut().map(|line| without_values(line).to_string()).collect();
        expect_file!["snapshots/metric_lines.txt"].assert_eq(&lines.join("\n"));
    });
}

/// A document that is rendered in two parts.
fn in_parts(id: &str) -> Value {
    let rows: Vec<Value> = (0..21).map(|row| json!({"text": row.to_string()})).collect();
    record(id, "rows", json!({"title": "Rows", "rows": rows}))
}

/// An EMF line without the metrics' values, which differ from time to time.
fn without_values(line: &mut Value) -> &Value {
    for (name, value) in line.as_object_mut().unwrap() {
        if value.is_number() || name == "timestamp" {
            *value = "<value>".into();
        }
    }
    line["_aws"]["Timestamp"] = "<value>".into();
    line
}

#[test]
fn diagnostics() {
    run(async {
        let mut texts = Vec::new();
        for (body, data) in [
            ("#data.titel", note("x")),
            ("#let x = 1\n#if data.text == \"x\" { x.name }", note("x")),
            ("#data.text", note("日本語")),
            ("#set text(font: \"Nowhere Sans\")\n#data.text", note("x")),
            (
                "#context { let n = counter(page).final().first(); [#n]; pagebreak() }\n#panic(data.text)",
                note("my secret"),
            ),
            ("#include sys.inputs.data", note("x")),
        ] {
            let failure = Templates::with("#data.text").and("note/main.typ", main_with(body)).failure(data).await;
            let texts_of_one: Vec<&str> =
                failure.diagnostics.iter().map(|diagnostic| diagnostic.text.as_str()).collect();
            texts.push(format!("{body}\n---\n{}: {}\n\n{}", failure.code, failure.message, texts_of_one.join("\n")));
        }
        expect_file!["snapshots/diagnostics.txt"].assert_eq(&texts.join("\n\n=====\n\n"));
    });
}

/// A template that its own sample does not break.
fn main_with(body: &str) -> String {
    let data = "#let data = json(sys.inputs.at(\"data\", default: \"sample.json\"))";
    format!("{data}\n#if data.text != \"sample\" [\n{body}\n]\n")
}
