//! An invocation's own cost: from its event until the function has answered, and until it asks for the next event, for
//! invocations of no document, of one and of ten. The function is the program that is deployed; the runtime API and
//! the S3 server are on the same machine.
//!
//! `cargo bench --bench invocations [-- PRESSRUN …]` compares programs, in rounds that alternate.

#[path = "../tests/embedded/mod.rs"]
mod embedded;
#[path = "support/s3_process.rs"]
#[allow(dead_code, reason = "the function has a process of its own, too")]
mod s3_process;
mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use s3_process::S3Process;
use serde_json::{Value, json};
use support::runtime_api::FunctionProcess;
use support::{Series, invoice};

const ROUNDS: usize = 200;
/// Those that are not counted: connections are opened in them.
const WARM_UP_ROUNDS: usize = 5;
/// The documents of an invocation.
const DOCUMENTS: [usize; 3] = [0, 1, 10];
/// Between two invocations, in which the next run can warm itself.
const PAUSES: [Duration; 2] = [Duration::ZERO, Duration::from_millis(40)];

/// One of the programs that are compared.
struct Program {
    name: String,
    function: FunctionProcess,
    /// Its lines of metrics.
    metrics: Receiver<Value>,
    /// By pause and documents, as indices.
    measured: BTreeMap<(usize, usize), Measured>,
}

/// The times of invocations of one kind.
#[derive(Default)]
struct Measured {
    until_answer: Series,
    until_next: Series,
    render: Series,
    upload: Series,
}

fn main() -> std::process::ExitCode {
    s3_process::play_s3_role().unwrap_or_else(|| support::main(async || benchmark()))
}

fn benchmark() {
    let s3 = S3Process::start();
    let mut programs: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if programs.is_empty() {
        programs.push(env!("CARGO_BIN_EXE_pressrun").to_owned());
    }
    let mut programs: Vec<Program> = programs.into_iter().map(|name| Program::start(name, &s3)).collect();
    let mut number = 0;
    for round in 0..WARM_UP_ROUNDS + ROUNDS {
        for (pause, documents) in
            (0..PAUSES.len()).flat_map(|pause| (0..DOCUMENTS.len()).map(move |documents| (pause, documents)))
        {
            for program in &mut programs {
                number += DOCUMENTS[documents];
                program.invoke(pause, documents, number, round >= WARM_UP_ROUNDS);
            }
        }
    }
    println!(
        "| | documents | until the answer, ms | until the next event | middle half | rendering, each | uploads, each |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for program in &programs {
        for ((pause, documents), measured) in &program.measured {
            print!("| {}, {} ms between | {} ", program.name, PAUSES[*pause].as_millis(), DOCUMENTS[*documents]);
            print!("| {:.2} | {:.2} ", measured.until_answer.median(), measured.until_next.median());
            print!("| {} ", measured.until_next.spread());
            match DOCUMENTS[*documents] {
                0 => println!("| | |"),
                _ => println!("| {:.2} | {:.2} |", measured.render.median(), measured.upload.median()),
            }
        }
    }
}

impl Program {
    fn start(name: String, s3: &S3Process) -> Self {
        let mut command = Command::new(&name);
        command
            .env("WORKERS", "1")
            .env("AWS_ENDPOINT_URL_S3", s3.endpoint())
            .env("AWS_ACCESS_KEY_ID", embedded::s3::ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", embedded::s3::SECRET_KEY)
            .stdout(Stdio::piped());
        let mut function = FunctionProcess::start(&mut command);
        let lines = BufReader::new(function.take_stdout()).lines();
        let (sender, metrics) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(metrics) = serde_json::from_str::<Value>(&line)
                    && metrics.get("_aws").is_some()
                {
                    let _ = sender.send(metrics);
                }
            }
        });
        Self { name, function, metrics, measured: BTreeMap::new() }
    }

    /// Measures one invocation of new documents up to `number`.
    fn invoke(&mut self, pause: usize, documents: usize, number: usize, is_counted: bool) {
        std::thread::sleep(PAUSES[pause]);
        let count = DOCUMENTS[documents];
        let records: Vec<Value> = (number - count..number).map(record).collect();
        let (times, answer) = self.function.invoke(&json!({"Records": records}).to_string());
        assert_eq!(answer, r#"{"batchItemFailures":[]}"#, "a document failed");
        // One line for each document, and one for the invocation.
        let lines: Vec<Value> =
            (0..=count).map(|_| self.metrics.recv_timeout(Duration::from_secs(10)).unwrap()).collect();
        if !is_counted {
            return;
        }
        let measured = self.measured.entry((pause, documents)).or_default();
        measured.until_answer.add(times.until_answer, 1);
        measured.until_next.add(times.until_next, 1);
        for line in lines {
            for (series, name) in [(&mut measured.render, "RenderTime"), (&mut measured.upload, "UploadTime")] {
                if let Some(milliseconds) = line[name].as_f64() {
                    series.add(Duration::from_secs_f64(milliseconds / 1000.0), 1);
                }
            }
        }
    }
}

fn record(number: usize) -> Value {
    let body = json!({"template": "invoice", "key": format!("{number}.pdf"), "data": invoice(number)}).to_string();
    json!({"messageId": number.to_string(), "body": body, "attributes": {"SentTimestamp": "1782988200000"}})
}
