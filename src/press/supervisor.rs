//! Keeps a press alive: starts it, restarts it when it is gone, and forks runs of it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::prctl;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use super::press_process::{Command, PressProcess, PressSettings, StartError, StartStage};
use super::run_handle::{Cause, RunEnd, RunFailure, RunHandle};
use super::sandbox::SandboxLevel;
use super::worker::Worker;
use crate::census::{Growth, Holdings};
use crate::typeset::TemplateVersions;

/// How long all runs together may take to end when the deadline is not known.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a press is started again, and a run forked for each worker, with none of them getting
/// to a document. Then the invocation's documents fail for now.
const MAX_STARTS_IN_VAIN: usize = 3;

/// What function and workers share of the press. It stays when the press is replaced.
pub struct Supervisor {
    settings: RefCell<PressSettings>,
    workers: usize,
    press: Mutex<Option<PressProcess>>,
    /// Of the press that runs, once it is warm.
    running: RefCell<Option<Running>>,
    /// By index, as the press counts them.
    templates: RefCell<Vec<String>>,
    last_run: Cell<u64>,
    /// How long runs take to warm themselves, by template.
    warm_up_times: RefCell<BTreeMap<usize, Duration>>,
    warm: RefCell<Warm>,
    stats: RefCell<PressStats>,
    in_vain: RefCell<InVain>,
}

struct Running {
    pid: Option<u32>,
    commands: mpsc::UnboundedSender<Command>,
}

/// What a press and a run held when they had just become warm.
#[derive(Clone, Default)]
struct Warm {
    press: Holdings,
    run: Holdings,
}

/// Starts and forks since a document was last begun with.
#[derive(Default)]
struct InVain {
    presses: usize,
    runs: usize,
    reason: String,
}

/// What has happened to presses and runs since it was asked last.
#[derive(Debug, Default)]
pub struct PressStats {
    /// The runs that have ended after they had seen a message.
    pub ended_runs: Vec<EndedRun>,
    pub replaced_presses: usize,
    /// What runs held more of between two documents than when they were fresh.
    pub growth_of_runs: Vec<Growth>,
}

/// A run that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedRun {
    /// The number of its worker.
    pub worker: usize,
    /// Why it had not answered for its document. `None` when it had.
    pub cause: Option<Cause>,
    /// The largest resident set, what it shares with its press included.
    pub peak_memory_bytes: u64,
    pub cpu_time: Duration,
}

impl Supervisor {
    /// Starts a press, waits until it is warm, forks a run for each of `workers` and waits until the
    /// first of them has rendered a sample: a proof that documents can be rendered in its sandbox.
    ///
    /// Makes this process the one that orphans of a dead press are given to. Has to be called on the
    /// main thread: the press ends with the thread that has started it.
    ///
    /// # Errors
    /// When the program cannot be started, a template is broken, or presses end again and again.
    pub async fn start(
        settings: PressSettings,
        workers: usize,
    ) -> Result<(Rc<Self>, Vec<Worker>, TemplateVersions), StartError> {
        prctl::set_child_subreaper(true)
            .map_err(|errno| StartError::Spawn { program: settings.program.clone(), error: errno.into() })?;
        let supervisor = Rc::new(Self {
            settings: RefCell::new(settings),
            workers,
            press: Mutex::default(),
            running: RefCell::default(),
            templates: RefCell::default(),
            last_run: Cell::default(),
            warm_up_times: RefCell::default(),
            warm: RefCell::default(),
            stats: RefCell::default(),
            in_vain: RefCell::default(),
        });
        let mut workers: Vec<Worker> = (1..=workers).map(|number| Worker::new(number, supervisor.clone())).collect();
        let mut failed_at = None;
        loop {
            let error = match supervisor.start_and_prove(&mut workers).await {
                Ok(templates) => return Ok((supervisor, workers, templates)),
                Err(error) => error,
            };
            failed_at = Some(supervisor.try_again_after(error, failed_at)?);
        }
    }

    /// Decides how to start a press after one has ended in its start. It may have been killed from
    /// outside; or for asking for a part of its sandbox, or the kernel may lack that: but then it
    /// ends there again.
    fn try_again_after(&self, error: StartError, failed_at: Option<StartStage>) -> Result<StartStage, StartError> {
        let StartError::Ended { stage, .. } = error else { return Err(error) };
        let level = self.sandbox_level();
        if failed_at != Some(stage) {
            tracing::warn!(%error, %level, "a press is started again in the same way");
            return Ok(stage);
        }
        match level.lower().filter(|_| stage != StartStage::Loading) {
            Some(lower) => {
                tracing::warn!(%error, %level, %lower, "twice: a press is started with a lower level of the sandbox");
                self.settings.borrow_mut().sandbox_level = lower;
                // One that ends at the lower level is given a second chance there, too.
                Ok(StartStage::Loading)
            }
            None => Err(error),
        }
    }

    async fn start_and_prove(&self, workers: &mut [Worker]) -> Result<TemplateVersions, StartError> {
        let templates = self.start_press(&mut *self.press.lock().await).await?;
        join_all(workers.iter_mut().map(Worker::fork_ahead)).await;
        let Some(first) = workers.first_mut() else { return Ok(templates) };
        if let Err(how) = first.prove().await {
            workers.iter_mut().for_each(Worker::drop_run);
            self.kill_press(None).await;
            return Err(StartError::Ended { stage: StartStage::FirstRun, how });
        }
        self.warm.borrow_mut().run = first.run_id().map(Holdings::of).unwrap_or_default();
        Ok(templates)
    }

    async fn start_press(&self, slot: &mut Option<PressProcess>) -> Result<TemplateVersions, StartError> {
        let settings = self.settings.borrow().clone();
        let press = slot.insert(PressProcess::spawn(&settings)?);
        let templates = match press.ready().await {
            Ok(templates) => templates,
            Err(error) => {
                let status = match slot.take() {
                    Some(press) => press.stop().await,
                    None => None,
                };
                return Err(error.with_status(status));
            }
        };
        let (pid, commands) = (press.pid(), press.commands());
        *self.running.borrow_mut() = Some(Running { pid, commands });
        *self.templates.borrow_mut() = templates.keys().cloned().collect();
        let mut holdings = pid.map(Holdings::of).unwrap_or_default();
        holdings.children = [("run".to_owned(), self.workers)].into();
        self.warm.borrow_mut().press = holdings;
        Ok(templates)
    }

    /// How far press and runs are restricted.
    #[must_use]
    pub fn sandbox_level(&self) -> SandboxLevel {
        self.settings.borrow().sandbox_level
    }

    /// The press's process id, while there is one.
    #[must_use]
    pub fn press_id(&self) -> Option<u32> {
        self.running.borrow().as_ref().and_then(|running| running.pid)
    }

    /// What the press held when it had just become warm, with a run for each worker.
    #[must_use]
    pub fn warm_press(&self) -> Holdings {
        self.warm.borrow().press.clone()
    }

    /// What has happened since this was asked last.
    pub fn take_stats(&self) -> PressStats {
        self.stats.take()
    }

    /// Starts a press if the one there was has ended since the last invocation.
    pub async fn ensure_running(&self) {
        // The next document tries again, and says so if it fails too.
        if let Err(error) = self.press().await {
            tracing::error!(%error, "the press cannot be replaced");
        }
    }

    /// Ends every run that has seen a message, and waits until all are reaped. A document that is
    /// still under way is given up. Without an answer from the press it is ended with all its runs,
    /// after half of `time_left` at most.
    pub async fn end_invocation(&self, workers: &mut [Worker], time_left: Option<Duration>) {
        let time = time_left.map_or(END_TIMEOUT, |left| (left / 2).min(END_TIMEOUT));
        if timeout(time, join_all(workers.iter_mut().map(Worker::end_invocation))).await.is_err() {
            tracing::warn!("the press did not end its runs in time: it is ended with them");
            workers.iter_mut().for_each(Worker::drop_run);
            self.kill_press(None).await;
        }
        self.reap_press_if_gone().await;
        self.in_vain.take();
    }

    /// Starts another press in place of this one, and runs of it that warm themselves.
    pub async fn replace(&self, workers: &mut [Worker]) {
        workers.iter_mut().for_each(Worker::drop_run);
        self.stop_press().await;
        self.ensure_running().await;
        join_all(workers.iter_mut().map(Worker::fork_ahead)).await;
    }

    /// Ends the press and its runs, and waits for them.
    pub async fn stop(&self, workers: &mut [Worker]) {
        workers.iter_mut().for_each(Worker::drop_run);
        self.stop_press().await;
    }

    /// Makes sure that there is a press, as far as anyone has noticed.
    pub(super) async fn press(&self) -> Result<(), StartError> {
        let mut slot = self.press.lock().await;
        if slot.as_mut().is_some_and(PressProcess::is_running) {
            return Ok(());
        }
        if slot.is_some() {
            tracing::warn!("the press has ended, and another is started");
        }
        self.kill_in(&mut slot).await;
        if self.in_vain.borrow().presses >= MAX_STARTS_IN_VAIN {
            return Err(StartError::GivenUp(self.in_vain.borrow().reason.clone()));
        }
        let started = self.start_press(&mut slot).await;
        let mut in_vain = self.in_vain.borrow_mut();
        in_vain.presses += 1;
        match &started {
            Ok(_) => self.stats.borrow_mut().replaced_presses += 1,
            Err(error) => in_vain.reason = error.to_string(),
        }
        started.map(drop)
    }

    /// Asks the press for a run. `None` if there is no press, or no file to be opened.
    pub(super) fn fork(&self, sample: Option<usize>) -> Option<RunHandle> {
        let commands = self.running.borrow().as_ref()?.commands.clone();
        if commands.is_closed() {
            return None;
        }
        self.last_run.update(|number| number + 1);
        RunHandle::fork(self.last_run.get(), commands, sample)
            .inspect_err(|error| tracing::error!(%error, "a run's pipes cannot be opened"))
            .ok()
    }

    /// Ends a press that does not answer, and all its runs: this one, if it is still there, or
    /// whichever there is.
    pub(super) async fn kill_press(&self, commands: Option<&mpsc::UnboundedSender<Command>>) {
        let mut slot = self.press.lock().await;
        let is_meant = |press: &PressProcess| commands.is_none_or(|commands| press.commands().same_channel(commands));
        if slot.as_ref().is_some_and(is_meant) {
            self.kill_in(&mut slot).await;
        }
    }

    async fn kill_in(&self, slot: &mut Option<PressProcess>) {
        self.running.take();
        if let Some(press) = slot.take() {
            press.kill().await;
        }
    }

    async fn stop_press(&self) {
        self.running.take();
        if let Some(press) = self.press.lock().await.take() {
            press.stop().await;
        }
    }

    /// What an invocation started it ends, even a press that was not warm in time.
    async fn reap_press_if_gone(&self) {
        let mut slot = self.press.lock().await;
        if slot.as_mut().is_some_and(|press| !press.is_running()) {
            self.kill_in(&mut slot).await;
        }
    }

    pub(super) fn index_of(&self, template: &str) -> Option<usize> {
        self.templates.borrow().iter().position(|name| name == template)
    }

    pub(super) fn usual_warm_up(&self, template: usize) -> Option<Duration> {
        self.warm_up_times.borrow().get(&template).copied()
    }

    pub(super) fn run_has_warmed(&self, template: usize, took: Duration) {
        self.warm_up_times.borrow_mut().insert(template, took);
    }

    pub(super) fn warm_run(&self) -> Holdings {
        self.warm.borrow().run.clone()
    }

    pub(super) fn run_has_grown(&self, growth: Vec<Growth>) {
        self.stats.borrow_mut().growth_of_runs.extend(growth);
    }

    pub(super) fn run_has_begun(&self) {
        self.in_vain.take();
    }

    /// Tells of a run that has seen a message.
    pub(super) fn run_has_ended(&self, worker: usize, cause: Option<Cause>, end: &RunEnd) {
        let (peak_memory_bytes, cpu_time) = (end.process.peak_memory_bytes, end.process.cpu_time);
        tracing::debug!(worker, peak_memory_bytes, ?cpu_time, "a run {}", end.process.status);
        self.stats.borrow_mut().ended_runs.push(EndedRun { worker, cause, peak_memory_bytes, cpu_time });
    }

    /// Tells of a run that has not answered.
    pub(super) fn run_has_failed(&self, worker: usize, failure: &RunFailure) {
        if let RunFailure::Ended { cause, end, .. } = failure {
            self.run_has_ended(worker, Some(*cause), end);
        }
        match failure {
            RunFailure::Ended { has_begun: true, .. } => self.run_has_begun(),
            RunFailure::Ended { end, .. } => self.run_was_stillborn(format!("the last run {}", end.process.status)),
            RunFailure::NotForked(reason) => self.run_was_stillborn(reason.clone()),
            // How often a press is started is counted apart.
            RunFailure::PressLost(_) | RunFailure::Stillborn(_) => {}
        }
    }

    fn run_was_stillborn(&self, reason: String) {
        let mut in_vain = self.in_vain.borrow_mut();
        in_vain.runs += 1;
        in_vain.reason = reason;
        if in_vain.runs == self.max_stillborn_runs() {
            let (runs, reason) = (in_vain.runs, &in_vain.reason);
            tracing::error!(runs, reason, "runs end before they begin: the invocation's documents fail for now");
        }
    }

    /// # Errors
    /// When one run after the other has ended before it had begun with a document.
    pub(super) fn check_stillborn(&self) -> Result<(), RunFailure> {
        let in_vain = self.in_vain.borrow();
        if in_vain.runs < self.max_stillborn_runs() {
            return Ok(());
        }
        let (runs, reason) = (in_vain.runs, &in_vain.reason);
        Err(RunFailure::Stillborn(format!("{runs} runs in a row have ended before they had begun: {reason}")))
    }

    fn max_stillborn_runs(&self) -> usize {
        MAX_STARTS_IN_VAIN * self.workers
    }
}
