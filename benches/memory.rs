//! Resident memory of the function and its presses after more and more different invoices, a
//! tenth of them failing.

#[path = "../tests/embedded/mod.rs"]
mod embedded;
#[path = "../tests/support/processes.rs"]
#[allow(dead_code, reason = "only the memory is of interest")]
mod processes;
#[path = "support/s3_process.rs"]
mod s3_process;
mod support;

use std::time::Duration;

use pressrun::function::deadline::Deadline;
use processes::resident_bytes;
use s3_process::S3Process;
use serde_json::{Value, json};
use support::{cores, invoice};

const CHECKPOINTS: [usize; 5] = [0, 10, 500, 2_000, 10_000];

fn main() -> std::process::ExitCode {
    s3_process::play_s3_role().unwrap_or_else(|| support::main(benchmark))
}

async fn benchmark() {
    let s3 = S3Process::start();
    let mut function = s3.function().await;
    let presses: Vec<u32> = function.press_ids().collect();
    println!("| documents | function, KiB |{} not stored |", " press, KiB |".repeat(cores()));
    println!("| --- | --- |{} --- |", " --- |".repeat(cores()));
    let mut failed = 0;
    for number in 0..=CHECKPOINTS[CHECKPOINTS.len() - 1] / 10 {
        let done = number * 10;
        if CHECKPOINTS.contains(&done) {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let columns: Vec<String> =
                presses.iter().map(|press| format!(" {} |", resident_bytes(*press) / 1024)).collect();
            println!("| {done} | {} |{} {failed} |", resident_bytes(std::process::id()) / 1024, columns.concat());
        }
        let records: Vec<Value> = (done..done + 10).map(record).collect();
        let response = function.handle(json!({"Records": records}), Deadline::NONE).await.unwrap();
        failed += response.batch_item_failures.len();
    }
    assert_eq!(presses, function.press_ids().collect::<Vec<_>>(), "no press has been replaced");
    function.stop().await;
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
