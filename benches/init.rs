//! Init: from the start of the process until it asks for its first event, press and runs warm, against
//! a hello world on `lambda_runtime`; and the steps that one worker's init consists of, as the log has them.
//!
//! `cargo bench --bench init [-- PRESSRUN …]` compares programs, in rounds that alternate.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use support::runtime_api::FunctionProcess;
use support::{Series, cores};

const ROUNDS: usize = 20;
const HELLO: &str = "hello-world";
/// Nothing is stored.
const CREDENTIALS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret")];

fn main() -> std::process::ExitCode {
    if std::env::args().nth(1).as_deref() == Some(HELLO) {
        hello_world();
    }
    support::main(async || benchmark())
}

fn hello_world() {
    use lambda_runtime::{Error, LambdaEvent, run, service_fn};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let hello = service_fn(async |_: LambdaEvent<serde_json::Value>| Ok::<_, Error>("hello"));
    runtime.block_on(run(hello)).unwrap();
}

fn benchmark() {
    let mut programs: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if programs.is_empty() {
        programs.push(env!("CARGO_BIN_EXE_pressrun").to_owned());
    }
    let mut hello = Command::new(std::env::current_exe().unwrap());
    hello.arg(HELLO);
    let mut variants = vec![("hello world".to_owned(), hello)];
    for program in &programs {
        for workers in [1, cores()] {
            let mut command = Command::new(program);
            command.env("WORKERS", workers.to_string());
            variants.push((format!("{program}, WORKERS={workers}"), command));
        }
    }
    let mut variants: Vec<_> = variants.into_iter().map(|(name, command)| (name, command, Series::default())).collect();
    let mut steps: Vec<BTreeMap<String, Series>> = programs.iter().map(|_| BTreeMap::new()).collect();
    for _ in 0..ROUNDS {
        for (_, command, series) in &mut variants {
            series.add(FunctionProcess::start(command.envs(CREDENTIALS).stdout(Stdio::null())).init, 1);
        }
        for (program, steps) in programs.iter().zip(&mut steps) {
            for (step, took) in steps_of_init(program) {
                steps.entry(step).or_default().add(took, 1);
            }
        }
    }
    println!("| from start to asking for the first event | ms | middle half |");
    println!("| --- | --- | --- |");
    for (name, _, series) in &variants {
        println!("| {name} | {:.1} | {} |", series.median(), series.spread());
    }
    for (program, steps) in programs.iter().zip(steps) {
        println!("\n| steps of {program}, WORKERS=1 | ms | middle half |");
        println!("| --- | --- | --- |");
        for (step, series) in steps {
            println!("| {step} | {:.1} | {} |", series.median(), series.spread());
        }
    }
}

/// The steps that a function logs at level DEBUG, and the samples that its press renders side by side, with how long
/// they took.
fn steps_of_init(program: &str) -> Vec<(String, Duration)> {
    let mut command = Command::new(program);
    command.envs([("WORKERS", "1"), ("AWS_LAMBDA_LOG_LEVEL", "DEBUG"), ("AWS_LAMBDA_LOG_FORMAT", "JSON")]);
    let mut function = FunctionProcess::start(command.envs(CREDENTIALS).stdout(Stdio::piped()));
    let log = BufReader::new(function.take_stdout());
    drop(function);
    let lines = log.lines().map_while(Result::ok).filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let step = |line: Value| {
        let name = match (line["step"].as_str(), line["template"].as_str()) {
            (Some(step), _) => step.to_owned(),
            (_, template) => format!("of it the sample of {}", template?),
        };
        Some((name, Duration::from_secs_f64(line["milliseconds"].as_f64()? / 1000.0)))
    };
    lines.filter_map(step).collect()
}
