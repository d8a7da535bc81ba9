//! pressrun: an AWS Lambda function that turns SQS messages into PDFs with Typst, and stores
//! them in S3.
//!
//! It keeps two promises. What an invocation starts, it ends before it returns: threads, tasks,
//! processes and memory alike. And no document can harm its neighbours.
//!
//! One program plays three roles, each in processes of its own:
//!
//! - The **function** ([`function`]) is small and always answers. It parses records, hands
//!   documents to presses, uploads PDFs, and decides each record's verdict.
//! - A **press** ([`press::parent`]) has loaded the fonts and templates and is warm. It has one
//!   thread, and forks, watches and reaps runs.
//! - A **run** is a copy of its press that sets the documents which one invocation gives to it
//!   ([`typeset`]), each on a pool of threads that lives for this document, and then ends.
//!
//! The way down is `main` → [`function`] → [`press`] → [`typeset`]; [`job`] (the message
//! contract), [`config`] (the environment), [`storage`] (S3), [`queues`] (SQS), [`aws`] (what
//! those two have in common), [`census`] (what processes hold), [`json_error`] and [`os`]
//! (all `unsafe` there is) are leaves. Nothing imports what
//! stands above it.

pub mod aws;
pub mod census;
pub mod config;
pub mod function;
pub mod job;
pub mod json_error;
pub mod os;
pub mod press;
pub mod queues;
pub mod storage;
pub mod typeset;

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Plays the role of a press, if this program was started as one. Every program that starts
/// presses of itself calls this first.
#[must_use]
pub fn play_press_role() -> Option<ExitCode> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let [role, templates_dir, most_threads, level] = &arguments[..] else { return None };
    if role != press::room::PRESS_ROLE {
        return None;
    }
    let most_threads = most_threads.to_str().and_then(|number| number.parse().ok())?;
    let level = level.to_str().and_then(|level| level.parse().ok())?;
    Some(press::parent::main(Path::new(templates_dir), most_threads, level))
}
