//! What fails transiently comes back later, and later each time, so that an outage is not hammered.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::support::embedded::s3::Fault;
use crate::support::{Stage, config, in_group, letter, log, received, record_of, run};
use pressrun::config::Config;
use pressrun::function::deadline::Deadline;
use serde_json::{Value, json};

/// The queue that records of [`letter`] are from.
const QUEUE: &str = "documents";

async fn stage() -> Stage {
    let stage = Stage::with_queues(config(1), None, Some("done")).await;
    stage.s3.answer_all_with(Some(Fault::SlowDown));
    stage
}

fn delays(stage: &Stage) -> BTreeMap<String, u64> {
    let visibilities = stage.sqs.visibilities();
    let delays: BTreeMap<_, _> = visibilities
        .iter()
        .map(|(handle, seconds)| (handle.trim_start_matches("handle-of-").to_owned(), *seconds))
        .collect();
    assert_eq!(delays.len(), visibilities.len(), "each once: {visibilities:?}");
    delays
}

#[test]
fn a_transient_failure_comes_back_later_each_time() {
    run(async {
        let mut stage = stage().await;
        for (times, whole) in [(1, 30), (2, 60), (3, 120), (4, 240), (5, 480), (6, 900), (9, 900)] {
            assert_eq!(stage.handle(vec![received(times, letter("a"))]).await, ["a"]);
            let delay = delays(&stage)["a"];
            assert!((whole / 2..=whole).contains(&delay), "after {times}: {delay} s");
        }
    });
}

#[test]
fn only_what_failed_transiently_is_postponed() {
    run(async {
        let mut stage = stage().await;
        stage.s3.answer_all("letter/bad-mood", Some(Fault::SlowDown));
        let records = vec![letter("a"), letter("bad-mood"), record_of("malformed", "{")];
        assert_eq!(stage.handle(records).await, ["bad-mood", "malformed"]);
        assert_eq!(delays(&stage).into_keys().collect::<Vec<_>>(), ["bad-mood"]);
    });
}

#[test]
fn a_large_batch_is_postponed_whole() {
    run(async {
        let mut stage = stage().await;
        let ids: Vec<String> = (0..25).map(|number| format!("{number:02}")).collect();
        assert_eq!(stage.handle(ids.iter().map(|id| letter(id)).collect()).await, ids);
        assert_eq!(stage.sqs.requests(), ["ChangeMessageVisibilityBatch documents"; 3]);
        assert_eq!(delays(&stage).into_keys().collect::<Vec<_>>(), ids);
    });
}

#[test]
fn the_rest_of_a_group_is_postponed_with_the_one_that_failed() {
    run(async {
        let mut stage = stage().await;
        stage.s3.answer_all("letter/g-2", Some(Fault::SlowDown));
        let grouped = |id: &str, times| in_group("g", received(times, letter(id)));
        let records = vec![grouped("g-1", 3), grouped("g-2", 3), grouped("g-3", 1), grouped("g-4", 1)];
        assert_eq!(stage.handle(records).await, ["g-2", "g-3", "g-4"]);
        let delays = delays(&stage);
        assert_eq!(delays.len(), 3);
        assert!(
            (60..=120).contains(&delays["g-2"]) && delays.values().all(|delay| *delay == delays["g-2"]),
            "{delays:?}"
        );
    });
}

/// Its own queue's timeout holds for a message that only waits to be given up, and it holds nobody up.
#[test]
fn a_permanent_failure_is_not_postponed_and_what_fails_after_it_in_its_group_is() {
    run(async {
        let mut stage = stage().await;
        stage.s3.answer_all("letter/b", Some(Fault::SlowDown));
        let records = [record_of("bad", "{"), letter("a"), letter("b"), letter("c")];
        let failed = stage.handle(records.map(|record| in_group("g", record)).to_vec()).await;
        assert_eq!(failed, ["bad", "b", "c"]);
        assert_eq!(delays(&stage).into_keys().collect::<Vec<_>>(), ["b", "c"]);
    });
}

#[test]
fn what_the_deadline_cuts_short_is_postponed_too() {
    run(async {
        let config = Config { deadline_margin: Duration::from_secs(2), ..config(1) };
        let mut stage = Stage::with_queues(config, None, None).await;
        stage.s3.answer_all_with(Some(Fault::Delay(Duration::from_mins(1))));
        let deadline = Deadline::from_lambda(SystemTime::now() + Duration::from_secs(4));
        assert_eq!(stage.handle_until(vec![letter("a"), letter("b")], deadline).await, ["a", "b"]);
        assert_eq!(delays(&stage).len(), 2);
    });
}

#[test]
fn a_queue_that_does_not_take_it_changes_no_outcome_and_delays_nothing() {
    run(async {
        use crate::support::embedded::sqs::Fault::{AccessDenied, Delay, InternalFailure};
        let mut stage = stage().await;
        stage.s3.answer_all("letter/a", Some(Fault::SlowDown));
        for fault in [AccessDenied, AccessDenied, InternalFailure, Delay(Duration::from_mins(1))] {
            stage.sqs.answer_all(QUEUE, Some(fault));
            let deadline = Deadline::from_lambda(SystemTime::now() + Duration::from_secs(6));
            let handled = stage.handle_until(vec![letter("a"), letter("b")], deadline);
            let failed = tokio::time::timeout(Duration::from_secs(50), handled).await.expect("a minute is not waited");
            assert_eq!(failed, ["a"], "{fault:?}");
        }
    });
}

/// `cargo lambda invoke` with an event made by hand, for one.
#[test]
fn a_record_that_says_nothing_of_its_queue_fails_as_others_do() {
    run(async {
        let mut stage = stage().await;
        let body = letter("a")["body"].clone();
        assert_eq!(stage.handle(vec![json!({"messageId": "a", "body": body})]).await, ["a"]);
        let elsewhere = |mut record: Value| {
            record["eventSourceARN"] = "arn:aws:kinesis:eu-central-1:123456789012:stream/x".into();
            record
        };
        assert_eq!(stage.handle(vec![elsewhere(letter("b"))]).await, ["b"]);
        assert_eq!(stage.sqs.requests(), [""; 0]);
    });
}

#[test]
fn that_messages_may_not_be_postponed_is_said_once() {
    run(async {
        let mut stage = stage().await;
        stage.sqs.answer_all(QUEUE, Some(crate::support::embedded::sqs::Fault::AccessDenied));
        for _ in 0..3 {
            stage.handle(vec![letter("a"), letter("b")]).await;
        }
        let said = log::take("sqs:ChangeMessageVisibility");
        assert_eq!(said.len(), 1, "{said:?}");
        stage.sqs.answer_all(QUEUE, Some(crate::support::embedded::sqs::Fault::InternalFailure));
        stage.handle(vec![letter("a"), letter("b")]).await;
        assert_eq!(log::take("the visibility of messages could not be changed").len(), 1, "another reason is said too");
    });
}
