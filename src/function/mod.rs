//! The Lambda function: an SQS event in, a verdict for every record out.
//!
//! [`records`] takes the event apart, [`chains`] says which of them wait for which, [`batch`]
//! sets and stores, [`verdict`] is what becomes of each record, [`backoff`] when it comes back,
//! [`deadline`], [`limits`] and [`shares`] how much time, memory and threads there are,
//! [`runtime`] what Lambda calls, [`termination`] how it says that it is over. Imports everything else. Must never be true: that the handler
//! returns while something that it started goes on.

mod backoff;
mod batch;
mod chains;
pub mod deadline;
pub mod limits;
pub mod records;
mod runtime;
mod shares;
mod termination;
pub mod verdict;

use std::cell::RefCell;
use std::time::{Duration, Instant};

use aws_lambda_events::event::sqs::SqsBatchResponse;
use futures_util::future::{join_all, try_join_all};
use serde_json::Value;

use crate::aws::Clients;
use crate::config::Config;
use crate::job::{Editions, Surroundings};
use crate::press::room::{PressSettings, Room, StartError};
use crate::press::sandbox::Level;
use crate::queues::Queues;
use crate::storage::Storage;
use batch::Workshop;
use deadline::Deadline;
use limits::Limits;
use records::{EventError, Record};
use verdict::{ErrorCode, Failure, Verdict};

pub use runtime::main;

/// The function, warm: its presses run.
pub struct Function {
    config: Config,
    storage: Storage,
    queues: Queues,
    rooms: Vec<Room>,
    templates: Editions,
    /// What is left of the memory when the function and its presses have theirs.
    memory_for_runs: Option<u64>,
}

/// Nobody waits longer for messages to be put off: their queue's own timeout does it too.
const LONGEST_PUTTING_OFF: Duration = Duration::from_secs(5);

/// With less a run cannot set the simplest document.
const LEAST_RUN_BYTES: u64 = 64_000_000;

/// A record's id and what became of it.
pub type RecordVerdict = (Record, Verdict);

/// What is known of an invocation beside its event.
#[derive(Clone, Copy, Debug)]
pub struct Invocation<'a> {
    pub deadline: Deadline,
    /// Lambda's name for it.
    pub request_id: Option<&'a str>,
}

impl From<Deadline> for Invocation<'_> {
    fn from(deadline: Deadline) -> Self {
        Self { deadline, request_id: None }
    }
}

impl Function {
    /// Starts the presses, side by side, and waits until all are warm.
    ///
    /// # Errors
    /// When a press cannot be started or a template is broken.
    pub async fn start(config: Config, clients: impl Into<Clients>) -> Result<Self, StartError> {
        let settings = PressSettings {
            program: config.press_program.clone(),
            templates_dir: config.templates_dir.clone(),
            most_threads: config.cores,
            level: Level::SeccompAndLandlock,
        };
        let began = Instant::now();
        let started = try_join_all((0..config.workers).map(|number| Room::start(number, settings.clone()))).await?;
        let (rooms, templates): (Vec<_>, Vec<_>) = started.into_iter().unzip();
        let templates = templates.into_iter().next().unwrap_or_default();
        tracing::info!(
            presses = rooms.len(),
            templates = ?templates.keys().collect::<Vec<_>>(),
            milliseconds = began.elapsed().as_millis(),
            "warm"
        );
        let memory_for_runs = memory_for_runs(config.memory_bytes, &rooms)?;
        let clients = clients.into();
        let storage = Storage::new(clients.s3, &config);
        let queues = Queues::new(clients.sqs, &config);
        let function = Self { config, storage, queues, rooms, templates, memory_for_runs };
        function.log_level();
        Ok(function)
    }

    /// How far presses and runs are walled in.
    pub fn level(&self) -> Level {
        self.rooms.iter().map(Room::level).min().unwrap_or(Level::Bare)
    }

    fn log_level(&self) {
        match self.level() {
            Level::SeccompAndLandlock => tracing::info!("documents are walled in by seccomp and Landlock"),
            level => tracing::warn!(%level, "this kernel does not allow all walls around documents"),
        }
    }

    /// The process ids of the presses that there are.
    pub fn press_ids(&self) -> impl Iterator<Item = u32> {
        self.rooms.iter().filter_map(Room::process_id)
    }

    /// Handles an event as Lambda's event source mapping for SQS expects it: the records that
    /// failed, and no others, are to be delivered again.
    ///
    /// # Errors
    /// When the event is not an SQS event. Nothing has been done then.
    pub async fn handle(
        &mut self,
        event: Value,
        invocation: impl Into<Invocation<'_>>,
    ) -> Result<SqsBatchResponse, EventError> {
        let mut response = SqsBatchResponse::default();
        for (record, verdict) in self.set_batch(records::parse(event)?, invocation).await {
            log(&record, &verdict);
            if !verdict.is_settled() {
                response.add_failure(record.message_id);
            }
        }
        Ok(response)
    }

    /// Sets and stores the documents of a batch. When this returns, every run that has seen one
    /// has ended and been waited for, and no task or upload goes on.
    pub async fn set_batch(
        &mut self,
        records: Vec<Record>,
        invocation: impl Into<Invocation<'_>>,
    ) -> Vec<RecordVerdict> {
        let invocation = invocation.into();
        let deadline = invocation.deadline.less(self.config.deadline_margin);
        let verdicts = RefCell::new(records.iter().map(|_| None).collect::<Vec<_>>());
        let workshop = Workshop {
            storage: &self.storage,
            queues: &self.queues,
            request_id: invocation.request_id,
            surroundings: Surroundings {
                templates: &self.templates,
                output_prefix: &self.config.output_prefix,
                message_id: "",
            },
            cores: self.config.cores,
            limits: Limits::new(deadline, self.config.most_render_time, self.memory_for_runs),
        };
        let all = batch::set_all(&workshop, &mut self.rooms, &records, &verdicts);
        let is_cut_short = deadline.cut_short(all).await.is_err();
        let verdicts = verdicts.into_inner().into_iter().map(|verdict| verdict.unwrap_or_else(too_late));
        let verdicts: Vec<RecordVerdict> = records.into_iter().zip(verdicts).collect();
        let ending = async {
            if is_cut_short {
                tracing::error!("the deadline came before the batch was done");
                join_all(self.rooms.iter_mut().map(Room::end_invocation)).await;
            }
        };
        tokio::join!(ending, put_off(&self.queues, &verdicts, invocation.deadline));
        verdicts
    }

    /// Ends the presses and waits for them.
    pub async fn stop(mut self) {
        join_all(self.rooms.iter_mut().map(Room::close)).await;
    }
}

/// Has the records that failed for now delivered again when it makes sense to try. Takes half of
/// what is left of the time at most, and whether it succeeds changes no verdict.
async fn put_off(queues: &Queues, verdicts: &[RecordVerdict], deadline: Deadline) {
    let time = deadline.time_left().map_or(LONGEST_PUTTING_OFF, |left| (left / 2).min(LONGEST_PUTTING_OFF));
    let of_queues = backoff::postponed(verdicts);
    join_all(of_queues.iter().map(|(queue_arn, messages)| queues.postpone(queue_arn, messages, time))).await;
}

/// What a function of this memory has left for runs. Half of what function and presses have now
/// is added to it, for the event and what is under way to S3.
fn memory_for_runs(memory_bytes: Option<u64>, rooms: &[Room]) -> Result<Option<u64>, StartError> {
    let Some(memory_bytes) = memory_bytes else { return Ok(None) };
    let processes = rooms.iter().filter_map(Room::process_id).chain([std::process::id()]);
    let resident: u64 = processes.map(resident_bytes).sum();
    match memory_bytes.checked_sub(resident + resident / 2) {
        Some(left) if left / rooms.len() as u64 >= LEAST_RUN_BYTES => Ok(Some(left)),
        _ => Err(StartError::Memory { memory_bytes, resident_bytes: resident, presses: rooms.len() }),
    }
}

/// The resident memory of a process; none when it is gone.
fn resident_bytes(process: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    pages * 4096
}

fn too_late() -> Verdict {
    let message = "the invocation's time was over before the record was done with; give the function more time or \
                   memory, or the queue smaller batches";
    Verdict::TransientFailure(Failure::new(ErrorCode::DeadlineReached, message))
}

/// One line a record.
fn log(record: &Record, verdict: &Verdict) {
    let message_id = &record.message_id;
    match verdict {
        Verdict::Stored(stored) => {
            let milliseconds = stored.typesetting.as_secs_f64() * 1000.0;
            for warning in &stored.warnings {
                tracing::warn!(message_id, "{warning}");
            }
            let (key, pages, bytes) = (&stored.key, stored.pages, stored.bytes);
            let what = if stored.was_there { "had been stored by an earlier delivery" } else { "stored" };
            tracing::info!(message_id, key, pages, bytes, milliseconds, "{what}");
        }
        Verdict::Parked(failure) | Verdict::PermanentFailure(failure) => {
            let is_parked = matches!(verdict, Verdict::Parked(_));
            let diagnostics: Vec<_> = failure.diagnostics.iter().map(|diagnostic| &diagnostic.text).collect();
            let (code, reason) = (failure.code.as_str(), &failure.message);
            tracing::error!(message_id, code, reason, ?diagnostics, is_parked, "permanent failure");
        }
        Verdict::TransientFailure(failure) => {
            let (code, reason) = (failure.code.as_str(), &failure.message);
            tracing::warn!(message_id, code, reason, "transient failure");
        }
    }
}
