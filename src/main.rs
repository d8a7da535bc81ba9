//! Picks the role: the function, or the press.

use std::process::ExitCode;

use pressrun::{function, os};

fn main() -> ExitCode {
    if let Some(feature) = os::missing_cpu_feature() {
        eprintln!("pressrun: this CPU lacks {feature}: build for it, with RUSTFLAGS=-Ctarget-cpu=x86-64");
        return ExitCode::FAILURE;
    }
    run()
}

/// Not inlined, so that `main` has no instruction of a newer CPU before it has asked for that.
#[inline(never)]
fn run() -> ExitCode {
    pressrun::run_press_if_requested().unwrap_or_else(function::main)
}
