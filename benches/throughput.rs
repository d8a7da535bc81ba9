//! Forty new invoices: on one worker, on as many as there are cores, and through the whole
//! function with the real SDK and an S3 server on loopback. Rounds alternate. What the machine
//! itself allows is measured beside it: as many processes that never end, fed with nothing.

#[path = "../tests/embedded/mod.rs"]
mod embedded;
mod support;

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use embedded::s3::EmbeddedS3;
use futures_util::future::join_all;
use pressrun::config::Config;
use pressrun::function::Function;
use pressrun::function::deadline::Deadline;
use pressrun::press::Worker;
use serde_json::{Value, json};
use support::{Plain, Press, Series, bytes, cores, invoice, render_in, templates};
use tokio::sync::watch;

const ROUNDS: usize = 30;
const DOCUMENTS: usize = 40;

/// The first argument of this program as a process that renders invoices whenever it reads a line.
const NEVER_ENDING_ROLE: &str = "never-ending";

fn main() -> std::process::ExitCode {
    if std::env::args().nth(1).as_deref() == Some(NEVER_ENDING_ROLE) {
        never_ending();
        return std::process::ExitCode::SUCCESS;
    }
    support::main(benchmark)
}

/// Reads how many invoices to render, renders them, and says so.
fn never_ending() {
    let plain = Plain::new(&templates(), 1);
    let mut numbers = 0..;
    for line in std::io::stdin().lines() {
        let invoices: Vec<Bytes> =
            numbers.by_ref().take(line.unwrap().parse().unwrap()).map(|number| bytes(&invoice(number))).collect();
        println!("ready");
        for invoice in &invoices {
            plain.render("invoice", invoice);
        }
        println!("done");
    }
}

struct NeverEnding {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl NeverEnding {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut process = command.arg(NEVER_ENDING_ROLE).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, input, output }
    }

    fn stop(mut self) {
        drop(self.input);
        self.process.wait().unwrap();
    }
}

/// Has processes side by side render forty invoices together.
fn side_by_side(processes: &mut [NeverEnding]) -> Duration {
    let each = DOCUMENTS / processes.len();
    for process in processes.iter_mut() {
        writeln!(process.input, "{each}").unwrap();
    }
    for process in processes.iter_mut() {
        process.output.next().unwrap().unwrap();
    }
    let began = Instant::now();
    for process in processes.iter_mut() {
        process.output.next().unwrap().unwrap();
    }
    began.elapsed()
}

async fn benchmark() {
    let mut numbers = 0..;
    let mut invoices = || -> Vec<Value> { numbers.by_ref().take(DOCUMENTS).map(invoice).collect() };
    let mut press = Press::start(&templates(), cores()).await;
    let s3 = EmbeddedS3::start(&["output"]);
    let mut function_of_one = function(&s3, 1).await;
    let mut function_of_all = function(&s3, cores()).await;

    let mut processes: Vec<NeverEnding> = (0..cores()).map(|_| NeverEnding::start()).collect();
    let [mut one, mut all, mut whole_one, mut whole_all, mut limit_one, mut limit_all] =
        [(); 6].map(|()| Series::default());
    for round in 0..=ROUNDS {
        let measured = [
            on_workers(&mut press.workers[..1], invoices()).await,
            on_workers(&mut press.workers, invoices()).await,
            through_function(&mut function_of_one, round, invoices()).await,
            through_function(&mut function_of_all, round, invoices()).await,
            side_by_side(&mut processes[..1]),
            side_by_side(&mut processes),
        ];
        s3.clear("output");
        if round > 0 {
            let series = [&mut one, &mut all, &mut whole_one, &mut whole_all, &mut limit_one, &mut limit_all];
            for (series, took) in series.into_iter().zip(measured) {
                series.add(took, DOCUMENTS);
            }
        }
    }
    press.stop().await;
    function_of_one.stop().await;
    function_of_all.stop().await;
    processes.into_iter().for_each(NeverEnding::stop);

    println!("| forty invoices | ms a document | middle half | throughput to one | the same without function |");
    println!("| --- | --- | --- | --- | --- |");
    let row = |name: String, series: &Series, base: &Series, bare: &Series| {
        let (median, spread) = (series.median(), series.spread());
        let added = median - bare.median();
        println!("| {name} | {median:.2} | {spread} | {:.2} | {added:+.2} ms |", 1.0 / series.ratio_to(base));
    };
    row("one process that never ends, `evict(1)`".to_owned(), &limit_one, &limit_one, &limit_one);
    row(format!("{} of them side by side, what this machine allows", cores()), &limit_all, &limit_one, &limit_all);
    row("one worker".to_owned(), &one, &one, &one);
    row(format!("{} workers", cores()), &all, &one, &all);
    row("one worker, through handler, SDK and S3".to_owned(), &whole_one, &whole_one, &one);
    row(format!("{} workers, through handler, SDK and S3", cores()), &whole_all, &whole_one, &all);
}

async fn on_workers(workers: &mut [Worker], invoices: Vec<Value>) -> Duration {
    let queue: RefCell<Vec<Bytes>> = RefCell::new(invoices.iter().map(bytes).collect());
    let (_sender, threads) = watch::channel(1);
    let began = Instant::now();
    join_all(workers.iter_mut().map(async |worker| {
        let mut threads = threads.clone();
        loop {
            let next = queue.borrow_mut().pop();
            let Some(invoice) = next else { break };
            render_in(worker, "invoice", &invoice, &mut threads).await;
        }
        worker.end_invocation().await;
    }))
    .await;
    let took = began.elapsed();
    // The next runs warm themselves, which is not to fall into the next round.
    tokio::time::sleep(Duration::from_millis(40)).await;
    took
}

async fn function(s3: &EmbeddedS3, workers: usize) -> Function {
    let variables = |name: &str| match name {
        "OUTPUT_BUCKET" => Some("output".to_owned()),
        "TEMPLATES_DIR" => Some(templates().display().to_string()),
        "WORKERS" => Some(workers.to_string()),
        _ => None,
    };
    Function::start(Config::from_variables(variables).unwrap(), s3.client()).await.unwrap()
}

async fn through_function(function: &mut Function, round: usize, invoices: Vec<Value>) -> Duration {
    let record = |(number, invoice): (usize, Value)| {
        json!({
            "messageId": format!("{round}-{number}"),
            "body": json!({"template": "invoice", "data": invoice}).to_string(),
            "attributes": {"SentTimestamp": "1782988200000"}
        })
    };
    let records: Vec<Value> = invoices.into_iter().enumerate().map(record).collect();
    let event = json!({"Records": records});
    let began = Instant::now();
    let response = function.handle(event, Deadline::NONE).await.unwrap();
    let took = began.elapsed();
    assert!(response.batch_item_failures.is_empty());
    tokio::time::sleep(Duration::from_millis(40)).await;
    took
}
