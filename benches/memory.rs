//! Memory of the function and its press after more and more different invoices, a tenth of them
//! failing; and of press and waiting runs together.

#[path = "../tests/embedded/mod.rs"]
mod embedded;
#[path = "../tests/support/processes.rs"]
#[allow(dead_code, reason = "only the memory is of interest")]
mod processes;
#[path = "support/s3_process.rs"]
#[allow(dead_code, reason = "the function is in this process")]
mod s3_process;
mod support;

use std::time::Duration;

use pressrun::function::deadline::Deadline;
use processes::{children, resident_bytes};
use s3_process::S3Process;
use serde_json::{Value, json};
use support::invoice;

const CHECKPOINTS: [usize; 5] = [0, 10, 500, 2_000, 10_000];

fn main() -> std::process::ExitCode {
    s3_process::play_s3_role().unwrap_or_else(|| support::main(benchmark))
}

async fn benchmark() {
    let s3 = S3Process::start();
    let mut function = s3.function().await;
    let press = function.press_id().unwrap();
    println!("| documents | function, resident KiB | press, Anonymous KiB | press and runs, Pss KiB | not stored |");
    println!("| --- | --- | --- | --- | --- |");
    let mut failed = 0;
    for number in 0..=CHECKPOINTS[CHECKPOINTS.len() - 1] / 10 {
        let done = number * 10;
        if CHECKPOINTS.contains(&done) {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let function = resident_bytes(std::process::id()) / 1024;
            let own = of_rollup(press, "Anonymous");
            let all: u64 = [press].into_iter().chain(children(press)).map(|process| of_rollup(process, "Pss")).sum();
            println!("| {done} | {function} | {own} | {all} | {failed} |");
        }
        let records: Vec<Value> = (done..done + 10).map(record).collect();
        let response = function.handle(json!({"Records": records}), Deadline::NONE).await.unwrap();
        failed += response.batch_item_failures.len();
    }
    assert_eq!(function.press_id(), Some(press), "the press has not been replaced");
    function.stop().await;
}

/// A figure of `smaps_rollup`, in KiB.
fn of_rollup(process: u32, name: &str) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'))).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Every tenth has no lines where lines are expected.
fn record(number: usize) -> Value {
    let mut data = invoice(number);
    if number % 10 == 9 {
        data["doc"]["lines"] = json!([17]);
    }
    json!({
        "messageId": format!("m-{}", number % 100),
        "body": json!({"template": "invoice", "data": data}).to_string(),
        "attributes": {"SentTimestamp": "1782988200000"}
    })
}
