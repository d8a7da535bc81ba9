//! Resident memory of the function and its presses after more and more different invoices, a
//! tenth of them failing.

#[path = "../tests/embedded_s3/mod.rs"]
mod embedded_s3;
#[path = "../tests/support/processes.rs"]
#[allow(dead_code, reason = "only the memory is of interest")]
mod processes;
mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use embedded_s3::EmbeddedS3;
use pressrun::config::Config;
use pressrun::function::Function;
use pressrun::function::deadline::Deadline;
use processes::resident_bytes;
use serde_json::{Value, json};
use support::{cores, invoice, templates};

const CHECKPOINTS: [usize; 5] = [0, 10, 500, 2_000, 10_000];

/// The first argument of this program as the S3 server.
const S3_ROLE: &str = "s3";

fn main() -> std::process::ExitCode {
    if std::env::args().nth(1).as_deref() == Some(S3_ROLE) {
        let s3 = EmbeddedS3::start(&["output"]);
        println!("{}", s3.endpoint());
        // Serves until the benchmark closes its end.
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
        return std::process::ExitCode::SUCCESS;
    }
    support::main(benchmark)
}

struct S3Process {
    process: Child,
    endpoint: String,
}

impl S3Process {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut process = command.arg(S3_ROLE).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut endpoint = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut endpoint).unwrap();
        Self { process, endpoint: endpoint.trim_end().to_owned() }
    }
}

impl Drop for S3Process {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}

async fn benchmark() {
    // In a process of its own, so that its memory is not the function's.
    let s3 = S3Process::start();
    let variables = |name: &str| match name {
        "OUTPUT_BUCKET" => Some("output".to_owned()),
        "TEMPLATES_DIR" => Some(templates().display().to_string()),
        _ => None,
    };
    let config = Config::from_variables(variables).unwrap();
    let mut function = Function::start(config, embedded_s3::client_for(&s3.endpoint)).await.unwrap();
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
