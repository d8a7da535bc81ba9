//! `check`: sets every template's sample and says what came of it.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use pressrun::typeset::diagnostics::Diagnostic;
use pressrun::typeset::{self, Pdf, SetError, Typesetter, pool};

/// What is wrong with a template's sample, or its PDF and how long that took.
type Checked = Result<(Pdf, Duration), Vec<Diagnostic>>;

/// Prints a line for every template, or for those that are named, and below it what is wrong.
pub fn check(
    templates_dir: &Path,
    names: &[&str],
    threads: usize,
    time_limit: Duration,
) -> Result<ExitCode, Box<dyn Error>> {
    let (typesetter, broken) = Typesetter::load_what_can_be(templates_dir)?;
    let typesetter = Arc::new(typesetter);
    let is_asked_for = |name: &str| names.is_empty() || names.contains(&name);
    let there_are: Vec<&str> =
        broken.keys().map(String::as_str).chain(typesetter.templates().map(|(name, _)| name)).collect();
    if let Some(unknown) = names.iter().find(|name| !there_are.contains(name)) {
        return Err(format!("there is no template {unknown:?}; there are: {}", there_are.join(", ")).into());
    }
    println!("{:<7} {:<20} {:>6} {:>9}  standards", "", "template", "pages", "ms");
    let mut failed = 0;
    for (name, error) in broken.iter().filter(|(name, _)| is_asked_for(name)) {
        failed += 1;
        println!("{:<7} {name}\n{error}", "error");
    }
    for (name, _) in typesetter.templates().filter(|(name, _)| is_asked_for(name)) {
        match set_sample_in_time(&typesetter, name, threads, time_limit) {
            Ok(Ok((pdf, took))) => {
                let milliseconds = took.as_secs_f64() * 1000.0;
                let e_invoice = pdf.e_invoice.map(|level| format!("e-invoice: {level}"));
                let standards: Vec<String> = typesetter.standards(name).iter().cloned().chain(e_invoice).collect();
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

/// Does not wait for ever. What has not ended by then ends with this program.
fn set_sample_in_time(
    typesetter: &Arc<Typesetter>,
    name: &str,
    threads: usize,
    time_limit: Duration,
) -> Result<Checked, String> {
    let (sender, receiver) = mpsc::channel();
    let (typesetter, template) = (typesetter.clone(), name.to_owned());
    thread::spawn(move || {
        // Nobody listens any more when the time was over.
        let _ = sender.send(set_sample(&typesetter, &template, threads).map_err(|error| error.to_string()));
    });
    receiver.recv_timeout(time_limit).unwrap_or_else(|error| match error {
        RecvTimeoutError::Timeout => Err(format!(
            "{name}/sample.json was not set within {} ms, MAX_RENDER_MS; does that never end?",
            time_limit.as_millis()
        )),
        RecvTimeoutError::Disconnected => Err("Typst panicked, which is a bug of Typst's".to_owned()),
    })
}

/// Sets a sample twice, and tells how long it took when nothing had to be loaded for it any more
/// and nothing of it was remembered.
fn set_sample(typesetter: &Typesetter, name: &str, threads: usize) -> Result<Checked, Box<dyn Error>> {
    let mut took = Duration::ZERO;
    let mut last = None;
    for _ in 0..2 {
        typeset::forget_all_documents();
        let sample = typesetter.sample(name).ok_or("every template has a sample")?;
        let began = Instant::now();
        match pool::on_fixed_pool(threads, || typesetter.set(sample))? {
            Ok(pdf) => last = Some(pdf),
            Err(SetError::Data(diagnostics) | SetError::Typst(diagnostics)) => return Ok(Err(diagnostics)),
            Err(SetError::UnknownTemplate) => return Err("every name is a template's".into()),
        }
        took = began.elapsed();
    }
    Ok(Ok((last.ok_or("it was set twice")?, took)))
}

fn print_all(diagnostics: &[Diagnostic]) {
    for diagnostic in diagnostics {
        println!("{}", diagnostic.text);
    }
}
