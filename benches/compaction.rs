//! What it costs to compact a PDF and what it saves: the same documents, rendered by runs of two
//! templates that differ in `compact` alone. Rounds alternate.

#[path = "../tests/support/files.rs"]
mod files;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use files::copy_folder;
use pressrun::pdf;
use serde_json::Value;
use support::{Press, Series, bytes, invoice, render_in, report, statement, templates};
use tokio::sync::watch;

fn main() -> std::process::ExitCode {
    support::main(benchmark)
}

/// A document, and how often it is rendered.
struct Case {
    name: &'static str,
    template: &'static str,
    data: Box<dyn Fn(usize) -> Value>,
    rounds: usize,
    documents: usize,
}

async fn benchmark() {
    let sample = |template: &str| -> Value {
        serde_json::from_slice(&fs::read(templates().join(template).join("sample.json")).unwrap()).unwrap()
    };
    let (report_sample, statement_sample) = (sample("report"), sample("statement"));
    let cases = [
        case("an invoice of one page", "invoice", invoice, 40, 20),
        case("the statement's sample", "statement", move |_| statement_sample.clone(), 20, 10),
        case("the report's sample", "report", move |_| report_sample.clone(), 20, 5),
        case("a report of 200 pages", "report", |_| report(48), 7, 1),
        case("a statement of 500 rows", "statement", |_| statement(500), 20, 1),
    ];
    let mut press = Press::start(&with_plain_copies(), 1).await;
    println!("| document | bytes | compacted | share | ms | compacted | difference, ms | `finish` alone, ms |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for case in cases {
        measure(&mut press, &case).await;
    }
    press.stop().await;
}

fn case(
    name: &'static str,
    template: &'static str,
    data: impl Fn(usize) -> Value + 'static,
    rounds: usize,
    documents: usize,
) -> Case {
    Case { name, template, data: Box::new(data), rounds, documents }
}

async fn measure(press: &mut Press, case: &Case) {
    let (_sender, mut threads) = watch::channel(1);
    let variants = [format!("{}_plain", case.template), case.template.to_owned()];
    let [mut plain, mut compacted, mut finishing] = [Series::default(), Series::default(), Series::default()];
    let mut differences = Vec::new();
    let mut sizes = [0, 0];
    for round in 0..=case.rounds {
        let batch: Vec<Bytes> = (0..case.documents).map(|index| bytes(&(case.data)(round * 100 + index))).collect();
        let mut took = [Duration::ZERO; 2];
        let mut finished_in = Duration::ZERO;
        // Each is sometimes the first.
        for variant in [round % 2, 1 - round % 2] {
            // The first document in a run with this template pays for what the others find in memory.
            render_in(press.worker(), &variants[variant], &batch[0], &mut threads).await;
            for data in &batch {
                let began = Instant::now();
                let pdf = render_in(press.worker(), &variants[variant], data, &mut threads).await;
                took[variant] += began.elapsed();
                sizes[variant] = pdf.len();
                if variant == 0 {
                    finished_in += time_to_finish(pdf.to_vec());
                }
            }
            press.worker().end_invocation().await;
        }
        if round > 0 {
            let milliseconds =
                |took: Duration| took.as_secs_f64() * 1000.0 / f64::from(u32::try_from(case.documents).unwrap());
            plain.add(took[0], case.documents);
            compacted.add(took[1], case.documents);
            finishing.add(finished_in, case.documents);
            differences.push(milliseconds(took[1]) - milliseconds(took[0]));
        }
    }
    differences.sort_by(f64::total_cmp);
    let share = f64::from(u32::try_from(sizes[1]).unwrap()) / f64::from(u32::try_from(sizes[0]).unwrap());
    println!(
        "| {} | {} | {} | {share:.3} | {:.2} | {:.2} | {:.2} | {:.2} |",
        case.name,
        sizes[0],
        sizes[1],
        plain.median(),
        compacted.median(),
        differences[differences.len() / 2],
        finishing.median()
    );
}

fn time_to_finish(pdf: Vec<u8>) -> Duration {
    let began = Instant::now();
    let finished = pdf::finish(pdf, None, true).unwrap();
    let took = began.elapsed();
    assert!(finished.not_compacted.is_none());
    took
}

/// The shipped templates, and beside each a copy whose PDFs are not compacted.
fn with_plain_copies() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("with-plain-copies");
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    copy_folder(&templates(), &folder);
    for template in ["invoice", "report", "statement"] {
        let copy = folder.join(format!("{template}_plain"));
        copy_folder(&templates().join(template), &copy);
        let manifest = copy.join("typst.toml");
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, text.replace("[tool.pressrun]\n", "[tool.pressrun]\ncompact = false\n")).unwrap();
    }
    folder
}
