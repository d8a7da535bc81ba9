//! pressrun: an AWS Lambda function that renders SQS messages to PDFs with Typst, and stores them in
//! S3.
//!
//! It keeps two promises. What an invocation starts, it ends before it returns: threads, tasks,
//! processes and memory alike. And no document can harm its neighbours.
//!
//! One program has three roles, each in processes of its own:
//!
//! - The **function** parses records, has their documents rendered, uploads PDFs, and decides each
//!   record's outcome.
//! - The **press** has loaded fonts and templates and is warm. It only forks, kills and reaps runs, and
//!   never sees a message.
//! - A **run** is a fork of the press. It renders documents of one invocation, one at a time, each on a
//!   pool of threads that lives for that document, and ends with the invocation.
//!
//! # Modules
//!
//! From the top down. A module imports only from those below it: docs/architecture.md lists which, and a
//! test holds it against the code.
//!
//! - [`function`]: the Lambda function, from an event to its response.
//! - [`aws`]: S3 and SQS.
//! - [`config`]: the environment variables.
//! - [`message`]: the message contract.
//! - [`press`]: the press and its runs, and the function's hold on them.
//! - [`render`]: Typst, from a template and data to a PDF.
//! - [`pdf`]: what is done to a PDF after Typst.
//! - [`census`]: what processes hold.
//! - [`json`]: JSON that would be misread.
//! - [`json_error`]: errors of JSON without the values that they quote.
//! - [`text`]: texts of others, bounded before they are quoted.
//! - [`os`]: all `unsafe` code.

pub mod aws;
pub mod census;
pub mod config;
pub mod function;
pub mod json;
pub mod json_error;
pub mod message;
pub mod os;
pub mod pdf;
pub mod press;
pub mod render;
pub mod text;

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Runs a press until it ends, if this program was started as one, and returns `None` if not. Every
/// program that starts presses of itself calls this first in its `main`.
#[must_use]
pub fn run_press_if_requested() -> Option<ExitCode> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let [role, templates_dir, cores, level, function, only @ ..] = &arguments[..] else { return None };
    if role != press::PRESS_ROLE {
        return None;
    }
    let cores = cores.to_str()?.parse().ok()?;
    let level = level.to_str()?.parse().ok()?;
    let function = function.to_str()?.parse().ok()?;
    let only = only.iter().map(|name| name.to_str().map(str::to_owned)).collect::<Option<Vec<_>>>()?;
    Some(press::zygote::main(Path::new(templates_dir), &only, cores, level, function))
}
