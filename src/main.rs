//! Picks the role: the function, or a press of it.

use std::process::ExitCode;

use pressrun::function;

fn main() -> ExitCode {
    pressrun::play_press_role().unwrap_or_else(function::main)
}
