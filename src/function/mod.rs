//! The Lambda function: an SQS event in, a partial batch response out; or a message in, and an answer out.
//!
//! [`event`] parses records, [`answer`] is what a direct call is answered with, [`batch`] processes them, [`outcome`] is what becomes of each, [`retry`]
//! when it comes back, [`report`], [`logging`] and [`metrics`] what is reported of it. [`leak_check`]
//! compares what there is after an invocation with what there was before, [`deadline`] is the
//! invocation's end. [`runtime`] is what Lambda calls, [`extension`] has Lambda announce its end.
//!
//! Imports every other module of the crate. It must never be true that the handler returns while
//! something that it started goes on.

pub mod answer;
mod batch;
pub mod deadline;
pub mod event;
mod extension;
mod leak_check;
pub mod logging;
pub mod metrics;
pub mod outcome;
mod report;
mod retry;
mod runtime;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lambda_events::event::sqs::SqsBatchResponse;
use futures_util::future::join_all;
use serde_json::Value;
use tracing::Instrument;

use crate::aws::Clients;
use crate::aws::s3::Storage;
use crate::aws::sqs::Queues;
use crate::census::{self, Leak};
use crate::config::Config;
use crate::message::{self, ParseContext};
use crate::press::sandbox::SandboxLevel;
use crate::press::{PressSettings, StartError, Supervisor, Worker};
use crate::render::TemplateVersions;
use answer::{Answer, InvocationError};
use batch::BatchContext;
use batch::limits::Limits;
use deadline::Deadline;
use event::{Event, EventError, Record};
use leak_check::Snapshot;
use metrics::{InvocationMetrics, Metrics};
use outcome::{ErrorCode, Failure, Outcome};
use report::{RecordReport, ReportContext};

pub use runtime::{log_census_on_request, main};

/// The function when it is warm: its press is ready, and has forked its runs.
///
/// ```no_run
/// use pressrun::aws::Clients;
/// use pressrun::config::Config;
/// use pressrun::function::Function;
/// use pressrun::function::deadline::Deadline;
/// use serde_json::json;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let config = Config::from_env()?;
/// let clients = Clients::from_env(config.has_own_s3_endpoint).await;
/// let mut function = Function::start(config, clients).await?;
///
/// let body = json!({"template": "letter", "data": {"to": "Ada"}}).to_string();
/// let event = json!({"Records": [{"messageId": "a", "body": body}]});
/// let response = function.handle(event, Deadline::NONE).await?;
/// assert!(response.batch_item_failures.is_empty());
///
/// function.stop().await;
/// # Ok(())
/// # }
/// ```
pub struct Function {
    config: Config,
    storage: Storage,
    queues: Queues,
    supervisor: Rc<Supervisor>,
    workers: Vec<Worker>,
    templates: TemplateVersions,
    /// The bytes that are left for runs when the function and its press have theirs.
    memory_for_runs: Option<u64>,
    metrics: Metrics,
    /// Taken before the first invocation.
    snapshot_at_start: Snapshot,
    /// How long the press and its first run took to become warm, until the first invocation has reported
    /// it.
    unreported_init_time: Cell<Option<Duration>>,
}

/// The longest that changing the visibility of failed messages may take. If it fails, their queue's own
/// visibility timeout holds.
const CHANGE_VISIBILITY_TIMEOUT: Duration = Duration::from_secs(5);

/// The least memory that a run can render the simplest document with.
const MIN_RUN_BYTES: u64 = 64_000_000;

/// A record and what became of it.
pub type RecordOutcome = (Record, Outcome);

/// What is known of an invocation beside its event.
#[derive(Clone, Copy, Debug)]
pub struct Invocation<'a> {
    pub deadline: Deadline,
    /// Lambda's id of the invocation.
    pub request_id: Option<&'a str>,
}

impl From<Deadline> for Invocation<'_> {
    fn from(deadline: Deadline) -> Self {
        Self { deadline, request_id: None }
    }
}

impl Function {
    /// Starts the press and waits until it and its first run are warm.
    ///
    /// Has to be called on the main thread of the process: the press ends with the thread that has
    /// started it.
    ///
    /// # Errors
    /// When the press cannot be started or a template is broken.
    pub async fn start(config: Config, clients: impl Into<Clients>) -> Result<Self, StartError> {
        Self::start_while(config, async { clients.into() }).await
    }

    /// Starts like [`Function::start`], with clients that are still being made: the press becomes warm
    /// meanwhile.
    ///
    /// # Errors
    /// When the press cannot be started or a template is broken.
    pub async fn start_while(config: Config, clients: impl Future<Output = Clients>) -> Result<Self, StartError> {
        let settings = PressSettings {
            program: config.press_program.clone(),
            templates_dir: config.templates_dir.clone(),
            only_templates: config.only_templates.clone(),
            max_init_time: config.max_init_time,
            cores: config.cores,
            sandbox_level: SandboxLevel::SeccompAndLandlock,
        };
        let began = Instant::now();
        // The press comes first: it is a process of its own as soon as its future is polled.
        let (started, clients) = tokio::join!(Supervisor::start(settings, config.workers), clients);
        let (supervisor, workers, templates) = started?;
        let init_time = began.elapsed();
        tracing::info!(
            workers = workers.len(),
            templates = ?templates.keys().collect::<Vec<_>>(),
            milliseconds = init_time.as_millis(),
            "warm"
        );
        log_sandbox_level(supervisor.sandbox_level());
        if clients.sqs.is_some() && config.failed_queue_url.is_none() {
            tracing::warn!(
                "FAILED_QUEUE_URL is not set: a message that fails for good stays in its queue until that queue's redrive \
                 policy moves it, and in a FIFO queue it holds up its message group meanwhile"
            );
        }
        Ok(Self {
            memory_for_runs: memory_for_runs(&config, supervisor.press_id())?,
            storage: Storage::new(clients.s3, &config),
            queues: Queues::new(clients.sqs, &config),
            snapshot_at_start: Snapshot::take(&supervisor),
            config,
            supervisor,
            workers,
            templates,
            metrics: Metrics::NONE,
            unreported_init_time: Cell::new(Some(init_time)),
        })
    }

    /// Returns the same function, which writes metrics.
    #[must_use]
    pub fn with_metrics(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// How far press and runs are restricted.
    #[must_use]
    pub fn sandbox_level(&self) -> SandboxLevel {
        self.supervisor.sandbox_level()
    }

    /// The process id of the press, while there is one.
    #[must_use]
    pub fn press_id(&self) -> Option<u32> {
        self.supervisor.press_id()
    }

    /// The number of runs that there are at the same time.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Handles an event of Lambda's event source mapping for SQS, and returns a partial batch response:
    /// the records that failed, and no others, are to be delivered again.
    ///
    /// # Errors
    /// When the event is not an SQS event. Nothing has been processed then.
    pub async fn handle(
        &mut self,
        event: Value,
        invocation: impl Into<Invocation<'_>>,
    ) -> Result<SqsBatchResponse, EventError> {
        Ok(self.respond_to_batch(event::parse(event)?, invocation.into()).await)
    }

    async fn respond_to_batch(&mut self, records: Vec<Record>, invocation: Invocation<'_>) -> SqsBatchResponse {
        let mut response = SqsBatchResponse::default();
        for (record, outcome) in self.process_batch(records, invocation).await {
            if !outcome.is_acknowledged() {
                response.add_failure(record.message_id);
            }
        }
        response
    }

    /// Answers an event of any kind, as it was written: one of SQS as [`Function::handle`] does, and one that is
    /// itself a message with what was stored, or with the PDF.
    ///
    /// # Errors
    /// When the event is neither, or when its message failed. Nothing fails for the records of an SQS event.
    ///
    /// # Panics
    /// Never: every record has an outcome.
    pub async fn answer(
        &mut self,
        event: &str,
        invocation: impl Into<Invocation<'_>>,
    ) -> Result<Answer, InvocationError> {
        let invocation = invocation.into();
        let record = match event::parse_any(event, invocation.request_id)? {
            Event::Batch(records) => return Ok(Answer::Batch(self.respond_to_batch(records, invocation).await)),
            Event::Direct(record) => record,
        };
        let template = message::template_named_in(event).unwrap_or_default();
        let mut outcomes = self.process_batch(vec![*record], invocation).await;
        let (record, outcome) = outcomes.pop().expect("every record has an outcome");
        answer::to_direct_call(&record.message_id, &template, self.storage.output_bucket(), outcome)
    }

    /// Processes the records of a batch. When this returns, every run that has seen a message has ended
    /// and been waited for, and no task or upload goes on.
    pub async fn process_batch(
        &mut self,
        records: Vec<Record>,
        invocation: impl Into<Invocation<'_>>,
    ) -> Vec<RecordOutcome> {
        let invocation = invocation.into();
        // A span below the log's level would be left out, and its fields with it.
        let span = tracing::error_span!("invocation", requestId = invocation.request_id);
        self.invoke(records, invocation).instrument(span).await
    }

    async fn invoke(&mut self, mut records: Vec<Record>, invocation: Invocation<'_>) -> Vec<RecordOutcome> {
        let deadline = invocation.deadline.minus(self.config.deadline_margin);
        // An invocation that was given up may have left runs that have seen its messages.
        self.supervisor.end_invocation(&mut self.workers, deadline.time_left()).await;
        // If there is no time for it, every document fails transiently.
        let _ = deadline.timeout(self.supervisor.ensure_running()).await;
        let before = Snapshot::take_before(&self.snapshot_at_start, &self.supervisor);
        let originals = find_originals(&mut records);
        let (outcomes, is_timed_out) = self.outcomes(&records, &originals, invocation).await;
        let outcomes: Vec<RecordOutcome> = records.into_iter().zip(outcomes).collect();
        if is_timed_out {
            tracing::error!("the deadline came before the batch was done");
        }
        tokio::join!(
            self.supervisor.end_invocation(&mut self.workers, invocation.deadline.time_left()),
            change_visibility(&self.queues, &outcomes, invocation.deadline)
        );
        self.check_for_leaks(&before, outcomes.len(), invocation).await;
        outcomes
    }

    /// Processes every record until the deadline, those of the same message only once. `true` comes with the
    /// outcomes when that was not enough: then runs may still be rendering.
    async fn outcomes(
        &mut self,
        records: &[Record],
        originals: &[usize],
        invocation: Invocation<'_>,
    ) -> (Vec<Outcome>, bool) {
        let deadline = invocation.deadline.minus(self.config.deadline_margin);
        let (metrics, templates) = (&self.metrics, &self.templates);
        let report = ReportContext { metrics, request_id: invocation.request_id, templates };
        let context = BatchContext {
            storage: &self.storage,
            queues: &self.queues,
            parse: ParseContext { templates, output_prefix: &self.config.output_prefix },
            cores: self.config.cores,
            timings_slower_than: self.config.timings_slower_than,
            limits: Limits::new(deadline, self.config.max_render_time, self.memory_for_runs),
            began_at_ms: now_ms(),
        };
        let with_originals = || records.iter().zip(originals).enumerate();
        let reports: BTreeMap<usize, RecordReport> = with_originals()
            .filter(|(index, (_, original))| index == *original)
            .map(|(index, (record, _))| (index, RecordReport::new(record, report)))
            .collect();
        let processing = batch::process(&context, &mut self.workers, reports.values());
        let is_timed_out = deadline.timeout(processing).await.is_err();
        for report in reports.values().filter(|report| !report.is_finished()) {
            report.finish(too_late());
        }
        let outcomes = with_originals().map(|(index, (record, original))| {
            if index == *original {
                return reports[original].outcome();
            }
            let repeated = RecordReport::new(record, report);
            repeated.finish(reports[original].repeated_outcome()?);
            repeated.outcome()
        });
        (outcomes.map(|outcome| outcome.expect("every record is finished")).collect(), is_timed_out)
    }

    /// Compares what there is with what there was before the invocation, logs leaks, and replaces a press
    /// that leaks. Emits the invocation's metrics.
    async fn check_for_leaks(&mut self, before: &Snapshot, records: usize, invocation: Invocation<'_>) {
        let (after, leaks) = Snapshot::take_after(before, &self.snapshot_at_start, &self.supervisor).await;
        if !leaks.press.is_empty() || self.supervisor.press_id().is_none() {
            let deadline = invocation.deadline.minus(self.config.deadline_margin);
            if deadline.timeout(self.supervisor.replace(&mut self.workers)).await.is_err() {
                // The next invocation starts one.
                self.supervisor.stop(&mut self.workers).await;
            }
        }
        let stats = self.supervisor.take_stats();
        let leaks: Vec<Leak> =
            [leaks.function, leaks.press, stats.leaks_of_runs.clone()].into_iter().flatten().collect();
        leak_check::log(&leaks);
        let init_time = self.unreported_init_time.take();
        self.metrics.emit_invocation(&InvocationMetrics {
            request_id: invocation.request_id.map(str::to_owned),
            cold_start: u64::from(init_time.is_some()).into(),
            init_time,
            records: (records as u64).into(),
            leaks: (leaks.len() as u64).into(),
            ..InvocationMetrics::new(&after, &stats, self.config.memory_bytes)
        });
    }

    /// Ends the press and its runs, and waits for them.
    pub async fn stop(mut self) {
        self.supervisor.stop(&mut self.workers).await;
    }
}

fn log_sandbox_level(level: SandboxLevel) {
    match level {
        SandboxLevel::SeccompAndLandlock => tracing::info!("documents are sandboxed by seccomp and Landlock"),
        level => tracing::warn!(%level, "this kernel does not allow all of the sandbox around documents"),
    }
}

/// Has the records that failed transiently delivered again after a delay, by changing their visibility.
/// Takes at most half of the time that is left, and changes no outcome if it fails.
async fn change_visibility(queues: &Queues, outcomes: &[RecordOutcome], deadline: Deadline) {
    let timeout =
        deadline.time_left().map_or(CHANGE_VISIBILITY_TIMEOUT, |left| (left / 2).min(CHANGE_VISIBILITY_TIMEOUT));
    let changes = retry::visibility_changes(outcomes);
    join_all(changes.iter().map(|(queue_arn, messages)| queues.change_visibility(queue_arn, messages, timeout))).await;
}

/// Returns the bytes that a function of this memory has left for runs. Half of what function and press
/// have now is kept for the event and for what is on its way to S3.
fn memory_for_runs(config: &Config, press: Option<u32>) -> Result<Option<u64>, StartError> {
    let (Some(memory_bytes), workers) = (config.memory_bytes, config.workers) else { return Ok(None) };
    let processes = press.into_iter().chain([std::process::id()]);
    let resident_bytes: u64 = processes.map(census::resident_bytes).sum();
    match memory_bytes.checked_sub(resident_bytes + resident_bytes / 2) {
        Some(left) if left / workers as u64 >= MIN_RUN_BYTES => Ok(Some(left)),
        _ => Err(StartError::Memory { memory_bytes, resident_bytes, workers }),
    }
}

/// Returns for each record the index of the first record of the same message: its own, unless the batch has the
/// message twice. That first record then counts as delivered as often as the one that says the most.
fn find_originals(records: &mut [Record]) -> Vec<usize> {
    let mut originals: Vec<usize> = Vec::with_capacity(records.len());
    let mut of_id: HashMap<String, Vec<usize>> = HashMap::new();
    for index in 0..records.len() {
        let same_id = of_id.entry(records[index].message_id.clone()).or_default();
        let original = same_id.iter().copied().find(|other| records[*other].body == records[index].body);
        match original {
            Some(original) => {
                records[original].receive_count = records[original].receive_count.max(records[index].receive_count);
            }
            None => same_id.push(index),
        }
        originals.push(original.unwrap_or(index));
    }
    originals
}

/// The time, in milliseconds since 1970.
fn now_ms() -> Option<i64> {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

fn too_late() -> Outcome {
    let message = "the invocation's time was over before the record was done; give the function more time or memory, \
                   or the queue smaller batches";
    Outcome::TransientFailure(Failure::new(ErrorCode::DeadlineReached, message))
}
