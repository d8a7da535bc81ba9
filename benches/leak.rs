//! The leak that this project exists for. Invoices are rendered with a pool of threads each, which is
//! never closed, dropped or joined, with Typst's memo cache kept or evicted; and as pressrun does
//! it. Threads and memory after more and more documents, each variant in a process of its own.
//! `cargo bench --bench leak -- --svg docs/leak.svg` draws them too.

#[path = "../tests/embedded/mod.rs"]
mod embedded;
#[path = "support/leak_picture.rs"]
mod picture;
#[path = "../tests/support/processes.rs"]
#[allow(dead_code, reason = "only threads are of interest")]
mod processes;
#[path = "support/s3_process.rs"]
#[allow(dead_code, reason = "the function is in this process")]
mod s3_process;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use pressrun::function::deadline::Deadline;
use pressrun::render::{self, Document, Renderer, pool};
use processes::{children, until_runs_wait};
use s3_process::S3Process;
use serde::{Deserialize, Serialize};
use serde_json::json;
use support::{bytes, document, invoice, templates};

/// After so many documents is looked at what is there; in the table, after these.
const CHECKPOINTS: [usize; 10] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000];
const IN_TABLE: [usize; 3] = [10, 100, 1_000];

const POOL_THREADS: usize = 4;
const BATCH: usize = 10;

/// The first argument of this program as a variant; the second is its number.
const VARIANT_ROLE: &str = "variant";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pool {
    NeverClosed,
    Dropped,
    Joined,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Library { pool: Pool, evicts: bool },
    Pressrun,
}

const VARIANTS: [Variant; 7] = [
    Variant::Library { pool: Pool::NeverClosed, evicts: false },
    Variant::Library { pool: Pool::NeverClosed, evicts: true },
    Variant::Library { pool: Pool::Dropped, evicts: false },
    Variant::Library { pool: Pool::Dropped, evicts: true },
    Variant::Library { pool: Pool::Joined, evicts: false },
    Variant::Library { pool: Pool::Joined, evicts: true },
    Variant::Pressrun,
];

impl Variant {
    fn name(self) -> String {
        let Self::Library { pool, evicts } = self else { return "pressrun".to_owned() };
        let pool = match pool {
            Pool::NeverClosed => "never closed",
            Pool::Dropped => "dropped",
            Pool::Joined => "joined",
        };
        format!("pool {pool}, cache {}", if evicts { "evicted" } else { "kept" })
    }
}

/// What a variant's processes hold when so many documents are done.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Sample {
    documents: usize,
    threads: usize,
    /// What the processes share is counted once: their proportional set sizes.
    memory_bytes: u64,
    /// The mean of the documents since the sample before.
    milliseconds_a_document: f64,
    /// How many documents so far have left more threads than there were before the first.
    left_threads: usize,
}

/// What became of a variant.
struct Course {
    variant: Variant,
    samples: Vec<Sample>,
    /// Why it did not come to the end.
    stopped: Option<String>,
}

fn main() -> ExitCode {
    if let Some(exit_code) = s3_process::play_s3_role() {
        return exit_code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, number, ..] = &arguments[..]
        && role == VARIANT_ROLE
    {
        return play_variant(VARIANTS[number.parse::<usize>().unwrap()]);
    }
    support::main(async || benchmark(svg_path(&arguments).as_deref()))
}

fn svg_path(arguments: &[String]) -> Option<PathBuf> {
    let option = arguments.iter().position(|argument| argument == "--svg")?;
    Some(arguments.get(option + 1).expect("--svg takes the path of the picture to draw").into())
}

fn benchmark(svg: Option<&Path>) {
    println!("Before → after {} documents", IN_TABLE.map(grouped).join(" / "));
    println!("| pools of {POOL_THREADS} | threads | memory, MB | ms a document | documents that left threads |");
    println!("| --- | --- | --- | --- | --- |");
    let courses: Vec<Course> = (0..VARIANTS.len()).map(measure).inspect(print).collect();
    for Course { variant, samples, stopped } in &courses {
        if let Some(reason) = stopped {
            let documents = samples.last().map_or(0, |sample| sample.documents);
            println!("\n{} stopped after {documents} documents or some more: {reason}", variant.name());
        }
    }
    if let Some(path) = svg {
        picture::draw(path, &courses).unwrap();
    }
}

/// Runs a variant in a process of its own.
fn measure(number: usize) -> Course {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args([VARIANT_ROLE, &number.to_string()]).stderr(Stdio::inherit()).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let mut course = Course { variant: VARIANTS[number], samples: Vec::new(), stopped: None };
    for line in told.lines() {
        match serde_json::from_str(line).unwrap() {
            Ok(sample) => course.samples.push(sample),
            Err(reason) => course.stopped = Some(reason),
        }
    }
    if !output.status.success() {
        course.stopped = Some(format!("its process ended with {}", output.status));
    }
    course
}

fn print(course: &Course) {
    let at = |documents: usize, shown: fn(&Sample) -> String| {
        course.samples.iter().find(|sample| sample.documents == documents).map_or("-".to_owned(), shown)
    };
    let before_and_after = |shown: fn(&Sample) -> String| {
        let after = IN_TABLE.map(|documents| at(documents, shown));
        format!("{} → {}", at(0, shown), after.join(" / "))
    };
    println!(
        "| {} | {} | {} | {} | {} |",
        course.variant.name(),
        before_and_after(|sample| grouped(sample.threads)),
        before_and_after(|sample| grouped(usize::try_from(sample.memory_bytes / 1_000_000).unwrap())),
        IN_TABLE.map(|documents| at(documents, |sample| format!("{:.1}", sample.milliseconds_a_document))).join(" / "),
        at(IN_TABLE[2], |sample| grouped(sample.left_threads)),
    );
}

/// With a comma between thousands.
fn grouped(number: usize) -> String {
    if number < 1_000 { number.to_string() } else { format!("{},{:03}", grouped(number / 1_000), number % 1_000) }
}

/// Sets documents, and tells the process that started this what is there after them.
fn play_variant(variant: Variant) -> ExitCode {
    let ended = match variant {
        Variant::Library { pool, evicts } => play_library(pool, evicts),
        Variant::Pressrun => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(play_pressrun());
            Ok(())
        }
    };
    if let Err(reason) = ended {
        tell(&Err(reason));
    }
    // Threads that were left behind are not waited for.
    ExitCode::SUCCESS
}

fn tell(told: &Result<Sample, String>) {
    println!("{}", serde_json::to_string(told).unwrap());
}

fn play_library(pool: Pool, evicts: bool) -> Result<(), String> {
    let renderer = Renderer::load(&templates()).unwrap();
    let mut observer = Observer::start(None);
    for number in 0..CHECKPOINTS[CHECKPOINTS.len() - 1] {
        let document = document("invoice", &bytes(&invoice(number)));
        let began = Instant::now();
        render(&renderer, document, pool)?;
        if evicts {
            render::evict_cache(1);
        }
        observer.see(1, began.elapsed());
    }
    Ok(())
}

/// Renders a document on a pool made for it. An error when the system allows no more threads.
fn render(renderer: &Renderer, document: Document, pool: Pool) -> Result<(), String> {
    if pool == Pool::Joined {
        let result =
            pool::on_fixed_pool(POOL_THREADS, || renderer.render(document)).map_err(|error| error.to_string())?;
        result.unwrap();
        return Ok(());
    }
    let threads = rayon::ThreadPoolBuilder::new().num_threads(POOL_THREADS).stack_size(pool::STACK_BYTES);
    let threads = threads.build().map_err(|error| format!("a pool cannot be made: {error}"))?;
    threads.install(|| renderer.render(document)).unwrap();
    match pool {
        Pool::NeverClosed => std::mem::forget(threads),
        _ => drop(threads),
    }
    Ok(())
}

/// The function over an S3 server that is not counted; function, press and runs are. They are
/// looked at when the runs wait: one just forked renders a sample ahead of the next invocation.
async fn play_pressrun() {
    let s3 = S3Process::start();
    let mut function = s3.function().await;
    let press = function.press_id().unwrap();
    until_runs_wait(press).await;
    let mut observer = Observer::start(Some(press));
    let mut done = 0;
    for checkpoint in CHECKPOINTS {
        while done < checkpoint {
            let numbers = done..checkpoint.min(done + BATCH);
            let records: Vec<_> = numbers.clone().map(record).collect();
            let began = Instant::now();
            let response = function.handle(json!({"Records": records}), Deadline::NONE).await.unwrap();
            let took = began.elapsed();
            assert!(response.batch_item_failures.is_empty(), "every invoice is stored");
            done = numbers.end;
            until_runs_wait(press).await;
            observer.see(numbers.len(), took);
        }
    }
    function.stop().await;
}

fn record(number: usize) -> serde_json::Value {
    json!({
        "messageId": format!("m-{number}"),
        "body": json!({"template": "invoice", "data": invoice(number)}).to_string(),
        "attributes": {"SentTimestamp": "1782988200000"}
    })
}

/// Looks at a process and, where there is one, at its press and the runs.
struct Observer {
    process: u32,
    press: Option<u32>,
    threads_before: usize,
    documents: usize,
    left_threads: usize,
    documents_since_sample: usize,
    took_since_sample: Duration,
}

impl Observer {
    /// Takes the first sample.
    fn start(press: Option<u32>) -> Self {
        let mut observer = Self {
            process: std::process::id(),
            press,
            threads_before: 0,
            documents: 0,
            left_threads: 0,
            documents_since_sample: 0,
            took_since_sample: Duration::ZERO,
        };
        observer.threads_before = observer.threads();
        observer.sample(observer.threads_before);
        observer
    }

    /// So many documents more are done, in this time.
    fn see(&mut self, documents: usize, took: Duration) {
        let threads = self.threads();
        self.documents += documents;
        self.documents_since_sample += documents;
        self.took_since_sample += took;
        if threads > self.threads_before {
            self.left_threads += documents;
        }
        if CHECKPOINTS.contains(&self.documents) {
            self.sample(threads);
        }
    }

    fn sample(&mut self, threads: usize) {
        let documents = u32::try_from(self.documents_since_sample.max(1)).unwrap();
        tell(&Ok(Sample {
            documents: self.documents,
            threads,
            memory_bytes: self.processes().into_iter().map(proportional_bytes).sum(),
            milliseconds_a_document: self.took_since_sample.as_secs_f64() * 1000.0 / f64::from(documents),
            left_threads: self.left_threads,
        }));
        self.documents_since_sample = 0;
        self.took_since_sample = Duration::ZERO;
    }

    fn threads(&self) -> usize {
        let tasks = |process| fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count);
        self.processes().into_iter().map(tasks).sum()
    }

    fn processes(&self) -> Vec<u32> {
        let runs = self.press.into_iter().flat_map(children);
        [self.process].into_iter().chain(self.press).chain(runs).collect()
    }
}

/// A process's memory, with what it shares divided by those that share it.
fn proportional_bytes(process: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
