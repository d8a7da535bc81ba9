//! A new invoice of one page each time, warm, in one run at a time, forks and pipes included, against
//! Typst in one thread that never ends. Rounds alternate; medians of the rounds.
//!
//! With the argument `invoices` it only renders invoices in one thread, for a profiler to look at.

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use pressrun::press::Worker;
use support::{Plain, Press, Series, bytes, invoice, render_in, templates};
use tokio::sync::watch;

const ROUNDS: usize = 20;
const UPLOAD: Duration = Duration::from_millis(40);
const RUN_LENGTHS: [usize; 4] = [1, 5, 10, 100];
/// The argument to be looked at by a profiler, and the documents that are rendered then.
const INVOICES: &str = "invoices";
const PROFILED_DOCUMENTS: usize = 1_000;

fn main() -> std::process::ExitCode {
    support::main(benchmark)
}

async fn benchmark() {
    let mut invoices = (0..).map(|number| bytes(&invoice(number)));
    // The two share one memo cache, so each has its rounds in a process that is warm for it.
    let plain = Plain::new(&templates(), 0);
    let keeping = Plain::new(&templates(), 1);
    if std::env::args().any(|argument| argument == INVOICES) {
        for invoice in invoices.take(PROFILED_DOCUMENTS) {
            keeping.render("invoice", &invoice);
        }
        return;
    }
    let mut press = Press::start(&templates(), 1).await;
    let mut endless_press = Press::start(&templates(), 1).await;
    let mut never_ending = [Series::default(), Series::default(), Series::default(), Series::default()];
    let mut runs = RUN_LENGTHS.map(|_| Series::default());
    let mut runs_with_pause = RUN_LENGTHS.map(|_| Series::default());
    for round in 0..=ROUNDS {
        let is_warm = round > 0;
        let variants = [(&plain, None), (&keeping, None), (&keeping, Some(UPLOAD))];
        for ((renderer, pause), series) in variants.into_iter().zip(&mut never_ending) {
            let (took, documents) = never_ending_round(renderer, &mut invoices, pause).await;
            if is_warm {
                series.add(took, documents);
            }
        }
        let (took, documents) = unended_round(endless_press.worker(), &mut invoices).await;
        if is_warm {
            never_ending[3].add(took, documents);
        }
        for (index, length) in RUN_LENGTHS.into_iter().enumerate() {
            let invocations = (20 / length).max(1);
            for (pause, series) in [(None, &mut runs[index]), (Some(UPLOAD), &mut runs_with_pause[index])] {
                let took = run_round(press.worker(), &mut invoices, length, invocations, pause).await;
                if is_warm {
                    series.add(took, length * invocations);
                }
            }
        }
    }
    press.stop().await;
    endless_press.stop().await;
    print(&never_ending, &runs, &runs_with_pause);
}

/// Twenty documents after two that are not counted: what the other variant has left in the memo
/// cache is gone by then.
async fn never_ending_round(
    renderer: &Plain,
    invoices: &mut impl Iterator<Item = Bytes>,
    pause: Option<Duration>,
) -> (Duration, usize) {
    let mut next = || invoices.next().expect("there are endless invoices");
    for _ in 0..2 {
        renderer.render("invoice", &next());
    }
    let mut took = Duration::ZERO;
    for _ in 0..20 {
        let invoice = next();
        let began = Instant::now();
        renderer.render("invoice", &invoice);
        took += began.elapsed();
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
    }
    (took, 20)
}

/// A run that is never ended, fed over pipes as any other, with a pause after each document.
async fn unended_round(worker: &mut Worker, invoices: &mut impl Iterator<Item = Bytes>) -> (Duration, usize) {
    let (_sender, mut threads) = watch::channel(1);
    let mut took = Duration::ZERO;
    for invoice in invoices.take(20) {
        let began = Instant::now();
        render_in(worker, "invoice", &invoice, &mut threads).await;
        took += began.elapsed();
        tokio::time::sleep(UPLOAD).await;
    }
    (took, 20)
}

/// Some invocations of the same length. With a pause the end of a run is not counted: it falls
/// into the time of the upload.
async fn run_round(
    worker: &mut Worker,
    invoices: &mut impl Iterator<Item = Bytes>,
    length: usize,
    invocations: usize,
    pause: Option<Duration>,
) -> Duration {
    let (_sender, mut threads) = watch::channel(1);
    let mut took = Duration::ZERO;
    tokio::time::sleep(UPLOAD).await;
    for _ in 0..invocations {
        let batch: Vec<Bytes> = invoices.take(length).collect();
        let began = Instant::now();
        for invoice in &batch {
            render_in(worker, "invoice", invoice, &mut threads).await;
        }
        if let Some(pause) = pause {
            took += began.elapsed();
            tokio::join!(worker.end_invocation(), tokio::time::sleep(pause));
        } else {
            worker.end_invocation().await;
            took += began.elapsed();
        }
    }
    took
}

fn print(never_ending: &[Series; 4], runs: &[Series; 4], runs_with_pause: &[Series; 4]) {
    let [plain, keeping, keeping_with_pause, unended] = never_ending;
    println!("| a new invoice each time | ms a document | middle half | to the plain use | to `evict(1)` |");
    println!("| --- | --- | --- | --- | --- |");
    let row = |name: &str, series: &Series, keeping: &Series| {
        println!(
            "| {name} | {:.2} | {} | {:.2} | {:.2} |",
            series.median(),
            series.spread(),
            series.ratio_to(plain),
            series.ratio_to(keeping)
        );
    };
    row("plain: one thread that never ends, `evict(0)`", plain, keeping);
    row("the same with `evict(1)`", keeping, keeping);
    for (length, series) in RUN_LENGTHS.iter().zip(runs) {
        row(&format!("pressrun, one worker, runs of {length}"), series, keeping);
    }
    println!("| with 40 ms between invocations (an upload's time) | | | | |");
    row("one thread that never ends, `evict(1)`", keeping_with_pause, unended);
    row("one run that never ends, `evict(1)`, fed over pipes", unended, unended);
    for (length, series) in RUN_LENGTHS.iter().zip(runs_with_pause) {
        row(&format!("pressrun, one worker, runs of {length}"), series, unended);
    }
}
