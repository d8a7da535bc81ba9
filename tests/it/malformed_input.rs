//! Anything unexpected on a pipe or the control socket is an error, never a panic or a hang of the function;
//! and nothing that can be sent to it as a message is either.

use std::collections::BTreeMap;
use std::path::Path;

use crate::support::embedded::s3::EmbeddedS3;
use crate::support::{OUTPUT, beside_others, config, run};
use bytes::BytesMut;
use pressrun::config::Config;
use pressrun::function::Function;
use pressrun::function::event;
use pressrun::message::{Body, ParseContext, RenderRequest};
use pressrun::press::protocol::{self, FrameCodec, PressCommand, PressEvent, Response};
use pressrun::render::diagnostics::Diagnostic;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio_util::codec::{Decoder, Encoder};

#[test]
fn an_unruly_press_stops_init_with_a_reason_and_no_hang() {
    for (misdeed, reason) in [
        ("garbage", "a packet that cannot be read"),
        ("too-long", "did not fit"),
        ("out-of-order", "unexpected event"),
        ("ends", "it closed its end"),
        ("forks-nothing", "the first run of the press ended"),
    ] {
        run(async {
            let unruly = Config {
                press_program: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/presses/unruly.sh"),
                templates_dir: misdeed.into(),
                ..config(1)
            };
            let s3 = EmbeddedS3::start(&[OUTPUT]);
            let error = Function::start(unruly, s3.client()).await.err().unwrap().to_string();
            assert!(error.contains(reason), "{misdeed}: {error}");
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
    let version =
        pressrun::render::TemplateVersion { version: "1.0.0".to_owned(), digest: "0".repeat(32), part_size: None };
    let templates = BTreeMap::from([("letter".to_owned(), version)]);
    let context = ParseContext { templates: &templates, output_prefix: "pdf/" };
    if let Ok(Body::Message(message)) = Body::parse(message)
        && let Ok(request) = RenderRequest::parse(message, "m-1", context)
    {
        assert!(request.key.starts_with("pdf/") && request.key.len() <= 1024 && !request.key.contains("/../"));
        assert!(request.metadata.values().all(|value| value.is_ascii()));
    }
}

// By hand for longer: PROPTEST_CASES=1000000 cargo test --release --test it malformed_input

#[test]
fn no_bytes_on_a_pipe_are_a_panic() {
    let _beside_others = beside_others();
    proptest!(|(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8))| {
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
    });
}

#[test]
fn no_packet_on_the_control_socket_is_a_panic() {
    let _beside_others = beside_others();
    proptest!(|(packet in prop::collection::vec(any::<u8>(), 0..300), json in json_like())| {
        let json = json.to_string();
        for packet in [&packet[..], json.as_bytes()] {
            if let Ok(command) = protocol::decode_packet::<PressCommand>(packet) {
                let again = protocol::encode_packet(&command).unwrap();
                prop_assert_eq!(protocol::decode_packet::<PressCommand>(&again).unwrap(), command);
            }
            if let Ok(event) = protocol::decode_packet::<PressEvent>(packet) {
                let again = protocol::encode_packet(&event).unwrap();
                prop_assert_eq!(protocol::decode_packet::<PressEvent>(&again).unwrap(), event);
            }
        }
    });
}

#[test]
fn every_response_fits_into_a_frame() {
    let _beside_others = beside_others();
    proptest!(|(texts in prop::collection::vec("(.|[\u{1}\u{7f}\"]){0,3000}", 0..40))| {
        let diagnostics: Vec<Diagnostic> = texts.iter().map(|text| Diagnostic {
            is_error: true,
            message: text.clone(),
            file: Some(text.clone()),
            line: Some(1),
            column: None,
            hints: texts.clone(),
            text: text.clone(),
        }).collect();
        let first = diagnostics.first().cloned();
        let frame = Response::TypstError { diagnostics }.into_frame();
        let bytes = protocol::encode(frame.clone()).unwrap();
        prop_assert!(bytes.len() <= 4 + protocol::MAX_FRAME_BYTES);
        let Response::TypstError { diagnostics: told } = frame.parse().unwrap() else { panic!("it is what it was") };
        // However long it is, its beginning is told.
        if let Some(first) = first {
            let beginning: String = first.message.chars().take(50).collect();
            prop_assert!(told[0].message.starts_with(&beginning));
        }
        let message = texts.concat();
        protocol::encode(Response::Panicked { message }.into_frame()).unwrap();
    });
}

#[test]
fn no_message_is_a_panic() {
    let _beside_others = beside_others();
    proptest!(|(text in ".*", json in json_like())| {
        parse(&text);
        parse(&json.to_string());
        parse(&json!({"template": "letter", "data": json, "key": text}).to_string());
        parse(&json!({"template": "letter", "data": 1, "filename": text, "metadata": {text.clone(): text}}).to_string());
    });
}

#[test]
fn no_event_is_a_panic() {
    let _beside_others = beside_others();
    proptest!(|(event in json_like(), record in json_like())| {
        let _ = event::parse(event);
        if let Ok(records) = event::parse(json!({"Records": [record]})) {
            prop_assert!(records.iter().all(|record| !record.message_id.is_empty()));
        }
    });
}
