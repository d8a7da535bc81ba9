//! One of the `WORKERS` workers: a place for a run. It stays while its runs come and go.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::exchange::{Request, RunResponse};
use super::press_process::StartError;
use super::protocol::Response;
use super::run_handle::{RunFailure, RunHandle};
use super::supervisor::Supervisor;
use crate::census::{self, Leak, ProcessSnapshot};

/// The longest that the first run may take to render a sample that the press has just rendered.
const WARM_UP_TIMEOUT: Duration = Duration::from_secs(30);

/// Renders one document at a time, in a run that it has forked and replaced as needed.
pub struct Worker {
    number: usize,
    supervisor: Rc<Supervisor>,
    run: Option<RunHandle>,
    /// The template of the last document, whose sample the next run warms itself with.
    last_template: usize,
}

impl Worker {
    pub(super) fn new(number: usize, supervisor: Rc<Supervisor>) -> Self {
        Self { number, supervisor, run: None, last_template: 0 }
    }

    /// The worker's number, from 1 to `WORKERS`.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// Whether the next document is rendered in a run that has rendered no other.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.run.as_ref().is_none_or(RunHandle::is_fresh)
    }

    /// Renders a document, with more threads as `threads` allows them. If there is no run one is forked first,
    /// and if there is no press one is started.
    ///
    /// # Errors
    /// When there is no run, or it has ended without a response.
    pub async fn render(
        &mut self,
        request: &Request,
        threads: &mut watch::Receiver<usize>,
    ) -> Result<RunResponse, RunFailure> {
        self.supervisor.check_given_up()?;
        self.last_template = self.supervisor.index_of(&request.header.template).unwrap_or(self.last_template);
        let run = self.ready_run().await?;
        let rendered = run.render(request, threads).await;
        match &rendered {
            Ok(RunResponse { response: Response::Panicked { .. }, .. }) => {
                // The run ends after that, and the next document needs another.
                self.replace_run(None).await;
            }
            Ok(_) => self.supervisor.run_has_begun(),
            Err(failure) => {
                self.supervisor.run_has_failed(self.number, failure);
                if let (RunFailure::PressLost(_), Some(run)) = (failure, &self.run) {
                    self.supervisor.kill_press(Some(run.press())).await;
                }
                // The next document needs one.
                self.run = self.supervisor.fork(None);
            }
        }
        rendered
    }

    /// Ends the run in the middle of a document that nobody waits for any more, and waits until it has been reaped.
    /// To be called when the future of [`Worker::render`] has been dropped.
    pub async fn cancel(&mut self) {
        self.replace_run(None).await;
    }

    /// Ends the run if it has seen a message, and waits until it has been reaped. Another is forked at the
    /// same time, ahead of the next invocation.
    pub async fn end_invocation(&mut self) {
        let is_ahead = |run: &RunHandle| run.is_alive() && !run.has_seen_message() && run.sample().is_some();
        if self.run.as_ref().is_some_and(is_ahead) {
            return self.wait_forked().await;
        }
        self.check_for_leaks().await;
        self.replace_run(Some(self.last_template)).await;
    }

    /// The process id of the run, once the press has told it.
    #[must_use]
    pub fn run_id(&self) -> Option<u32> {
        self.run.as_ref()?.pid()
    }

    /// Forks a run that warms itself, if there is none.
    pub(super) fn fork_ahead(&mut self) {
        if self.run.as_ref().is_none_or(|run| !run.is_alive()) {
            self.run = self.supervisor.fork(Some(self.last_template));
        }
    }

    /// Waits until the press has forked the run, if one has been asked for. A press that does not say so is killed.
    pub(super) async fn wait_forked(&mut self) {
        if let Some(run) = &mut self.run
            && !run.wait_forked().await
        {
            self.supervisor.kill_press(Some(run.press())).await;
        }
    }

    /// Forks the first run of a press, and waits until it has rendered a sample in its sandbox. If it ends
    /// instead, the error says how.
    pub(super) async fn prove_sandbox(&mut self) -> Result<(), String> {
        self.fork_ahead();
        let Some(run) = &mut self.run else { return Err("no run can be forked".to_owned()) };
        if timeout(WARM_UP_TIMEOUT, run.wait_sandboxed()).await == Ok(true) && run.wait_forked().await {
            return Ok(());
        }
        run.kill();
        match run.ended().await {
            Ok(end) if end.stderr.trim().is_empty() => Err(format!("it {}", end.process.status)),
            Ok(end) => Err(format!("it {}; it wrote: {}", end.process.status, end.stderr.trim())),
            Err(RunFailure::NotForked(reason) | RunFailure::PressLost(reason) | RunFailure::GivenUp(reason)) => {
                Err(reason)
            }
            Err(RunFailure::Ended { end, .. }) => Err(format!("it {}", end.process.status)),
        }
    }

    /// Waits until the run that has been forked is warm. `false` when it has ended before.
    pub(super) async fn wait_warmed(&mut self) -> bool {
        let Some(run) = &mut self.run else { return false };
        let warmed = run.warmed().await;
        if let (Some(template), Some(took)) = (run.sample(), warmed) {
            self.supervisor.run_has_warmed(template, took);
        }
        warmed.is_some()
    }

    /// Drops the run, which has it killed if its press is still there.
    pub(super) fn drop_run(&mut self) {
        self.run = None;
    }

    /// Returns a run that a document can be sent to.
    async fn ready_run(&mut self) -> Result<&mut RunHandle, RunFailure> {
        self.supervisor.ensure_press().await.map_err(|error| match error {
            StartError::GivenUp(reason) => RunFailure::GivenUp(reason),
            error => RunFailure::PressLost(error.to_string()),
        })?;
        if !self.is_ready_in_time().await {
            self.replace_run(None).await;
        }
        self.run.as_mut().ok_or_else(|| RunFailure::NotForked("no run can be forked".to_owned()))
    }

    /// Whether there is a run for a document, or will be soon. It is waited for if it is nearly
    /// warm. Else a cold run that begins now is sooner done with a document: that takes about as
    /// long as getting warm, and in a warm run half of it.
    async fn is_ready_in_time(&mut self) -> bool {
        let Some(run) = self.run.as_ref().filter(|run| run.is_alive()) else { return false };
        if let Some(warming_for) = run.warming_for() {
            let last_time = run.sample().and_then(|template| self.supervisor.last_warm_up(template));
            let is_nearly_warm = run.has_unread_output() || last_time.is_some_and(|time| warming_for >= time / 2);
            let max_wait = last_time.map(|time| (time * 3 / 2).saturating_sub(warming_for));
            let max_wait = max_wait.unwrap_or_default().max(Duration::from_millis(1));
            if !is_nearly_warm || timeout(max_wait, self.wait_warmed()).await != Ok(true) {
                return false;
            }
        }
        // A run that has written what nobody asked for is not to be trusted.
        self.run.as_ref().is_some_and(|run| !run.has_unread_output())
    }

    /// Kills the run, and forks another meanwhile. If the run has seen a message, waits until it has ended and
    /// notes that.
    async fn replace_run(&mut self, sample: Option<usize>) {
        if let Some(run) = &self.run {
            run.kill();
        }
        // It has seen no message, so it may live on if this future is dropped.
        let next = self.supervisor.fork(sample);
        if let Some(run) = self.run.as_mut().filter(|run| run.has_seen_message()) {
            match run.ended().await {
                Ok(end) => self.supervisor.run_has_ended(self.number, None, &end),
                Err(RunFailure::PressLost(_)) => self.supervisor.kill_press(Some(run.press())).await,
                Err(_) => {}
            }
        }
        self.run = next;
    }

    /// Compares what the run holds, which has responded for all its documents, with what a fresh one holds.
    async fn check_for_leaks(&self) {
        let Some(pid) = self.run.as_ref().filter(|run| run.is_idle()).and_then(RunHandle::pid) else { return };
        let process = format!("run {}", self.number);
        let warm = self.supervisor.warm_run();
        let look = || ProcessSnapshot::of(pid).leaks_since(&warm, &process);
        let leaks: Vec<Leak> = census::poll_until(look, Vec::is_empty).await;
        self.supervisor.run_has_leaked(leaks);
    }
}
