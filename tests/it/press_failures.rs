//! A press that is killed, hangs or cannot fork, at each moment: the handler still returns in time,
//! nothing is left behind, and every document is rendered.
//!
//! The tests reckon with what this process has, so they take turns.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::support::processes::{children, is_alive, signal, threads, until, until_run_works, until_runs_wait};
use crate::support::{Stage, alone, block_on, config, letter, log, record, run_alone};
use nix::sys::signal::Signal;
use pressrun::config::Config;
use pressrun::function::deadline::Deadline;
use pressrun::function::event;
use pressrun::function::outcome::{ErrorCode, Outcome};
use serde_json::{Value, json};

fn endless(id: &str) -> Value {
    record(id, "endless", json!({"endless": true}))
}

/// Some hundred milliseconds of work.
fn long(id: &str) -> Value {
    record(id, "long", json!({"sections": 60, "paragraphs": 3}))
}

fn in_milliseconds(milliseconds: u64) -> Deadline {
    Deadline::from_lambda(SystemTime::now() + Duration::from_millis(milliseconds))
}

async fn until_both_work(press: u32) {
    until("both runs work", || children(press).iter().filter(|run| threads(**run).len() > 1).count() == 2).await;
}

/// The moments at which something may happen to a press with two runs.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Idle,
    AtOnce,
    OneWorks,
    AllWork,
}

const MOMENTS: [Moment; 4] = [Moment::Idle, Moment::AtOnce, Moment::OneWorks, Moment::AllWork];

impl Moment {
    fn batch(self) -> Vec<Value> {
        match self {
            Self::Idle | Self::AtOnce => vec![letter("a"), letter("b"), letter("c")],
            Self::OneWorks => vec![long("a")],
            Self::AllWork => vec![long("a"), long("b"), letter("c")],
        }
    }

    async fn comes(self, press: u32) {
        match self {
            Self::Idle | Self::AtOnce => {}
            Self::OneWorks => until_run_works(press).await,
            Self::AllWork => until_both_work(press).await,
        }
    }
}

#[test]
fn a_press_killed_at_any_moment_takes_its_runs_with_it_and_no_document() {
    let _alone = alone();
    for moment in MOMENTS {
        block_on(async {
            let mut stage = Stage::with_workers(2).await;
            let press = stage.function.press_id().unwrap();
            until_runs_wait(press).await;
            let runs = children(press);
            if matches!(moment, Moment::Idle) {
                signal(press, Signal::SIGKILL);
                until("the press is a zombie or gone", || children(press).is_empty()).await;
            }
            let ((), failed) = tokio::join!(
                async {
                    moment.comes(press).await;
                    signal(press, Signal::SIGKILL);
                },
                stage.handle(moment.batch())
            );
            assert_eq!(failed, [""; 0], "{moment:?}");
            // Not even as zombies: they are this process's children when their press is gone.
            assert!(!runs.into_iter().chain([press]).any(is_alive), "{moment:?}");
            let new = stage.function.press_id().unwrap();
            assert_eq!(children(std::process::id()), [new], "{moment:?}");
            assert_eq!(stage.handle(vec![letter("d"), letter("e")]).await, [""; 0], "{moment:?}");
            stage.function.stop().await;
            assert_eq!(children(std::process::id()), [0; 0], "{moment:?}");
        });
    }
}

#[test]
fn a_press_that_hangs_at_any_moment_is_killed_and_replaced() {
    let _alone = alone();
    for moment in MOMENTS {
        block_on(async {
            let mut stage = Stage::with_workers(2).await;
            let press = stage.function.press_id().unwrap();
            until_runs_wait(press).await;
            let runs = children(press);
            let ((), failed) = tokio::join!(
                async {
                    moment.comes(press).await;
                    signal(press, Signal::SIGSTOP);
                },
                stage.handle(moment.batch())
            );
            assert_eq!(failed, [""; 0], "{moment:?}");
            assert!(!runs.into_iter().chain([press]).any(is_alive), "{moment:?}");
            assert_eq!(stage.handle(vec![letter("d"), letter("e")]).await, [""; 0], "{moment:?}");
        });
    }
}

#[test]
fn the_handler_returns_before_the_deadline_though_the_press_hangs() {
    run_alone(async {
        for batch in [vec![letter("a"), endless("b")], vec![endless("a"), endless("b"), letter("c")]] {
            let mut stage = Stage::with(Config { deadline_margin: Duration::from_secs(1), ..config(2) }).await;
            let press = stage.function.press_id().unwrap();
            until_runs_wait(press).await;
            let began = Instant::now();
            let (_, ()) = tokio::join!(stage.handle_until(batch, in_milliseconds(4_000)), async {
                until_run_works(press).await;
                tokio::time::sleep(Duration::from_millis(300)).await;
                signal(press, Signal::SIGSTOP);
            });
            assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
            assert!(!is_alive(press) && children(std::process::id()).len() <= 1);
            // Nothing of it is taken for an answer to what comes now.
            assert_eq!(stage.handle(vec![letter("d"), letter("e")]).await, [""; 0]);
            assert!(stage.pdf("letter", "d").is_some() && stage.pdf("letter", "e").is_some());
        }
    });
}

#[test]
fn a_deadline_at_any_moment_leaves_no_run_that_has_seen_a_message() {
    run_alone(async {
        let mut stage = Stage::with(Config { deadline_margin: Duration::from_millis(1), ..config(2) }).await;
        for milliseconds in 1..30 {
            // So early that the press could not end its runs in time, it has been ended with them.
            assert_eq!(stage.handle(vec![letter("before")]).await, [""; 0]);
            let press = stage.function.press_id().unwrap();
            until_runs_wait(press).await;
            let batch = vec![long("a"), letter("b"), endless("c"), letter("d")];
            let failed = stage.handle_until(batch, in_milliseconds(milliseconds)).await;
            assert!(failed.contains(&"c".to_owned()));
            match stage.function.press_id() {
                // Those that are alive have not been given anything: they wait, and do not work.
                Some(press) => until_runs_wait(press).await,
                None => assert_eq!(children(std::process::id()), [0; 0], "{milliseconds} ms"),
            }
        }
        assert_eq!(stage.handle(vec![letter("x"), letter("y"), letter("z")]).await, [""; 0]);
    });
}

#[test]
fn an_invocation_given_up_at_any_step_leaves_nothing_when_the_function_stops() {
    let _alone = alone();
    for steps in (0..40).chain([60, 100, 200]) {
        block_on(async {
            let mut stage = Stage::with_workers(2).await;
            let batch = vec![letter("a"), endless("b"), letter("c"), record("d", "panic", json!({"rows": i64::MAX}))];
            {
                let mut handling = Box::pin(stage.handle(batch));
                let mut polled = 0;
                // So many times it goes on, and then it is dropped.
                let stepping = std::future::poll_fn(|context| {
                    polled += 1;
                    let is_done = handling.as_mut().poll(context).is_ready() || polled > steps;
                    if is_done { Poll::Ready(()) } else { Poll::Pending }
                });
                let _ = tokio::time::timeout(Duration::from_secs(1), stepping).await;
            }
            stage.function.stop().await;
            assert_eq!(children(std::process::id()), [0; 0], "after {steps} steps");
        });
    }
}

#[test]
fn runs_that_die_at_once_for_ever_fail_the_invocation_transiently_with_one_line() {
    run_alone(async {
        let mut stage = Stage::with_workers(1).await;
        let press = stage.function.press_id().unwrap();
        until_runs_wait(press).await;
        log::take("");
        let is_over = Arc::new(AtomicBool::new(false));
        let killing = thread::spawn({
            let is_over = is_over.clone();
            move || {
                let path = format!("/proc/{press}/task/{press}/children");
                while !is_over.load(Ordering::Relaxed) {
                    let runs = fs::read_to_string(&path).unwrap_or_default();
                    runs.split_whitespace().for_each(|run| signal(run.parse().unwrap(), Signal::SIGKILL));
                }
            }
        });
        // So many that runs are killed in a row some time, however busy the machine is.
        let batch = (0..500).map(|number| letter(&number.to_string())).collect::<Vec<_>>();
        let outcomes =
            stage.function.process_batch(event::parse(json!({"Records": batch})).unwrap(), Deadline::NONE).await;
        is_over.store(true, Ordering::Relaxed);
        killing.join().unwrap();
        let lost = |outcome: &Outcome| matches!(outcome, Outcome::TransientFailure(failure) if failure.code == ErrorCode::RunLost);
        let (_, final_outcome) = outcomes.last().unwrap();
        assert!(lost(final_outcome), "{final_outcome:?}");
        assert_eq!(log::take("runs end before they begin").len(), 1);
        // And the next invocation tries again.
        assert_eq!(stage.handle(vec![letter("x")]).await, [""; 0]);
    });
}

#[test]
fn a_run_with_much_memory_that_is_killed_is_not_noticed_by_others() {
    run_alone(async {
        let mut stage = Stage::with(Config { max_render_time: Some(Duration::from_secs(2)), ..config(2) }).await;
        let press = stage.function.press_id().unwrap();
        let letters = (0..60).map(|number| letter(&number.to_string()));
        let batch = [record("greedy", "greedy", json!({"megabytes": null}))].into_iter().chain(letters).collect();
        assert_eq!(stage.handle(batch).await, ["greedy"]);
        assert_eq!(stage.function.press_id(), Some(press));
        assert_eq!(children(press).len(), 2);
    });
}

#[test]
fn hundreds_of_templates_fit_into_packets() {
    let _alone = alone();
    let dir = std::env::temp_dir().join(format!("pressrun-hundreds-{}", std::process::id()));
    for number in 0..300 {
        // Long names, which fill packets.
        let template = dir.join(format!("{}-{number}", "template".repeat(25)));
        fs::create_dir_all(&template).unwrap();
        fs::write(template.join("main.typ"), "#json(sys.inputs.data).to").unwrap();
        let manifest = "[package]\nname = \"t\"\nversion = \"1.0.0\"\nentrypoint = \"main.typ\"\n";
        fs::write(template.join("typst.toml"), manifest).unwrap();
        fs::write(template.join("sample.json"), "{\"to\": \"you\"}").unwrap();
    }
    block_on(async {
        let mut stage = Stage::with(Config { templates_dir: dir.clone(), ..config(2) }).await;
        let last = format!("{}-299", "template".repeat(25));
        assert_eq!(stage.handle(vec![record("a", &last, json!({"to": "you"}))]).await, [""; 0]);
        assert!(stage.pdf(&last, "a").is_some());
    });
    fs::remove_dir_all(dir).unwrap();
}
