//! Each metric moves when what it counts happens. Those of the census have planted leaks in
//! `leaks.rs`.
//!
//! The tests count what this process holds, so they take turns.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::embedded::s3::Fault;
use crate::support::emitted::EmittedMetrics;
use crate::support::processes::{run_of, signal, until_run_works, until_runs_wait};
use crate::support::{Stage, config, letter, letter_to, log, record, record_of, run_alone};
use nix::sys::signal::Signal;
use pressrun::config::Config;
use pressrun::function::deadline::Deadline;
use serde_json::{Value, json};

fn number(record: &Value, metric: &str) -> f64 {
    record[metric].as_f64().unwrap_or_else(|| panic!("no {metric} in {record}"))
}

fn milliseconds(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).unwrap().as_millis()
}

fn long(id: &str) -> Value {
    record(id, "long", json!({"sections": 100, "paragraphs": 3}))
}

#[test]
fn a_document_tells_its_pages_its_bytes_and_where_its_time_went() {
    run_alone(async {
        let (mut stage, emitted) = Stage::with_metrics(config(1)).await;
        stage.s3.answer_all_with(Some(Fault::Delay(Duration::from_millis(50))));
        let an_hour_ago = SystemTime::now() - Duration::from_hours(1);
        let mut letter = letter("short");
        letter["attributes"]["SentTimestamp"] = milliseconds(an_hour_ago).to_string().into();
        assert_eq!(stage.handle(vec![long("long"), letter]).await, [""; 0]);
        let (documents, _) = emitted.take();
        // They are being stored side by side, and either may be told first.
        let of = |template: &str| documents.iter().find(|document| document["Template"] == template).unwrap();
        let (long, short) = (of("long"), of("letter"));
        assert_eq!((documents.len(), &short["FunctionName"]), (2, &json!("documents")));
        let request_id = "8476a536-e9f4-11e8-9739-2dfe598c3fcd";
        assert_eq!([&short["requestId"], &short["messageId"], &short["worker"]], [request_id, "short", "1"]);
        assert_eq!([&short["Stored"], &short["Failed"], &short["Pages"]], [1, 0, 1]);
        let size = stage.pdf("letter", "short").unwrap().len();
        assert_eq!(short["PdfSize"], size);
        assert!(number(long, "Pages") > 20.0 && number(long, "RenderTime") > number(short, "RenderTime"));
        assert!(number(short, "UploadTime") >= 50.0);
        // One worker: the second has waited for the first.
        assert!(number(short, "QueueWait") >= number(long, "RenderTime"));
        assert!((3_600_000.0..3_700_000.0).contains(&number(short, "MessageAge")));
        assert_eq!(
            short["_aws"]["CloudWatchMetrics"][0]["Dimensions"],
            json!([["FunctionName"], ["FunctionName", "Template"]])
        );
    });
}

#[test]
fn a_failure_is_counted_by_its_code_and_templates_that_are_not_there_as_one() {
    run_alone(async {
        let (mut stage, emitted) = Stage::with_metrics(config(1)).await;
        let bad = [
            (record_of("a", "{"), "InvalidMessage", "-"),
            (record("b", "no-such", json!({})), "UnknownTemplate", "-"),
            (record("c", "broken-at-line-3", json!({"broken": true})), "TypstError", "broken-at-line-3"),
            (record("d", "panic", json!({"rows": i64::MAX})), "TypstPanicked", "panic"),
            (record("e", "overflow", json!({"depth": 300_000})), "RunKilled", "overflow"),
        ];
        for (record, code, template) in bad {
            assert_eq!(stage.handle(vec![record]).await.len(), 1);
            let (documents, _) = emitted.take();
            let [document] = &documents[..] else { panic!("{documents:?}") };
            assert_eq!([&document[code], &document["Failed"], &document["Stored"]], [1, 1, 0], "{document}");
            assert_eq!(document["Template"], template);
            let declared = document["_aws"]["CloudWatchMetrics"][0]["Metrics"].as_array().unwrap();
            assert!(declared.iter().any(|metric| metric["Name"] == code), "{document}");
        }
        stage.s3.answer_all_with(Some(Fault::AccessDenied));
        stage.handle(vec![letter("f")]).await;
        assert_eq!(emitted.take().0[0]["StorageDenied"], 1);
    });
}

#[test]
fn an_invocation_tells_what_it_has_done_and_only_the_first_its_start() {
    run_alone(async {
        let (mut stage, emitted) = Stage::with_metrics(Stage::config_with_memory(1, 1_500).await).await;
        stage.handle(vec![letter("a"), letter("b"), record_of("c", "{")]).await;
        let first = emitted.take_invocation();
        assert_eq!([&first["Records"], &first["ColdStart"]], [3, 1]);
        assert_eq!(first["FunctionName"], "documents");
        assert!(number(&first, "InitTime") > 0.0);
        let megabyte = 1024.0 * 1024.0;
        assert!(number(&first, "PressMemory") > megabyte && number(&first, "FunctionMemory") > megabyte);
        assert!(number(&first, "RunPeakMemory") > megabyte && number(&first, "RunCpuTime") > 0.0);
        assert!((1.0..50.0).contains(&number(&first, "MemoryUsed")));
        for (gauge, expected) in [("FunctionChildren", 1), ("PressChildren", 1), ("PressThreads", 1)] {
            assert_eq!(first[gauge], expected, "{gauge}");
        }
        assert!(number(&first, "FunctionThreads") >= 2.0 && number(&first, "FunctionTasks") >= 1.0);
        assert!(number(&first, "FunctionOpenFiles") >= 3.0 && number(&first, "PressOpenFiles") >= 3.0);
        assert!(number(&first, "FunctionConnections") >= 1.0);
        stage.handle(vec![]).await;
        let second = emitted.take_invocation();
        assert_eq!([&second["Records"], &second["ColdStart"]], [0, 0]);
        assert!(second["InitTime"].is_null() && second["RunPeakMemory"].is_null());
    });
}

#[test]
fn runs_that_are_killed_are_counted_by_reason() {
    run_alone(async {
        let grant = Some(Duration::from_millis(300));
        let (mut stage, emitted) = Stage::with_metrics(Config { max_render_time: grant, ..config(1) }).await;
        stage.handle(vec![record("a", "endless", json!({"endless": true}))]).await;
        assert_eq!(emitted.take_invocation()["RunsKilledForTime"], 1, "{:?}", log::take(""));

        let (mut stage, emitted) = Stage::with_metrics(config(1)).await;
        stage.handle(vec![record("b", "overflow", json!({"depth": 300_000}))]).await;
        assert_eq!(emitted.take_invocation()["RunsCrashed"], 1, "{:?}", log::take(""));

        let (mut stage, emitted) = Stage::with_metrics(Stage::config_with_memory(1, 250).await).await;
        stage.handle(vec![record("c", "greedy", json!({"megabytes": null}))]).await;
        let invocation = emitted.take_invocation();
        assert!(number(&invocation, "RunsKilledForMemory") >= 1.0);
        assert!(number(&invocation, "MemoryUsed") > 40.0, "{invocation}");
    });
}

#[test]
fn runs_and_presses_that_are_lost_are_counted() {
    run_alone(async {
        let (mut stage, emitted) = Stage::with_metrics(config(1)).await;
        let press = stage.function.press_id().unwrap();
        for (kills_press, metric) in [(false, "RunsLost"), (true, "PressesReplaced")] {
            expect_nothing_emitted(&emitted);
            until_runs_wait(press).await;
            let (failed, ()) = tokio::join!(stage.handle(vec![long("long")]), async {
                until_run_works(press).await;
                signal(if kills_press { press } else { run_of(press) }, Signal::SIGKILL);
            });
            assert_eq!(failed, [""; 0], "it is set again");
            let invocation = emitted.take_invocation();
            assert_eq!([&invocation[metric], &invocation["Leaks"]], [1, 0], "{metric} {:?}", log::take(""));
        }
    });
}

#[test]
fn a_press_that_is_killed_between_invocations_is_replaced_once_and_no_leak() {
    run_alone(async {
        let (mut stage, emitted) = Stage::with_metrics(config(2)).await;
        signal(stage.function.press_id().unwrap(), Signal::SIGKILL);
        assert_eq!(stage.handle(vec![letter("a"), letter("b")]).await, [""; 0]);
        let invocation = emitted.take_invocation();
        assert_eq!([&invocation["PressesReplaced"], &invocation["Leaks"]], [1, 0], "{:?}", log::take(""));
    });
}

#[test]
fn a_deadline_that_cuts_a_batch_is_no_leak() {
    run_alone(async {
        let (mut stage, emitted) = Stage::with_metrics(config(2)).await;
        let endless = |id| record(id, "endless", json!({"endless": true}));
        let deadline = Deadline::from_lambda(SystemTime::now() + Duration::from_secs(1));
        // Both runs have answered for a letter, and are at work again.
        stage.handle_until(vec![letter("a"), letter("b"), endless("c"), endless("d")], deadline).await;
        let invocation = emitted.take_invocation();
        assert_eq!([&invocation["Leaks"], &invocation["PressesReplaced"]], [0, 0], "{:?}", log::take(""));
    });
}

/// The run that a panic ends is nobody's loss.
#[test]
fn a_panic_loses_no_run_of_others() {
    run_alone(async {
        let (mut stage, emitted) = Stage::with_metrics(config(1)).await;
        for _ in 0..10 {
            let panic = record("panic", "panic", json!({"rows": i64::MAX}));
            assert_eq!(stage.handle(vec![letter("a"), panic, letter("b")]).await, ["panic"]);
            let (documents, invocation) = emitted.take();
            assert_eq!((documents.len(), &invocation["RunsLost"]), (3, &json!(0)), "{:?}", log::take(""));
        }
    });
}

fn expect_nothing_emitted(emitted: &EmittedMetrics) {
    assert!(emitted.is_empty(), "only an invocation tells something");
}

#[test]
fn a_document_that_was_there_already_took_no_time() {
    run_alone(async {
        let (mut stage, emitted) = Stage::with_metrics(config(1)).await;
        let mut again = letter_to("a", "same.pdf");
        assert_eq!(stage.handle(vec![again.clone()]).await, [""; 0]);
        assert!(number(&emitted.take().0[0], "RenderTime") > 0.0);
        again["attributes"]["ApproximateReceiveCount"] = "2".into();
        assert_eq!(stage.handle(vec![again]).await, [""; 0]);
        let (documents, _) = emitted.take();
        assert_eq!([&documents[0]["Stored"], &documents[0]["Pages"]], [1, 1]);
        assert!(documents[0]["RenderTime"].is_null() && documents[0]["UploadTime"].is_null(), "it was there already");
    });
}
