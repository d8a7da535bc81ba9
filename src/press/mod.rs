//! Press and runs: the processes in which documents are rendered.
//!
//! # Theory of operation
//!
//! The function starts one **press** ([`zygote`] is what runs in it): it loads the templates, renders
//! their samples so that caches are warm, restricts itself ([`sandbox`]), and then only forks, kills
//! and reaps. A **run** ([`run`]) is a fork of it that renders documents of one invocation, one at a
//! time. Press and run are this same program in other roles.
//!
//! [`supervisor`] keeps a press running: it starts one ([`press_process`]), replaces it, and asks it for
//! runs. Each [`worker`] is a place for one run, which the function exchanges requests and responses with
//! ([`exchange`]) over pipes that pass through no other process ([`run_handle`]), and whose memory it watches ([`memory_watch`]). [`protocol`] defines both channels, and
//! [`control_socket`] is the one between function and press.
//!
//! Imports [`crate::render`], [`crate::pdf`], [`crate::os`] and [`crate::census`]. It must never be true
//! that a press has a second thread when it forks, sees a byte of a message or renders a document; that a
//! run which has seen a message lives on after its invocation; or that what a run says is taken for how a
//! process has ended.

mod control_socket;
mod exchange;
mod memory_watch;
mod press_process;
pub mod protocol;
mod run;
mod run_handle;
pub mod sandbox;
mod supervisor;
mod worker;
pub mod zygote;

pub use exchange::{Request, RunResponse};
pub use press_process::{PRESS_ROLE, PressSettings, StartError};
pub use run_handle::{Cause, RunEnd, RunFailure};
pub use supervisor::{EndedRun, PressStats, Supervisor};
pub use worker::Worker;
