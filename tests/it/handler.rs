//! An event in, objects and a response out: what becomes of good and bad records.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::support::embedded::s3::{EmbeddedS3, Fault, client_for};
use crate::support::{INPUT, OUTPUT, Stage, config, letter, pointer, real_templates, record, record_of, run};
use pressrun::config::Config;
use pressrun::function::deadline::Deadline;
use serde_json::{Value, json};

#[test]
fn every_record_of_a_batch_becomes_an_object() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        for size in [0, 1, 10, 100] {
            let ids: Vec<String> = (0..size).map(|number| format!("{size}-{number}")).collect();
            let failed = stage.handle(ids.iter().map(|id| letter(id)).collect()).await;
            assert_eq!(failed, [""; 0]);
            for id in &ids {
                assert!(stage.pdf("letter", id).is_some(), "{id}");
            }
        }
        assert_eq!(stage.s3.keys(OUTPUT).len(), 111);
    });
}

#[test]
fn a_malformed_record_fails_alone() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let bad = [
            ("not-json", record_of("not-json", "{")),
            ("not-an-object", record_of("not-an-object", "7")),
            ("typo", record_of("typo", r#"{"template": "letter", "daata": {}}"#)),
            ("no-data", record_of("no-data", r#"{"template": "letter"}"#)),
            ("unknown-template", record("unknown-template", "lettre", json!({}))),
            ("template-outside", record("template-outside", "../letter", json!({}))),
            ("no-body", json!({"messageId": "no-body"})),
            ("odd-record", json!({"messageId": "odd-record", "body": "{}", "attributes": "none"})),
        ];
        let mut records: Vec<Value> = bad.iter().map(|(_, record)| record.clone()).collect();
        records.insert(3, letter("good-1"));
        records.push(letter("good-2"));
        let mut failed = stage.handle(records).await;
        let mut expected: Vec<&str> = bad.iter().map(|(id, _)| *id).collect();
        failed.sort();
        expected.sort_unstable();
        assert_eq!(failed, expected);
        assert!(stage.pdf("letter", "good-1").is_some() && stage.pdf("letter", "good-2").is_some());
    });
}

#[test]
fn a_refused_key_fails_alone_and_writes_nothing() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let with_key = |id: &str, key: &str| {
            record_of(id, json!({"template": "letter", "data": {"to": id}, "key": key}).to_string())
        };
        let failed =
            stage.handle(vec![with_key("a", "../up.pdf"), with_key("b", "/root.pdf"), with_key("c", "2026/c.pdf")]);
        assert_eq!(failed.await, ["a", "b"]);
        assert_eq!(stage.s3.keys(OUTPUT), ["2026/c.pdf"]);
    });
}

#[test]
fn an_error_of_typsts_comes_with_its_place() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let records = pressrun::function::event::parse(json!({"Records": [
            record("bad", "broken-at-line-3", json!({"broken": true})),
            record("good", "broken-at-line-3", json!({"broken": false})),
        ]}));
        let outcomes = stage.function.process_batch(records.unwrap(), Deadline::NONE).await;
        let pressrun::function::outcome::Outcome::PermanentFailure(failure) = &outcomes[0].1 else {
            panic!("{:?}", outcomes[0].1)
        };
        let diagnostic = &failure.diagnostics[0];
        assert_eq!(diagnostic.file.as_deref(), Some("broken-at-line-3/main.typ"));
        assert_eq!((diagnostic.line, diagnostic.column), (Some(3), Some(18)));
        assert_eq!(failure.message, "broken-at-line-3/main.typ:3:18: error: unknown variable: nme");
        assert!(diagnostic.text.contains("#if data.broken { nme }"), "{}", diagnostic.text);
        assert!(stage.pdf("broken-at-line-3", "good").is_some());
    });
}

#[test]
fn a_document_cannot_run_its_data_or_read_outside_its_template() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let failed = stage
            .handle(vec![
                record("included", "reads-files", json!({"include": "/.pressrun/data.json", "read": null})),
                record("outside", "reads-files", json!({"include": null, "read": "../letter/main.typ"})),
                record("own", "reads-files", json!({"include": null, "read": "main.typ"})),
            ])
            .await;
        assert_eq!(failed, ["included", "outside"]);
    });
}

#[test]
fn the_object_says_what_it_is() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let body = json!({
            "template": "letter", "data": {"to": "Zoë"}, "key": "letters/zoe.pdf",
            "filename": "Für Zoë.pdf", "metadata": {"Customer": "K-17"}
        });
        assert_eq!(stage.handle(vec![record_of("m-1", body.to_string())]).await, [""; 0]);
        let object = stage.s3.object(OUTPUT, "letters/zoe.pdf").unwrap();
        assert_eq!(object.content_type.as_deref(), Some("application/pdf"));
        assert_eq!(object.content_disposition.as_deref(), Some("attachment; filename*=UTF-8''F%C3%BCr%20Zo%C3%AB.pdf"));
        let metadata = object.metadata.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let (digests, metadata): (Vec<_>, Vec<_>) = metadata.partition(|(name, _)| name.ends_with("-digest"));
        assert_eq!(digests.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["message-digest", "template-digest"]);
        assert_eq!(
            metadata,
            [
                ("customer", "K-17"),
                ("message-id", "m-1"),
                ("pages", "1"),
                ("sent-timestamp", "1782988200000"),
                ("template", "letter"),
                ("template-version", "1.0.0")
            ]
        );
    });
}

/// Invariant 5.
#[test]
fn the_same_message_delivered_twice_leaves_the_same_bytes() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        let long = record("long", "long", json!({"sections": 12, "paragraphs": 3}));
        stage.handle(vec![letter("a"), long.clone(), letter("b")]).await;
        let first = (stage.pdf("letter", "a").unwrap(), stage.pdf("long", "long").unwrap());
        stage.s3.clear(OUTPUT);
        // In another run, among others, on another number of threads, in another function.
        stage.handle(vec![letter("x"), letter("b"), letter("a")]).await;
        assert_eq!(stage.pdf("letter", "a").unwrap(), first.0);
        let mut other = Stage::with_workers(1).await;
        other.handle(vec![long, letter("a")]).await;
        assert_eq!((other.pdf("letter", "a").unwrap(), other.pdf("long", "long").unwrap()), first);
        assert_ne!(stage.pdf("letter", "b").unwrap(), first.0, "other messages, other bytes");
    });
}

#[test]
fn a_document_may_come_at_any_moment_while_a_run_gets_warm() {
    run(async {
        let config = Config { templates_dir: real_templates(), ..config(1) };
        let (mut stage, emitted) = Stage::with_metrics(config).await;
        let sample = fs::read(real_templates().join("invoice/sample.json")).unwrap();
        let sample: Value = serde_json::from_slice(&sample).unwrap();
        for milliseconds in (0..200).step_by(8) {
            let id = format!("after-{milliseconds}");
            let failed = stage.handle(vec![record(&id, "invoice", sample.clone())]).await;
            assert!(failed.is_empty() && stage.pdf("invoice", &id).is_some(), "{id}");
            assert_eq!(emitted.take_invocation()["RunsLost"], 0, "{id}");
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        }
    });
}

#[test]
fn a_large_message_is_read_from_the_input_bucket_only() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let message = |filler: usize| json!({"template": "letter", "data": {"to": "you", "x": "x".repeat(filler)}});
        stage.s3.put(INPUT, "fits", message(900_000).to_string());
        stage.s3.put(INPUT, "too-large", message(1024 * 1024).to_string());
        stage.s3.put(OUTPUT, "foreign", message(1).to_string());
        let failed = stage.handle(vec![
            record_of("fits", pointer(INPUT, "fits")),
            record_of("too-large", pointer(INPUT, "too-large")),
            record_of("foreign", pointer(OUTPUT, "foreign")),
            record_of("absent", pointer(INPUT, "absent")),
            record_of("no-pointer", json!(["what", "else"]).to_string()),
        ]);
        let mut failed = failed.await;
        failed.sort();
        assert_eq!(failed, ["absent", "foreign", "no-pointer", "too-large"]);
        assert!(stage.pdf("letter", "fits").is_some());
    });
}

#[test]
fn an_event_that_is_not_sqs_is_one_clear_error() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        for (event, expected) in [
            (json!({"Records": "none"}), "no array \"Records\""),
            (json!([1]), "no array \"Records\""),
            (json!({"detail-type": "Scheduled Event"}), "no array \"Records\""),
            (json!({"Records": [letter("a"), {"body": "{}"}]}), "record 1 has no messageId"),
        ] {
            let error = stage.function.handle(event, Deadline::NONE).await.unwrap_err().to_string();
            assert!(error.starts_with("the event is not an SQS event") && error.contains(expected), "{error}");
        }
        assert!(stage.s3.keys(OUTPUT).is_empty());
    });
}

#[test]
fn s3_being_down_fails_every_record_and_not_the_function() {
    run(async {
        let s3 = EmbeddedS3::start(&[OUTPUT]);
        let endpoint = s3.endpoint();
        drop(s3);
        let mut function = pressrun::function::Function::start(config(1), client_for(&endpoint)).await.unwrap();
        let response = function.handle(json!({"Records": [letter("a"), letter("b")]}), Deadline::NONE).await.unwrap();
        let ids: Vec<_> = response.batch_item_failures.iter().map(|failure| failure.item_identifier.as_str()).collect();
        assert_eq!(ids, ["a", "b"]);
        function.stop().await;
    });
}

#[test]
fn the_deadline_ends_what_is_not_done_and_keeps_what_is() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        stage.s3.answer_all("letter/b", Some(Fault::Delay(Duration::from_mins(1))));
        let deadline = Deadline::from_lambda(SystemTime::now() + Duration::from_secs(2));
        let failed = stage.handle_until(vec![letter("a"), letter("b"), letter("c")], deadline).await;
        assert_eq!(failed, ["b"], "the one that S3 did not answer");
        assert!(stage.pdf("letter", "a").is_some() && stage.pdf("letter", "c").is_some());
        stage.s3.answer_all_with(None);
        assert_eq!(stage.handle(vec![letter("a"), letter("b"), letter("c")]).await, [""; 0]);
    });
}

#[test]
fn a_deadline_in_the_past_is_no_deadline() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let cargo_lambda_watch = Deadline::from_lambda(SystemTime::UNIX_EPOCH + Duration::from_mins(10));
        assert_eq!(stage.handle_until(vec![letter("a")], cargo_lambda_watch).await, [""; 0]);
    });
}

#[test]
fn a_broken_deployment_stops_init_with_the_reason() {
    run(async {
        let s3 = EmbeddedS3::start(&[OUTPUT]);
        let mut no_program = config(1);
        no_program.press_program = "/nowhere/pressrun".into();
        let mut no_template = config(1);
        no_template.templates_dir = crate::support::test_templates().join("letter");
        let mut not_executable = config(1);
        not_executable.press_program = crate::support::test_templates().join("letter/main.typ");
        for (config, expected) in [
            (no_program, "cannot start a press: /nowhere/pressrun"),
            (not_executable, "letter/main.typ: Permission denied"),
            (no_template, "holds no template"),
        ] {
            let error = pressrun::function::Function::start(config, s3.client()).await.err().unwrap().to_string();
            assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
        }
    });
}
