//! Joins PDFs of a document's parts: `join OUT PART...`. Tests look at joined files with it, and so may you.
//!
//! The parts may be as Typst writes them. The joined file is compacted, unless `OUT` ends with `.plain.pdf`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;
use std::{env, fs};

use pressrun::pdf;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let Some((out, parts)) = arguments.split_first() else {
        eprintln!("join OUT PART...");
        return ExitCode::FAILURE;
    };
    match join(Path::new(out), parts) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn join(out: &Path, parts: &[String]) -> Result<String, Box<dyn std::error::Error>> {
    let parts: Vec<Vec<u8>> = parts.iter().map(fs::read).collect::<Result<_, _>>()?;
    let (count, len) = (parts.len(), parts.iter().map(Vec::len).sum::<usize>());
    let began = Instant::now();
    let joined = pdf::join(parts, None, !out.to_string_lossy().ends_with(".plain.pdf"))?;
    let took = began.elapsed();
    fs::write(out, &joined)?;
    Ok(format!("{count} parts of {len} bytes: {} bytes in {took:?}", joined.len()))
}
