//! What a message may say, and what it may not.

use super::*;

fn parse(message: &str) -> Result<RenderRequest, MessageError> {
    let version =
        crate::render::TemplateVersion { version: "1.2.3".to_owned(), digest: "0".repeat(32), part_size: None };
    let templates = BTreeMap::from([("invoice".to_owned(), version)]);
    RenderRequest::parse(message, "m-1", ParseContext { templates: &templates, output_prefix: "pdf/" })
}

fn refused(message: &str) -> String {
    parse(message).unwrap_err().to_string()
}

#[test]
fn a_template_and_data_are_enough() {
    let job = parse(r#"{"template": "invoice", "data": {"a": 1.10}}"#).unwrap();
    assert_eq!(job.key, "pdf/invoice/m-1.pdf");
    assert_eq!(&job.data[..], br#"{"a": 1.10}"#);
    assert_eq!(job.content_disposition, None);
    assert_eq!(job.metadata["message-id"], "m-1");
    assert_eq!(job.metadata["template-version"], "1.2.3");
}

#[test]
fn a_typo_in_a_field_is_refused() {
    assert!(refused(r#"{"template": "invoice", "data": 1, "filname": "a"}"#).contains("filname"));
    assert!(refused(r#"{"template": "invoice"}"#).contains("data"));
    assert!(refused("hello").contains("expected value"));
}

#[test]
fn an_unknown_template_is_refused_with_those_there_are() {
    assert_eq!(
        refused(r#"{"template": "invoise", "data": 1}"#),
        "there is no template \"invoise\"; there are: invoice"
    );
}

#[test]
fn a_key_that_could_lead_elsewhere_is_refused() {
    let long = "x".repeat(1025);
    let timings = "a.pdf.timings.json.gz";
    for key in ["", "/a.pdf", "../a.pdf", "a/../b.pdf", "a/..", "a\\u0000.pdf", "a\\nb", "a/", &long, timings] {
        let message = format!(r#"{{"template": "invoice", "data": 1, "key": "{key}"}}"#);
        assert!(matches!(parse(&message).unwrap_err(), MessageError::Key { .. }), "{key}");
    }
    for key in ["a..b.pdf", "2026/ä ö.pdf", "..."] {
        let message = format!(r#"{{"template": "invoice", "data": 1, "key": "{key}"}}"#);
        assert_eq!(parse(&message).unwrap().key, format!("pdf/{key}"));
    }
}

#[test]
fn a_files_name_is_plain_and_its_key_a_key() {
    let with = |files: &str| parse(&format!(r#"{{"template": "invoice", "data": 1, "files": {files}}}"#));
    let job = with(r#"{"logo.png": "customers/42/logo.png", "7_a-B.svg": "x"}"#).unwrap();
    assert_eq!(job.files["logo.png"], "customers/42/logo.png");
    let long = format!(r#"{{"{}": "x"}}"#, "a".repeat(65));
    for bad in [r#"{"": "x"}"#, r#"{"a/b.png": "x"}"#, r#"{"..": "x"}"#, r#"{".a": "x"}"#, r#"{"ä": "x"}"#, &long] {
        assert!(matches!(with(bad).unwrap_err(), MessageError::FileName { .. }), "{bad}");
    }
    for bad in ["", "/a", "../a", "a/"] {
        let files = format!(r#"{{"a.png": "{bad}"}}"#);
        assert!(matches!(with(&files).unwrap_err(), MessageError::FileKey { .. }), "{bad}");
    }
    let many = |count: usize| {
        let files: BTreeMap<String, &str> = (0..count).map(|number| (format!("{number}.png"), "x")).collect();
        with(&serde_json::to_string(&files).unwrap())
    };
    assert!(many(16).is_ok());
    assert_eq!(many(17).unwrap_err().to_string(), "files has 17 entries, and a message may have 16");
}

#[test]
fn a_filename_is_spelt_as_browsers_read_it() {
    let job = parse(r#"{"template": "invoice", "data": 1, "filename": "Rechnung 7 – Müller.pdf"}"#).unwrap();
    assert_eq!(
        job.content_disposition.unwrap(),
        "attachment; filename*=UTF-8''Rechnung%207%20%E2%80%93%20M%C3%BCller.pdf"
    );
    let bad =
        ["", ".", "..", "  ", " .", "a\u{202e}fdp.exe", "a\u{2066}b", "a/b.pdf", "a\\\\b.pdf", "a\\r\\nSet-Cookie: x"];
    for bad in bad {
        let message = format!(r#"{{"template": "invoice", "data": 1, "filename": "{bad}"}}"#);
        assert!(matches!(parse(&message).unwrap_err(), MessageError::Filename), "{bad}");
    }
}

#[test]
fn metadata_that_s3_would_refuse_is_refused_first() {
    let with = |name: &str, value: &str| {
        parse(&format!(r#"{{"template": "invoice", "data": 1, "metadata": {{"{name}": "{value}"}}}}"#))
    };
    assert_eq!(with("Customer", "K-17").unwrap().metadata["customer"], "K-17");
    for (name, value) in [
        ("", "a"),
        ("a b", "a"),
        ("ü", "a"),
        ("a", "ü"),
        ("a", " a"),
        ("a", "a\\n"),
        ("Pages", "3"),
        ("E-Invoice", "BASIC"),
        ("template", "x"),
    ] {
        assert!(matches!(with(name, value).unwrap_err(), MessageError::Metadata { .. }), "{name}: {value}");
    }
    let ours = "message-id".len()
        + 3
        + "template".len()
        + 7
        + "template-version".len()
        + 5
        + "pages".len()
        + 7
        + "e-invoice".len()
        + 9
        + "sent-timestamp".len()
        + 13
        + "message-digest".len()
        + 32
        + "template-digest".len()
        + 32;
    assert!(with("a", &"x".repeat(2048 - ours - 1)).is_ok());
    assert_eq!(
        with("a", &"x".repeat(2048 - ours)).unwrap_err().to_string(),
        "metadata has 2049 bytes with what pressrun adds itself, and S3 takes 2048; 1 have to go"
    );
}

#[test]
fn a_name_that_stands_twice_is_refused_with_its_place() {
    for (message, expected) in [
        (
            r#"{"template": "invoice", "data": {"lines": [{"a": 1, "a": 2}]}}"#,
            "the data cannot be used: /lines/0/a: the name stands twice in its object, and only one of the two would \
             be read",
        ),
        (
            r#"{"template": "invoice", "data": 1, "metadata": {"a": "1", "a": "2"}}"#,
            "the message at /metadata/a: the name stands twice in its object, and only one of the two would be read",
        ),
        (
            r#"{"template": "invoice", "data": 1, "files": {"a": "1", "\u0061": "2"}}"#,
            "the message at /files/a: the name stands twice in its object, and only one of the two would be read",
        ),
        (
            r#"{"template": "invoice", "data": 1, "data": 2}"#,
            "the message does not match the contract: duplicate field `data` at line 1 column 41",
        ),
    ] {
        assert_eq!(refused(message), expected);
    }
}

#[test]
fn a_whole_number_beyond_64_bits_is_refused_with_its_place() {
    let with = |data: &str| parse(&format!(r#"{{"template": "invoice", "data": {data}}}"#));
    let at = |data: &str| match with(data).unwrap_err() {
        MessageError::MisreadData { place, kind: MisreadingKind::WholeNumberTooLarge } => place,
        other => panic!("{other}"),
    };
    assert_eq!(at(r#"{"id": 12345678901234567890}"#), "/id");
    assert_eq!(at("12345678901234567890"), "at the top");
    assert!(with(r#"{"id": "12345678901234567890", "max": 9223372036854775807, "x": 1.5e30}"#).is_ok());
}

#[test]
fn what_is_plainly_another_kind_of_body_is_named() {
    let sns =
        r#"{"Type": "Notification", "MessageId": "m", "TopicArn": "arn:aws:sns:eu-central-1:1:t", "Message": "{}"}"#;
    let event =
        r#"{"version": "0", "id": "e", "detail-type": "Invoice", "source": "shop", "detail": {"template": "x"}}"#;
    let object_created =
        r#"{"Records": [{"eventVersion": "2.1", "eventSource": "aws:s3", "s3": {"object": {"key": "k"}}}]}"#;
    let s3_test = r#"{"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"}"#;
    let sqs = r#"{"Records": [{"messageId": "m", "body": "{}", "eventSource": "aws:sqs"}]}"#;
    for (body, expected) in [
        (sns, OtherBody::SnsEnvelope),
        (event, OtherBody::EventBridgeEvent),
        (object_created, OtherBody::S3Notification),
        (s3_test, OtherBody::S3Notification),
        (sqs, OtherBody::SqsEvent),
        (r#""{\"template\": \"invoice\"}""#, OtherBody::EncodedTwice),
        ("eyJ0ZW1wbGF0ZSI6ICJpbnZvaWNlIn0=", OtherBody::Base64),
        ("H4sIAAAAAAAAA6tWKkktLlGyUlAqS8wpTVWqBQBBLTSsFAAAAA==", OtherBody::Base64OfGzip),
    ] {
        let error = parse(body).unwrap_err();
        assert!(matches!(error, MessageError::OtherBody(other) if other == expected), "{body}: {error}");
    }
    // And what only resembles them is told as it is.
    for body in ["hello", "letter", "{}", r#"{"template": "invoice", "Type": 1, "TopicArn": 2}"#, r#"{"Records": 1}"#] {
        assert!(matches!(parse(body).unwrap_err(), MessageError::Malformed(_)), "{body}");
    }
    assert!(refused(sns).contains("RawMessageDelivery"));
}

#[test]
fn a_byte_order_mark_changes_nothing() {
    let message = r#"{"template": "invoice", "data": {"a": 1}}"#;
    let marked = format!("\u{feff}{message}");
    let (plain, marked) = (parse(message).unwrap(), parse(&marked).unwrap());
    assert_eq!((plain.data, plain.metadata), (marked.data, marked.metadata));
    assert_eq!(Body::parse("\u{feff}{}").unwrap(), Body::Message("{}"));
    let pointer =
        "\u{feff}[\"software.amazon.payloadoffloading.PayloadS3Pointer\",{\"s3BucketName\":\"b\",\"s3Key\":\"k\"}]";
    assert!(matches!(Body::parse(pointer).unwrap(), Body::Pointer(_)));
}

#[test]
fn an_error_is_short_however_long_what_it_quotes() {
    let long = "x".repeat(900_000);
    for message in [
        format!(r#"{{"template": "{long}", "data": 1}}"#),
        format!(r#"{{"template": "invoice", "data": 1, "key": "{long}"}}"#),
        format!(r#"{{"template": "invoice", "data": 1, "{long}": 1}}"#),
        format!(r#"{{"template": "invoice", "data": 1, "files": {{"{long}": "k"}}}}"#),
        format!(r#"{{"template": "invoice", "data": 1, "files": {{"a": "{long}"}}}}"#),
        format!(r#"{{"template": "invoice", "data": 1, "metadata": {{"{long} ": "k"}}}}"#),
        format!(r#"{{"template": "invoice", "data": 1, "if_exists": "{long}"}}"#),
        format!(r#"{{"template": "invoice", "data": {{"{long}": 1, "{long}": 1}}}}"#),
    ] {
        assert!(refused(&message).len() < 2000, "{}", &message[..100]);
    }
}

#[test]
fn a_pointer_is_told_from_a_message() {
    let pointer = || Body::Pointer(Pointer { bucket: "in".to_owned(), key: "k".to_owned() });
    for class in POINTER_CLASSES {
        let body = format!(r#"["{class}",{{"s3BucketName":"in","s3Key":"k"}}]"#);
        assert_eq!(Body::parse(&body).unwrap(), pointer());
    }
    assert_eq!(Body::parse("{}").unwrap(), Body::Message("{}"));
    for body in ["[]", "[1, 2]", r#"["other.Class",{"s3BucketName":"in","s3Key":"k"}]"#] {
        assert!(matches!(Body::parse(body).unwrap_err(), MessageError::NotAPointer), "{body}");
    }
}
