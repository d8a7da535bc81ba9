//! Long documents on all cores and on one, undivided and in parts, one that is long among nine that are short, and large
//! tables in little memory. Rounds alternate.
//!
//! `PRESS_PROGRAM` names a pressrun that is the press of the documents in parts, such as one that cargo-lambda has built.
//! `-- tables` renders the tables only, `-- tables 100000` those with so many rows.

#[path = "../tests/embedded/mod.rs"]
mod embedded;
mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use embedded::s3::EmbeddedS3;
use pressrun::config::Config;
use pressrun::function::Function;
use pressrun::function::deadline::Deadline;
use pressrun::press::{Request, RunResponse};
use pressrun::render::Renderer;
use serde_json::{Value, json};
use support::{
    Press, Series, bytes, cores, invoice, on_threads, report, request, statement, templates, templates_and,
    with_press_program,
};
use tokio::sync::watch;

const ROUNDS: usize = 9;
const STATEMENT_ROWS: usize = 5000;
/// A large table takes many seconds.
const TABLE_ROUNDS: usize = 3;
const TABLE_ROWS: usize = 20_000;
const MEGABYTE: u64 = 1_000_000;

fn main() -> std::process::ExitCode {
    support::main(benchmark)
}

async fn benchmark() {
    let arguments: Vec<String> = std::env::args().skip_while(|argument| argument != "tables").collect();
    if !arguments.is_empty() {
        let rows = arguments.get(1).and_then(|rows| rows.parse().ok()).unwrap_or(TABLE_ROWS);
        return large_tables(rows).await;
    }
    undivided();
    statement_in_parts().await;
    long_among_short().await;
    large_tables(TABLE_ROWS).await;
}

/// Each in one piece, even if its manifest has parts. A page break is where Typst lays out in parallel: a report has
/// many, and the table of a statement none.
fn undivided() {
    let renderer = Renderer::load(&templates()).unwrap();
    let report_200 = bytes(&report(48));
    let statement_5000 = bytes(&statement(STATEMENT_ROWS));
    let variants: [(&str, usize, &str, &Bytes); 4] = [
        ("report, one thread", 1, "report", &report_200),
        ("report, all threads", cores(), "report", &report_200),
        ("statement, 5,000 rows, undivided, one thread", 1, "statement", &statement_5000),
        ("statement, 5,000 rows, undivided, all threads", cores(), "statement", &statement_5000),
    ];
    let mut series = variants.map(|_| Series::default());
    let mut pages = variants.map(|_| 0);
    for _ in 0..ROUNDS {
        for (index, (_, threads, template, data)) in variants.into_iter().enumerate() {
            let (pdf, took) = on_threads(&renderer, threads, template, data);
            series[index].add(took, 1);
            pages[index] = pdf.pages;
        }
    }
    println!("| a long document, all cores being {} | pages | ms | middle half | speed-up |", cores());
    println!("| --- | --- | --- | --- | --- |");
    for (index, (name, ..)) in variants.iter().enumerate() {
        let one_thread = index - index % 2;
        println!(
            "| {name} | {} | {:.0} | {} | {:.2} |",
            pages[index],
            series[index].median(),
            series[index].spread(),
            1.0 / series[index].ratio_to(&series[one_thread])
        );
    }
}

/// Through the whole function, which is started anew for each.
async fn statement_in_parts() {
    let s3 = EmbeddedS3::start(&["output"]);
    let long = json!({"template": "statement", "data": statement(STATEMENT_ROWS), "key": "long.pdf"});
    let workers = [1, cores()];
    let mut series = workers.map(|_| Series::default());
    for _ in 0..ROUNDS {
        for (workers, series) in workers.iter().zip(&mut series) {
            let mut function = start_function(&s3, Some(*workers)).await;
            series.add(until_stored(&mut function, &s3, &[&long]).await, 1);
            function.stop().await;
        }
    }
    println!(
        "\n| a statement of 5,000 rows in parts, through the function | ms until it is stored | middle half | speed-up |"
    );
    println!("| --- | --- | --- | --- |");
    for (workers, of_workers) in workers.iter().zip(&series) {
        let speed_up = 1.0 / of_workers.ratio_to(&series[0]);
        println!("| {workers} workers | {:.0} | {} | {speed_up:.2} |", of_workers.median(), of_workers.spread());
    }
}

/// A function with so many workers, or with one for each core.
async fn start_function(s3: &EmbeddedS3, workers: Option<usize>) -> Function {
    let variables = |name: &str| match name {
        "OUTPUT_BUCKET" => Some("output".to_owned()),
        "TEMPLATES_DIR" => Some(templates().display().to_string()),
        "WORKERS" => workers.map(|workers| workers.to_string()),
        _ => None,
    };
    let config = with_press_program(Config::from_variables(variables).unwrap());
    Function::start(config, s3.client()).await.unwrap()
}

/// Through the whole function, presses for all cores: when the long one is stored, alone and
/// first, fifth and last of ten.
async fn long_among_short() {
    let s3 = EmbeddedS3::start(&["output"]);
    let mut function = start_function(&s3, None).await;
    let long = json!({"template": "report", "data": report(48), "key": "long.pdf"});
    let mut alone = Series::default();
    let mut among = [0, 4, 9].map(|place| (place, Series::default()));
    for round in 0..ROUNDS {
        alone.add(until_stored(&mut function, &s3, &[&long]).await, 1);
        for (place, series) in &mut among {
            let mut short: Vec<Value> = (0..9)
                .map(|number| json!({"template": "invoice", "data": invoice(round * 100 + *place * 10 + number)}))
                .collect();
            short.insert(*place, long.clone());
            let batch: Vec<&Value> = short.iter().collect();
            series.add(until_stored(&mut function, &s3, &batch).await, 1);
        }
    }
    function.stop().await;
    println!("\n| a report of 200 pages through the function | ms until it is stored | to alone |");
    println!("| --- | --- | --- |");
    println!("| alone | {:.0} | 1.00 |", alone.median());
    for (place, series) in &among {
        println!(
            "| number {} of ten, the others invoices | {:.0} | {:.2} |",
            place + 1,
            series.median(),
            series.ratio_to(&alone)
        );
    }
}

async fn until_stored(function: &mut Function, s3: &EmbeddedS3, messages: &[&Value]) -> Duration {
    let record = |(number, message): (usize, &&Value)| json!({"messageId": number.to_string(), "body": message.to_string(), "attributes": {"SentTimestamp": "1782988200000"}});
    let event = json!({"Records": messages.iter().enumerate().map(record).collect::<Vec<_>>()});
    tokio::time::sleep(Duration::from_millis(60)).await;
    let began = Instant::now();
    let handling = function.handle(event, Deadline::NONE);
    let watching = async {
        while s3.object("output", "long.pdf").is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        began.elapsed()
    };
    let (response, took) = tokio::join!(handling, watching);
    assert!(response.unwrap().batch_item_failures.is_empty());
    s3.clear("output");
    took
}

/// A plain table of eight columns in one run, with as much memory as it takes, and with less.
async fn large_tables(rows: usize) {
    let mut press = Press::start(&templates_and("tests/templates/table"), 1).await;
    let plain = (false, [None, Some(rows as u64 * 75_000), Some(rows as u64 * 35_000)]);
    let total = (true, [None, Some(rows as u64 * 100_000), Some(rows as u64 * 50_000)]);
    println!(
        "\n| a table of {rows} rows and 8 columns | memory for its run | ms | to the first | peak of the run | evictions |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for (page_total, limits) in [plain, total] {
        let mut series = limits.map(|_| Series::default());
        let mut last = limits.map(|_| None);
        for _ in 0..TABLE_ROUNDS {
            for (index, limit) in limits.into_iter().enumerate() {
                let (took, response, peak) = render_table(&mut press, rows, page_total, limit).await;
                series[index].add(took, 1);
                last[index] = Some((response, peak));
            }
        }
        for (index, limit) in limits.into_iter().enumerate() {
            let (evictions, peak) = last[index].unwrap();
            let name = if page_total { "with page x of y in the footer" } else { "without a page total" };
            let limit = limit.map_or("unlimited".to_owned(), |bytes| format!("{} MB", bytes / MEGABYTE));
            let evictions = evictions.map_or("failed for memory".to_owned(), |evictions| evictions.to_string());
            println!(
                "| {name} | {limit} | {:.0} | {:.2} | {} MB | {evictions} |",
                series[index].median(),
                series[index].ratio_to(&series[0]),
                peak / MEGABYTE
            );
        }
    }
    press.stop().await;
}

/// Renders a table in a run of its own. The evictions are `None` if it did not fit.
async fn render_table(
    press: &mut Press,
    rows: usize,
    page_total: bool,
    memory_limit_bytes: Option<u64>,
) -> (Duration, Option<u32>, u64) {
    let data = bytes(&json!({"rows": rows, "page-total": page_total}));
    let mut request: Request = request("table", &data, Duration::from_mins(10));
    request.limits.memory_bytes = memory_limit_bytes;
    let (_sender, mut threads) = watch::channel(1);
    let began = Instant::now();
    let rendered = press.worker().render(&request, &mut threads).await;
    let took = began.elapsed();
    press.worker().end_invocation().await;
    let peak = press.take_peak_memory();
    (took, rendered.ok().map(|RunResponse { cache_evictions, .. }| cache_evictions), peak)
}
