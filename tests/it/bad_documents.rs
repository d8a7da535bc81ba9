//! No document can harm its neighbours: whatever a bad one does, it fails alone with the reason,
//! the good ones are stored in the same invocation, nothing is left, and the next one is as before.

use std::time::Duration;

use crate::support::processes::{children, holdings, resident_bytes, threads, until};
use crate::support::{Stage, config, letter, record, run};
use pressrun::config::Config;
use pressrun::function::deadline::Deadline;
use pressrun::function::event;
use pressrun::function::outcome::{ErrorCode, Outcome};
use serde_json::{Value, json};

/// Ways to be bad: a template, its data, the error code and a part of the reason.
struct Bad {
    template: &'static str,
    data: Value,
    code: ErrorCode,
    reason: &'static str,
}

fn ways_to_be_bad() -> [Bad; 5] {
    [
        Bad {
            template: "broken-at-line-3",
            data: json!({"broken": true}),
            code: ErrorCode::TypstError,
            reason: "broken-at-line-3/main.typ:3:18: error: unknown variable: nme",
        },
        Bad {
            template: "panic",
            data: json!({"rows": i64::MAX}),
            code: ErrorCode::TypstPanicked,
            reason: "Typst panicked, which is a bug in Typst that this document triggers: capacity overflow",
        },
        Bad {
            template: "overflow",
            data: json!({"depth": 300_000}),
            code: ErrorCode::RunKilled,
            reason: "has overflowed its stack",
        },
        Bad {
            template: "greedy",
            data: json!({"megabytes": null}),
            code: ErrorCode::MemoryLimit,
            reason: "bytes more were wanted",
        },
        Bad {
            template: "endless",
            data: json!({"endless": true}),
            code: ErrorCode::TimeLimit,
            reason: "was ended after 300 ms",
        },
    ]
}

/// A function in which this bad document meets its own limit, however slow the machine is, and no
/// other one first.
async fn stage(workers: usize, bad: &Bad) -> Stage {
    let grant = if bad.code == ErrorCode::TimeLimit { Duration::from_millis(300) } else { Duration::from_mins(5) };
    let probe = Stage::with_workers(workers).await;
    let needed: u64 = probe.function.press_id().into_iter().chain([std::process::id()]).map(resident_bytes).sum();
    drop(probe);
    let config = Config {
        max_render_time: Some(grant),
        memory_bytes: Some(needed * 3 / 2 + 180_000_000 * workers as u64),
        ..config(workers)
    };
    Stage::with(config).await
}

/// A batch of so many bad ones, spread among so many good ones.
fn batch(bad: &Bad, bad_ones: usize, good_ones: usize) -> Vec<Value> {
    let mut records: Vec<Value> = (0..good_ones).map(|number| letter(&format!("good-{number}"))).collect();
    for number in 0..bad_ones {
        let place = (number * 3 + 1).min(records.len());
        records.insert(place, record(&format!("bad-{number}"), bad.template, bad.data.clone()));
    }
    records
}

/// Every good one is stored and every bad one fails for good with its reason.
async fn assert_only_the_bad_fail(stage: &mut Stage, bad: &Bad, records: Vec<Value>) {
    stage.s3.clear(crate::support::OUTPUT);
    let records = event::parse(json!({"Records": records})).unwrap();
    for (record, outcome) in stage.function.process_batch(records, Deadline::NONE).await {
        let id = record.message_id;
        match outcome {
            Outcome::Stored(_) => assert!(id.starts_with("good") && stage.pdf("letter", &id).is_some(), "{id}"),
            Outcome::PermanentFailure(failure) => {
                assert!(id.starts_with("bad"), "{id}: {failure:?}");
                assert_eq!(failure.code, bad.code, "{failure:?}");
                assert!(failure.message.contains(bad.reason), "{}", failure.message);
            }
            other => panic!("{id}: {other:?}"),
        }
    }
    let press = stage.function.press_id().unwrap();
    // A run that has seen no message may be replaced without being waited for.
    until("the press has one thread and its runs", || {
        (threads(press).len(), children(press).len()) == (1, stage.function.workers())
    })
    .await;
}

#[test]
fn a_bad_document_fails_alone_whatever_it_does() {
    run(async {
        for (workers, bad) in [1, 2].into_iter().flat_map(|workers| ways_to_be_bad().map(|bad| (workers, bad))) {
            let mut stage = stage(workers, &bad).await;
            let press = stage.function.press_id().unwrap();
            // The other runs are forked when the function is ready.
            until("all runs are forked", || children(press).len() == workers).await;
            let before = holdings(press);
            for (bad_ones, good_ones) in [(1, 0), (1, 9), (3, 7), (3, 0)] {
                assert_only_the_bad_fail(&mut stage, &bad, batch(&bad, bad_ones, good_ones)).await;
                assert_only_the_bad_fail(&mut stage, &bad, batch(&bad, 0, 3)).await;
            }
            assert_eq!(stage.function.press_id(), Some(press), "the same press");
            assert_eq!(holdings(press), before, "holding the same");
        }
    });
}

#[test]
fn a_bad_document_in_each_of_twenty_batches_is_borne() {
    run(async {
        for bad in ways_to_be_bad() {
            let mut stage = stage(2, &bad).await;
            for _ in 0..20 {
                assert_only_the_bad_fail(&mut stage, &bad, batch(&bad, 1, 9)).await;
            }
        }
    });
}
