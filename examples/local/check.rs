//! `check`: renders every template's sample and prints the result.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use pressrun::render::diagnostics::Diagnostic;
use pressrun::render::{self, RenderError, RenderedPdf, Renderer, pool};

/// A sample's PDF and how long it took to render, or what is wrong with it.
type Checked = Result<(RenderedPdf, Duration), Vec<Diagnostic>>;

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
    println!("{:<7} {:<20} {:>6} {:>9}  standards", "", "template", "pages", "ms");
    let mut failed = 0;
    for (name, error) in broken.iter().filter(|(name, _)| is_asked_for(name)) {
        failed += 1;
        println!("{:<7} {name}\n{error}", "error");
    }
    for (name, _) in renderer.templates().filter(|(name, _)| is_asked_for(name)) {
        match render_sample_in_time(&renderer, name, threads, time_limit) {
            Ok(Ok((pdf, took))) => {
                let milliseconds = took.as_secs_f64() * 1000.0;
                let e_invoice = pdf.e_invoice.map(|level| format!("e-invoice: {level}"));
                let standards: Vec<String> = renderer.standards(name).iter().cloned().chain(e_invoice).collect();
                let standards = standards.join(", ");
                println!("{:<7} {name:<20} {:>6} {milliseconds:>9.1}  {standards}", "ok", pdf.pages);
                print_all(&pdf.warnings);
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

/// Renders a sample, but does not wait for ever: a thread that has not ended in time ends with this program.
fn render_sample_in_time(
    renderer: &Arc<Renderer>,
    name: &str,
    threads: usize,
    time_limit: Duration,
) -> Result<Checked, String> {
    let (sender, receiver) = mpsc::channel();
    let (renderer, template) = (renderer.clone(), name.to_owned());
    thread::spawn(move || {
        // Nobody receives it if the time was over.
        let _ = sender.send(render_sample(&renderer, &template, threads).map_err(|error| error.to_string()));
    });
    receiver.recv_timeout(time_limit).unwrap_or_else(|error| match error {
        RecvTimeoutError::Timeout => Err(format!(
            "{name}/sample.json was not rendered within {} ms, MAX_RENDER_MS; does that never end?",
            time_limit.as_millis()
        )),
        RecvTimeoutError::Disconnected => Err("Typst panicked, which is a bug of Typst's".to_owned()),
    })
}

/// Renders a sample twice, and returns how long it took the second time: everything has been loaded by then, and
/// nothing is memoized.
fn render_sample(renderer: &Renderer, name: &str, threads: usize) -> Result<Checked, Box<dyn Error>> {
    let mut took = Duration::ZERO;
    let mut last = None;
    for _ in 0..2 {
        render::evict_cache(0);
        let sample = renderer.sample(name).ok_or("every template has a sample")?;
        let began = Instant::now();
        match pool::on_fixed_pool(threads, || renderer.render(sample))? {
            Ok(pdf) => last = Some(pdf),
            Err(RenderError::Data(diagnostics) | RenderError::Typst(diagnostics)) => return Ok(Err(diagnostics)),
            Err(RenderError::UnknownTemplate) => return Err("every name is a template's".into()),
        }
        took = began.elapsed();
    }
    Ok(Ok((last.ok_or("it was rendered twice")?, took)))
}

fn print_all(diagnostics: &[Diagnostic]) {
    for diagnostic in diagnostics {
        println!("{}", diagnostic.text);
    }
}
