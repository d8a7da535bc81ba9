//! What stands in a message's body, and in the objects that it names: what is plainly meant is read, and what is
//! not a message is refused with what to do.

use crate::support::templates::{MANIFEST, Templates, note, outcome};
use crate::support::{INPUT, Stage, beside_others, block_on, config, log, record, record_of, run};
use pressrun::function::outcome::{ErrorCode, Failure, Outcome};
use proptest::prelude::*;
use serde_json::{Value, json};

async fn failure(stage: &mut Stage, record: Value) -> Failure {
    match outcome(stage, record).await {
        Outcome::PermanentFailure(failure) => failure,
        other => panic!("{other:?}"),
    }
}

async fn refused(stage: &mut Stage, body: &str) -> (ErrorCode, String) {
    let failure = failure(stage, record_of("bad", body)).await;
    (failure.code, failure.message)
}

fn letter() -> String {
    json!({"template": "letter", "data": {"to": "you"}}).to_string()
}

#[test]
fn a_pointer_is_read_whichever_client_library_wrote_it() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        stage.s3.put(INPUT, "k", letter());
        let classes =
            ["software.amazon.payloadoffloading.PayloadS3Pointer", "com.amazon.sqs.javamessaging.MessageS3Pointer"];
        for (id, class) in classes.iter().enumerate() {
            let body = json!([class, {"s3BucketName": INPUT, "s3Key": "k"}]).to_string();
            assert_eq!(stage.handle(vec![record_of(&id.to_string(), body)]).await, [""; 0], "{class}");
            assert!(stage.pdf("letter", &id.to_string()).is_some());
        }
    });
}

#[test]
fn a_pointer_to_what_cannot_be_an_object_is_refused() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        for (key, expected) in [(String::new(), "is empty"), ("k".repeat(400_000), "is longer than S3's 1024 bytes")] {
            let (code, reason) = refused(&mut stage, &crate::support::pointer(INPUT, &key)).await;
            assert_eq!(code, ErrorCode::InvalidMessage);
            assert!(reason.contains(expected), "{reason}");
        }
        assert_eq!(stage.s3.requests(), [""; 0]);
    });
}

#[test]
fn a_body_with_a_byte_order_mark_is_read() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let marked = format!("\u{feff}{}", letter());
        stage.s3.put(INPUT, "marked", marked.clone());
        let pointer = format!("\u{feff}{}", crate::support::pointer(INPUT, "marked"));
        assert_eq!(stage.handle(vec![record_of("a", marked), record_of("b", pointer)]).await, [""; 0]);
        assert!(stage.pdf("letter", "a").is_some() && stage.pdf("letter", "b").is_some());
    });
}

#[test]
fn a_schema_and_a_sample_with_a_byte_order_mark_are_read() {
    run(async {
        let templates = Templates::with("#data.text")
            .and("note/sample.json", "\u{feff}{\"text\": \"sample\"}")
            .and("note/schema.json", "\u{feff}{\"required\": [\"text\"]}")
            .and("note/typst.toml", format!("{MANIFEST}[tool.pressrun]\nschema = \"schema.json\"\n"));
        templates.stored(note("x")).await;
        assert_eq!(templates.failure(json!({})).await.code, ErrorCode::InvalidData);
    });
}

#[test]
fn a_body_of_another_kind_is_refused_with_what_to_do() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let sns = json!({"Type": "Notification", "TopicArn": "arn:aws:sns:eu-central-1:1:t", "Message": letter()});
        let event = json!({"detail-type": "Invoice", "source": "shop", "detail": {"template": "letter", "data": {}}});
        let s3 = json!({"Records": [{"eventSource": "aws:s3", "s3": {"object": {"key": "secret"}}}]});
        for (body, expected) in [
            (sns.to_string(), "RawMessageDelivery"),
            (event.to_string(), "input path $.detail"),
            (s3.to_string(), "a notification of S3's"),
            (json!({"Records": [record_of("a", letter())]}).to_string(), "send what stands in the \"body\""),
            (json!(letter()).to_string(), "encoded twice"),
            ("eyJ0ZW1wbGF0ZSI6ICJsZXR0ZXIifQ==".to_owned(), "base64"),
            ("H4sIAAAAAAAAA6tWKkktLlGyUlAqS8wpTVWqBQBBLTSsFAAAAA==".to_owned(), "gzipped"),
        ] {
            let (code, reason) = refused(&mut stage, &body).await;
            assert_eq!(code, ErrorCode::InvalidMessage);
            assert!(reason.contains(expected) && !reason.contains("secret"), "{reason}");
        }
        for (content, expected) in
            [(&b"\x1f\x8b\x08\x00rest"[..], "gzipped"), (b"\xff\xfe{\0", "UTF-16"), (b"\xe4", "not UTF-8")]
        {
            stage.s3.put(INPUT, "k", content.to_vec());
            let (code, reason) = refused(&mut stage, &crate::support::pointer(INPUT, "k")).await;
            assert_eq!(code, ErrorCode::InvalidMessage);
            assert!(reason.contains(expected), "{reason}");
        }
    });
}

#[test]
fn a_name_that_stands_twice_is_refused_wherever_it_stands() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let in_data = r#"{"template": "letter", "data": {"to": "secret", "lines": [1, {"a": 1, "a": 1}]}}"#;
        let failure = failure(&mut stage, record_of("bad", in_data)).await;
        assert_eq!(failure.code, ErrorCode::InvalidData);
        assert!(failure.message.contains("/lines/1/a: the name stands twice"), "{}", failure.message);
        assert!(failure.diagnostics[0].message.contains("/lines/1/a") && !failure.message.contains("secret"));
        for (field, place) in [
            (r#""metadata": {"a": "1", "a": "1"}"#, "/metadata/a"),
            (r#""files": {"a": "1", "a": "1"}"#, "/files/a"),
            (r#""key": "a", "key": "b""#, "`key`"),
        ] {
            let body = format!(r#"{{"template": "letter", "data": {{"to": "x"}}, {field}}}"#);
            let (code, reason) = refused(&mut stage, &body).await;
            assert_eq!(code, ErrorCode::InvalidMessage);
            assert!(reason.contains(place), "{reason}");
        }
    });
}

#[test]
fn a_whole_number_that_typst_would_round_is_refused_with_its_place() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let with = |number: &str| format!(r#"{{"template": "letter", "data": {{"to": "x", "ids": [0, {number}]}}}}"#);
        for bad in ["12345678901234567890", "-9223372036854775809", "123456789012345678901234567890"] {
            let (code, reason) = refused(&mut stage, &with(bad)).await;
            assert_eq!(code, ErrorCode::InvalidData);
            assert!(reason.contains("/ids/1: is a whole number beyond") && !reason.contains("1234"), "{reason}");
        }
        for good in [
            "9223372036854775807",
            "-9223372036854775808",
            "1e30",
            "12345678901234567890.5",
            "\"12345678901234567890\"",
        ] {
            assert_eq!(stage.handle(vec![record_of("good", with(good))]).await, [""; 0], "{good}");
        }
    });
}

#[test]
fn a_filename_that_is_no_name_or_hides_its_end_is_refused() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        for filename in ["..", ".", "  ", "\u{a0}", "invoice\u{202e}fdp.exe", "\u{2067}a.pdf", "\u{200f}a"] {
            let mut record = record("bad", "letter", json!({"to": "x"}));
            record["body"] =
                json!({"template": "letter", "data": {"to": "x"}, "filename": filename}).to_string().into();
            let failure = failure(&mut stage, record).await;
            assert!(failure.message.starts_with("filename has to be"), "{filename:?}: {}", failure.message);
        }
    });
}

/// CloudWatch drops a line of more than 1 MiB, and with it the reason.
const MAX_LINE_BYTES: usize = 256 * 1024;

/// A message with a text of any length in any of its places.
fn message_with_a_long_text() -> impl Strategy<Value = (String, String)> {
    let text =
        (prop::sample::select(vec!['x', '"', '\\', '\u{1}', '\u{7f}', 'ä', '\u{202e}', '😀', '/']), 0..400_000_usize)
            .prop_map(|(character, length)| std::iter::repeat_n(character, length).collect::<String>());
    (text, 0..13).prop_map(|(text, place)| {
        let with =
            |field: &str, value: Value| json!({"template": "letter", "data": {"to": "x"}, field: value}).to_string();
        let body = match place {
            0 => json!({"template": text, "data": 1}).to_string(),
            1 => with("key", text.clone().into()),
            2 => with("filename", text.clone().into()),
            3 => with("metadata", json!({text.clone(): "a"})),
            4 => with("metadata", json!({"a": text})),
            5 => with("files", json!({text.clone(): "a"})),
            6 => with("files", json!({"a": text})),
            7 => with("if_exists", text.clone().into()),
            8 => with(&text, json!(1)),
            9 => json!(["software.amazon.payloadoffloading.PayloadS3Pointer", {"s3BucketName": text, "s3Key": text}])
                .to_string(),
            10 => json!(["software.amazon.payloadoffloading.PayloadS3Pointer", {"s3BucketName": INPUT, "s3Key": text}])
                .to_string(),
            11 => text.clone(),
            _ => json!({"template": "quotes", "data": {"a": text}}).to_string(),
        };
        (if place == 12 { text } else { "m".to_owned() }, body)
    })
}

#[test]
fn no_log_line_and_no_attribute_is_too_long_whatever_a_message_holds() {
    let _beside_others = beside_others();
    let stage = block_on(Stage::with_queues(config(1), Some("failed"), None));
    let stage = std::cell::RefCell::new(stage);
    // Each case renders nothing, or one letter.
    proptest!(ProptestConfig::with_cases(40), |((id, body) in message_with_a_long_text())| {
        let mut stage = stage.borrow_mut();
        let id = if id.is_empty() { "m".to_owned() } else { id };
        block_on(stage.handle(vec![record_of(&id, body)]));
        for line in log::take("") {
            let in_json = serde_json::to_string(&line).unwrap();
            prop_assert!(in_json.len() <= MAX_LINE_BYTES, "{} bytes: {}", in_json.len(), &line[..100]);
        }
        // The stand-in refuses what SQS refuses; the error's own attributes stay small beside the message's.
        for message in stage.sqs.messages("failed") {
            let ours = ["ErrorCode", "ErrorMessage", "Template"];
            let bytes: usize = ours.iter().filter_map(|name| Some(message.attributes.get(*name)?.len())).sum();
            prop_assert!(bytes < 4096, "{bytes}");
        }
    });
}
