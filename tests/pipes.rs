//! Anything unexpected on a pipe is the press's fault, never a panic or a hang of the function;
//! and nothing that can be sent to it as a message is either.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::BytesMut;
use pressrun::config::Config;
use pressrun::function::records;
use pressrun::job::{Body, Job, Surroundings};
use pressrun::press::frames::FrameCodec;
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{Stage, config, letter, run};
use tokio_util::codec::{Decoder, Encoder};

#[test]
fn an_unruly_press_is_a_transient_failure_and_no_hang() {
    for misdeed in ["garbage", "too-long", "unknown-kind", "half-a-frame", "wrong-verdict", "out-of-order"] {
        run(async {
            let unruly = Config {
                press_program: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/presses/unruly.sh"),
                templates_dir: misdeed.into(),
                ..config(1)
            };
            let mut stage = Stage::with(unruly).await;
            assert_eq!(stage.handle(vec![letter("a"), letter("b")]).await, ["a", "b"], "{misdeed}");
        });
    }
}

/// JSON that looks like what is expected, more or less.
fn json_like() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
        "(letter|\\.\\./|/|pdf/){0,3}[a-z]*".prop_map(Value::from),
    ];
    let name = prop_oneof![
        ".*".boxed(),
        "(Records|messageId|body|attributes|template|data|key|filename|metadata|s3Key)".boxed()
    ];
    leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::btree_map(name.clone(), inner, 0..8).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

fn parse(message: &str) {
    let edition = pressrun::job::Edition { version: "1.0.0".to_owned(), digest: "0".repeat(32) };
    let templates = BTreeMap::from([("letter".to_owned(), edition)]);
    let surroundings = Surroundings { templates: &templates, output_prefix: "pdf/", message_id: "m-1" };
    if let Ok(Body::Message(message)) = Body::parse(message)
        && let Ok(job) = Job::parse(message, surroundings)
    {
        assert!(job.key.starts_with("pdf/") && job.key.len() <= 1024 && !job.key.contains("/../"));
        assert!(job.metadata.values().all(|value| value.is_ascii()));
    }
}

// By hand for longer: PROPTEST_CASES=1000000 cargo test --release --test pipes
proptest! {
    #[test]
    fn no_bytes_on_a_pipe_are_a_panic(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8)) {
        let mut codec = FrameCodec::default();
        let mut pipe = BytesMut::new();
        for chunk in chunks {
            pipe.extend_from_slice(&chunk);
            while let Ok(Some(frame)) = codec.decode(&mut pipe) {
                // What was read as a frame is written as the same bytes.
                let mut written = BytesMut::new();
                codec.encode(frame.clone(), &mut written).unwrap();
                prop_assert_eq!(FrameCodec::default().decode(&mut written).unwrap(), Some(frame));
            }
        }
    }

    #[test]
    fn no_message_is_a_panic(text in ".*", json in json_like()) {
        parse(&text);
        parse(&json.to_string());
        parse(&json!({"template": "letter", "data": json, "key": text}).to_string());
        parse(&json!({"template": "letter", "data": 1, "filename": text, "metadata": {text.clone(): text}}).to_string());
    }

    #[test]
    fn no_event_is_a_panic(event in json_like(), record in json_like()) {
        let _ = records::parse(event);
        if let Ok(records) = records::parse(json!({"Records": [record]})) {
            prop_assert!(records.iter().all(|record| !record.message_id.is_empty()));
        }
    }
}
