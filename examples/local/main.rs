//! Runs the whole function on your machine: the real handler, the real AWS SDK, and an S3 server inside this
//! process. Leaves the PDFs in `out/`.
//!
//!     cargo run --example local -- events/batch.json
//!     cargo run --example local -- --template invoice data/*.json
//!     cargo run --example local -- watch invoice data/1.json
//!     cargo run --example local -- --timings timings events/batch.json
//!     cargo run --example local -- check
//!     cargo run --example local -- new letter

mod arguments;
mod check;
#[path = "../../tests/embedded/mod.rs"]
mod embedded;
mod input;
mod new_template;
mod output;
mod parts;
mod timings;
mod watch;

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use arguments::{Arguments, Batches};

use embedded::s3::EmbeddedS3;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use output::Written;
use pressrun::config::{Config, ConfigErrors};
use pressrun::function::deadline::Deadline;
use pressrun::function::event::Record;
use pressrun::function::outcome::Outcome;
use pressrun::function::{Function, RecordOutcome, log_census_on_request};
use pressrun::message;
use serde_json::Value;
use timings::TimingsFolder;

const USAGE: &str = "\
usage: local EVENT.json ...                      SQS events, as in events/
       local --template NAME DATA.json ...       a document for each data file; a folder stands for
                                                 all .json files in it, and - for standard input
       local --timings DIR ...                   either, with Typst's timings of each document
       local --open ...                          either, and shows what becomes of it
       local check [NAME ...]                    renders the samples of templates
       local watch NAME [DATA.json]              renders a document again at each change of its files
       local new NAME                            makes the folder of a new template

The PDFs are left in out/, each where its line says. What messages name in INPUT_BUCKET is read from in/;
with --template the message brings what lies in the template's files/.
With --timings the timings of each document are left in DIR, for ui.perfetto.dev,
and the five places of each template that took most of the time are printed.
TEMPLATES_DIR, WORKERS, MEMORY_MB, MAX_RENDER_MS (here
30000 unless set) and OUTPUT_PREFIX work as in the function.
At SIGUSR1 it prints what each process holds at this moment.

Exit status: 0 if all is well, 1 if a document or a template failed, 2 if nothing was done.";

const OUTPUT_BUCKET: &str = "local-output";
const INPUT_BUCKET: &str = "local-input";
/// Stands for the template of a message that cannot be read.
const UNREADABLE: &str = "?";
const OUTPUT_FOLDER: &str = "out";
/// The folder that stands for the input bucket, if it exists.
const INPUT_FOLDER: &str = "in";
const MAX_RENDER_TIME: Duration = Duration::from_secs(30);
/// The program that shows a file as the desktop is told to.
const VIEWER: &str = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
/// More PDFs than this are not opened: each may be a window.
const MAX_OPENED: usize = 5;
/// The batch size of an SQS event source unless it is configured.
const BATCH_SIZE: usize = 10;

fn main() -> ExitCode {
    if let Some(exit_code) = pressrun::run_press_if_requested() {
        return exit_code;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(Box::from).and_then(|runtime| runtime.block_on(run())) {
        Ok(exit_code) => exit_code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

async fn run() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
    match words[..] {
        ["--help" | "-h"] => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        ["check", ref names @ ..] => {
            let config = config()?;
            let time_limit = config.max_render_time.unwrap_or(MAX_RENDER_TIME);
            check::check(&config.templates_dir, names, config.cores, time_limit)
        }
        ["new", name] => new_template::new_template(&config()?.templates_dir, name),
        ["watch", template] => watch::watch(&config()?, template, None).map(|()| ExitCode::SUCCESS),
        ["watch", template, data] => {
            watch::watch(&config()?, template, Some(Path::new(data))).map(|()| ExitCode::SUCCESS)
        }
        ["watch", ..] => Err(format!("watch takes a template's name, and perhaps a data file\n\n{USAGE}").into()),
        ["new", ..] => Err(format!("new takes one name, that of the new template\n\n{USAGE}").into()),
        _ => tokio::select! {
            done = render(&arguments) => done,
            error = log_census_on_request(|tasks, table| eprintln!("{tasks} tasks\n{table}")) => Err(error.into()),
        },
    }
}

fn config() -> Result<Config, ConfigErrors> {
    Config::from_variables(|name| {
        env::var(name).ok().or_else(|| match name {
            "OUTPUT_BUCKET" => Some(OUTPUT_BUCKET.to_owned()),
            "INPUT_BUCKET" => Some(INPUT_BUCKET.to_owned()),
            // Half of the time that template.yaml gives an invocation.
            "MAX_RENDER_MS" => Some(MAX_RENDER_TIME.as_millis().to_string()),
            _ => None,
        })
    })
}

/// Has the function render what the arguments ask for.
async fn render(arguments: &[OsString]) -> Result<ExitCode, Box<dyn Error>> {
    let mut config = config()?;
    let arguments = Arguments::parse(arguments)?;
    let mut timings = arguments.timings.as_ref().map(|dir| TimingsFolder::new(dir));
    config.timings_slower_than = timings.as_ref().map(|_| Duration::ZERO);
    let Batches { batches, problems } = arguments.batches(&config.templates_dir);
    for problem in &problems {
        eprintln!("{problem}");
    }
    if batches.is_empty() {
        return Ok(ExitCode::from(2));
    }
    config.only_templates = arguments.templates(&batches, &config.templates_dir);
    let output_bucket = config.output_bucket.clone();
    let input_bucket = config.input_bucket.clone().unwrap_or_default();
    let s3 = EmbeddedS3::start(&[&output_bucket, &input_bucket]);
    input::put_folder(&s3, &input_bucket, Path::new(INPUT_FOLDER), "")?;
    input::put_files_of_templates(&s3, &input_bucket, &config.templates_dir)?;
    let output_prefix = config.output_prefix.clone();
    let templates_dir = config.templates_dir.clone();
    let began = Instant::now();
    let mut function = Function::start(config, s3.client()).await?;
    println!("press and {} runs warm after {} ms", function.workers(), began.elapsed().as_millis());

    let documents = batches.iter().map(Vec::len).sum::<usize>();
    let progress = progress_bar(documents);
    let mut totals = Totals { failed: problems.len(), ..Totals::default() };
    let mut pdfs = Vec::new();
    for batch in batches {
        for record in &batch {
            remove_earlier(record, &output_prefix);
        }
        let began = Instant::now();
        let outcomes = function.process_batch(batch, Deadline::NONE).await;
        totals.time += began.elapsed();
        if let Some(timings) = &mut timings {
            timings.take(&s3, &output_bucket)?;
        }
        let written = output::collect(&s3, &output_bucket, Path::new(OUTPUT_FOLDER));
        for outcome in &outcomes {
            progress.suspend(|| print_outcome(outcome, &written));
            totals.add(outcome, &written);
        }
        progress.inc(outcomes.len() as u64);
        pdfs.extend(written.into_values().flatten());
    }
    progress.finish_and_clear();
    function.stop().await;
    totals.print();
    if let Some(timings) = timings {
        timings.print_slowest_places(&templates_dir);
    }
    if arguments.is_opened {
        open(&pdfs);
    }
    Ok(if totals.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows PDFs in the system's viewer, where there is one.
fn open(pdfs: &[PathBuf]) {
    if pdfs.len() > MAX_OPENED {
        println!("the first {MAX_OPENED} are opened");
    }
    for pdf in pdfs.iter().take(MAX_OPENED) {
        let viewer = Command::new(VIEWER).arg(pdf).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        if let Err(error) = viewer {
            println!("{} is not opened: {VIEWER}: {error}", pdf.display());
            return;
        }
    }
}

/// Removes the PDF that an earlier run of this program has left for a message, so that it is not taken for
/// this run's.
fn remove_earlier(record: &Record, output_prefix: &str) {
    let message = record.body.as_deref().ok().and_then(|body| serde_json::from_str::<Value>(body).ok());
    let given = message.as_ref().and_then(|message| message.get("key")?.as_str().map(str::to_owned));
    let key = given.unwrap_or_else(|| format!("{}/{}.pdf", template_of(record), record.message_id));
    if message::check_key(&key).is_ok() {
        output::remove_earlier(Path::new(OUTPUT_FOLDER), &format!("{output_prefix}{key}"));
    }
}

/// A progress bar, which is shown only on a terminal.
fn progress_bar(documents: usize) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} documents, {eta} left").expect("a valid template");
    ProgressBar::with_draw_target(Some(documents as u64), target).with_style(style)
}

fn print_outcome((record, outcome): &RecordOutcome, written: &Written) {
    let template = template_of(record);
    match outcome {
        Outcome::Stored(stored) => {
            let what = if stored.was_stored_before { "was stored" } else { "stored" };
            let pages = if stored.pages == 1 { "page" } else { "pages" };
            let place = match written.get(&stored.key) {
                Some(Ok(path)) => path.display().to_string(),
                Some(Err(problem)) => format!("not written: {problem}"),
                None => "written before".to_owned(),
            };
            println!(
                "{what:<10} {template:<12} {:>5} {pages:<5} {:>10} bytes {:>8.1} ms  {place}",
                stored.pages,
                stored.bytes,
                stored.render_time.as_secs_f64() * 1000.0,
            );
            for warning in &stored.warnings {
                eprintln!("{}: {}", record.message_id, warning.text);
            }
        }
        Outcome::Returned(returned) => {
            println!("returned   {template:<12} {:>5} pages {:>10} bytes", returned.pages, returned.pdf.len());
        }
        Outcome::Superseded { key } => {
            println!("superseded {template:<12} a message that was sent later has the key {key}");
        }
        Outcome::DeadLettered(failure) | Outcome::PermanentFailure(failure) | Outcome::TransientFailure(failure) => {
            let kind = if matches!(outcome, Outcome::TransientFailure(_)) { "transient" } else { "permanent" };
            println!("failed     {template:<12} {kind}, {}: message {}", failure.code, record.message_id);
            match &failure.diagnostics[..] {
                [] => eprintln!("{}: error: {}", record.message_id, failure.message),
                diagnostics => {
                    for diagnostic in diagnostics {
                        eprintln!("{}: {}", record.message_id, diagnostic.text);
                    }
                }
            }
        }
    }
}

fn template_of(record: &Record) -> String {
    let message =
        record.body.as_deref().ok().and_then(|body| serde_json::from_str::<BTreeMap<String, Value>>(body).ok());
    let template = message.as_ref().and_then(|message| message.get("template")?.as_str());
    template.unwrap_or(UNREADABLE).to_owned()
}

#[derive(Default)]
struct Totals {
    stored: usize,
    failed: usize,
    pages: usize,
    bytes: usize,
    time: Duration,
}

impl Totals {
    fn add(&mut self, (_, outcome): &RecordOutcome, written: &Written) {
        match outcome {
            Outcome::Stored(stored) if !written.get(&stored.key).is_some_and(Result::is_err) => {
                self.stored += 1;
                self.pages += stored.pages;
                self.bytes += stored.bytes;
            }
            Outcome::Superseded { .. } | Outcome::Returned(_) => {}
            _ => self.failed += 1,
        }
    }

    fn print(&self) {
        println!(
            "{} stored, {} failed: {} pages, {} bytes in {:.1} ms, upload included",
            self.stored,
            self.failed,
            self.pages,
            self.bytes,
            self.time.as_secs_f64() * 1000.0
        );
    }
}
