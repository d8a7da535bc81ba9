//! `check`: sets every template's sample and says what came of it.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pressrun::typeset::diagnostics::Diagnostic;
use pressrun::typeset::{self, Pdf, SetError, Typesetter, pool};

/// What is wrong with a template's sample, or its PDF and how long that took.
type Checked = Result<(Pdf, Duration), Vec<Diagnostic>>;

/// Prints a line for every template, and below it what is wrong.
pub fn check(templates_dir: &Path, threads: usize) -> Result<ExitCode, Box<dyn Error>> {
    let (typesetter, broken) = Typesetter::load_what_can_be(templates_dir)?;
    println!("{:<7} {:<20} {:>6} {:>9}  standards", "", "template", "pages", "ms");
    let mut failed = broken.len();
    for (name, error) in &broken {
        println!("{:<7} {name}", "error");
        println!("{error}");
    }
    for (name, _) in typesetter.templates() {
        match set_sample(&typesetter, name, threads)? {
            Ok((pdf, took)) => {
                let milliseconds = took.as_secs_f64() * 1000.0;
                let standards = typesetter.standards(name).join(", ");
                println!("{:<7} {name:<20} {:>6} {milliseconds:>9.1}  {standards}", "ok", pdf.pages);
                print_all(&pdf.warnings);
            }
            Err(diagnostics) => {
                failed += 1;
                println!("{:<7} {name}", "error");
                print_all(&diagnostics);
            }
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
