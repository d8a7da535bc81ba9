//! SQS delivers a message at least once. One whose object is there already is not set again, and
//! nothing that another message has made is taken for it.

use crate::support::embedded::s3::Fault;
use crate::support::{INPUT, OUTPUT, Stage, config, letter, letter_to, pointer, received, record_of, run};
use pressrun::config::Config;
use pressrun::function::deadline::Deadline;
use pressrun::function::event;
use pressrun::function::outcome::{ErrorCode, Outcome};
use serde_json::{Value, json};

async fn outcome(stage: &mut Stage, record: Value) -> Outcome {
    let records = event::parse(json!({"Records": [record]})).unwrap();
    stage.function.process_batch(records, Deadline::NONE).await.pop().unwrap().1
}

/// Whether an earlier delivery had stored it, so that it was not rendered.
async fn was_stored_before(stage: &mut Stage, record: Value) -> bool {
    match outcome(stage, record).await {
        Outcome::Stored(stored) => stored.was_stored_before,
        other => panic!("{other:?}"),
    }
}

fn exclusive(id: &str, data: &Value) -> Value {
    let body = json!({"template": "letter", "data": data, "key": "letters/taken.pdf", "if_exists": "fail"});
    record_of(id, body.to_string())
}

#[test]
fn a_first_delivery_costs_one_request() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        assert!(!was_stored_before(&mut stage, letter("a")).await);
        assert_eq!(stage.s3.requests(), ["PUT output/letter/a.pdf"]);
        assert_eq!(stage.sqs.requests(), [""; 0]);
    });
}

#[test]
fn a_message_whose_object_exists_is_not_rendered_again() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let first = outcome(&mut stage, letter("a")).await;
        stage.s3.requests();
        let again = outcome(&mut stage, received(2, letter("a"))).await;
        assert_eq!(stage.s3.requests(), ["HEAD output/letter/a.pdf"]);
        let (Outcome::Stored(first), Outcome::Stored(again)) = (first, again) else { panic!() };
        assert!(!first.was_stored_before && again.was_stored_before);
        assert_eq!(
            (first.key, first.pages, first.bytes, first.e_tag),
            (again.key, again.pages, again.bytes, again.e_tag)
        );
    });
}

#[test]
fn a_message_behind_a_pointer_is_known_by_what_it_says() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let pointer = || record_of("a", pointer(INPUT, "a"));
        let message = |to: &str| json!({"template": "letter", "data": {"to": to}}).to_string();
        stage.s3.put(INPUT, "a", message("x"));
        assert!(!was_stored_before(&mut stage, pointer()).await);
        assert!(was_stored_before(&mut stage, received(2, pointer())).await);
        stage.s3.put(INPUT, "a", message("y"));
        assert!(!was_stored_before(&mut stage, received(3, pointer())).await);
    });
}

#[test]
fn an_object_of_another_message_or_of_nobody_is_replaced() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let key = "letters/same.pdf";
        assert!(!was_stored_before(&mut stage, letter_to("first", key)).await);
        assert!(!was_stored_before(&mut stage, received(2, letter_to("second", key))).await);
        assert_eq!(stage.s3.object(OUTPUT, key).unwrap().metadata["message-id"], "second");
        stage.s3.put(OUTPUT, key, "somebody's own");
        assert!(!was_stored_before(&mut stage, received(3, letter_to("second", key))).await);
        // The same id, as no queue would have it, and another message.
        let other = record_of("second", json!({"template": "letter", "data": {"to": "you"}, "key": key}).to_string());
        assert!(!was_stored_before(&mut stage, received(2, other)).await);
    });
}

#[test]
fn an_object_that_another_edition_of_the_template_made_is_replaced() {
    run(async {
        let dir = std::env::temp_dir().join(format!("pressrun-editions-{}", std::process::id()));
        let copy = |from: &str, to: &str| {
            std::fs::create_dir_all(dir.join(to)).unwrap();
            for file in ["main.typ", "typst.toml", "sample.json"] {
                std::fs::copy(crate::support::test_templates().join(from).join(file), dir.join(to).join(file)).unwrap();
            }
        };
        copy("letter", "letter");
        let mut stage = Stage::with(Config { templates_dir: dir.clone(), ..config(1) }).await;
        assert!(!was_stored_before(&mut stage, letter("a")).await);
        // Another template beside it makes no difference to it, and another function has the same.
        copy("letter", "postcard");
        let restarted = |stage: &Stage| {
            pressrun::function::Function::start(Config { templates_dir: dir.clone(), ..config(1) }, stage.s3.client())
        };
        stage.function = restarted(&stage).await.unwrap();
        assert!(was_stored_before(&mut stage, received(2, letter("a"))).await);
        let main = std::fs::read_to_string(dir.join("letter/main.typ")).unwrap();
        std::fs::write(dir.join("letter/main.typ"), format!("{main}\nP.S.")).unwrap();
        stage.function = restarted(&stage).await.unwrap();
        assert!(!was_stored_before(&mut stage, received(3, letter("a"))).await);
        assert!(was_stored_before(&mut stage, received(4, letter("a"))).await);
        std::fs::remove_dir_all(dir).unwrap();
    });
}

/// Without `s3:ListBucket` S3 says 403 of an object that is not there.
#[test]
fn a_look_that_is_not_allowed_is_no_failure() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        stage.s3.answer_all("HEAD", Some(Fault::AccessDenied));
        assert!(!was_stored_before(&mut stage, received(2, letter("a"))).await);
    });
}

#[test]
fn a_look_that_s3_does_not_answer_is_a_transient_failure_and_nothing_is_set() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        stage.s3.answer_all("HEAD", Some(Fault::SlowDown));
        let Outcome::TransientFailure(failure) = outcome(&mut stage, received(2, letter("a"))).await else { panic!() };
        assert_eq!(failure.code, ErrorCode::StorageUnavailable);
        assert!(stage.s3.requests().iter().all(|request| request.starts_with("HEAD")));
    });
}

#[test]
fn a_key_that_is_taken_is_a_permanent_failure_where_the_message_says_so() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        assert!(!was_stored_before(&mut stage, exclusive("first", &json!({"to": "x"}))).await);
        let Outcome::PermanentFailure(failure) = outcome(&mut stage, exclusive("second", &json!({"to": "y"}))).await
        else {
            panic!()
        };
        assert_eq!(failure.code, ErrorCode::KeyTaken);
        assert!(failure.message.contains("letters/taken.pdf"), "{}", failure.message);
        let taken = stage.s3.object(OUTPUT, "letters/taken.pdf").unwrap();
        assert_eq!(taken.metadata["message-id"], "first");
        // Delivered again it is not rendered, and is not taken for another's.
        assert!(was_stored_before(&mut stage, received(2, exclusive("first", &json!({"to": "x"})))).await);
        // A message that does not say so replaces it.
        assert!(!was_stored_before(&mut stage, letter_to("third", "letters/taken.pdf")).await);
    });
}

#[test]
fn two_records_of_a_batch_that_want_one_key_for_themselves_get_it_once() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        let records = ["a", "b", "c"].map(|id| exclusive(id, &json!({"to": id})));
        assert_eq!(stage.handle(records.to_vec()).await, ["b", "c"]);
    });
}

/// The SDK tries again after an error, and may meet what its first try has stored.
#[test]
fn a_key_that_an_earlier_try_has_taken_is_a_success() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        stage.s3.answer_next("PUT", [Fault::ErrorOnceServed]);
        assert!(!was_stored_before(&mut stage, exclusive("a", &json!({"to": "x"}))).await);
        let requests = stage.s3.requests();
        assert_eq!(requests.iter().filter(|request| request.starts_with("PUT")).count(), 2, "{requests:?}");
        assert!(stage.s3.object(OUTPUT, "letters/taken.pdf").is_some());
    });
}

#[test]
fn a_taken_key_whose_owner_s3_does_not_tell_is_a_transient_failure() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        stage.s3.put(OUTPUT, "letters/taken.pdf", "somebody's own");
        for (fault, code) in
            [(Fault::AccessDenied, ErrorCode::StorageDenied), (Fault::SlowDown, ErrorCode::StorageUnavailable)]
        {
            stage.s3.answer_all("HEAD", Some(fault));
            let outcome = outcome(&mut stage, exclusive("a", &json!({"to": "x"}))).await;
            assert!(matches!(&outcome, Outcome::TransientFailure(failure) if failure.code == code), "{outcome:?}");
        }
        stage.s3.answer_all_with(None);
        stage.s3.answer_next("PUT", [Fault::Conflict]);
        let outcome = outcome(&mut stage, exclusive("a", &json!({"to": "x"}))).await;
        assert!(matches!(outcome, Outcome::TransientFailure(_)), "another write was under way: {outcome:?}");
    });
}

/// The same record, of a message that was sent so much later.
fn sent_later(seconds: i64, mut record: Value) -> Value {
    record["attributes"]["SentTimestamp"] = (1_782_988_200_000 + 1000 * seconds).to_string().into();
    record
}

#[test]
fn the_same_message_twice_in_a_batch_is_rendered_stored_and_announced_once() {
    run(async {
        let mut stage = Stage::with_queues(config(2), Some("failed"), Some("done")).await;
        let mut again = letter("a");
        again["receiptHandle"] = "another-handle".into();
        let bad = || record_of("bad", "{");
        let records = vec![letter("a"), bad(), letter("b"), again.clone(), received(2, again.clone()), bad()];
        assert_eq!(stage.handle(records).await, [""; 0]);
        let requests = stage.s3.requests();
        assert_eq!(requests.iter().filter(|request| request.starts_with("PUT output/letter/a")).count(), 1);
        assert_eq!(stage.sqs.messages("done").len(), 2);
        assert_eq!(stage.sqs.messages("failed").len(), 1);

        // And where it fails for now, all its deliveries come back.
        stage.s3.answer_all("letter/c", Some(Fault::SlowDown));
        let mut again = letter("c");
        again["receiptHandle"] = "another-handle".into();
        assert_eq!(stage.handle(vec![letter("c"), letter("d"), again]).await, ["c", "c"]);
        let handles: Vec<String> = stage.sqs.visibilities().into_iter().map(|(handle, _)| handle).collect();
        assert_eq!(handles, ["handle-of-c", "another-handle"]);
    });
}

/// As no queue would have it.
#[test]
fn two_messages_of_one_id_are_two_messages() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let key = "letters/of-both.pdf";
        let other = record_of("a", json!({"template": "letter", "data": {"to": "b"}, "key": key}).to_string());
        assert_eq!(stage.handle(vec![letter("a"), other]).await, [""; 0]);
        assert!(stage.pdf("letter", "a").is_some() && stage.s3.object(OUTPUT, key).is_some());
    });
}

#[test]
fn an_older_message_that_is_delivered_again_does_not_replace_a_newer_ones_document() {
    run(async {
        let mut stage = Stage::with_queues(config(1), None, Some("done")).await;
        let key = "letters/same.pdf";
        let older = || letter_to("older", key);
        assert_eq!(stage.handle(vec![sent_later(1, letter_to("newer", key))]).await, [""; 0]);
        assert_eq!(stage.s3.object(OUTPUT, key).unwrap().metadata["sent-timestamp"], "1782988201000");
        let outcome = outcome(&mut stage, received(2, older())).await;
        assert!(matches!(&outcome, Outcome::Superseded { key: same } if same == key), "{outcome:?}");
        assert!(outcome.is_acknowledged());
        assert_eq!(stage.s3.object(OUTPUT, key).unwrap().metadata["message-id"], "newer");
        assert_eq!(stage.sqs.messages("done").len(), 1, "only what is there is announced");
        // A still newer one replaces it, also at its second delivery, and so does one whose time is not known.
        assert!(!was_stored_before(&mut stage, received(2, sent_later(2, letter_to("newest", key)))).await);
        let mut unknown = received(2, letter_to("unknown", key));
        unknown["attributes"]["SentTimestamp"] = Value::Null;
        assert!(!was_stored_before(&mut stage, unknown).await);
        assert!(!stage.s3.object(OUTPUT, key).unwrap().metadata.contains_key("sent-timestamp"));
    });
}

#[test]
fn of_one_batch_the_message_that_was_sent_last_stays_whatever_their_order() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        let key = "letters/same.pdf";
        let newer = || sent_later(1, letter_to("newer", key));
        for records in [
            vec![letter_to("older", key), newer()],
            vec![newer(), letter_to("older", key)],
            vec![received(2, letter_to("older", key)), newer()],
            vec![letter_to("older", key), received(3, newer())],
        ] {
            assert_eq!(stage.handle(records).await, [""; 0]);
            assert_eq!(stage.s3.object(OUTPUT, key).unwrap().metadata["message-id"], "newer");
            stage.s3.clear(OUTPUT);
        }
    });
}

/// Its announcement failed until it was dead-lettered, and SQS gave it another id when it was moved back.
#[test]
fn a_message_that_was_moved_back_meets_its_own_document_and_announces_it() {
    run(async {
        let mut stage = Stage::with_queues(config(1), None, Some("done")).await;
        stage.sqs.answer_all("done", Some(crate::support::embedded::sqs::Fault::AccessDenied));
        assert_eq!(stage.handle(vec![exclusive("before", &json!({"to": "x"}))]).await, ["before"]);
        stage.sqs.answer_all("done", None);
        assert_eq!(stage.handle(vec![exclusive("after", &json!({"to": "x"}))]).await, [""; 0]);
        let announced = stage.sqs.messages("done");
        assert!(announced.len() == 1 && announced[0].body.contains("\"messageId\":\"after\""), "{announced:?}");
        assert_eq!(stage.s3.object(OUTPUT, "letters/taken.pdf").unwrap().metadata["message-id"], "before");
    });
}
