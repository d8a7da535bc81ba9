//! Compares builds of pressrun, such as one with a profile and one without, or two with different allocators. Each of
//! them is a press here, and the rounds alternate between them.
//!
//! `cargo bench --bench binaries -- PRESSRUN [PRESSRUN …]`. With `tables` among the arguments, plain tables of 20,000
//! rows are rendered, too, with as much memory as they take and with less. `CORES=1` has the presses do as where there is
//! one core.

mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pressrun::press::RunResponse;
use pressrun::press::protocol::Response;
use serde_json::json;
use support::{Press, Series, bytes, invoice, report, request, statement, templates_and};
use tokio::sync::watch;

const ROUNDS: usize = 9;
/// A large table takes many seconds.
const TABLE_ROUNDS: usize = 3;
const MEGABYTE: u64 = 1_000_000;

/// A document that is rendered in runs of its own.
struct Workload {
    name: &'static str,
    template: &'static str,
    data: Box<dyn Fn(usize) -> Bytes>,
    /// The documents that are rendered in each run.
    documents: usize,
    rounds: usize,
    memory_limit_bytes: Option<u64>,
}

/// What one build has taken for one workload.
#[derive(Default)]
struct Measured {
    wall: Series,
    cpu: Series,
    peak_bytes: u64,
    failed: usize,
}

fn main() -> std::process::ExitCode {
    support::main(benchmark)
}

async fn benchmark() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let (tables, programs): (Vec<String>, Vec<String>) =
        arguments.into_iter().partition(|argument| argument == "tables");
    let templates = templates_and("tests/templates/table");
    let mut presses = Vec::new();
    for program in &programs {
        presses.push(Press::start_program(PathBuf::from(program), &templates, 1).await);
    }
    println!("| | build | ms | relative | CPU ms | relative | peak of a run, MB | failed |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for workload in workloads(!tables.is_empty()) {
        let mut measured: Vec<Measured> = programs.iter().map(|_| Measured::default()).collect();
        for round in 0..=workload.rounds {
            for (index, press) in presses.iter_mut().enumerate() {
                render_round(press, &workload, round, &mut measured[index]).await;
            }
        }
        for (index, program) in programs.iter().enumerate() {
            let Measured { wall, cpu, peak_bytes, failed } = &measured[index];
            println!(
                "| {} | {program} | {:.2} | {:.3} | {:.2} | {:.3} | {} | {failed} |",
                workload.name,
                wall.median(),
                wall.ratio_to(&measured[0].wall),
                cpu.median(),
                cpu.ratio_to(&measured[0].cpu),
                peak_bytes / MEGABYTE
            );
        }
    }
    for press in presses {
        press.stop().await;
    }
}

fn workloads(with_tables: bool) -> Vec<Workload> {
    let workload = |name, template, documents, rounds, data: Box<dyn Fn(usize) -> Bytes>| Workload {
        name,
        template,
        data,
        documents,
        rounds,
        memory_limit_bytes: None,
    };
    let (statement, report) = (bytes(&statement(500)), bytes(&report(48)));
    let mut workloads = vec![
        workload("invoice, in runs of 10", "invoice", 10, 4 * ROUNDS, Box::new(|number| bytes(&invoice(number)))),
        workload("statement of 500 rows", "statement", 1, ROUNDS, Box::new(move |_| statement.clone())),
        workload("report of 200 pages", "report", 1, ROUNDS, Box::new(move |_| report.clone())),
    ];
    if with_tables {
        let table = bytes(&json!({"rows": 20_000, "page-total": false}));
        let same = table.clone();
        workloads.push(workload("table of 20,000 rows", "table", 1, TABLE_ROUNDS, Box::new(move |_| table.clone())));
        let tight = workload("the same in 1,300 MB", "table", 1, TABLE_ROUNDS, Box::new(move |_| same.clone()));
        workloads.push(Workload { memory_limit_bytes: Some(1300 * MEGABYTE), ..tight });
    }
    workloads
}

/// Renders one run's documents. The first round only warms up.
async fn render_round(press: &mut Press, workload: &Workload, round: usize, measured: &mut Measured) {
    let (_sender, mut threads) = watch::channel(1);
    let requests = (0..workload.documents).map(|index| {
        let data = (workload.data)(round * workload.documents + index);
        let mut request = request(workload.template, &data, Duration::from_mins(10));
        request.limits.memory_bytes = workload.memory_limit_bytes;
        request
    });
    let requests: Vec<_> = requests.collect();
    // The run warms itself meanwhile.
    tokio::time::sleep(Duration::from_millis(60)).await;
    let began = Instant::now();
    let mut failed = 0;
    for request in &requests {
        match press.worker().render(request, &mut threads).await {
            Ok(RunResponse { response: Response::Rendered { .. }, .. }) => {}
            _ => failed += 1,
        }
    }
    let took = began.elapsed();
    press.worker().end_invocation().await;
    let ended = press.take_ended_runs();
    if round > 0 {
        measured.wall.add(took, workload.documents);
        measured.cpu.add(ended.iter().map(|run| run.cpu_time).sum(), workload.documents);
        measured.failed += failed;
    }
    let peaks = ended.iter().map(|run| run.peak_memory_bytes);
    measured.peak_bytes = peaks.max().unwrap_or_default().max(measured.peak_bytes);
}
