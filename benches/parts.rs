//! A document of many lines, rendered in parts through the whole function; beside it the same template and data
//! undivided, by the Python package `typst` on one core.
//!
//! `cargo bench --bench parts [-- LINES [VARIANT]]`: only the variants are measured that have VARIANT in their names.
//! These environment variables are read:
//!
//! - `TYPST_PYTHON`: a Python that has the package `typst`. Without it there is nothing to compare with.
//! - `ROUNDS`: how often each variant is measured. Rounds alternate.
//! - `TEMPLATE`: the folder of another template for the same data.
//! - `MEMORY_MB`: as pressrun reads it.
//! - `PRESS_PROGRAM`: a pressrun that is the press instead of this program, such as one that cargo-lambda has built.

#[path = "../tests/embedded/mod.rs"]
mod embedded;
#[path = "../tests/support/processes.rs"]
#[allow(dead_code, reason = "only the children are of interest")]
mod processes;
#[path = "support/s3_process.rs"]
#[allow(dead_code, reason = "functions here have settings of their own")]
mod s3_process;
mod support;

use std::env;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aws_sdk_s3::primitives::ByteStream;
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use pressrun::config::LogSettings;
use pressrun::function::deadline::Deadline;
use pressrun::function::logging;
use processes::children;
use s3_process::S3Process;
use serde_json::{Value, json};
use support::templates_and;

const LINES: usize = 20_000;
const ROUNDS: usize = 3;
const TEMPLATE: &str = "benches/templates/long_invoice";
const MEGABYTE: u64 = 1_000_000;
/// Adding up what a process has mapped takes milliseconds, so it is done rarely.
const SAMPLING_INTERVAL: Duration = Duration::from_millis(200);

/// Renders `main.typ` on one core: the folder, the PDF, and the core.
const TYPST: &str = "import json, os, resource, sys, time\n\
                     folder, pdf, core = sys.argv[1:]\n\
                     os.sched_setaffinity(0, {int(core)})\n\
                     import typst\n\
                     began = time.perf_counter()\n\
                     typst.compile(folder + '/main.typ', output=pdf, root=folder, ignore_system_fonts=True,\n\
                     \x20             sys_inputs={'data': '/data.json'})\n\
                     print(json.dumps([time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))";

/// How a document is rendered.
#[derive(Clone, Copy)]
struct Variant {
    /// `None` is the Python package `typst`.
    workers: Option<usize>,
    page_total: bool,
}

/// What it took.
struct Measured {
    wall: Duration,
    cpu: Duration,
    peak_bytes: u64,
    pages: usize,
    pdf_bytes: u64,
    /// What is not done side by side: until the document is divided, and from when its last part is there.
    serial: Option<[Duration; 2]>,
}

fn main() -> std::process::ExitCode {
    s3_process::play_s3_role().unwrap_or_else(|| support::main(benchmark))
}

async fn benchmark() {
    collect_log();
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let lines = arguments.first().map_or(LINES, |lines| lines.parse().expect("LINES is a whole number"));
    let wanted = arguments.get(1).map_or("", String::as_str);
    let python = env::var("TYPST_PYTHON").ok();
    let rounds = env::var("ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("ROUNDS is a whole number"));
    if python.is_none() {
        println!("There is no row of PyPI's typst: TYPST_PYTHON does not name a Python that has it.");
    }
    let of_workers = [Some(2), Some(1), None].into_iter().filter(|workers| workers.is_some() || python.is_some());
    let variants = [false, true].into_iter().flat_map(|page_total| {
        let variant = move |workers| Variant { workers, page_total };
        of_workers.clone().map(variant).filter(|variant| variant.name().contains(wanted))
    });
    let variants: Vec<Variant> = variants.collect();
    let work_dir = prepare(lines);
    let s3 = S3Process::start();
    for page_total in [false, true] {
        upload(&s3, &work_dir, page_total).await;
    }

    println!("{lines} lines, each round as it was measured; medians of {rounds} rounds follow");
    let mut measured: Vec<Vec<Measured>> = variants.iter().map(|_| Vec::new()).collect();
    print_head();
    for _ in 0..rounds {
        for (variant, measured) in variants.iter().zip(&mut measured) {
            let one = match (variant.workers, &python) {
                (Some(workers), _) => through_function(&s3, workers, variant.page_total).await,
                (None, python) => by_typst(python.as_ref().unwrap(), &work_dir, variant.page_total),
            };
            measured.push(one);
            print_row(*variant, &measured[measured.len() - 1..]);
        }
    }
    println!();
    print_head();
    for (variant, measured) in variants.iter().zip(&measured) {
        print_row(*variant, measured);
    }
}

impl Variant {
    fn name(self) -> String {
        let total = if self.page_total { "with page x of y" } else { "without a page total" };
        match self.workers {
            Some(1) => format!("pressrun, 1 worker, {total}"),
            Some(workers) => format!("pressrun, {workers} workers, {total}"),
            None => format!("PyPI's typst, one core, {total}"),
        }
    }
}

fn template() -> PathBuf {
    let template = env::var("TEMPLATE").unwrap_or_else(|_| TEMPLATE.to_owned());
    Path::new(env!("CARGO_MANIFEST_DIR")).join(template)
}

fn template_name() -> String {
    template().file_name().unwrap().to_string_lossy().into_owned()
}

/// Writes data and messages, without and with a page total, into folders beside a copy of the template. They are
/// never in the memory of this process, which is measured.
fn prepare(lines: usize) -> PathBuf {
    let work_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("parts");
    for page_total in [false, true] {
        let folder = folder(&work_dir, page_total);
        fs::create_dir_all(&folder).unwrap();
        fs::copy(template().join("main.typ"), folder.join("main.typ")).unwrap();
        let mut data = BufWriter::new(File::create(folder.join("data.json")).unwrap());
        write_data(&mut data, lines, page_total).unwrap();
        data.flush().unwrap();
        let mut message = BufWriter::new(File::create(folder.join("message.json")).unwrap());
        write!(message, r#"{{"template": "{}", "key": "long.pdf", "data": "#, template_name()).unwrap();
        io::copy(&mut File::open(folder.join("data.json")).unwrap(), &mut message).unwrap();
        message.write_all(b"}").unwrap();
        message.flush().unwrap();
    }
    work_dir
}

fn folder(work_dir: &Path, page_total: bool) -> PathBuf {
    work_dir.join(if page_total { "page-total" } else { "plain" })
}

fn write_data(out: &mut impl Write, lines: usize, page_total: bool) -> io::Result<()> {
    let head = r#"{"code": "B-000001", "customer": "Example & Daughters", "total": "1,234,567.80""#;
    write!(out, r#"{head}, "page-total": {page_total}, "lines": ["#)?;
    for line in 0..lines {
        let (series, quantity, cents) = (line % 9973, 1 + line % 97, line % 100);
        let comma = if line == 0 { "" } else { "," };
        write!(
            out,
            r#"{comma}{{"article": "A-{series}", "name": "Item {line} of series {series}", "quantity": "{quantity}", "unit": "pc", "price": "{}.{cents:02}", "vat": "19 %", "total": "{}.{cents:02}"}}"#,
            line * 13 % 500,
            line * 17 % 5000,
        )?;
    }
    write!(out, "]}}")
}

async fn upload(s3: &S3Process, work_dir: &Path, page_total: bool) {
    let message = ByteStream::from_path(folder(work_dir, page_total).join("message.json")).await.unwrap();
    let put = s3.client().put_object().bucket("input").key(page_total.to_string()).body(message);
    put.send().await.unwrap();
}

/// A message that is a pointer to the data, by a function that was started for it.
async fn through_function(s3: &S3Process, workers: usize, page_total: bool) -> Measured {
    let templates = templates_and(template().to_str().unwrap());
    let cpu_before = cpu_time();
    let mut function = s3
        .function_with(|name| match name {
            "INPUT_BUCKET" => Some("input".to_owned()),
            "MAX_DATA_BYTES" => Some("67108864".to_owned()),
            "TEMPLATES_DIR" => Some(templates.display().to_string()),
            "WORKERS" => Some(workers.to_string()),
            "MEMORY_MB" => env::var("MEMORY_MB").ok(),
            _ => None,
        })
        .await;
    let press = function.press_id().unwrap();
    let pointer = json!(["software.amazon.payloadoffloading.PayloadS3Pointer", {"s3BucketName": "input", "s3Key": page_total.to_string()}]);
    let record =
        json!({"messageId": "a", "body": pointer.to_string(), "attributes": {"SentTimestamp": "1782988200000"}});
    let event: Value = json!({"Records": [record]});
    LOG.lock().unwrap().clear();
    let sampler = Sampler::start(press);
    let began = Instant::now();
    let response = function.handle(event, Deadline::NONE).await;
    let wall = began.elapsed();
    let peak_bytes = sampler.stop();
    function.stop().await;
    let log = LOG.lock().unwrap();
    assert!(response.unwrap().batch_item_failures.is_empty(), "{log:?}");
    let at = |what: &str| log.iter().find(|(_, line)| line.contains(what)).unwrap_or_else(|| panic!("{log:?}"));
    let joined_after = at("joining the parts").0;
    let stored = &at("stored ").1;
    Measured {
        wall,
        cpu: cpu_time().saturating_sub(cpu_before),
        peak_bytes,
        pages: usize::try_from(field(stored, "pages")).unwrap(),
        pdf_bytes: field(stored, "bytes"),
        serial: Some([at("rendered in parts").0 - began, began + wall - joined_after]),
    }
}

/// Looks at the memory again and again, on a thread of its own.
struct Sampler {
    is_done: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Sampler {
    fn start(press: u32) -> Self {
        let is_done = Arc::new(AtomicBool::new(false));
        let asked = is_done.clone();
        let thread = std::thread::spawn(move || {
            let mut peak = 0;
            while !asked.load(Ordering::Relaxed) {
                let processes = [std::process::id(), press].into_iter().chain(children(press));
                peak = peak.max(processes.filter_map(pss).sum());
                std::thread::sleep(SAMPLING_INTERVAL);
            }
            peak
        });
        Self { is_done, thread }
    }

    /// The most that function, press and runs had together, in bytes.
    fn stop(self) -> u64 {
        self.is_done.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// A process's memory in bytes, what is shared divided among those that share it. `None` if it has ended.
fn pss(process: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// CPU time of this process, and of those that it has started and waited for, with theirs.
fn cpu_time() -> Duration {
    let of = |usage: Usage| {
        let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        Duration::from_micros(u64::try_from(microseconds).unwrap())
    };
    of(getrusage(UsageWho::RUSAGE_SELF).unwrap()) + of(getrusage(UsageWho::RUSAGE_CHILDREN).unwrap())
}

fn by_typst(python: &str, work_dir: &Path, page_total: bool) -> Measured {
    let pdf = work_dir.join("typst.pdf");
    let cpu_before = cpu_time();
    let began = Instant::now();
    let mut command = Command::new(python);
    command.args(["-c", TYPST]).arg(folder(work_dir, page_total)).arg(&pdf).arg("0");
    let output = command.output().unwrap();
    let process = began.elapsed();
    assert!(output.status.success(), "{output:?} after {process:?}");
    let (seconds, kibibytes): (f64, u64) = serde_json::from_slice(&output.stdout).unwrap();
    let bytes = fs::read(&pdf).unwrap();
    Measured {
        wall: Duration::from_secs_f64(seconds),
        cpu: cpu_time().saturating_sub(cpu_before),
        peak_bytes: kibibytes * 1024,
        pages: pages_in_metadata(&bytes),
        pdf_bytes: bytes.len() as u64,
        serial: None,
    }
}

fn pages_in_metadata(pdf: &[u8]) -> usize {
    const BEGIN: &[u8] = b"<xmpTPg:NPages>";
    let at = memchr::memmem::find(pdf, BEGIN).unwrap() + BEGIN.len();
    let digits = pdf[at..].iter().take_while(|byte| byte.is_ascii_digit()).copied().collect();
    String::from_utf8(digits).unwrap().parse().unwrap()
}

fn print_head() {
    println!(
        "| variant | pages | PDF, MB | s | CPU s | peak, MB | serial: until divided, s | joined and stored, s | the latter a page, ms |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
}

/// The medians of rounds.
fn print_row(variant: Variant, rounds: &[Measured]) {
    let last = &rounds[rounds.len() - 1];
    let seconds = |of: &dyn Fn(&Measured) -> Duration| {
        let mut all: Vec<f64> = rounds.iter().map(|one| of(one).as_secs_f64()).collect();
        all.sort_by(f64::total_cmp);
        all[(all.len() - 1) / 2]
    };
    let serial = |index: usize| seconds(&|one| one.serial.map_or(Duration::ZERO, |serial| serial[index]));
    let peak = rounds.iter().map(|one| one.peak_bytes).max().unwrap_or_default() / MEGABYTE;
    let pages = f64::from(u32::try_from(last.pages).unwrap());
    let kilobytes = u32::try_from(last.pdf_bytes / 1000).unwrap();
    print!("| {} | {} | {:.1} ", variant.name(), last.pages, f64::from(kilobytes) / 1000.0);
    print!("| {:.1} | {:.1} | {peak} ", seconds(&|one| one.wall), seconds(&|one| one.cpu));
    match last.serial {
        Some(_) => println!("| {:.2} | {:.2} | {:.2} |", serial(0), serial(1), serial(1) * 1000.0 / pages),
        None => println!("| | | |"),
    }
}

/// What pressrun has logged, and when.
static LOG: Mutex<Vec<(Instant, String)>> = Mutex::new(Vec::new());

fn collect_log() {
    let settings = LogSettings::from_variables(|name| (name == "RUST_LOG").then(|| "DEBUG".to_owned()));
    tracing::subscriber::set_global_default(logging::subscriber(settings, || Collector)).unwrap();
}

struct Collector;

impl Write for Collector {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap().push((Instant::now(), String::from_utf8_lossy(bytes).into_owned()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A number of a line of the log.
fn field(line: &str, name: &str) -> u64 {
    let after = line.split(&format!(" {name}=")).nth(1).unwrap_or_else(|| panic!("no {name}: {line}"));
    after.split_whitespace().next().unwrap().parse().unwrap()
}
