//! What the benchmarks share: data that are new each time, a plain use of Typst to compare with,
//! a press and runs without a function, and medians.
#![allow(dead_code, unused_imports, reason = "each benchmark uses a part of it")]

mod documents;
pub mod runtime_api;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
pub use documents::{invoice, report, statement, templates};
use pressrun::config::Config;
use pressrun::press::protocol::{DocumentHeader, Response, RunLimits, Task};
use pressrun::press::sandbox::SandboxLevel;
use pressrun::press::{EndedRun, PressSettings, Request, RunResponse, Supervisor, Worker};
use pressrun::render::{Document, RenderedPdf, Renderer, pool};
use serde_json::Value;
use tokio::sync::watch;

/// The real templates with their fonts and packages, and another beside them, from a folder of
/// this repository: links to all of them.
pub fn templates_and(other: &str) -> PathBuf {
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join(other);
    let name = other.file_name().unwrap();
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("templates-and").join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).unwrap();
    }
    fs::create_dir_all(&dir).unwrap();
    for entry in fs::read_dir(templates()).unwrap() {
        let entry = entry.unwrap();
        symlink(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    symlink(&other, dir.join(name)).unwrap();
    dir
}

/// The same with the press that the environment variable `PRESS_PROGRAM` names, if it does, such as a pressrun that
/// cargo-lambda has built.
pub fn with_press_program(mut config: Config) -> Config {
    if let Some(program) = std::env::var_os("PRESS_PROGRAM") {
        config.press_program = program.into();
    }
    config
}

/// The cores that are used: as many as the environment variable `CORES` says, or all.
pub fn cores() -> usize {
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    std::env::var("CORES").map_or_else(|_| all(), |cores| cores.parse().expect("CORES is a number"))
}

/// The same as bytes.
pub fn bytes(data: &Value) -> Bytes {
    data.to_string().into()
}

/// Typst in this process, on one thread that never ends.
pub struct Plain {
    renderer: Renderer,
    thread: rayon::ThreadPool,
    evict: usize,
}

impl Plain {
    /// Evicts what is older than `evict` documents after each.
    pub fn new(templates_dir: &Path, evict: usize) -> Self {
        let thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        Self { renderer: Renderer::load(templates_dir).unwrap(), thread, evict }
    }

    pub fn render(&self, template: &str, data: &Bytes) -> RenderedPdf {
        let document = document(template, data);
        self.thread.install(|| {
            let pdf = self.renderer.render(document).unwrap();
            typst::comemo::evict(self.evict);
            pdf
        })
    }
}

pub fn document(template: &str, data: &Bytes) -> Document {
    Document {
        template: template.to_owned(),
        data: data.clone(),
        ident: "bench".to_owned(),
        timestamp_ms: Some(1_782_988_200_000),
        ..Document::default()
    }
}

/// Renders a document on a pool of its own, as a run does, and says how long it took.
pub fn on_threads(renderer: &Renderer, threads: usize, template: &str, data: &Bytes) -> (RenderedPdf, Duration) {
    let document = document(template, data);
    let began = Instant::now();
    let pdf = pool::on_fixed_pool(threads, || renderer.render(document)).unwrap().unwrap();
    let took = began.elapsed();
    typst::comemo::evict(0);
    (pdf, took)
}

/// A press of this very program and workers for its runs, without a function around.
pub struct Press {
    supervisor: Rc<Supervisor>,
    pub workers: Vec<Worker>,
}

impl Press {
    pub async fn start(templates_dir: &Path, workers: usize) -> Self {
        Self::start_at(SandboxLevel::SeccompAndLandlock, templates_dir, workers).await
    }

    /// The same, restricted so far.
    pub async fn start_at(sandbox_level: SandboxLevel, templates_dir: &Path, workers: usize) -> Self {
        Self::start_with(std::env::current_exe().unwrap(), sandbox_level, templates_dir, workers).await
    }

    /// The same, but of another program.
    pub async fn start_program(program: PathBuf, templates_dir: &Path, workers: usize) -> Self {
        Self::start_with(program, SandboxLevel::SeccompAndLandlock, templates_dir, workers).await
    }

    async fn start_with(program: PathBuf, sandbox_level: SandboxLevel, templates_dir: &Path, workers: usize) -> Self {
        let settings = PressSettings {
            program,
            templates_dir: templates_dir.to_owned(),
            only_templates: Vec::new(),
            max_init_time: None,
            cores: cores(),
            sandbox_level,
        };
        let (supervisor, workers, _) = Supervisor::start(settings, workers).await.unwrap();
        Self { supervisor, workers }
    }

    /// The runs that have ended since this was last called.
    pub fn take_ended_runs(&self) -> Vec<EndedRun> {
        self.supervisor.take_stats().ended_runs
    }

    /// The largest peak memory of the runs that have ended since this was last called, in bytes.
    pub fn take_peak_memory(&self) -> u64 {
        self.take_ended_runs().iter().map(|run| run.peak_memory_bytes).max().unwrap_or_default()
    }

    pub fn worker(&mut self) -> &mut Worker {
        &mut self.workers[0]
    }

    pub async fn stop(mut self) {
        self.supervisor.stop(&mut self.workers).await;
    }
}

/// A document on one thread, as a worker gets it.
pub fn request(template: &str, data: &Bytes, time_limit: Duration) -> Request {
    let header = DocumentHeader {
        template: template.to_owned(),
        ident: "bench".to_owned(),
        timestamp_ms: Some(1_782_988_200_000),
        files: Vec::new(),
        task: Task::Render,
        timings_slower_than: None,
    };
    let limits = RunLimits { threads: 1, time: time_limit, memory_bytes: None };
    Request { header, limits, content: vec![data.clone()], max_response_bytes: None }
}

/// Has a document rendered by a run and waits for its PDF.
pub async fn render_in(
    worker: &mut Worker,
    template: &str,
    data: &Bytes,
    threads: &mut watch::Receiver<usize>,
) -> Bytes {
    let request = request(template, data, Duration::from_mins(1));
    match worker.render(&request, threads).await {
        Ok(RunResponse { response: Response::Rendered { .. }, pdf, .. }) => pdf,
        other => panic!("{other:?}"),
    }
}

/// Runs a benchmark on one thread, as the function runs, unless this process is a press.
pub fn main(benchmark: impl AsyncFnOnce()) -> std::process::ExitCode {
    if let Some(exit_code) = pressrun::run_press_if_requested() {
        return exit_code;
    }
    // `cargo test --benches` only wants to know that it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return std::process::ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(benchmark());
    std::process::ExitCode::SUCCESS
}

/// Measurements of one variant, in milliseconds.
#[derive(Default)]
pub struct Series(Vec<f64>);

impl Series {
    pub fn add(&mut self, took: Duration, documents: usize) {
        self.0.push(took.as_secs_f64() * 1000.0 / f64::from(u32::try_from(documents).unwrap()));
    }

    pub fn median(&self) -> f64 {
        self.quantile(2, 4)
    }

    /// The middle half.
    pub fn spread(&self) -> String {
        format!("{:.2}-{:.2}", self.quantile(1, 4), self.quantile(3, 4))
    }

    fn quantile(&self, numerator: usize, denominator: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[(sorted.len() - 1) * numerator / denominator]
    }

    /// The median of the ratios round by round, which a machine that slows down does not move.
    pub fn ratio_to(&self, other: &Self) -> f64 {
        let ratios = self.0.iter().zip(&other.0).map(|(one, other)| one / other).collect();
        Self(ratios).median()
    }
}
