//! Messages that are given up do not go round: they go to the failed queue as they came, with the
//! reason, and count as done once they are there.

use std::collections::BTreeMap;

use crate::support::embedded::sqs::{Fault, Message};
use crate::support::{INPUT, OUTPUT, Stage, config, in_group, letter, log, pointer, received, record, record_of, run};
use pressrun::config::Config;
use pressrun::function::deadline::Deadline;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

async fn stage() -> Stage {
    Stage::with_queues(config(1), Some("failed"), None).await
}

fn with_attributes(mut record: Value, attributes: &Value) -> Value {
    record["messageAttributes"] = attributes.clone();
    record
}

fn text(value: &str) -> Value {
    json!({"stringValue": value, "stringListValues": [], "binaryListValues": [], "dataType": "String"})
}

fn only(messages: Vec<Message>) -> Message {
    assert_eq!(messages.len(), 1, "{messages:?}");
    messages.into_iter().next().unwrap()
}

#[test]
fn a_permanent_failure_is_dead_lettered_with_its_reason_and_acknowledged() {
    run(async {
        let mut stage = stage().await;
        let bad = record("bad", "broken-at-line-3", json!({"broken": true}));
        let body = bad["body"].as_str().unwrap().to_owned();
        let attributes = json!({
            "Tenant": text("lighthouse"),
            "Priority": {"stringValue": "7", "dataType": "Number.int"},
            "Trace": {"binaryValue": "AAEC/w==", "dataType": "Binary"},
        });
        let records = vec![letter("a"), received(3, with_attributes(bad, &attributes)), letter("b")];
        assert_eq!(stage.handle(records).await, [""; 0]);
        assert!(stage.pdf("letter", "a").is_some() && stage.pdf("letter", "b").is_some());

        let message = only(stage.sqs.messages("failed"));
        assert_eq!(message.body, body);
        assert_eq!((message.group, message.deduplication_id), (None, None));
        let attributes = message.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut attributes: BTreeMap<_, _> = attributes.collect();
        let diagnostics: Value = serde_json::from_str(attributes.remove("Diagnostics").unwrap()).unwrap();
        assert_eq!(
            attributes.into_iter().collect::<Vec<_>>(),
            [
                ("ErrorCode", "TypstError"),
                ("ErrorMessage", "broken-at-line-3/main.typ:3:18: error: unknown variable: nme"),
                ("MessageId", "bad"),
                ("Priority", "7"),
                ("ReceiveCount", "3"),
                ("RequestId", "8476a536-e9f4-11e8-9739-2dfe598c3fcd"),
                ("Template", "broken-at-line-3"),
                ("Tenant", "lighthouse"),
                ("Trace", "AAEC/w=="),
            ]
        );
        assert_eq!(
            (message.data_types["Priority"].as_str(), message.data_types["Trace"].as_str()),
            ("Number.int", "Binary")
        );
        assert_eq!(diagnostics["code"], "TypstError");
        assert!(diagnostics["diagnostics"][0]["text"].as_str().unwrap().contains("#if data.broken { nme }"));
    });
}

#[test]
fn every_kind_of_permanent_failure_is_dead_lettered() {
    run(async {
        let mut stage = Stage::with_queues(config(1), Some("failed"), None).await;
        stage.s3.put(INPUT, "typo", json!({"template": "letter", "daata": 1}).to_string());
        stage.s3.put(OUTPUT, "taken.pdf", "somebody's own");
        let taken = json!({"template": "letter", "data": {"to": "x"}, "key": "taken.pdf", "if_exists": "fail"});
        let bad = [
            ("KeyTaken", "letter", record_of("taken", taken.to_string())),
            ("InvalidMessage", "", record_of("not-json", "{")),
            ("InvalidMessage", "letter", record_of("typo", r#"{"template": "letter", "daata": {}}"#)),
            ("InvalidMessage", "letter", record_of("typo-behind-a-pointer", pointer(INPUT, "typo"))),
            ("InvalidMessage", "", record_of("absent", pointer(INPUT, "absent"))),
            ("UnknownTemplate", "lettre", record("unknown", "lettre", json!({}))),
            ("TypstError", "broken-at-line-3", record("error", "broken-at-line-3", json!({"broken": true}))),
            ("RunKilled", "overflow", record("overflow", "overflow", json!({"depth": 100_000}))),
        ];
        expect_dead_lettered(&mut stage, &bad).await;

        let grant = Some(Duration::from_millis(300));
        let mut stage = Stage::with_queues(Config { max_render_time: grant, ..config(1) }, Some("failed"), None).await;
        let endless = record("endless", "endless", json!({"endless": true}));
        expect_dead_lettered(&mut stage, &[("TimeLimit", "endless", endless)]).await;
    });
}

/// Records, each with the code that it fails with and the template that it names.
async fn expect_dead_lettered(stage: &mut Stage, bad: &[(&str, &str, Value)]) {
    assert_eq!(stage.handle(bad.iter().map(|(.., record)| record.clone()).collect()).await, [""; 0]);
    let messages = stage.sqs.messages("failed");
    assert_eq!(messages.len(), bad.len());
    for (code, template, record) in bad {
        let id = record["messageId"].as_str().unwrap();
        let message = messages.iter().find(|message| message.attributes["MessageId"] == id).unwrap();
        assert_eq!(message.attributes["ErrorCode"], *code, "{id}");
        assert_eq!(message.attributes.get("Template").map_or("", String::as_str), *template, "{id}");
        assert!(!message.attributes["ErrorMessage"].is_empty());
        assert_eq!(message.body, record["body"].as_str().unwrap());
    }
}

#[test]
fn a_transient_failure_is_not_dead_lettered() {
    run(async {
        let mut stage = stage().await;
        stage.s3.answer_all_with(Some(crate::support::embedded::s3::Fault::SlowDown));
        assert_eq!(stage.handle(vec![letter("a")]).await, ["a"]);
        assert!(stage.sqs.messages("failed").is_empty());
    });
}

#[test]
fn without_a_failed_queue_a_permanent_failure_is_reported_as_failed() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        assert_eq!(stage.handle(vec![record_of("bad", "{"), letter("a")]).await, ["bad"]);
        assert_eq!(stage.sqs.requests(), [""; 0]);
    });
}

#[test]
fn a_message_that_cannot_be_dead_lettered_is_reported_as_failed() {
    run(async {
        let mut stage = stage().await;
        for fault in [Fault::InternalFailure, Fault::AccessDenied] {
            stage.sqs.answer_all("failed", Some(fault));
            assert_eq!(stage.handle(vec![letter("a"), record_of("bad", "{")]).await, ["bad"]);
            assert_eq!(log::take("the failed queue did not take the message").len(), 1);
        }
        // SQS takes no message without a body, so there is nothing to send.
        stage.sqs.answer_all("failed", None);
        assert_eq!(stage.handle(vec![json!({"messageId": "no-body"})]).await, ["no-body"]);
        assert!(stage.sqs.messages("failed").is_empty());

        stage.sqs.answer_next("failed", [Fault::InternalFailure]);
        assert_eq!(stage.handle(vec![record_of("bad", "{")]).await, [""; 0]);
        assert_eq!(stage.sqs.messages("failed").len(), 1, "the SDK tries again");
    });
}

#[test]
fn a_message_whose_parking_the_deadline_ends_is_reported_as_failed() {
    run(async {
        let mut stage = stage().await;
        stage.sqs.answer_all("failed", Some(Fault::Delay(Duration::from_mins(1))));
        let deadline = Deadline::from_lambda(SystemTime::now() + Duration::from_secs(4));
        assert_eq!(stage.handle_until(vec![letter("a"), record_of("bad", "{")], deadline).await, ["bad"]);
    });
}

#[test]
fn a_failed_queue_that_is_the_messages_own_is_not_used() {
    run(async {
        let mut stage = Stage::with_queues(config(1), Some("documents"), None).await;
        assert_eq!(stage.handle(vec![record_of("bad", "{")]).await, ["bad"]);
        assert!(stage.sqs.messages("documents").is_empty());
    });
}

#[test]
fn there_are_never_more_than_ten_attributes_and_the_messages_own_come_first() {
    run(async {
        let mut stage = stage().await;
        for (originals, ours) in [(10, 0), (8, 2), (3, 7), (0, 7)] {
            let attributes: BTreeMap<_, _> = (0..originals).map(|number| (format!("Own{number}"), text("x"))).collect();
            let record = with_attributes(record_of(&format!("bad-{originals}"), "{"), &json!(attributes));
            assert_eq!(stage.handle(vec![record]).await, [""; 0]);
            let message = stage.sqs.messages("failed").pop().unwrap();
            let own = message.attributes.keys().filter(|name| name.starts_with("Own")).count();
            // No template is known of such a body.
            assert_eq!((own, message.attributes.len() - own), (originals, ours.min(6)));
            assert_eq!(message.attributes.contains_key("ErrorCode"), ours > 0);
            assert_eq!(message.attributes.contains_key("Diagnostics"), ours == 7);
        }
    });
}

/// As when a message was sent back from the failed queue without having been fixed.
#[test]
fn what_an_earlier_failure_said_is_replaced() {
    run(async {
        let mut stage = stage().await;
        let earlier = json!({"ErrorCode": text("TypstError"), "MessageId": text("earlier"), "Tenant": text("t")});
        assert_eq!(stage.handle(vec![with_attributes(record_of("bad", "{"), &earlier)]).await, [""; 0]);
        let message = only(stage.sqs.messages("failed"));
        let of = |name: &str| message.attributes[name].clone();
        assert_eq!([of("ErrorCode"), of("MessageId"), of("Tenant")], ["InvalidMessage", "bad", "t"]);
    });
}

#[test]
fn of_a_message_near_sqss_limit_ours_are_trimmed_and_never_the_message() {
    run(async {
        let mut stage = stage().await;
        let limit = 1024 * 1024;
        // A body that SQS takes alone, with attributes, and with all that there is to say.
        for (free_bytes, expected) in [(0, 0), (30, 1), (60, 2), (120, 2), (300, 5), (20_000, 6)] {
            let body = format!("{{{}", "x".repeat(limit - 1 - free_bytes));
            let record = record_of(&format!("bad-{free_bytes}"), body.clone());
            assert_eq!(stage.handle(vec![record]).await, [""; 0], "{free_bytes}");
            let message = stage.sqs.messages("failed").pop().unwrap();
            assert!(message.body == body);
            assert_eq!(message.attributes.len(), expected, "{free_bytes}: {:?}", message.attributes);
            assert_eq!(message.attributes.contains_key("Diagnostics"), free_bytes == 20_000);
        }
    });
}

#[test]
fn characters_that_sqs_refuses_are_stripped_from_the_reason() {
    run(async {
        let mut stage = stage().await;
        let body = r#"{"template": "a\u0000b\u001b[31m\uffff\ud83d\ude00c", "data": 1}"#;
        assert_eq!(stage.handle(vec![record_of("bad", body)]).await, [""; 0]);
        let message = only(stage.sqs.messages("failed"));
        assert_eq!(message.attributes["Template"], "ab[31m😀c");
        assert_eq!(message.body, body);
        serde_json::from_str::<Value>(&message.attributes["Diagnostics"]).unwrap();
    });
}

#[test]
fn a_fifo_failed_queue_gets_the_records_group_and_id() {
    run(async {
        let mut stage = Stage::with_queues(config(1), Some("failed.fifo"), None).await;
        assert_eq!(stage.handle(vec![in_group("g", record_of("m-1", "{")), record_of("m-2", "{")]).await, [""; 0]);
        let ids = |message: &Message| (message.group.clone().unwrap(), message.deduplication_id.clone().unwrap());
        let mut ids: Vec<_> = stage.sqs.messages("failed.fifo").iter().map(ids).collect();
        ids.sort();
        assert_eq!(ids, [("g".to_owned(), "m-1".to_owned()), ("m-2".to_owned(), "m-2".to_owned())]);
    });
}

#[test]
fn a_group_goes_on_after_a_bad_message_whether_it_could_be_dead_lettered_or_not() {
    run(async {
        let mut stage = stage().await;
        let records =
            || vec![in_group("g", record_of("bad", "{")), in_group("g", letter("a")), in_group("g", letter("b"))];
        stage.sqs.answer_all("failed", Some(Fault::InternalFailure));
        assert_eq!(stage.handle(records()).await, ["bad"]);
        assert!(stage.pdf("letter", "a").is_some() && stage.pdf("letter", "b").is_some());
        stage.s3.clear(OUTPUT);
        stage.sqs.answer_all("failed", None);
        assert_eq!(stage.handle(records()).await, [""; 0]);
        assert!(stage.pdf("letter", "a").is_some() && stage.pdf("letter", "b").is_some());
    });
}
