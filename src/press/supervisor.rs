//! Keeps a press alive: starts it, restarts it when it is gone, and forks runs of it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nix::sys::prctl;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use super::press_process::{Command, PressProcess, PressSettings, StartError};
use super::protocol::StartStage;
use super::run_handle::{Cause, RunEnd, RunFailure, RunHandle};
use super::sandbox::SandboxLevel;
use super::worker::Worker;
use crate::census::{Leak, ProcessSnapshot};
use crate::render::TemplateVersions;

/// The longest that all runs together may take to end, when the deadline is not known.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The most presses that are started again in a row, and runs that fail in a row for each worker, before any of
/// them has begun with a document. After these the invocation's documents fail transiently.
const MAX_FAILURES: usize = 3;

/// Keeps one press running for a function and its workers: it stays when the press is replaced.
pub struct Supervisor {
    settings: RefCell<PressSettings>,
    workers: usize,
    press: Mutex<Option<PressProcess>>,
    /// The press that runs, once it is warm.
    running: RefCell<Option<Running>>,
    /// The templates' names in the press's order: their index stands for them.
    templates: RefCell<Vec<String>>,
    last_run: Cell<u64>,
    /// How long runs take to warm themselves, by template.
    warm_up_times: RefCell<BTreeMap<usize, Duration>>,
    warm: RefCell<Warm>,
    stats: RefCell<PressStats>,
    failures: RefCell<FailureStreak>,
}

struct Running {
    pid: u32,
    commands: mpsc::UnboundedSender<Command>,
}

/// What a press and a run held when they had just become warm.
#[derive(Clone, Default)]
struct Warm {
    press: ProcessSnapshot,
    run: ProcessSnapshot,
}

/// The presses that were started and the runs that ended since a document was last begun.
#[derive(Default)]
struct FailureStreak {
    presses: usize,
    runs: usize,
    reason: String,
}

/// What has happened to presses and runs since the statistics were last taken.
#[derive(Debug, Default)]
pub struct PressStats {
    /// The runs that have ended and had seen a message.
    pub ended_runs: Vec<EndedRun>,
    pub replaced_presses: usize,
    /// What runs held more of between two documents than when they were fresh.
    pub leaks_of_runs: Vec<Leak>,
}

/// A run that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedRun {
    /// The number of its worker.
    pub worker: usize,
    /// Why it had not responded for its document. `None` if it had.
    pub cause: Option<Cause>,
    /// The largest resident set in bytes, including what the run shares with its press.
    pub peak_memory_bytes: u64,
    pub cpu_time: Duration,
}

impl Supervisor {
    /// Starts a press, waits until it is warm, forks a run for each of `workers`, and waits until the first
    /// of them has rendered a sample, which proves that documents can be rendered in its sandbox.
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
        prctl::set_child_subreaper(true).map_err(StartError::Subreaper)?;
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
            failures: RefCell::default(),
        });
        let mut workers: Vec<Worker> = (1..=workers).map(|number| Worker::new(number, supervisor.clone())).collect();
        let mut failures = Vec::new();
        loop {
            match supervisor.start_and_prove(&mut workers).await {
                Ok(templates) => return Ok((supervisor, workers, templates)),
                Err(error) => supervisor.decide_on_another_start(error, &mut failures)?,
            }
        }
    }

    /// Decides how to start a press after one has ended while it started. `failures` are the stages in which
    /// presses have ended at this sandbox level. The press may have been killed from outside, or for asking
    /// for a part of its sandbox; in the second case it ends in the same stage again.
    fn decide_on_another_start(&self, error: StartError, failures: &mut Vec<StartStage>) -> Result<(), StartError> {
        let StartError::Ended { stage, .. } = error else { return Err(error) };
        let level = self.sandbox_level();
        let is_second = failures.contains(&stage);
        failures.push(stage);
        if !is_second {
            tracing::warn!(%error, %level, "the press ended during its start; another is started with the same sandbox level");
            return Ok(());
        }
        let Some(lower) = level.lower().filter(|_| stage != StartStage::Loading) else { return Err(error) };
        tracing::warn!(%error, %level, %lower, "the press ended twice at the same stage; another is started with a lower sandbox level");
        self.settings.borrow_mut().sandbox_level = lower;
        failures.clear();
        Ok(())
    }

    async fn start_and_prove(&self, workers: &mut [Worker]) -> Result<TemplateVersions, StartError> {
        let began = Instant::now();
        let templates = self.start_press(&mut *self.press.lock().await).await?;
        let press_warm_after = began.elapsed();
        let press = self.press.lock().await;
        let (samples, steps) =
            press.as_ref().map(|press| (press.sample_times(), press.steps().to_vec())).unwrap_or_default();
        drop(press);
        for (template, took) in &samples {
            tracing::debug!(%template, milliseconds = took.as_secs_f64() * 1000.0, "rendered the sample");
        }
        if self.settings.borrow().max_init_time.is_some_and(|max_time| press_warm_after > max_time) {
            self.kill_press(None).await;
            return Err(StartError::SlowSamples { took: press_warm_after, samples });
        }
        let Some((first, others)) = workers.split_first_mut() else { return Ok(templates) };
        let first_run_began = Instant::now();
        if let Err(how) = first.prove_sandbox().await {
            first.drop_run();
            self.kill_press(None).await;
            return Err(StartError::Ended { stage: StartStage::FirstRun, how });
        }
        others.iter_mut().for_each(Worker::fork_ahead);
        let first_run = ("the first run renders a sample in its sandbox", first_run_began.elapsed());
        for (step, took) in steps.into_iter().chain([first_run]) {
            tracing::debug!(step, milliseconds = took.as_secs_f64() * 1000.0, "a step of init");
        }
        let mut holdings = first.run_id().map(ProcessSnapshot::of).unwrap_or_default();
        // It may be rendering its sample again, on threads that end.
        holdings.threads = [("run".to_owned(), 1)].into();
        self.warm.borrow_mut().run = holdings;
        Ok(templates)
    }

    async fn start_press(&self, slot: &mut Option<PressProcess>) -> Result<TemplateVersions, StartError> {
        let settings = self.settings.borrow().clone();
        let press = slot.insert(PressProcess::spawn(&settings)?);
        let (templates, level) = match press.ready().await {
            Ok(ready) => ready,
            Err(error) => {
                let status = match slot.take() {
                    Some(press) => press.stop().await,
                    None => None,
                };
                return Err(error.with_status(status));
            }
        };
        let (pid, commands) = (press.pid(), press.commands());
        if level < settings.sandbox_level {
            tracing::warn!(%level, wanted = %settings.sandbox_level, "the kernel has no Landlock");
        }
        self.settings.borrow_mut().sandbox_level = level.min(settings.sandbox_level);
        *self.running.borrow_mut() = Some(Running { pid, commands });
        *self.templates.borrow_mut() = templates.keys().cloned().collect();
        let mut holdings = ProcessSnapshot::of(pid);
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
        self.running.borrow().as_ref().map(|running| running.pid)
    }

    /// What the press held when it had just become warm, with a run for each worker.
    #[must_use]
    pub fn warm_press(&self) -> ProcessSnapshot {
        self.warm.borrow().press.clone()
    }

    /// Returns what has happened since this was last called.
    pub fn take_stats(&self) -> PressStats {
        self.stats.take()
    }

    /// Starts a press if the one there was has ended since the last invocation.
    pub async fn ensure_running(&self) {
        // The next document tries again, and says so if it fails too.
        if let Err(error) = self.ensure_press().await {
            tracing::error!(%error, "no press could be started");
        }
    }

    /// Ends every run that has seen a message, even one that is rendering, and waits until all are reaped.
    /// A press that does not respond within half of `time_left` is killed with all its runs.
    pub async fn end_invocation(&self, workers: &mut [Worker], time_left: Option<Duration>) {
        let time = time_left.map_or(END_TIMEOUT, |left| (left / 2).min(END_TIMEOUT));
        if timeout(time, join_all(workers.iter_mut().map(Worker::end_invocation))).await.is_err() {
            tracing::warn!("the press did not end its runs in time: it is ended with them");
            workers.iter_mut().for_each(Worker::drop_run);
            self.kill_press(None).await;
        }
        self.reap_press_if_gone().await;
        self.failures.take();
    }

    /// Replaces the press by another, and forks runs of that which warm themselves.
    pub async fn replace(&self, workers: &mut [Worker]) {
        workers.iter_mut().for_each(Worker::drop_run);
        self.stop_press().await;
        self.ensure_running().await;
        workers.iter_mut().for_each(Worker::fork_ahead);
        join_all(workers.iter_mut().map(Worker::wait_forked)).await;
    }

    /// Ends the press and its runs, and waits for them.
    pub async fn stop(&self, workers: &mut [Worker]) {
        workers.iter_mut().for_each(Worker::drop_run);
        self.stop_press().await;
    }

    /// Starts a press if the last one is known to have ended.
    pub(super) async fn ensure_press(&self) -> Result<(), StartError> {
        let mut slot = self.press.lock().await;
        if slot.as_mut().is_some_and(PressProcess::is_running) {
            return Ok(());
        }
        if slot.is_some() {
            tracing::warn!("the press has ended, and another is started");
            "the press had ended before a document had begun".clone_into(&mut self.failures.borrow_mut().reason);
        }
        self.kill_in(&mut slot).await;
        if self.failures.borrow().presses >= MAX_FAILURES {
            return Err(StartError::GivenUp(self.failures.borrow().reason.clone()));
        }
        let started = self.start_press(&mut slot).await;
        let mut failures = self.failures.borrow_mut();
        failures.presses += 1;
        match &started {
            Ok(_) => self.stats.borrow_mut().replaced_presses += 1,
            Err(error) => failures.reason = error.to_string(),
        }
        if failures.presses == MAX_FAILURES {
            let reason = &failures.reason;
            tracing::error!(
                reason,
                "one press after the other has ended before a document had begun: if this one ends too, documents fail transiently"
            );
        }
        started.map(drop)
    }

    /// Asks the press for a run. Returns `None` if there is no press or no file can be opened.
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

    /// Kills a press that does not respond, and all its runs: the one with these `commands` if it is still
    /// there, or any.
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

    /// Reaps a press that has ended, or was not warm in time: what an invocation started, it ends.
    async fn reap_press_if_gone(&self) {
        let mut slot = self.press.lock().await;
        if slot.as_mut().is_some_and(|press| !press.is_running()) {
            self.kill_in(&mut slot).await;
        }
    }

    pub(super) fn index_of(&self, template: &str) -> Option<usize> {
        self.templates.borrow().iter().position(|name| name == template)
    }

    pub(super) fn last_warm_up(&self, template: usize) -> Option<Duration> {
        self.warm_up_times.borrow().get(&template).copied()
    }

    pub(super) fn run_has_warmed(&self, template: usize, took: Duration) {
        self.warm_up_times.borrow_mut().insert(template, took);
    }

    pub(super) fn warm_run(&self) -> ProcessSnapshot {
        self.warm.borrow().run.clone()
    }

    pub(super) fn run_has_leaked(&self, leaks: Vec<Leak>) {
        self.stats.borrow_mut().leaks_of_runs.extend(leaks);
    }

    pub(super) fn run_has_begun(&self) {
        self.failures.take();
    }

    /// Notes that a run has ended that had seen a message.
    pub(super) fn run_has_ended(&self, worker: usize, cause: Option<Cause>, end: &RunEnd) {
        let (peak_memory_bytes, cpu_time) = (end.process.peak_memory_bytes, end.process.cpu_time);
        tracing::debug!(peak_memory_bytes, ?cpu_time, "a run {}", end.process.status);
        self.stats.borrow_mut().ended_runs.push(EndedRun { worker, cause, peak_memory_bytes, cpu_time });
    }

    /// Notes that a run has failed to respond.
    pub(super) fn run_has_failed(&self, worker: usize, failure: &RunFailure) {
        if let RunFailure::Ended { cause, end, .. } = failure {
            self.run_has_ended(worker, Some(*cause), end);
        }
        match failure {
            RunFailure::Ended { has_begun: true, .. } => self.run_has_begun(),
            RunFailure::Ended { end, .. } => self.run_has_not_begun(format!("the last run {}", end.process.status)),
            RunFailure::NotForked(reason) => self.run_has_not_begun(reason.clone()),
            // How often a press is started is counted apart.
            RunFailure::PressLost(_) | RunFailure::GivenUp(_) => {}
        }
    }

    fn run_has_not_begun(&self, reason: String) {
        let mut failures = self.failures.borrow_mut();
        failures.runs += 1;
        failures.reason = reason;
        if failures.runs == self.max_failed_runs() {
            let (runs, reason) = (failures.runs, &failures.reason);
            tracing::error!(
                runs,
                reason,
                "runs end before they begin with a document: the invocation's documents fail transiently"
            );
        }
    }

    /// Checks whether runs still begin with documents.
    ///
    /// # Errors
    /// When one run after the other has ended before it had begun with a document.
    pub(super) fn check_given_up(&self) -> Result<(), RunFailure> {
        let failures = self.failures.borrow();
        if failures.runs < self.max_failed_runs() {
            return Ok(());
        }
        let (runs, reason) = (failures.runs, &failures.reason);
        Err(RunFailure::GivenUp(format!("{runs} runs in a row have ended before they had begun: {reason}")))
    }

    fn max_failed_runs(&self) -> usize {
        MAX_FAILURES * self.workers
    }
}
