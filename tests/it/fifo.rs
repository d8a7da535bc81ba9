//! Messages of a FIFO queue: the records of a message group are worked through in order, and no
//! record overtakes one that failed. Other groups do not notice.

use std::time::{Duration, SystemTime};

use crate::support::embedded::s3::Fault;
use crate::support::{Stage, config, in_group, letter, letter_to, log, received, record, run};
use pressrun::function::deadline::Deadline;
use serde_json::{Value, json};

fn puts(stage: &Stage) -> Vec<String> {
    stage.s3.requests().into_iter().filter(|request| request.starts_with("PUT ")).collect()
}

/// Letters `a-1` to `a-5`, then `b-1` and so on, as a FIFO queue may deliver them.
fn groups(names: &[&str]) -> Vec<Value> {
    (1..=5)
        .flat_map(|number| names.iter().map(move |name| in_group(name, letter(&format!("{name}-{number}")))))
        .collect()
}

#[test]
fn records_of_a_group_are_stored_in_order_and_groups_side_by_side() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        // Whoever overtakes would, while the first waits.
        stage.s3.answer_next("letter/a-1", [Fault::Delay(Duration::from_millis(300))]);
        assert_eq!(stage.handle(groups(&["a", "b"])).await, [""; 0]);
        let puts = puts(&stage);
        for group in ["a", "b"] {
            let of_group: Vec<_> = puts.iter().filter(|put| put.contains(&format!("letter/{group}-"))).collect();
            let expected: Vec<_> = (1..=5).map(|number| format!("PUT output/letter/{group}-{number}.pdf")).collect();
            assert_eq!(of_group, expected.iter().collect::<Vec<_>>());
        }
        let place = |key: &str| puts.iter().position(|put| put.contains(key)).unwrap();
        assert!(place("b-5") < place("a-2"), "a group that waits holds no other up: {puts:?}");
    });
}

#[test]
fn after_a_transient_failure_the_rest_of_its_group_is_returned_unstarted() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        stage.s3.answer_all("letter/a-3", Some(Fault::InternalError));
        assert_eq!(stage.handle(groups(&["a", "b"])).await, ["a-3", "a-4", "a-5"]);
        assert!(!puts(&stage).iter().any(|put| put.contains("a-4") || put.contains("a-5")));
        assert!((1..=5).all(|number| stage.pdf("letter", &format!("b-{number}")).is_some()));
        stage.s3.answer_all_with(None);
        let again = groups(&["a"]).split_off(2);
        assert_eq!(stage.handle(again).await, [""; 0]);
        assert_eq!(puts(&stage), [3, 4, 5].map(|number| format!("PUT output/letter/a-{number}.pdf")));
    });
}

/// Without a failed queue it stays in its queue, until the redrive policy takes it and it alone.
#[test]
fn a_bad_record_takes_no_good_one_of_its_group_along() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let bad = in_group("a", record("a-2", "no-such-template", json!({})));
        let records =
            vec![in_group("a", letter("a-1")), bad.clone(), in_group("a", letter("a-3")), in_group("b", letter("b-1"))];
        assert_eq!(stage.handle(records).await, ["a-2"]);
        assert_eq!(puts(&stage).iter().filter(|put| put.contains("/a-")).count(), 2);
        assert!(["a-1", "a-3", "b-1"].iter().all(|id| stage.pdf("letter", id).is_some()));
        // It comes back alone, as often as its queue delivers it, and has no delay of ours.
        assert_eq!(stage.handle(vec![received(2, bad)]).await, ["a-2"]);
        assert!(stage.sqs.visibilities().is_empty());
    });
}

#[test]
fn a_function_without_a_failed_queue_says_at_init_what_that_means() {
    run(async {
        log::take("");
        drop(Stage::with_workers(1).await);
        assert_eq!(log::take("FAILED_QUEUE_URL is not set").len(), 1);
        drop(Stage::with_queues(config(1), Some("failed"), None).await);
        assert!(log::take("FAILED_QUEUE_URL").is_empty());
    });
}

#[test]
fn the_deadline_stops_a_group_where_it_is() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        stage.s3.answer_all("letter/a-2", Some(Fault::Delay(Duration::from_mins(1))));
        let deadline = Deadline::from_lambda(SystemTime::now() + Duration::from_secs(4));
        let failed = stage.handle_until(groups(&["a"]), deadline).await;
        assert_eq!(failed, ["a-2", "a-3", "a-4", "a-5"]);
    });
}

#[test]
fn a_document_that_is_rendered_alone_keeps_its_place_in_its_group() {
    run(async {
        let mut stage = Stage::with_memory(2, 400).await;
        let large = |id: &str, group: &str| in_group(group, record(id, "greedy", json!({"megabytes": 250})));
        let mut records = groups(&["a", "b"]);
        records.insert(2, large("a-large", "a"));
        records.insert(5, large("b-large", "b"));
        assert_eq!(stage.handle(records).await, [""; 0]);
        let puts = puts(&stage);
        let place = |key: &str| puts.iter().position(|put| put.contains(key)).unwrap();
        for group in ["a", "b"] {
            assert!(place(&format!("letter/{group}-1")) < place(&format!("greedy/{group}-large")));
            assert!(place(&format!("greedy/{group}-large")) < place(&format!("letter/{group}-3")));
        }
    });
}

/// Standard queues have message groups too, to be fair between tenants. They promise no order.
#[test]
fn a_group_of_a_standard_queue_keeps_nobody_waiting() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let mut records = groups(&["a"]);
        for record in &mut records {
            record["eventSourceARN"] = "arn:aws:sqs:eu-central-1:123456789012:documents".into();
        }
        stage.s3.answer_all("letter/a-1", Some(Fault::InternalError));
        assert_eq!(stage.handle(records).await, ["a-1"]);
    });
}

#[test]
fn two_records_of_a_batch_with_the_same_key_never_race() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        let key = "letters/same.pdf";
        for round in 0..5 {
            stage.s3.answer_next(key, [Fault::Delay(Duration::from_millis(100))]);
            let records = [1, 2, 3, 4].map(|number| letter_to(&format!("{round}-{number}"), key));
            assert_eq!(stage.handle(records.to_vec()).await, [""; 0]);
            let object = stage.s3.object("output", key).unwrap();
            assert_eq!(object.metadata["message-id"], format!("{round}-4"), "the last of the batch wins");
        }
    });
}

#[test]
fn order_is_kept_however_often_s3_and_sqs_fail() {
    run(async {
        let mut stage = Stage::with_queues(config(2), None, Some("done.fifo")).await;
        stage.s3.stumble_one_in(3);
        stage.sqs.stumble_one_in(5);
        let mut waiting = groups(&["a", "b", "c", "d"]);
        let mut deliveries = 0;
        while !waiting.is_empty() {
            deliveries += 1;
            assert!(deliveries < 100, "each is done in the end");
            let batch = waiting.iter().map(|record| received(deliveries, record.clone())).collect();
            let failed = stage.handle(batch).await;
            waiting.retain(|record| failed.iter().any(|id| record["messageId"] == id.as_str()));
        }
        assert!(deliveries > 1, "something has failed");
        let announced = stage.sqs.messages("done.fifo");
        for group in ["a", "b", "c", "d"] {
            let mut ids: Vec<_> = announced
                .iter()
                .filter(|message| message.group.as_deref() == Some(group))
                .map(|message| message.deduplication_id.clone().unwrap())
                .collect();
            // SQS drops what is announced twice.
            ids.dedup();
            assert_eq!(ids, [1, 2, 3, 4, 5].map(|number| format!("{group}-{number}")));
        }
    });
}
