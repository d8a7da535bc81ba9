//! An event that is itself a message: it is rendered and stored as one of a queue is, and whoever has sent it is
//! answered with what was stored, or with an error that can be told from others by its type.

use crate::support::embedded::s3::Fault;
use crate::support::{INPUT, OUTPUT, Stage, config, in_group, letter, record_of, run};
use pressrun::config::Config;
use pressrun::function::Invocation;
use pressrun::function::answer::InvocationError;
use pressrun::function::deadline::Deadline;
use serde_json::{Value, json};
use std::time::Duration;

const REQUEST_ID: &str = "8476a536-e9f4-11e8-9739-2dfe598c3fcd";

async fn call(stage: &mut Stage, event: &str) -> Result<Value, InvocationError> {
    let invocation = Invocation { deadline: Deadline::NONE, request_id: Some(REQUEST_ID) };
    let answer = stage.function.answer(event, invocation).await?;
    Ok(serde_json::to_value(answer).unwrap())
}

async fn error_type(stage: &mut Stage, event: &str) -> &'static str {
    let error = call(stage, event).await.unwrap_err();
    assert!(!error.message.is_empty());
    error.error_type
}

#[test]
fn a_direct_call_is_stored_and_answered_as_it_is_announced() {
    run(async {
        let mut stage = Stage::with_queues(config(1), Some("failed"), Some("done")).await;
        let answer = call(&mut stage, r#"{"template": "letter", "data": {"to": "you"}}"#).await.unwrap();
        let pdf = stage.pdf("letter", REQUEST_ID).unwrap();
        let announced: Value = serde_json::from_str(&stage.sqs.messages("done")[0].body).unwrap();
        assert_eq!(answer, announced);
        assert_eq!(answer["bucket"], OUTPUT);
        assert_eq!(answer["key"], format!("letter/{REQUEST_ID}.pdf"));
        assert_eq!((&answer["pages"], &answer["bytes"]), (&json!(1), &json!(pdf.len())));

        let event = r#"{"template": "letter", "data": {"to": "you"}, "key": "a/b.pdf", "metadata": {"a": "b"}}"#;
        assert_eq!(call(&mut stage, event).await.unwrap()["key"], "a/b.pdf");
        assert_eq!(stage.s3.object(OUTPUT, "a/b.pdf").unwrap().metadata["a"], "b");
    });
}

#[test]
fn a_direct_call_that_fails_is_an_error_whose_type_is_the_code() {
    run(async {
        let max_render_time = Some(Duration::from_millis(300));
        let mut stage = Stage::with_queues(Config { max_render_time, ..config(1) }, Some("failed"), None).await;
        stage.s3.put(OUTPUT, "taken.pdf", "somebody's own");
        for (event, expected) in [
            (r#"{"template": "lettre", "data": {}}"#, "UnknownTemplate"),
            (r#"{"template": "letter"}"#, "InvalidMessage"),
            (r#"{"data": {}}"#, "InvalidMessage"),
            (r#"{"template": "letter", "data": {}, "template": "letter"}"#, "InvalidMessage"),
            (r#"{"template": "letter", "data": {"to": 12345678901234567890}}"#, "InvalidData"),
            (r#"{"template": "broken-at-line-3", "data": {"broken": true}}"#, "TypstError"),
            (r#"{"template": "endless", "data": {"endless": true}}"#, "TimeLimit"),
            (r#"{"template": "letter", "data": {"to": "x"}, "key": "taken.pdf", "if_exists": "fail"}"#, "KeyTaken"),
            (r#"{"detail-type": "Scheduled Event"}"#, "EventError"),
            ("7", "EventError"),
            ("{", "EventError"),
        ] {
            assert_eq!(error_type(&mut stage, event).await, expected, "{event}");
        }
        stage.s3.answer_all_with(Some(Fault::SlowDown));
        let event = r#"{"template": "letter", "data": {"to": "x"}}"#;
        assert_eq!(error_type(&mut stage, event).await, "StorageUnavailable");
        stage.s3.answer_all_with(Some(Fault::AccessDenied));
        assert_eq!(error_type(&mut stage, event).await, "StorageDenied");
        assert!(stage.sqs.messages("failed").is_empty(), "its sender has heard of it");
        stage.s3.answer_all_with(None);
        assert!(call(&mut stage, event).await.is_ok());
    });
}

#[test]
fn a_preview_is_returned_and_stored_nowhere() {
    run(async {
        let mut stage = Stage::with_queues(config(1), None, Some("done")).await;
        let preview = r#"{"template": "letter", "data": {"to": "you"}, "respond": "inline"}"#;
        let answer = call(&mut stage, preview).await.unwrap();
        let pdf = answer["pdf"].as_str().unwrap();
        // "%PDF-1.7" in base64.
        assert!(pdf.starts_with("JVBERi0xLj"), "{}", &pdf[..20]);
        assert_eq!(answer["bytes"], pdf.len() / 4 * 3 - pdf.matches('=').count());
        assert_eq!((&answer["pages"], &answer["contentType"]), (&json!(1), &json!("application/pdf")));
        assert_eq!(stage.s3.requests(), [""; 0]);
        assert!(stage.sqs.messages("done").is_empty());

        let other = r#"{"template": "letter", "data": {"to": "you"}, "respond": "later"}"#;
        assert_eq!(error_type(&mut stage, other).await, "InvalidMessage");
    });
}

#[test]
fn a_message_of_a_queue_is_answered_to_nobody() {
    run(async {
        let mut stage = Stage::with_queues(config(1), Some("failed"), None).await;
        let preview = json!({"template": "letter", "data": {"to": "you"}, "respond": "inline"}).to_string();
        stage.s3.put(INPUT, "k", preview.clone());
        let records = vec![
            record_of("a", preview.clone()),
            in_group("g", record_of("b", preview)),
            record_of("c", crate::support::pointer(INPUT, "k")),
        ];
        assert_eq!(stage.handle(records).await, [""; 0]);
        for message in stage.sqs.messages("failed") {
            assert!(message.attributes["ErrorMessage"].starts_with("respond is for direct calls alone"));
        }
        assert_eq!(stage.sqs.messages("failed").len(), 3);
    });
}

#[test]
fn batches_and_direct_calls_take_turns() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        for number in 0..5 {
            let batch = json!({"Records": [letter(&format!("{number}")), record_of("bad", "{")]}).to_string();
            let answer = call(&mut stage, &format!("\u{feff}{batch}")).await.unwrap();
            assert_eq!(answer, json!({"batchItemFailures": [{"itemIdentifier": "bad"}]}));
            let key = format!("direct/{number}.pdf");
            let event = json!({"template": "letter", "data": {"to": "you"}, "key": key}).to_string();
            assert_eq!(call(&mut stage, &event).await.unwrap()["key"], key);
        }
        assert!((0..5).all(|number| stage.pdf("letter", &number.to_string()).is_some()));
    });
}
