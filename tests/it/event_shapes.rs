//! Events as other senders than Lambda's event source mapping write them: what is not needed of a record is never
//! a reason to fail, and what is needed is named.

use crate::support::templates::{Templates, note, outcome};
use crate::support::{Stage, beside_others, config, record_of, run};
use pressrun::config::Config;
use pressrun::function::deadline::Deadline;
use pressrun::function::event;
use pressrun::function::outcome::{ErrorCode, Outcome};
use serde_json::{Value, json};

const LETTER: &str = r#"{"template": "letter", "data": {"to": "you"}}"#;

/// The ids of the records that failed.
async fn handle(stage: &mut Stage, event: Value) -> Vec<String> {
    let response = stage.function.handle(event, Deadline::NONE).await.unwrap();
    response.batch_item_failures.into_iter().map(|failure| failure.item_identifier).collect()
}

/// A record of `sam local generate-event sqs receive-message`, with a message of ours as its body.
fn of_sam() -> Value {
    json!({
        "messageId": "19dd0b57-b21e-4ac1-bd88-01bbb068cb78",
        "receiptHandle": "MessageReceiptHandle",
        "body": LETTER,
        "attributes": {
            "ApproximateReceiveCount": "1",
            "SentTimestamp": "1523232000000",
            "SenderId": "123456789012",
            "ApproximateFirstReceiveTimestamp": "1523232000001"
        },
        "messageAttributes": {},
        "md5OfBody": "{{{md5_of_body}}}",
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:MyQueue",
        "awsRegion": "us-east-1"
    })
}

/// A record as `LocalStack` sends it.
fn of_localstack() -> Value {
    json!({
        "messageId": "b8b7a1f2",
        "receiptHandle": "SQS/BACKEND/IMPL",
        "body": LETTER,
        "attributes": {
            "SenderId": "000000000000",
            "SentTimestamp": "1782988200000",
            "ApproximateReceiveCount": "1",
            "ApproximateFirstReceiveTimestamp": "1782988200010"
        },
        "messageAttributes": {
            "Tenant": {
                "stringValue": "t", "binaryValue": null, "stringListValues": [], "binaryListValues": null,
                "dataType": "String"
            }
        },
        "md5OfMessageAttributes": null,
        "md5OfBody": "x",
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:us-east-1:000000000000:documents",
        "awsRegion": "us-east-1"
    })
}

/// A record as bridges from `ElasticMQ` make it of what `ReceiveMessage` returns.
fn of_elastic_mq() -> Value {
    json!({
        "messageId": "9d4d2a8e",
        "receiptHandle": null,
        "body": LETTER,
        "attributes": {
            "ApproximateReceiveCount": 1,
            "SentTimestamp": 1_782_988_200_000_i64,
            "SenderId": null,
            "ApproximateFirstReceiveTimestamp": 0,
            "MessageGroupId": null
        },
        "messageAttributes": {"Tenant": {"DataType": "String", "StringValue": "t"}, "Broken": 7, "Empty": {}},
        "md5OfBody": 5
    })
}

#[test]
fn events_of_every_sender_are_read() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let minimum = json!({"messageId": "by-hand", "body": LETTER});
        let nulls = json!({
            "messageId": "nulls", "body": LETTER, "receiptHandle": null, "attributes": null, "messageAttributes": null,
            "md5OfBody": null, "eventSource": null, "eventSourceARN": null, "awsRegion": null
        });
        let odd =
            json!({"messageId": "odd", "body": LETTER, "attributes": [1], "messageAttributes": "none", "more": {}});
        let records = [of_sam(), of_localstack(), of_elastic_mq(), minimum, nulls, odd];
        assert_eq!(handle(&mut stage, json!({"Records": records.clone()})).await, [""; 0]);
        for record in &records {
            let id = record["messageId"].as_str().unwrap();
            assert!(stage.pdf("letter", id).is_some(), "{id}");
        }
    });
}

#[test]
fn an_event_of_eventbridge_pipes_is_an_array_of_records() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let bad = record_of("bad", "{");
        assert_eq!(handle(&mut stage, json!([of_sam(), bad])).await, ["bad"]);
        assert!(stage.pdf("letter", "19dd0b57-b21e-4ac1-bd88-01bbb068cb78").is_some());
    });
}

#[test]
fn what_is_needed_of_a_record_is_named() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        for (record, expected) in [
            (json!({"messageId": "a"}), "the record has no \"body\""),
            (json!({"messageId": "a", "body": null}), "the record has no \"body\""),
            (
                json!({"messageId": "a", "body": {"template": "letter"}}),
                "the record's \"body\" is an object, and has to be",
            ),
        ] {
            let Outcome::PermanentFailure(failure) = outcome(&mut stage, record).await else { panic!() };
            assert_eq!(failure.code, ErrorCode::InvalidMessage);
            assert!(failure.message.starts_with(expected), "{}", failure.message);
        }
    });
    for record in [json!({"body": LETTER}), json!({"messageId": "", "body": LETTER}), json!(1)] {
        let error = event::parse(json!({"Records": [of_sam(), record]})).unwrap_err().to_string();
        assert!(error.contains("record 1 has no messageId"), "{error}");
    }
}

#[test]
fn numbers_and_texts_are_read_alike_and_attributes_are_passed_on() {
    let _beside_others = beside_others();
    let [record] = &event::parse(json!([of_elastic_mq()])).unwrap()[..] else { panic!() };
    assert_eq!((record.receive_count, record.sent_timestamp_ms), (1, Some(1_782_988_200_000)));
    assert_eq!((&record.receipt_handle, &record.message_group), (&None, &None));
    assert_eq!(record.attributes["Tenant"].string_value.as_deref(), Some("t"));
    assert_eq!(record.attributes["Tenant"].data_type.as_deref(), Some("String"));
}

/// A template that prints today's date needs one, also of a message that does not say when it was sent.
#[test]
fn a_message_without_a_sent_timestamp_has_the_invocations_time() {
    run(async {
        let templates = Templates::with("#assert(datetime.today(offset: 9).year() >= 2020)");
        let mut stage = Stage::with(Config { templates_dir: templates.config().templates_dir, ..config(1) }).await;
        let body = json!({"template": "note", "data": note("x")}).to_string();
        let stored = outcome(&mut stage, json!({"messageId": "a", "body": body})).await;
        assert!(matches!(stored, Outcome::Stored(_)), "{stored:?}");
    });
}
