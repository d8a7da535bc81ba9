//! Invariants 6 and 7: a run that lies, floods or hangs, as memory corruption in Typst could make it,
//! harms at most the documents of its own invocation that it had; and what one invocation has sent
//! is in no process of the next.
//!
//! What a run says is written here into its pipes from outside. The tests reckon with what this
//! process has, so they take turns.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::processes::{
    children, is_alive, resident_bytes, run_of, signal, threads, until_run_works, until_runs_wait,
};
use crate::support::{Stage, config, letter, log, record, run_alone};
use memchr::memmem;
use nix::sys::signal::Signal;
use pressrun::config::Config;
use pressrun::function::deadline::Deadline;
use pressrun::function::event;
use pressrun::function::outcome::{ErrorCode, Failure, Outcome};
use pressrun::press::protocol::{CHUNK_BYTES, Frame, FrameKind, Response, encode};
use pressrun::render::parts::Division;
use serde_json::{Value, json};

fn endless(id: &str) -> Value {
    record(id, "endless", json!({"endless": true}))
}

/// What can be written to as if one were the run: 1 for responses, 2 for stderr.
fn pipe_of(run: u32, number: u32) -> File {
    OpenOptions::new().write(true).open(format!("/proc/{run}/fd/{number}")).unwrap()
}

fn say(run: u32, frame: Frame) {
    pipe_of(run, 1).write_all(&encode(frame).unwrap()).unwrap();
}

async fn outcomes(stage: &mut Stage, records: Vec<Value>) -> Vec<Outcome> {
    let records = event::parse(json!({"Records": records})).unwrap();
    let outcomes = stage.function.process_batch(records, Deadline::NONE).await;
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

fn permanent(outcome: &Outcome) -> &Failure {
    let Outcome::PermanentFailure(failure) = outcome else { panic!("{outcome:?}") };
    failure
}

/// A function with one run, and its press.
async fn stage(max_render_time: Option<Duration>) -> (Stage, u32) {
    let stage = Stage::with(Config { max_render_time, ..config(1) }).await;
    let press = stage.function.press_id().unwrap();
    until_runs_wait(press).await;
    (stage, press)
}

#[test]
fn a_run_that_says_it_is_done_is_killed_all_the_same() {
    run_alone(async {
        let (mut stage, press) = stage(None).await;
        let liar = run_of(press);
        let lie = Response::Panicked { message: "a lie".to_owned() };
        let (outcomes, ()) = tokio::join!(outcomes(&mut stage, vec![endless("a"), letter("b")]), async {
            until_run_works(press).await;
            say(liar, lie.into_frame());
        });
        // It is taken for what is to be said of the document that the run had, and for nothing else.
        assert_eq!(permanent(&outcomes[0]).code, ErrorCode::TypstPanicked);
        assert!(matches!(outcomes[1], Outcome::Stored(_)));
        assert!(!is_alive(liar), "killed and reaped before the handler has returned");
        assert_eq!(stage.handle(vec![letter("c")]).await, [""; 0]);
    });
}

#[test]
fn a_response_before_a_document_is_never_taken_for_its_own() {
    run_alone(async {
        let (mut stage, press) = stage(None).await;
        let liar = run_of(press);
        say(liar, Response::Panicked { message: "a lie".to_owned() }.into_frame());
        assert_eq!(stage.handle(vec![letter("a")]).await, [""; 0]);
        assert!(!is_alive(liar));
    });
}

#[test]
fn numbers_that_cannot_be_are_no_panic() {
    run_alone(async {
        let config = Config { max_render_time: Some(Duration::from_secs(1)), ..config(1) };
        let (mut stage, emitted) = Stage::with_metrics(config).await;
        let press = stage.function.press_id().unwrap();
        until_runs_wait(press).await;
        let liar = run_of(press);
        let (outcomes, ()) = tokio::join!(outcomes(&mut stage, vec![endless("a"), endless("b")]), async {
            until_run_works(press).await;
            say(liar, Frame::new(FrameKind::Pdf, &b"%PDF-lie"[..]));
            let (pages, render_time) = (u32::MAX, Duration::MAX);
            say(
                liar,
                Response::Rendered { pages, e_invoice: None, warnings: Vec::new(), render_time, reads_pages: false }
                    .into_frame(),
            );
        });
        assert!(matches!(&outcomes[0], Outcome::Stored(stored) if stored.pages == u32::MAX as usize));
        // It is still at the first, and does not begin with the second, which another run gets.
        assert_eq!(permanent(&outcomes[1]).code, ErrorCode::TimeLimit);
        assert_eq!(emitted.take().0.len(), 2);
    });
}

#[test]
fn a_run_that_divides_what_is_not_to_be_divided_is_not_believed() {
    run_alone(async {
        let (mut stage, press) = stage(Some(Duration::from_secs(1))).await;
        let liar = run_of(press);
        let lie = Division { total: 2, size: 1, array: 0..2, slices: vec![0..1, 1..2] };
        let (outcomes, ()) = tokio::join!(outcomes(&mut stage, vec![endless("a"), letter("b")]), async {
            until_run_works(press).await;
            say(liar, Response::Divided(lie).into_frame());
        });
        assert_eq!(permanent(&outcomes[0]).code, ErrorCode::TimeLimit, "in another run");
        assert!(matches!(outcomes[1], Outcome::Stored(_)));
        assert_eq!(log::take("the run divided what was not to be divided").len(), 1);
    });
}

#[test]
fn a_run_that_never_stops_sending_takes_no_more_memory_than_its_document_may_have() {
    run_alone(async {
        let mut stage = Stage::with_memory(1, 200).await;
        let press = stage.function.press_id().unwrap();
        until_runs_wait(press).await;
        let before = resident_bytes(std::process::id());
        let is_over = Arc::new(AtomicBool::new(false));
        let flooding = thread::spawn({
            let is_over = is_over.clone();
            move || flood(press, &is_over)
        });
        let outcomes = outcomes(&mut stage, vec![endless("a")]).await;
        is_over.store(true, Ordering::Relaxed);
        let (sent, largest) = flooding.join().unwrap();
        assert_eq!(permanent(&outcomes[0]).code, ErrorCode::MemoryLimit);
        // An eighth of 200 MB twice: beside others and alone. The buffer doubles as it grows.
        assert!(sent > 20_000_000, "{sent}");
        assert!(largest < before + 80_000_000, "{} MB more than before", (largest - before) / 1_000_000);
        assert_eq!(stage.handle(vec![letter("b")]).await, [""; 0]);
    });
}

/// Sends parts of PDFs in the name of every run that works. Gives how many bytes they were, and the
/// most that this process had meanwhile.
fn flood(press: u32, is_over: &AtomicBool) -> (usize, u64) {
    let frame = encode(Frame::new(FrameKind::Pdf, vec![7_u8; CHUNK_BYTES])).unwrap();
    let (mut sent, mut largest) = (0, 0);
    while !is_over.load(Ordering::Relaxed) {
        let Some(working) = children(press).into_iter().find(|run| threads(*run).len() > 1) else { continue };
        // Nobody reads from one that only warms itself, and it is not to be waited for.
        let options = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).clone();
        let Ok(mut pipe) = options.open(format!("/proc/{working}/fd/1")) else { continue };
        let mut rest = &frame[..];
        while !is_over.load(Ordering::Relaxed) {
            match pipe.write(rest) {
                Ok(length) => {
                    sent += length;
                    rest = if length == rest.len() { &frame } else { &rest[length..] };
                    largest = largest.max(resident_bytes(std::process::id()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                Err(_) => break,
            }
        }
    }
    (sent, largest)
}

#[test]
fn half_a_response_is_none() {
    run_alone(async {
        let (mut stage, press) = stage(Some(Duration::from_secs(1))).await;
        let frame = encode(Response::Panicked { message: "a lie".to_owned() }.into_frame()).unwrap();
        let half = &frame[..frame.len() / 2];
        // The run dies then, from outside; or says no more.
        for kills_run in [true, false] {
            let (outcomes, ()) = tokio::join!(outcomes(&mut stage, vec![endless("a"), letter("b")]), async {
                until_run_works(press).await;
                let liar = run_of(press);
                pipe_of(liar, 1).write_all(half).unwrap();
                if kills_run {
                    signal(liar, Signal::SIGKILL);
                }
            });
            assert_eq!(permanent(&outcomes[0]).code, ErrorCode::TimeLimit, "{kills_run}");
            assert!(matches!(outcomes[1], Outcome::Stored(_)));
            until_runs_wait(press).await;
        }
    });
}

#[test]
fn a_complete_response_that_death_follows_is_a_response() {
    run_alone(async {
        let (mut stage, press) = stage(None).await;
        let (outcomes, ()) = tokio::join!(outcomes(&mut stage, vec![endless("a"), letter("b")]), async {
            until_run_works(press).await;
            let liar = run_of(press);
            // Nobody reads meanwhile, so the end is told with the response still in the pipe.
            say(liar, Frame::new(FrameKind::Pdf, &b"%PDF-1.7 small"[..]));
            let (warnings, render_time) = (Vec::new(), Duration::ZERO);
            say(
                liar,
                Response::Rendered { pages: 1, e_invoice: None, warnings, render_time, reads_pages: false }
                    .into_frame(),
            );
            signal(liar, Signal::SIGKILL);
            until_blocking("the press has reaped it", || !is_alive(liar));
        });
        assert!(matches!(&outcomes[0], Outcome::Stored(stored) if stored.bytes == 14), "{:?}", outcomes[0]);
        assert!(matches!(outcomes[1], Outcome::Stored(_)));
    });
}

/// Waits on this thread, so that the function does nothing meanwhile.
fn until_blocking(what: &str, condition: impl Fn() -> bool) {
    let give_up_at = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < give_up_at, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_run_that_writes_to_stderr_for_ever_is_not_held_up_and_little_of_it_is_kept() {
    run_alone(async {
        let (mut stage, press) = stage(Some(Duration::from_secs(1))).await;
        let before = resident_bytes(std::process::id());
        let liar = run_of(press);
        let writing = thread::spawn(move || {
            let mut stderr = pipe_of(liar, 2);
            let mut sent = 0;
            while stderr.write_all(&[b'x'; 4096]).is_ok() {
                sent += 4096;
            }
            sent
        });
        let outcomes = outcomes(&mut stage, vec![endless("a")]).await;
        let sent: u64 = writing.join().unwrap();
        assert_eq!(permanent(&outcomes[0]).code, ErrorCode::TimeLimit);
        assert!(sent > 10_000_000, "{sent} bytes were read in a second");
        assert!(resident_bytes(std::process::id()) < before + 5_000_000);
        let said = log::take("the document's run wrote to stderr");
        assert!(said.iter().map(String::len).sum::<usize>() < 5_000, "{}", said.len());
    });
}

#[test]
fn a_run_whose_pipes_stay_open_after_its_end_is_not_waited_for() {
    run_alone(async {
        let (mut stage, press) = stage(Some(Duration::from_millis(300))).await;
        let liar = run_of(press);
        let open = [pipe_of(liar, 1), pipe_of(liar, 2)];
        let began = Instant::now();
        let outcomes = outcomes(&mut stage, vec![endless("a"), letter("b")]).await;
        assert_eq!(permanent(&outcomes[0]).code, ErrorCode::TimeLimit);
        assert!(matches!(outcomes[1], Outcome::Stored(_)));
        assert!(!is_alive(liar));
        assert!(began.elapsed() < Duration::from_secs(10), "for ever, if anybody waited");
        drop(open);
    });
}

#[test]
fn a_run_that_hangs_before_it_begins_costs_its_document_nothing_but_time() {
    run_alone(async {
        let (mut stage, press) = stage(None).await;
        let hanging = run_of(press);
        signal(hanging, Signal::SIGSTOP);
        assert_eq!(stage.handle(vec![letter("a"), letter("b")]).await, [""; 0]);
        assert!(!is_alive(hanging));
        // And with a document that does not fit into the pipe.
        until_runs_wait(press).await;
        let hanging = run_of(press);
        signal(hanging, Signal::SIGSTOP);
        let large = record("c", "letter", json!({"to": "you", "filler": "x".repeat(500_000)}));
        let began = Instant::now();
        assert_eq!(stage.handle(vec![large]).await, [""; 0]);
        assert!(!is_alive(hanging) && began.elapsed() < Duration::from_secs(30));
        assert_eq!(stage.function.press_id(), Some(press));
    });
}

#[test]
fn what_one_invocation_sends_is_in_no_process_of_the_next() {
    run_alone(async {
        let mut stage = Stage::with_workers(2).await;
        let press = stage.function.press_id().unwrap();
        // Put together here, so that the program itself does not have it.
        let secret: String = ["IBAN-BE68", "5390-0754", "7034-of-A"].concat();
        for filler in [100, 3_000, 50_000, 300_000] {
            let data = json!({"to": "x", "secret": secret, "filler": "y".repeat(filler)});
            let batch = ["a", "b", "c", "d"].map(|id| record(id, "letter", data.clone()));
            // In the run at work it is: the search finds what is there.
            let (failed, found) = tokio::join!(stage.handle(batch.to_vec()), async {
                until_run_works(press).await;
                children(press).into_iter().map(|run| occurrences(run, secret.as_bytes())).sum::<usize>()
            });
            assert_eq!(failed, [""; 0]);
            assert!(found > 0 || filler < 300_000, "a run has had it");
            until_runs_wait(press).await;
            for process in [press].into_iter().chain(children(press)) {
                assert_eq!(occurrences(process, secret.as_bytes()), 0, "press {press}, process {process}");
            }
        }
        assert_eq!(stage.function.press_id(), Some(press), "all of them from the same press");
    });
}

/// How often a text is in the memory that a process can write.
fn occurrences(process: u32, text: &[u8]) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).unwrap_or_default();
    let Ok(mut memory) = File::open(format!("/proc/{process}/mem")) else { return 0 };
    let writable =
        maps.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|rights| rights.starts_with("rw")));
    let mut found = 0;
    for line in writable {
        let (start, end) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        if memory.seek(SeekFrom::Start(start)).is_ok() && memory.read_exact(&mut bytes).is_ok() {
            found += memmem::find_iter(&bytes, text).count();
        }
    }
    found
}
