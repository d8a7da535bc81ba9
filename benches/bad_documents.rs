//! What a bad document costs its neighbours, and what the sandbox around documents costs. Rounds
//! alternate.

#[path = "../tests/embedded/mod.rs"]
mod embedded;
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use embedded::s3::EmbeddedS3;
use pressrun::config::Config;
use pressrun::function::Function;
use pressrun::function::deadline::Deadline;
use pressrun::press::sandbox::SandboxLevel;
use pressrun::press::{Cause, RunFailure};
use serde_json::{Value, json};
use support::{Press, Series, bytes, cores, invoice, render_in, request, templates, templates_and};
use tokio::sync::watch;

const ROUNDS: usize = 15;
const GRANT: Duration = Duration::from_millis(500);

fn main() -> std::process::ExitCode {
    support::main(benchmark)
}

async fn benchmark() {
    after_a_kill().await;
    among_ten().await;
    sandbox().await;
}

/// From the end of a document's time to the answer to the next, less what that takes by itself.
async fn after_a_kill() {
    let mut press = Press::start(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates"), 1).await;
    let worker = press.worker();
    let endless = bytes(&json!({"endless": true}));
    let (_sender, mut threads) = watch::channel(1);
    let letter = bytes(&json!({"to": "you"}));
    let (mut killed, mut next, mut usual) = (Series::default(), Series::default(), Series::default());
    for _ in 0..ROUNDS * 2 {
        let limit = Duration::from_millis(50);
        let began = Instant::now();
        let failure = worker.render(&request("endless", &endless, limit), &mut threads).await.unwrap_err();
        assert!(matches!(failure, RunFailure::Ended { cause: Cause::TimeLimit, .. }));
        killed.add(began.elapsed().saturating_sub(limit), 1);
        for series in [&mut next, &mut usual] {
            let began = Instant::now();
            render_in(worker, "letter", &letter, &mut threads).await;
            series.add(began.elapsed(), 1);
        }
        worker.end_invocation().await;
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    press.stop().await;
    println!("| after a document that was killed | ms | middle half |");
    println!("| --- | --- | --- |");
    println!(
        "| until it is reaped, another run is asked for and it is answered | {:.2} | {} |",
        killed.median(),
        killed.spread()
    );
    println!("| the next document, a letter, in the new run | {:.2} | {} |", next.median(), next.spread());
    println!("| the one after it | {:.2} | {} |", usual.median(), usual.spread());
}

async fn among_ten() {
    let s3 = EmbeddedS3::start(&["output"]);
    let templates = templates_and("tests/templates/endless");
    println!("\n| ten invoices | workers | ms | with an endless one | added |");
    println!("| --- | --- | --- | --- | --- |");
    for workers in [1, cores()] {
        let variables = |name: &str| match name {
            "OUTPUT_BUCKET" => Some("output".to_owned()),
            "TEMPLATES_DIR" => Some(templates.display().to_string()),
            "WORKERS" => Some(workers.to_string()),
            "MAX_RENDER_MS" => Some(GRANT.as_millis().to_string()),
            _ => None,
        };
        let mut function = Function::start(Config::from_variables(variables).unwrap(), s3.client()).await.unwrap();
        let (mut ten, mut eleven) = (Series::default(), Series::default());
        for round in 0..ROUNDS {
            let mut messages: Vec<Value> =
                (0..10).map(|number| json!({"template": "invoice", "data": invoice(round * 10 + number)})).collect();
            ten.add(batch(&mut function, &messages, 0).await, 1);
            messages.insert(0, json!({"template": "endless", "data": {"endless": true}}));
            eleven.add(batch(&mut function, &messages, 1).await, 1);
        }
        function.stop().await;
        let (ten, eleven) = (ten.median(), eleven.median());
        println!("| MAX_RENDER_MS=500 | {workers} | {ten:.0} | {eleven:.0} | {:+.0} |", eleven - ten);
    }
}

async fn batch(function: &mut Function, messages: &[Value], failures: usize) -> Duration {
    let record = |(number, message): (usize, &Value)| json!({"messageId": number.to_string(), "body": message.to_string(), "attributes": {"SentTimestamp": "1782988200000"}});
    let event = json!({"Records": messages.iter().enumerate().map(record).collect::<Vec<_>>()});
    let began = Instant::now();
    let response = function.handle(event, Deadline::NONE).await.unwrap();
    let took = began.elapsed();
    assert_eq!(response.batch_item_failures.len(), failures);
    tokio::time::sleep(Duration::from_millis(40)).await;
    took
}

async fn sandbox() {
    let levels = [SandboxLevel::Bare, SandboxLevel::Seccomp, SandboxLevel::SeccompAndLandlock];
    let mut init = levels.map(|_| Series::default());
    let mut documents = levels.map(|_| Series::default());
    let mut presses: Vec<Press> = Vec::new();
    for level in levels {
        presses.push(Press::start_at(level, &templates(), 1).await);
    }
    let (_sender, mut threads) = watch::channel(1);
    let mut invoices = (0..).map(|number| bytes(&invoice(number)));
    for _ in 0..ROUNDS {
        for (index, level) in levels.into_iter().enumerate() {
            let began = Instant::now();
            let press = Press::start_at(level, &templates(), 1).await;
            init[index].add(began.elapsed(), 1);
            press.stop().await;
            let batch: Vec<_> = invoices.by_ref().take(10).collect();
            let began = Instant::now();
            for invoice in &batch {
                render_in(presses[index].worker(), "invoice", invoice, &mut threads).await;
            }
            presses[index].worker().end_invocation().await;
            documents[index].add(began.elapsed(), 10);
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    }
    for press in presses {
        press.stop().await;
    }
    println!(
        "\n| sandbox | a press and its first run, from start to warm, ms | an invoice in a run of ten, ms | to bare |"
    );
    println!("| --- | --- | --- | --- |");
    for (index, level) in levels.into_iter().enumerate() {
        let ratio = documents[index].ratio_to(&documents[0]);
        println!("| {level} | {:.1} | {:.2} | {ratio:.2} |", init[index].median(), documents[index].median());
    }
}
