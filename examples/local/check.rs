//! `check`: renders every template's sample and prints the result.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::parts;
use pressrun::render::diagnostics::Diagnostic;
use pressrun::render::{self, Document, RenderError, RenderedPdf, Renderer, pool};

/// A sample's PDF and how long it took to render, or what is wrong with it.
pub type Checked = Result<(RenderedPdf, Duration), Vec<Diagnostic>>;

/// Prints a line for every template, or for those that are named, followed by what is wrong with it.
pub fn check(
    templates_dir: &Path,
    names: &[&str],
    threads: usize,
    time_limit: Duration,
) -> Result<ExitCode, Box<dyn Error>> {
    let (renderer, broken) = Renderer::load_valid(templates_dir, &[])?;
    let renderer = Arc::new(renderer);
    let is_asked_for = |name: &str| names.is_empty() || names.contains(&name);
    let there_are: Vec<&str> =
        broken.keys().map(String::as_str).chain(renderer.templates().map(|(name, _)| name)).collect();
    if let Some(unknown) = names.iter().find(|name| !there_are.contains(name)) {
        return Err(format!("there is no template {unknown:?}; there are: {}", there_are.join(", ")).into());
    }
    renderer.unused().iter().for_each(|unused| println!("note: {unused}"));
    println!("{:<7} {:<20} {:>6} {:>9} {:>6}  standards", "", "template", "pages", "ms", "MB");
    let mut failed = 0;
    for (name, error) in broken.iter().filter(|(name, _)| is_asked_for(name)) {
        failed += 1;
        println!("{:<7} {name}\n{error}", "error");
    }
    for (name, _) in renderer.templates().filter(|(name, _)| is_asked_for(name)) {
        let sample = renderer.sample(name).ok_or("every template has a sample")?;
        reset_peak_memory();
        match render_in_time(&renderer, sample, threads, time_limit, 2) {
            Ok(Ok((pdf, took))) => {
                let milliseconds = took.as_secs_f64() * 1000.0;
                let e_invoice = pdf.e_invoice.map(|level| format!("e-invoice: {level}"));
                let standards: Vec<String> = renderer.standards(name).iter().cloned().chain(e_invoice).collect();
                let standards = standards.join(", ");
                let megabytes = peak_memory();
                println!("{:<7} {name:<20} {:>6} {milliseconds:>9.1} {megabytes:>6}  {standards}", "ok", pdf.pages);
                print_all(&pdf.warnings);
                failed += usize::from(!parts::compare(&renderer, name, threads)?);
            }
            Ok(Err(diagnostics)) => {
                failed += 1;
                println!("{:<7} {name}", "error");
                print_all(&diagnostics);
            }
            Err(problem) => {
                failed += 1;
                println!("{:<7} {name}\nerror: {problem}", "error");
            }
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Has the kernel forget the largest resident set of this process so far. If it does not, what is told is too large.
fn reset_peak_memory() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Returns the largest resident set since then in MB, which is about what a run has for such a document.
fn peak_memory() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.map_or("?".to_owned(), |kilobytes| (kilobytes / 1024).to_string())
}

/// Renders a document so many times, but does not wait for ever: a thread that has not ended in time ends with this
/// program.
pub fn render_in_time(
    renderer: &Arc<Renderer>,
    document: Document,
    threads: usize,
    time_limit: Duration,
    times: usize,
) -> Result<Checked, String> {
    let (sender, receiver) = mpsc::channel();
    let (renderer, name) = (renderer.clone(), document.template.clone());
    thread::spawn(move || {
        // Nobody receives it if the time was over.
        let _ = sender.send(render_anew(&renderer, &document, threads, times).map_err(|error| error.to_string()));
    });
    receiver.recv_timeout(time_limit).unwrap_or_else(|error| match error {
        RecvTimeoutError::Timeout => Err(format!(
            "{name}: the document was not rendered within {} ms, MAX_RENDER_MS; does that never end?",
            time_limit.as_millis()
        )),
        RecvTimeoutError::Disconnected => Err("Typst panicked, which is a bug of Typst's".to_owned()),
    })
}

/// Renders a document so many times with nothing memoized, and returns how long it took the last time. The second
/// time everything has been loaded.
fn render_anew(
    renderer: &Renderer,
    document: &Document,
    threads: usize,
    times: usize,
) -> Result<Checked, Box<dyn Error>> {
    let mut took = Duration::ZERO;
    let mut last = None;
    for _ in 0..times {
        render::evict_cache(0);
        let document = document.clone();
        let began = Instant::now();
        match pool::on_fixed_pool(threads, || renderer.render(document))? {
            Ok(pdf) => last = Some(pdf),
            Err(RenderError::Data(diagnostics) | RenderError::Typst(diagnostics)) => return Ok(Err(diagnostics)),
            Err(RenderError::UnknownTemplate) => return Err("every name is a template's".into()),
        }
        took = began.elapsed();
    }
    Ok(Ok((last.ok_or("it was rendered")?, took)))
}

pub fn print_all(diagnostics: &[Diagnostic]) {
    for diagnostic in diagnostics {
        println!("{}", diagnostic.text);
    }
}
