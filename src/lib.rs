//! pressrun: an AWS Lambda function that turns SQS messages into PDFs with Typst, and stores
//! them in S3.
//!
//! It keeps two promises. What an invocation starts, it ends before it returns: threads, tasks,
//! processes and memory alike. And no document can harm its neighbours.
//!
//! One program has three roles, each in processes of its own:
//!
//! - The **function** ([`function`]) is small and always answers. It parses records, has their
//!   documents rendered by runs, uploads PDFs, and decides each record's verdict.
//! - The **press** ([`press::zygote`]) has loaded the fonts and templates and is warm. It has one
//!   thread, forks runs, kills and reaps them, and never sees a message.
//! - A **run** is a fork of the press that renders documents of one invocation ([`typeset`]), each on
//!   a pool of threads that lives for this document, and then ends.
//!
//! The way down is `main` → [`function`] → [`press`] → [`typeset`]; [`job`] (the message
//! contract), [`config`] (the environment), [`storage`] (S3), [`queues`] (SQS), [`aws`] (what
//! those two have in common), [`pdf`] (what is done to a PDF after Typst), [`census`] (what
//! processes hold), [`json_error`] and [`os`] (all `unsafe` there is) are leaves. Nothing imports
//! what stands above it.

pub mod aws;
pub mod census;
pub mod config;
pub mod function;
pub mod job;
pub mod json_error;
pub mod os;
pub mod pdf;
pub mod press;
pub mod queues;
pub mod storage;
pub mod typeset;

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Runs a press until it ends, if this program was started as one. Every program that starts a press
/// of itself calls this first.
#[must_use]
pub fn run_press_if_requested() -> Option<ExitCode> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let [role, templates_dir, cores, level, function] = &arguments[..] else { return None };
    if role != press::PRESS_ROLE {
        return None;
    }
    let cores = cores.to_str()?.parse().ok()?;
    let level = level.to_str()?.parse().ok()?;
    let function = function.to_str()?.parse().ok()?;
    Some(press::zygote::main(Path::new(templates_dir), cores, level, function))
}
