//! Picks the role: the function, or the press.

use std::process::ExitCode;

use pressrun::function;

fn main() -> ExitCode {
    pressrun::run_press_if_requested().unwrap_or_else(function::main)
}
