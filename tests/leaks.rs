//! Leaks that are planted: each is logged by name and counted, and a press that has one is replaced.
//! Needs a `main` of its own, since the press is this program too: it and its runs leak
//! when a signal tells them to.
#![allow(unsafe_code, reason = "handlers of signals, in the program that is to leak")]

mod support;

use std::fs::File;
use std::future::pending;
use std::os::fd::AsFd;
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{ForkResult, fork};
use pressrun::config::Config;
use serde_json::{Value, json};
use support::emitted::EmittedMetrics;
use support::processes::{children, run_of, signal, threads, until, until_run_works, until_runs_wait};
use support::{Stage, config, letter, log, record, run};

/// What a press or a run leaks when it gets the signal.
const LEAKS: [(Signal, extern "C" fn(i32)); 5] = [
    (A_THREAD, leak_a_thread),
    (A_FILE, leak_a_file),
    (A_CHILD, leak_a_child),
    (MEMORY, leak_memory),
    (DEAFNESS, close_stdin),
];
const A_THREAD: Signal = Signal::SIGUSR1;
const A_FILE: Signal = Signal::SIGUSR2;
const A_CHILD: Signal = Signal::SIGWINCH;
const MEMORY: Signal = Signal::SIGURG;
const DEAFNESS: Signal = Signal::SIGALRM;

extern "C" fn leak_a_thread(_: i32) {
    thread::Builder::new()
        .name("leaky-1".to_owned())
        .spawn(|| {
            loop {
                thread::park();
            }
        })
        .unwrap();
}

extern "C" fn leak_a_file(_: i32) {
    std::mem::forget(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
}

extern "C" fn leak_a_child(_: i32) {
    // SAFETY: The child only makes system calls.
    if let Ok(ForkResult::Child) = unsafe { fork() } {
        prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
        prctl::set_name(c"leaky-1").unwrap();
        // Not for ever, but for longer than the press.
        let _ = poll(&mut [], PollTimeout::NONE);
    }
}

extern "C" fn leak_memory(_: i32) {
    std::hint::black_box(vec![1_u8; 16 * 1024 * 1024].leak());
}

extern "C" fn close_stdin(_: i32) {
    nix::unistd::close(0).unwrap();
}

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|role| role == "press") {
        for (signal, leak) in LEAKS {
            let action = SigAction::new(SigHandler::Handler(leak), SaFlags::empty(), SigSet::empty());
            // SAFETY: The signals come when the thread that handles them waits in poll(2), so that
            // a handler may do what it likes.
            unsafe { sigaction(signal, &action) }.unwrap();
        }
        return pressrun::run_press_if_requested().unwrap();
    }
    for (name, test) in TESTS {
        test();
        println!("test {name} ... ok");
    }
    println!("{} passed, 0 failed", TESTS.len());
    ExitCode::SUCCESS
}

const TESTS: [(&str, fn()); 8] = [
    ("a_leak_of_the_function_is_logged_by_name", a_leak_of_the_function_is_logged_by_name),
    ("a_press_that_leaks_a_file_is_replaced", || a_press_that_leaks_is_replaced(A_FILE, "open files   socket")),
    ("a_press_that_leaks_a_child_is_replaced", || a_press_that_leaks_is_replaced(A_CHILD, "children     leaky-*")),
    ("a_press_that_grows_is_replaced", || a_press_that_leaks_is_replaced(MEMORY, "resident KiB since it was warm")),
    ("a_press_that_leaks_a_thread_is_replaced", a_press_that_leaks_a_thread_is_replaced),
    ("a_leak_of_a_run_is_logged_by_name_and_ends_with_it", a_leak_of_a_run_is_logged_by_name_and_ends_with_it),
    ("a_run_cannot_leave_a_file_or_a_child", a_run_cannot_leave_a_file_or_a_child),
    ("a_run_that_hears_nothing_has_no_more_time_than_others", a_run_that_hears_nothing_has_no_more_time_than_others),
];

/// A function with a press that can leak, after its first invocation.
async fn stage() -> (Stage, EmittedMetrics, u32) {
    let config = Config { press_program: std::env::current_exe().unwrap(), ..config(1) };
    let (mut stage, emitted) = Stage::with_metrics(config).await;
    assert_eq!(stage.handle(vec![letter("first")]).await, [""; 0]);
    expect_no_leak(&emitted);
    let press = stage.function.press_id().unwrap();
    until_runs_wait(press).await;
    log::take("");
    (stage, emitted, press)
}

fn expect_no_leak(emitted: &EmittedMetrics) {
    let invocation = emitted.take_invocation();
    assert_eq!([&invocation["Leaks"], &invocation["PressesReplaced"]], [0, 0], "{:?}", log::take(""));
}

/// Long enough that its press and its run wait for something while it is being rendered.
fn long() -> Vec<Value> {
    vec![record("long", "long", json!({"sections": 100, "paragraphs": 3}))]
}

/// Has a document rendered, and does something meanwhile.
async fn meanwhile(stage: &mut Stage, press: u32, act: impl FnOnce()) -> Vec<String> {
    let (failed, ()) = tokio::join!(stage.handle(long()), async {
        until_run_works(press).await;
        act();
    });
    failed
}

fn a_leak_of_the_function_is_logged_by_name() {
    run(async {
        let (mut stage, emitted, press) = stage().await;
        let (stop, stopped) = mpsc::channel::<()>();
        let mut leaked = None;
        let failed = meanwhile(&mut stage, press, || {
            let thread = thread::Builder::new().name("leaky-1".to_owned()).spawn(move || stopped.recv());
            let child = Command::new("sleep").arg("60").spawn().unwrap();
            // More than the SDK's two clients may still want, and the S3 server here has sockets too.
            let tasks = [(); 6].map(|()| tokio::spawn(pending::<()>()));
            leaked = Some((thread.unwrap(), File::open("/proc/self/limits"), child, tasks));
        })
        .await;
        assert_eq!(failed, [""; 0], "a leak is no reason to fail a document");
        let lines = log::take("");
        for name in ["leaky-*", "sleep", "limits", "of tokio"] {
            assert!(lines.iter().any(|line| line.starts_with("function") && line.contains(name)), "{name}: {lines:?}");
        }
        let invocation = emitted.take_invocation();
        assert_eq!([&invocation["Leaks"], &invocation["PressesReplaced"]], [4, 0]);
        assert_eq!(invocation["FunctionChildren"], 2);
        let (thread, file, mut child, tasks) = leaked.unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        drop((stop, file));
        let _ = thread.join().unwrap();
        assert_eq!(stage.handle(vec![letter("next")]).await, [""; 0]);
        expect_no_leak(&emitted);
    });
}

fn a_press_that_leaks_is_replaced(leak: Signal, told_as: &str) {
    run(async {
        let (mut stage, emitted, press) = stage().await;
        assert_eq!(meanwhile(&mut stage, press, || signal(press, leak)).await, [""; 0]);
        let lines = log::take(told_as);
        assert!(matches!(&lines[..], [line] if line.starts_with("press ")), "{lines:?} {:?}", log::take(""));
        let invocation = emitted.take_invocation();
        assert_eq!([&invocation["Leaks"], &invocation["PressesReplaced"]], [1, 1]);
        until("the press is gone", || !support::processes::is_alive(press)).await;
        assert_eq!(stage.handle(vec![letter("next")]).await, [""; 0]);
        expect_no_leak(&emitted);
    });
}

/// A press cannot fork with a second thread, and says so itself: before any census.
fn a_press_that_leaks_a_thread_is_replaced() {
    run(async {
        let (mut stage, emitted, press) = stage().await;
        assert_eq!(meanwhile(&mut stage, press, || signal(press, A_THREAD)).await, [""; 0]);
        assert_eq!(log::take("2 threads are alive where one is expected").len(), 1);
        assert_eq!(emitted.take_invocation()["PressesReplaced"], 1);
        assert_eq!(stage.handle(vec![letter("next")]).await, [""; 0]);
        expect_no_leak(&emitted);
    });
}

fn a_leak_of_a_run_is_logged_by_name_and_ends_with_it() {
    run(async {
        let (mut stage, emitted, press) = stage().await;
        assert_eq!(meanwhile(&mut stage, press, || signal(run_of(press), A_THREAD)).await, [""; 0]);
        let lines = log::take("run 1");
        assert!(lines.iter().any(|line| line.contains("threads      leaky-*")), "{lines:?}");
        let invocation = emitted.take_invocation();
        assert_eq!([&invocation["Leaks"], &invocation["PressesReplaced"]], [1, 0]);
        assert_eq!(stage.handle(vec![letter("next")]).await, [""; 0]);
        expect_no_leak(&emitted);
    });
}

/// More threads are allowed to it when its neighbour is done, and it does not hear that.
fn a_run_that_hears_nothing_has_no_more_time_than_others() {
    run(async {
        let config = Config {
            press_program: std::env::current_exe().unwrap(),
            max_render_time: Some(Duration::from_secs(1)),
            ..config(2)
        };
        let mut stage = Stage::with(config).await;
        let press = stage.function.press_id().unwrap();
        until_runs_wait(press).await;
        let batch = vec![record("endless", "endless", json!({"endless": true})), long().remove(0)];
        let (failed, ()) = tokio::join!(stage.handle(batch), async {
            until("both runs work", || children(press).iter().all(|run| threads(*run).len() > 1)).await;
            for run in children(press) {
                signal(run, DEAFNESS);
            }
        });
        assert!(failed.contains(&"endless".to_owned()));
        assert!(log::take("permanent failure").iter().any(|line| line.contains("TimeLimit")));
    });
}

/// The sandbox allows neither: a run is ended for trying.
fn a_run_cannot_leave_a_file_or_a_child() {
    run(async {
        for leak in [A_FILE, A_CHILD] {
            let (mut stage, emitted, press) = stage().await;
            assert_eq!(meanwhile(&mut stage, press, || signal(run_of(press), leak)).await, ["long"]);
            assert!(log::take("permanent failure")[0].contains("SIGSYS"));
            let invocation = emitted.take_invocation();
            assert_eq!([&invocation["Leaks"], &invocation["RunsCrashed"]], [0, 1]);
        }
    });
}
