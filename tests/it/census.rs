//! Invariants 1 and 6: after the handler has returned nothing is left of what it started, in the
//! function and in the press; and that has one thread.
//!
//! The tests count what this process holds, so they take turns.

use std::time::{Duration, SystemTime};

use crate::support::embedded::s3::Fault;
use crate::support::processes::{
    ProcessSnapshot, children, holdings, run_of, signal, threads, until_run_works, until_runs_wait,
};
use crate::support::{INPUT, Stage, config, embedded, letter, pointer, record, record_of, run_alone};
use nix::sys::signal::Signal;
use pressrun::function::deadline::Deadline;
use serde_json::json;

/// Everything there is to count, between invocations.
#[derive(Debug, PartialEq, Eq)]
struct Census {
    tasks: usize,
    function: ProcessSnapshot,
    press: Option<ProcessSnapshot>,
}

fn census(stage: &Stage) -> Census {
    Census {
        tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        function: holdings(std::process::id()),
        press: stage.function.press_id().map(holdings),
    }
}

/// Expects that nothing has come to what there was. Connections may have gone, with a file and a task each: those
/// that were idle for long are not used again.
fn expect_no_more(stage: &Stage, before: &Census) {
    let after = census(stage);
    assert!(
        after.tasks <= before.tasks && after.function.open_files <= before.function.open_files,
        "{after:?} {before:?}"
    );
    let (tasks, open_files) = (before.tasks, before.function.open_files);
    let function = ProcessSnapshot { open_files, ..after.function.clone() };
    assert_eq!(&Census { tasks, function, ..after }, before);
}

/// Makes the SDK open as many connections as it ever will: those it keeps. To S3 as many as there
/// are uploads at once, to SQS as many as there are requests.
async fn fill_connection_pools(stage: &mut Stage) {
    let delay = Duration::from_millis(50);
    stage.sqs.answer_all("documents", Some(embedded::sqs::Fault::Delay(delay)));
    stage.s3.answer_all_with(Some(Fault::AccessDenied));
    stage.handle((0..80).map(|number| record_of(&number.to_string(), pointer(INPUT, "any"))).collect()).await;
    stage.sqs.answer_all("documents", None);
    stage.s3.answer_all_with(Some(Fault::Delay(delay)));
    stage.handle((0..40).map(|number| letter(&number.to_string())).collect()).await;
    stage.s3.answer_all_with(None);
}

#[test]
fn an_invocation_leaves_nothing_behind() {
    run_alone(async {
        let mut stage = Stage::with_workers(2).await;
        fill_connection_pools(&mut stage).await;
        let before = census(&stage);
        let press = stage.function.press_id().unwrap();
        let of_press = before.press.as_ref().unwrap();
        assert_eq!((&of_press.threads[..], of_press.children), (&["press".to_owned()][..], 2), "{before:?}");
        let good = |count: usize| (0..count).map(|number| letter(&format!("good-{number}"))).collect::<Vec<_>>();
        let bad = || record("typst-error", "broken-at-line-3", json!({"broken": true}));
        let batches = [
            vec![],
            good(1),
            good(10),
            vec![bad(), letter("a"), record_of("malformed", "{"), letter("b")],
            vec![record("long", "long", json!({"sections": 20, "paragraphs": 2}))],
            [good(9), vec![record("long", "long", json!({"sections": 20, "paragraphs": 2}))]].concat(),
            good(100),
        ];
        for batch in batches {
            let runs = children(press);
            let is_empty = batch.is_empty();
            stage.handle(batch).await;
            expect_no_more(&stage, &before);
            assert_eq!(children(press) == runs, is_empty, "no run that has seen a message is alive");
        }
        stage.function.stop().await;
        assert_eq!(children(std::process::id()), [0; 0], "the press ends with the function");
    });
}

#[test]
fn an_invocation_that_is_cut_short_leaves_nothing_behind() {
    run_alone(async {
        let mut stage = Stage::with_workers(2).await;
        fill_connection_pools(&mut stage).await;
        let before = census(&stage);
        let endless = |id| record(id, "endless", json!({"endless": true}));
        let deadline = Deadline::from_lambda(SystemTime::now() + Duration::from_secs(1));
        let failed = stage.handle_until(vec![endless("a"), letter("b"), endless("c"), letter("d")], deadline).await;
        assert_eq!(failed.first().map(String::as_str), Some("a"));
        expect_no_more(&stage, &before);
        assert_eq!(stage.handle(vec![letter("e")]).await, [""; 0]);
        expect_no_more(&stage, &before);
    });
}

#[test]
fn a_run_or_a_press_that_dies_leaves_nothing_behind() {
    run_alone(async {
        let mut stage = Stage::with_workers(1).await;
        fill_connection_pools(&mut stage).await;
        let before = census(&stage);
        let press = stage.function.press_id().unwrap();
        until_runs_wait(press).await;
        let long = || vec![letter("a"), record("long", "long", json!({"sections": 100, "paragraphs": 3})), letter("b")];
        let (failed, ()) = tokio::join!(stage.handle(long()), async {
            until_run_works(press).await;
            signal(run_of(press), Signal::SIGKILL);
        });
        assert_eq!(failed, [""; 0]);
        expect_no_more(&stage, &before);
        let (failed, ()) = tokio::join!(stage.handle(long()), async {
            until_run_works(press).await;
            signal(press, Signal::SIGKILL);
        });
        assert_eq!(failed, [""; 0]);
        expect_no_more(&stage, &before);
    });
}

#[test]
fn sending_to_queues_leaves_nothing_behind() {
    run_alone(async {
        let mut stage = Stage::with_queues(config(2), Some("failed"), Some("done")).await;
        fill_connection_pools(&mut stage).await;
        let before = census(&stage);
        let batch = || {
            let good = (0..20).map(|number| letter(&format!("good-{number}")));
            let bad = (0..20).map(|number| record_of(&format!("bad-{number}"), "{"));
            good.chain(bad).collect::<Vec<_>>()
        };
        assert_eq!(stage.handle(batch()).await, [""; 0]);
        expect_no_more(&stage, &before);
        for fault in [embedded::sqs::Fault::InternalFailure, embedded::sqs::Fault::Delay(Duration::from_mins(1))] {
            stage.sqs.answer_all("done", Some(fault));
            let deadline = Deadline::from_lambda(SystemTime::now() + Duration::from_secs(2));
            assert_eq!(stage.handle_until(batch(), deadline).await.len(), 20, "{fault:?}");
            let after = census(&stage);
            // The SDK does not keep a connection that has failed.
            assert!(after.tasks <= before.tasks && after.function.open_files <= before.function.open_files);
            assert_eq!((after.function.threads, after.press), (before.function.threads.clone(), before.press.clone()));
        }
    });
}

/// Invariant 6, as far as it can be seen from outside: at no moment has a press a second thread,
/// and rendering a document needs one.
#[test]
fn a_press_has_one_thread_at_all_times() {
    run_alone(async {
        let mut stage = Stage::with_workers(1).await;
        let press = stage.function.press_id().unwrap();
        let long = |id| record(id, "long", json!({"sections": 30, "paragraphs": 3}));
        let handling = stage.handle(vec![letter("a"), long("b"), letter("c"), long("d")]);
        let watching = async {
            loop {
                assert_eq!(threads(press), ["press"]);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            failed = handling => assert_eq!(failed, [""; 0]),
            () = watching => {}
        }
    });
}
