//! The Lambda function: an SQS event in, a verdict for every record out.
//!
//! [`records`] takes the event apart, [`chains`] says which of them wait for which, [`batch`]
//! sets and stores, [`verdict`] is what becomes of each record, [`backoff`] when it comes back,
//! [`deadline`], [`limits`] and [`shares`] how much time, memory and threads there are, [`leaks`]
//! what is left that should not be, [`account`], [`logging`] and [`metrics`] who hears of all
//! that, [`runtime`] what Lambda calls, [`termination`] how it says that it is over. Imports
//! everything else. Must never be true: that the handler
//! returns while something that it started goes on.

mod account;
mod backoff;
mod batch;
mod chains;
pub mod deadline;
mod leaks;
pub mod limits;
pub mod logging;
pub mod metrics;
pub mod records;
mod runtime;
mod shares;
mod termination;
pub mod verdict;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use aws_lambda_events::event::sqs::SqsBatchResponse;
use futures_util::future::join_all;
use serde_json::Value;
use tracing::Instrument;

use crate::aws::Clients;
use crate::census::{self, Growth};
use crate::config::Config;
use crate::job::Surroundings;
use crate::press::sandbox::SandboxLevel;
use crate::press::{PressSettings, StartError, Supervisor, Worker};
use crate::queues::Queues;
use crate::storage::Storage;
use crate::typeset::TemplateVersions;
use account::{Account, Audience};
use batch::Workshop;
use deadline::Deadline;
use leaks::Census;
use limits::Limits;
use metrics::{Metrics, OfInvocation};
use records::{EventError, Record};
use verdict::{ErrorCode, Failure, Verdict};

pub use runtime::{main, tell_census_on_request};

/// The function, warm: its press is ready, and has forked its runs.
pub struct Function {
    config: Config,
    storage: Storage,
    queues: Queues,
    supervisor: Rc<Supervisor>,
    workers: Vec<Worker>,
    templates: TemplateVersions,
    /// What is left of the memory when the function and its press have theirs.
    memory_for_runs: Option<u64>,
    metrics: Metrics,
    /// From before the first invocation.
    census_at_start: Census,
    /// How long the press and its first run took to be warm, until the first invocation has told it.
    untold_init_time: Cell<Option<Duration>>,
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
    /// Starts the press and waits until it and its first run are warm. Has to be called on the main
    /// thread: the press ends with the thread that has started it.
    ///
    /// # Errors
    /// When the press cannot be started or a template is broken.
    pub async fn start(config: Config, clients: impl Into<Clients>) -> Result<Self, StartError> {
        Self::start_beside(config, async { clients.into() }).await
    }

    /// The same, with clients that are still being made: the press gets warm meanwhile.
    ///
    /// # Errors
    /// As above.
    pub async fn start_beside(config: Config, clients: impl Future<Output = Clients>) -> Result<Self, StartError> {
        let settings = PressSettings {
            program: config.press_program.clone(),
            templates_dir: config.templates_dir.clone(),
            cores: config.cores,
            sandbox_level: SandboxLevel::SeccompAndLandlock,
        };
        let began = Instant::now();
        // The press first: it is a process of its own as soon as that is polled.
        let (started, clients) = tokio::join!(Supervisor::start(settings, config.workers), clients);
        let (supervisor, workers, templates) = started?;
        let init_time = began.elapsed();
        tracing::info!(
            workers = workers.len(),
            templates = ?templates.keys().collect::<Vec<_>>(),
            milliseconds = init_time.as_millis(),
            "warm"
        );
        let memory_for_runs = memory_for_runs(&config, supervisor.press_id())?;
        let storage = Storage::new(clients.s3, &config);
        let queues = Queues::new(clients.sqs, &config);
        let metrics = Metrics::NONE;
        let census_at_start = Census::take(&supervisor);
        let untold_init_time = Cell::new(Some(init_time));
        let function = Self {
            config,
            storage,
            queues,
            supervisor,
            workers,
            templates,
            memory_for_runs,
            metrics,
            census_at_start,
            untold_init_time,
        };
        function.log_level();
        Ok(function)
    }

    /// The same function, whose metrics somebody hears.
    #[must_use]
    pub fn telling(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// How far press and runs are restricted.
    #[must_use]
    pub fn sandbox_level(&self) -> SandboxLevel {
        self.supervisor.sandbox_level()
    }

    fn log_level(&self) {
        match self.sandbox_level() {
            SandboxLevel::SeccompAndLandlock => tracing::info!("documents are sandboxed by seccomp and Landlock"),
            level => tracing::warn!(%level, "this kernel does not allow all of the sandbox around documents"),
        }
    }

    /// The process id of the press, while there is one.
    #[must_use]
    pub fn press_id(&self) -> Option<u32> {
        self.supervisor.press_id()
    }

    /// How many runs there are at the same time.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
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
        // A span below the log's level would be left out, and what it says with it.
        let span = tracing::error_span!("invocation", requestId = invocation.request_id);
        self.set_batch_and_tell(records, invocation).instrument(span).await
    }

    async fn set_batch_and_tell(&mut self, records: Vec<Record>, invocation: Invocation<'_>) -> Vec<RecordVerdict> {
        let deadline = invocation.deadline.less(self.config.deadline_margin);
        // If one that was given up has left runs that have seen its messages.
        self.supervisor.end_invocation(&mut self.workers, deadline.time_left()).await;
        // Without the time for it, every document fails for now.
        let _ = deadline.cut_short(self.supervisor.ensure_running()).await;
        let before = Census::take_before(&self.census_at_start, &self.supervisor);
        let accounts: Vec<Account> = records.iter().map(Account::open).collect();
        let is_cut_short = self.set_all(&records, &accounts, invocation).await;
        let verdicts = accounts.into_iter().map(|account| account.into_verdict().expect("every record is decided"));
        let verdicts: Vec<RecordVerdict> = records.into_iter().zip(verdicts).collect();
        let ending = async {
            if is_cut_short {
                tracing::error!("the deadline came before the batch was done");
            }
            self.supervisor.end_invocation(&mut self.workers, invocation.deadline.time_left()).await;
        };
        tokio::join!(ending, put_off(&self.queues, &verdicts, invocation.deadline));
        self.look_for_leaks(&before, verdicts.len(), invocation).await;
        verdicts
    }

    /// Decides every record, in time. `true` when the time was not enough: then runs may be at work
    /// still.
    async fn set_all(&mut self, records: &[Record], accounts: &[Account], invocation: Invocation<'_>) -> bool {
        let deadline = invocation.deadline.less(self.config.deadline_margin);
        let audience =
            Audience { metrics: &self.metrics, request_id: invocation.request_id, templates: &self.templates };
        let workshop = Workshop {
            storage: &self.storage,
            queues: &self.queues,
            audience,
            surroundings: Surroundings {
                templates: &self.templates,
                output_prefix: &self.config.output_prefix,
                message_id: "",
            },
            cores: self.config.cores,
            trace_slower_than: self.config.trace_slower_than,
            limits: Limits::new(deadline, self.config.most_render_time, self.memory_for_runs),
        };
        let all = batch::set_all(&workshop, &mut self.workers, records, accounts);
        let is_cut_short = deadline.cut_short(all).await.is_err();
        for (record, account) in records.iter().zip(accounts).filter(|(_, account)| !account.is_decided()) {
            account.decide(record, too_late(), audience);
        }
        is_cut_short
    }

    /// Compares what there is with what there was before the invocation, says what is more, and
    /// replaces a press that has grown. Tells the invocation's metrics.
    async fn look_for_leaks(&mut self, before: &Census, records: usize, invocation: Invocation<'_>) {
        let (after, grown) = Census::take_after(before, &self.census_at_start, &self.supervisor).await;
        if !grown.press.is_empty() || self.supervisor.press_id().is_none() {
            let deadline = invocation.deadline.less(self.config.deadline_margin);
            if deadline.cut_short(self.supervisor.replace(&mut self.workers)).await.is_err() {
                // The next invocation starts one.
                self.supervisor.stop(&mut self.workers).await;
            }
        }
        let stats = self.supervisor.take_stats();
        let growth: Vec<Growth> =
            [grown.function, grown.press, stats.growth_of_runs.clone()].into_iter().flatten().collect();
        leaks::log(&growth);
        let init_time = self.untold_init_time.take();
        let of_invocation = OfInvocation {
            request_id: invocation.request_id.map(str::to_owned),
            cold_start: u64::from(init_time.is_some()).into(),
            init_time,
            records: (records as u64).into(),
            census_leaks: (growth.len() as u64).into(),
            ..OfInvocation::of(&after, &stats, self.config.memory_bytes)
        };
        self.metrics.tell_invocation(&of_invocation);
    }

    /// Ends the press and its runs, and waits for them.
    pub async fn stop(mut self) {
        self.supervisor.stop(&mut self.workers).await;
    }
}

/// Has the records that failed for now delivered again when it makes sense to try. Takes half of
/// what is left of the time at most, and whether it succeeds changes no verdict.
async fn put_off(queues: &Queues, verdicts: &[RecordVerdict], deadline: Deadline) {
    let time = deadline.time_left().map_or(LONGEST_PUTTING_OFF, |left| (left / 2).min(LONGEST_PUTTING_OFF));
    let of_queues = backoff::postponed(verdicts);
    join_all(of_queues.iter().map(|(queue_arn, messages)| queues.postpone(queue_arn, messages, time))).await;
}

/// What a function of this memory has left for runs. Half of what function and press have now is
/// added to it, for the event and what is under way to S3.
fn memory_for_runs(config: &Config, press: Option<u32>) -> Result<Option<u64>, StartError> {
    let (Some(memory_bytes), workers) = (config.memory_bytes, config.workers) else { return Ok(None) };
    let processes = press.into_iter().chain([std::process::id()]);
    let resident_bytes: u64 = processes.map(census::resident_bytes).sum();
    match memory_bytes.checked_sub(resident_bytes + resident_bytes / 2) {
        Some(left) if left / workers as u64 >= LEAST_RUN_BYTES => Ok(Some(left)),
        _ => Err(StartError::Memory { memory_bytes, resident_bytes, workers }),
    }
}

fn too_late() -> Verdict {
    let message = "the invocation's time was over before the record was done with; give the function more time or \
                   memory, or the queue smaller batches";
    Verdict::TransientFailure(Failure::new(ErrorCode::DeadlineReached, message))
}
