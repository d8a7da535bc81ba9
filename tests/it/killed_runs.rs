//! Runs and presses that are killed, by documents and from outside: nobody else notices.

use std::io::Write;
use std::time::Duration;

use crate::support::processes::{children, is_alive, run_of, signal, until, until_run_works, until_runs_wait};
use crate::support::{Stage, config, letter, record, run};
use nix::sys::signal::Signal;
use pressrun::config::Config;
use pressrun::function::deadline::Deadline;
use pressrun::function::event;
use pressrun::function::outcome::{ErrorCode, Outcome};
use serde_json::{Value, json};

fn endless(id: &str) -> Value {
    record(id, "endless", json!({"endless": true}))
}

fn kill_runs(press: u32) {
    for run in children(press) {
        signal(run, Signal::SIGKILL);
    }
}

/// Some hundred milliseconds of work.
fn long(id: &str) -> Value {
    record(id, "long", json!({"sections": 100, "paragraphs": 3}))
}

/// More than any pipe holds, so that it is on its way for as long as nobody reads.
fn large(id: &str) -> Value {
    record(id, "letter", json!({"to": id, "filler": "x".repeat(500_000)}))
}

async fn stage_with_one_worker() -> (Stage, u32) {
    let stage = Stage::with_workers(1).await;
    let press = stage.function.press_id().unwrap();
    until_runs_wait(press).await;
    (stage, press)
}

#[test]
fn a_run_killed_while_it_waits_is_replaced() {
    run(async {
        let (mut stage, press) = stage_with_one_worker().await;
        let idle = run_of(press);
        signal(idle, Signal::SIGKILL);
        until("it is reaped", || children(press).is_empty()).await;
        assert_eq!(stage.handle(vec![letter("a")]).await, [""; 0]);
        // And without time to notice it.
        signal(run_of(press), Signal::SIGKILL);
        assert_eq!(stage.handle(vec![letter("b"), letter("c")]).await, [""; 0]);
        assert_eq!(stage.function.press_id(), Some(press), "the press has stayed");
    });
}

#[test]
fn a_press_killed_while_it_waits_is_replaced() {
    run(async {
        let (mut stage, press) = stage_with_one_worker().await;
        signal(press, Signal::SIGKILL);
        assert_eq!(stage.handle(vec![letter("a"), letter("b")]).await, [""; 0]);
        assert_ne!(stage.function.press_id(), Some(press));
    });
}

#[test]
fn a_document_whose_run_or_press_is_killed_from_outside_is_rendered_again() {
    run(async {
        let (mut stage, press) = stage_with_one_worker().await;
        for kills_press in [false, true] {
            let batch = vec![letter("before"), long("long"), letter("after")];
            let ((), failed) = tokio::join!(
                async {
                    until_run_works(press).await;
                    signal(if kills_press { press } else { run_of(press) }, Signal::SIGKILL);
                },
                stage.handle(batch)
            );
            assert_eq!(failed, [""; 0]);
            assert!(["before", "after"].iter().all(|id| stage.pdf("letter", id).is_some()));
            assert!(stage.pdf("long", "long").is_some());
        }
    });
}

#[test]
fn a_document_whose_run_is_killed_from_outside_again_and_again_is_a_transient_failure() {
    run(async {
        let (mut stage, press) = stage_with_one_worker().await;
        let batch = event::parse(json!({"Records": [endless("endless"), letter("good")]})).unwrap();
        let killing = async {
            loop {
                until_run_works(press).await;
                kill_runs(press);
                tokio::time::sleep(Duration::from_millis(20)).await;
                if !is_alive(press) {
                    break;
                }
            }
        };
        let outcomes = tokio::select! {
            outcomes = stage.function.process_batch(batch, Deadline::NONE) => outcomes,
            () = killing => panic!("the press has gone"),
        };
        let Outcome::TransientFailure(failure) = &outcomes[0].1 else { panic!("{:?}", outcomes[0].1) };
        assert_eq!(failure.code, ErrorCode::RunLost);
        assert!(failure.message.contains("was killed by SIGKILL"), "{}", failure.message);
    });
}

#[test]
fn a_document_that_brings_its_run_down_fails_alone_with_what_it_used() {
    run(async {
        let (mut stage, press) = stage_with_one_worker().await;
        for crash in [Signal::SIGSEGV, Signal::SIGABRT] {
            let batch = json!({"Records": [letter("before"), endless("bad"), letter("after")]});
            let batch = event::parse(batch).unwrap();
            let crashing = async {
                // The letter before may still be at work.
                until("the letter is stored", || {
                    stage.s3.object(crate::support::OUTPUT, "letter/before.pdf").is_some()
                })
                .await;
                // In the first, which has rendered the letter, it is not to blame: that may count.
                for _ in 0..2 {
                    until_run_works(press).await;
                    let working = run_of(press);
                    // Rust's handler lets a SIGSEGV pass once that no fault has caused.
                    while is_alive(working) {
                        signal(working, crash);
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            };
            let (outcomes, ()) = tokio::join!(stage.function.process_batch(batch, Deadline::NONE), crashing);
            let Outcome::PermanentFailure(failure) = &outcomes[1].1 else { panic!("{:?}", outcomes[1].1) };
            assert_eq!(failure.code, ErrorCode::RunKilled);
            let expected = format!("the process that rendered the document was killed by {crash}, after ");
            assert!(failure.message.starts_with(&expected), "{}", failure.message);
            assert!(failure.message.ends_with(" MB of memory at its peak"), "{}", failure.message);
            for id in ["before", "after"] {
                assert!(stage.pdf("letter", id).is_some(), "{id}");
            }
            stage.s3.clear(crate::support::OUTPUT);
        }
    });
}

#[test]
fn a_run_killed_in_the_middle_of_a_request_is_nobodys_fault() {
    run(async {
        let (mut stage, press) = stage_with_one_worker().await;
        let idle = run_of(press);
        signal(idle, Signal::SIGSTOP);
        let killing = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            signal(idle, Signal::SIGKILL);
        };
        let (failed, ()) = tokio::join!(stage.handle(vec![large("a"), letter("b")]), killing);
        assert_eq!(failed, [""; 0]);
        assert_eq!(stage.function.press_id(), Some(press), "the press has stayed");
    });
}

#[test]
fn a_press_killed_in_the_middle_of_a_request_is_nobodys_fault() {
    run(async {
        let (mut stage, press) = stage_with_one_worker().await;
        signal(press, Signal::SIGSTOP);
        let killing = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            signal(press, Signal::SIGKILL);
        };
        let (failed, ()) = tokio::join!(stage.handle(vec![large("a"), letter("b")]), killing);
        assert_eq!(failed, [""; 0]);
    });
}

#[test]
fn a_press_that_hangs_is_killed_and_replaced() {
    run(async {
        let granted = Config { max_render_time: Some(Duration::from_millis(100)), ..config(1) };
        let mut stage = Stage::with(granted).await;
        let press = stage.function.press_id().unwrap();
        signal(press, Signal::SIGSTOP);
        assert_eq!(stage.handle(vec![large("a"), letter("b")]).await, [""; 0]);
        assert!(!is_alive(press));
        // And one that hangs when it is to end its run.
        let press = stage.function.press_id().unwrap();
        let (failed, ()) = tokio::join!(stage.handle(vec![letter("c"), endless("d")]), async {
            until_run_works(press).await;
            signal(press, Signal::SIGSTOP);
        });
        assert_eq!(failed, ["d"]);
        assert!(!is_alive(press));
    });
}

/// Writes into the pipe on which a run answers its press.
fn interject(run: u32, bytes: &[u8]) {
    let mut pipe = std::fs::OpenOptions::new().write(true).open(format!("/proc/{run}/fd/1")).unwrap();
    pipe.write_all(bytes).unwrap();
}

#[test]
fn what_makes_no_sense_on_a_runs_pipe_costs_no_document() {
    run(async {
        let (mut stage, _) = stage_with_one_worker().await;
        for nonsense in [&b"\xff\xff\xff\xffP too long"[..], b"\0\0\0\x01?", b"\0\0\0\x03V{}", b"\0\0\0\x02R1"] {
            let press = stage.function.press_id().unwrap();
            until_runs_wait(press).await;
            let idle = run_of(press);
            interject(idle, nonsense);
            let (failed, ()) = tokio::join!(stage.handle(vec![letter("a"), long("b"), letter("c")]), async {
                until_run_works(press).await;
                interject(run_of(press), nonsense);
            });
            assert_eq!(failed, [""; 0], "{nonsense:?}");
        }
    });
}

/// At moments that nobody has chosen, so within frames and between them, on the way down and up.
#[test]
fn kills_at_any_moment_lose_no_document() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        let with_large_pdf = |id: &str| record(id, "long", json!({"sections": 8, "paragraphs": 30}));
        for round in 0..10_u64 {
            let ids: Vec<String> = (0..10).map(|number| format!("{round}-{number}")).collect();
            let mut open: Vec<String> = ids.clone();
            let press = stage.function.press_id().unwrap();
            let killing = async {
                for kill in 0..4 {
                    tokio::time::sleep(Duration::from_micros(1_700 * (1 + round) * (1 + kill))).await;
                    if kill == 3 && is_alive(press) {
                        signal(press, Signal::SIGKILL);
                    } else {
                        kill_runs(press);
                    }
                }
            };
            let records = open.iter().enumerate().map(
                |(number, id)| {
                    if number % 2 == 0 { large(id) } else { with_large_pdf(id) }
                },
            );
            let ((), failed) = tokio::join!(killing, stage.handle(records.collect()));
            // What SQS would do with transient failures.
            open = failed;
            assert_eq!(stage.handle(open.iter().map(|id| large(id)).collect()).await, [""; 0]);
            for id in &ids {
                assert!(stage.pdf("letter", id).or(stage.pdf("long", id)).is_some(), "{id}");
            }
        }
    });
}
