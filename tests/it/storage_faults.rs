//! S3 in a bad mood: throttling, errors, silence, broken connections and wrong deployments cost a
//! record a try at most, never a message, and nothing half is ever taken for stored.

use std::time::{Duration, SystemTime};

use crate::support::embedded::s3::{EmbeddedS3, Fault, client_for};
use crate::support::proxy::{Mischief, Proxy};
use crate::support::{INPUT, OUTPUT, Stage, config, letter, log, pointer, record_of, run};
use pressrun::function::Function;
use pressrun::function::deadline::Deadline;
use pressrun::function::event;
use pressrun::function::outcome::{ErrorCode, Outcome};
use serde_json::{Value, json};

fn in_seconds(seconds: u64) -> Deadline {
    Deadline::from_lambda(SystemTime::now() + Duration::from_secs(seconds))
}

async fn code_of(function: &mut Function, record: Value, deadline: Deadline) -> Option<ErrorCode> {
    let records = event::parse(json!({"Records": [record]})).unwrap();
    match &function.process_batch(records, deadline).await[0].1 {
        Outcome::Stored(_) => None,
        Outcome::TransientFailure(failure) => Some(failure.code),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_error_now_and_then_is_borne() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        for fault in [Fault::InternalError, Fault::SlowDown, Fault::ErrorOnceServed] {
            stage.s3.answer_next("PUT", [fault, fault]);
            assert_eq!(code_of(&mut stage.function, letter("a"), Deadline::NONE).await, None, "{fault:?}");
        }
    });
}

#[test]
fn errors_without_end_are_a_transient_failure() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        for (fault, code) in [
            (Fault::InternalError, ErrorCode::StorageUnavailable),
            (Fault::SlowDown, ErrorCode::StorageUnavailable),
            (Fault::Conflict, ErrorCode::StorageUnavailable),
            (Fault::AccessDenied, ErrorCode::StorageDenied),
            (Fault::NoSuchBucket, ErrorCode::StorageDenied),
        ] {
            stage.s3.answer_all_with(Some(fault));
            assert_eq!(code_of(&mut stage.function, letter("a"), Deadline::NONE).await, Some(code), "{fault:?}");
        }
        stage.s3.answer_all_with(None);
        assert_eq!(code_of(&mut stage.function, letter("a"), Deadline::NONE).await, None);
    });
}

#[test]
fn a_bucket_that_is_not_there_throws_no_message_away() {
    run(async {
        let s3 = EmbeddedS3::start(&[INPUT]);
        let mut function = Function::start(config(1), s3.client()).await.unwrap();
        assert_eq!(code_of(&mut function, letter("a"), Deadline::NONE).await, Some(ErrorCode::StorageDenied));
        function.stop().await;
    });
}

#[test]
fn a_message_behind_a_pointer_that_s3_does_not_give_is_not_thrown_away() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let pointer = || record_of("a", pointer(INPUT, "a"));
        stage.s3.put(INPUT, "a", json!({"template": "letter", "data": {"to": "a"}}).to_string());
        for (fault, code) in [
            (Fault::SlowDown, ErrorCode::InputUnavailable),
            (Fault::AccessDenied, ErrorCode::StorageDenied),
            (Fault::NoSuchBucket, ErrorCode::StorageDenied),
        ] {
            stage.s3.answer_all("GET", Some(fault));
            assert_eq!(code_of(&mut stage.function, pointer(), Deadline::NONE).await, Some(code), "{fault:?}");
        }
        stage.s3.answer_all_with(None);
        assert_eq!(code_of(&mut stage.function, pointer(), Deadline::NONE).await, None);
    });
}

/// A batch gets through while S3 is silent for one of its records.
#[test]
fn a_silent_connection_times_out_while_there_is_time_for_another_attempt() {
    run(async {
        let s3 = EmbeddedS3::start(&[OUTPUT]);
        let proxy = Proxy::start(&s3.endpoint());
        let mut function = Function::start(config(1), client_for(&proxy.endpoint())).await.unwrap();
        proxy.next_puts([Mischief::Hang]);
        assert_eq!(code_of(&mut function, letter("a"), in_seconds(6)).await, None);
        assert!(s3.object(OUTPUT, "letter/a.pdf").is_some());
        function.stop().await;
    });
}

#[test]
fn a_connection_that_breaks_is_replaced() {
    run(async {
        let s3 = EmbeddedS3::start(&[OUTPUT]);
        let proxy = Proxy::start(&s3.endpoint());
        let mut function = Function::start(config(1), client_for(&proxy.endpoint())).await.unwrap();
        for mischief in [Mischief::Reset, Mischief::Truncate, Mischief::LoseAnswer] {
            s3.clear(OUTPUT);
            // A fresh connection too: one that was idle is replaced without being asked.
            proxy.next_puts([Mischief::None, mischief]);
            for id in ["a", "b"] {
                assert_eq!(code_of(&mut function, letter(id), in_seconds(20)).await, None, "{mischief:?}");
                let object = s3.object(OUTPUT, &format!("letter/{id}.pdf")).unwrap();
                assert!(object.body.trim_ascii_end().ends_with(b"%%EOF"), "{mischief:?}");
            }
        }
        function.stop().await;
    });
}

#[test]
fn a_pdf_that_arrives_altered_or_cut_is_never_taken_for_stored() {
    run(async {
        let s3 = EmbeddedS3::start(&[OUTPUT]);
        let proxy = Proxy::start(&s3.endpoint());
        let mut function = Function::start(config(1), client_for(&proxy.endpoint())).await.unwrap();
        for mischief in [Mischief::Alter, Mischief::Truncate] {
            // As often as the SDK tries.
            proxy.next_puts([mischief; 3]);
            let code = code_of(&mut function, letter("a"), in_seconds(20)).await;
            assert!(code.is_some(), "{mischief:?}");
            assert!(s3.object(OUTPUT, "letter/a.pdf").is_none(), "{mischief:?}");
        }
        function.stop().await;
    });
}

#[test]
fn every_upload_carries_a_checksum_that_s3_verifies() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        // The embedded S3 refuses an upload without a CRC32 too.
        stage.s3.answer_all("PUT", Some(Fault::Altered));
        let code = code_of(&mut stage.function, letter("a"), Deadline::NONE).await;
        assert_eq!(code, Some(ErrorCode::StorageUnavailable));
        assert!(stage.s3.keys(OUTPUT).is_empty());
        stage.s3.answer_all_with(None);
        assert_eq!(code_of(&mut stage.function, letter("a"), Deadline::NONE).await, None);
        assert!(stage.pdf("letter", "a").is_some());
    });
}

#[test]
fn a_wrong_deployment_is_loud_in_the_log_once_an_invocation() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        for fault in [Fault::AccessDenied, Fault::NoSuchBucket] {
            stage.s3.answer_all_with(Some(fault));
            assert_eq!(stage.handle(vec![letter("a"), letter("b"), letter("c")]).await.len(), 3);
            let errors = log::take("ERROR");
            assert!(errors.len() == 1 && errors[0].contains("S3 denied access"), "{errors:?}");
        }
    });
}
