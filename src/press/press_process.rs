//! One press as the function sees it, from its start to its end.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, Child, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::Instrument;

use super::control_socket::{self, FunctionEnd};
use super::protocol::{PressCommand, PressEvent, StartStage};
use super::sandbox::SandboxLevel;
use crate::os::ProcessEnd;
use crate::render::TemplateVersions;

/// The first argument of a program that is started as a press.
pub const PRESS_ROLE: &str = "press";

/// The longest that a press may take to load templates and to render their samples. Lambda itself waits 10 s at
/// init; elsewhere a sample that never ends has to become an error, too.
const INIT_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest that a press may take to end its runs and itself when it is told to. Lambda gives a function 500 ms
/// from SIGTERM on, and the kernel needs 36 ms to free 400 MB of a run.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(200);

/// The longest that reading the last lines of a press may take after it has ended.
const STDERR_DRAIN_TIMEOUT: Duration = Duration::from_millis(100);

const MEBIBYTE: u64 = 1024 * 1024;

/// The settings that a press is started with.
#[derive(Clone, Debug)]
pub struct PressSettings {
    /// A program whose `main` calls [`crate::run_press_if_requested`], as pressrun's own does.
    pub program: PathBuf,
    pub templates_dir: PathBuf,
    /// The templates that the press has; all, if none is named.
    pub only_templates: Vec<String>,
    /// The longest that the press may take to become warm, if there is such a time: a template that is near
    /// Lambda's limit has to be noticed when it is deployed.
    pub max_init_time: Option<Duration>,
    /// The most threads that a document may have.
    pub cores: usize,
    /// How far press and runs are restricted, if the kernel allows it.
    pub sandbox_level: SandboxLevel,
}

/// Why a press did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot start a press: {}: {error}", program.display())]
    Spawn {
        program: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("{0}")]
    Broken(String),
    #[error(
        "{} MB of memory are too little: function and press have {} MB already, and each of {workers} runs needs \
         64 MB for a document; give the function more memory (MEMORY_MB outside Lambda) or fewer WORKERS",
        memory_bytes / MEBIBYTE, resident_bytes / MEBIBYTE
    )]
    Memory { memory_bytes: u64, resident_bytes: u64, workers: usize },
    #[error("{stage}: {how}")]
    Ended { stage: StartStage, how: String },
    #[error(
        "a press was not warm after {} s: it was {}",
        INIT_TIMEOUT.as_secs(), doing(templates)
    )]
    Slow { templates: Vec<String> },
    #[error(
        "init took {} ms, and Lambda gives it 10 s: the samples took {}; make the first of them shorter, or what its \
         template does at each document, such as a plugin that it runs",
        took.as_millis(), in_milliseconds(samples)
    )]
    SlowSamples { took: Duration, samples: Vec<(String, Duration)> },
    #[error("this process cannot become a child subreaper (PR_SET_CHILD_SUBREAPER): {0}")]
    Subreaper(#[source] Errno),
    #[error("one press after the other has ended in this invocation: {0}")]
    GivenUp(String),
}

impl StartError {
    /// Adds how the press ended, if that is not part of the error yet.
    pub(super) fn with_status(self, status: Option<ExitStatus>) -> Self {
        match (self, status) {
            (Self::Ended { stage, how }, Some(status)) => Self::Ended { stage, how: format!("{how} ({status})") },
            (error, _) => error,
        }
    }
}

fn in_milliseconds(samples: &[(String, Duration)]) -> String {
    let each = samples.iter().map(|(name, took)| format!("{name} {} ms", took.as_millis()));
    each.collect::<Vec<_>>().join(", ")
}

/// Says what a press was doing that was not warm in time, while it was rendering these templates' samples.
fn doing(templates: &[String]) -> String {
    let quoted: Vec<String> = templates.iter().map(|name| format!("the template {name:?}")).collect();
    match quoted.join(" and ") {
        names if names.is_empty() => "loading fonts and templates".to_owned(),
        names => format!("rendering sample.json of {names}; does that never end?"),
    }
}

/// What the press has said about a run. Nothing more comes when the press is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunState {
    Requested,
    Forked { pid: u32 },
    NotForked { errno: i32 },
    Ended(ProcessEnd),
}

/// What the function asks the press for.
pub(super) enum Command {
    Fork { run: u64, sample: Option<usize>, pipes: [OwnedFd; 3], state: watch::Sender<RunState> },
    Kill { run: u64 },
}

/// A press that has been started. Dropping this ends the press and its runs.
pub(super) struct PressProcess {
    process: Child,
    is_reaped: bool,
    /// The process group of the press and its runs.
    group: Pid,
    /// The control socket and the queue of commands, until the press is warm.
    starting: Option<(FunctionEnd, mpsc::UnboundedReceiver<Command>)>,
    commands: mpsc::UnboundedSender<Command>,
    /// The task that sends commands and receives events, once the press is warm.
    control: Option<JoinHandle<()>>,
    /// How long the samples took, by template, once the press is warm.
    sample_times: Vec<(String, Duration)>,
    /// How long each step of its start took, once the press is warm.
    steps: Vec<(&'static str, Duration)>,
    log: JoinHandle<()>,
}

impl PressProcess {
    /// Starts a press, which begins to become warm. It and its runs die with the thread that this is called on,
    /// which has to be the function's main thread.
    pub fn spawn(settings: &PressSettings) -> Result<Self, StartError> {
        Self::try_spawn(settings).map_err(|error| StartError::Spawn { program: settings.program.clone(), error })
    }

    fn try_spawn(settings: &PressSettings) -> io::Result<Self> {
        let (function_end, press_end) = control_socket::pair()?;
        // Not tokio's `Command`, which asks for a pidfd: a filter around the function may kill it for that.
        let mut process = process::Command::new(&settings.program)
            .arg(PRESS_ROLE)
            .arg(&settings.templates_dir)
            .arg(settings.cores.to_string())
            .arg(settings.sandbox_level.to_string())
            .arg(process::id().to_string())
            .args(&settings.only_templates)
            .env_clear()
            .stdin(Stdio::from(press_end))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let stderr = process.stderr.take().ok_or_else(|| io::Error::other("stderr is not piped"))?;
        let stderr = pipe::Receiver::from_owned_fd(stderr.into())?;
        let (commands, receiver) = mpsc::unbounded_channel();
        Ok(Self {
            group: Pid::from_raw(i32::try_from(process.id()).map_err(io::Error::other)?),
            process,
            is_reaped: false,
            starting: Some((FunctionEnd::new(function_end)?, receiver)),
            commands,
            control: None,
            sample_times: Vec::new(),
            steps: Vec::new(),
            log: tokio::spawn(log_stderr(stderr).instrument(tracing::error_span!(parent: None, "press"))),
        })
    }

    /// Waits until the press is warm.
    pub async fn ready(&mut self) -> Result<(TemplateVersions, SandboxLevel), StartError> {
        let (socket, commands) = self.starting.take().ok_or_else(|| ended(StartStage::Loading, "it was given up"))?;
        let mut progress = Progress::new();
        let Ok(templates) = timeout(INIT_TIMEOUT, progress.follow(&socket)).await else {
            return Err(StartError::Slow { templates: progress.rendering });
        };
        let ready = templates?;
        self.sample_times = progress.took;
        self.steps = progress.steps;
        self.control = Some(tokio::spawn(control(socket, commands)));
        Ok(ready)
    }

    /// How long each template's sample took, the slowest first.
    pub fn sample_times(&self) -> Vec<(String, Duration)> {
        let mut times = self.sample_times.clone();
        times.sort_by_key(|(_, took)| Reverse(*took));
        times
    }

    /// How long each step of its start took, in their order.
    pub fn steps(&self) -> &[(&'static str, Duration)] {
        &self.steps
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn commands(&self) -> mpsc::UnboundedSender<Command> {
        self.commands.clone()
    }

    /// Whether it is warm, and as far as anyone has noticed still there.
    pub fn is_running(&mut self) -> bool {
        self.control.as_ref().is_some_and(|control| !control.is_finished()) && self.try_wait().is_none()
    }

    /// How the press has ended, if it has.
    fn try_wait(&mut self) -> Option<ExitStatus> {
        // It cannot fail for a child that nobody else waits for.
        let status = self.process.try_wait().ok().flatten();
        self.is_reaped |= status.is_some();
        status
    }

    async fn wait(&mut self) -> io::Result<ExitStatus> {
        let mut child_signals = signal(SignalKind::child())?;
        loop {
            if let Some(status) = self.try_wait() {
                return Ok(status);
            }
            child_signals.recv().await;
        }
    }

    /// Tells the press to end, which kills and reaps its runs first; kills them all if it does not.
    /// How it ended, if that can be told.
    pub async fn stop(mut self) -> Option<ExitStatus> {
        // Else it is loading, and does not read its socket.
        let was_warm = self.control.is_some();
        self.close_socket().await;
        if was_warm {
            let _ = timeout(SHUTDOWN_TIMEOUT, self.wait()).await;
        }
        self.kill().await
    }

    /// Ends the press and its runs at once and waits for all of them: when a press is killed, its
    /// runs are this process's children.
    pub async fn kill(mut self) -> Option<ExitStatus> {
        self.close_socket().await;
        self.kill_group();
        let status = self.wait().await;
        self.reap_orphans().await;
        // Ends with the press and its runs, if they were the only ones to hold the other end.
        if timeout(STDERR_DRAIN_TIMEOUT, &mut self.log).await.is_err() {
            self.log.abort();
        }
        status.inspect_err(|error| tracing::error!(%error, "a press cannot be waited for")).ok()
    }

    /// Kills the press and its runs, if any of them has not been reaped: that keeps the number theirs.
    fn kill_group(&self) {
        if !self.is_reaped || self.has_orphans() {
            let _ = killpg(self.group, Signal::SIGKILL);
        }
    }

    async fn close_socket(&mut self) {
        self.starting = None;
        if let Some(control) = self.control.take() {
            control.abort();
            let _ = control.await;
        }
    }

    async fn reap_orphans(&self) {
        let Ok(mut child_signals) = signal(SignalKind::child()) else { return };
        while self.has_orphans() {
            child_signals.recv().await;
        }
    }

    /// Reaps those of its runs that have ended. Whether there are others.
    fn has_orphans(&self) -> bool {
        loop {
            match waitpid(Pid::from_raw(-self.group.as_raw()), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return true,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }
}

/// However a function ends with a press, it leaves neither the press nor a run.
impl Drop for PressProcess {
    fn drop(&mut self) {
        self.kill_group();
        // Killed processes end within milliseconds, but not at once.
        for _ in 0..1000 {
            if self.try_wait().is_some() && !self.has_orphans() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// How far a press has come that is starting.
struct Progress {
    stage: StartStage,
    /// The templates whose samples are being rendered.
    rendering: Vec<String>,
    /// How long the samples took that have been rendered, by template.
    took: Vec<(String, Duration)>,
    /// How long the steps took that are over.
    steps: Vec<(&'static str, Duration)>,
    /// When the last of them was over.
    step_began: Instant,
}

impl Progress {
    /// The progress of a press that has just been started.
    fn new() -> Self {
        Self {
            stage: StartStage::Loading,
            rendering: Vec::new(),
            took: Vec::new(),
            steps: Vec::new(),
            step_began: Instant::now(),
        }
    }

    async fn follow(&mut self, socket: &FunctionEnd) -> Result<(TemplateVersions, SandboxLevel), StartError> {
        let mut templates = TemplateVersions::new();
        loop {
            match socket.receive().await {
                Ok(Some(PressEvent::Starting { stage })) => {
                    match stage {
                        StartStage::Loading => self.end_step("the process starts"),
                        StartStage::Sandbox if !self.took.is_empty() => self.end_step("samples are rendered"),
                        _ => {}
                    }
                    self.stage = stage;
                }
                Ok(Some(PressEvent::SampleBegun { template })) => {
                    if self.took.is_empty() && self.rendering.is_empty() {
                        self.end_step("fonts, templates and schemas are loaded");
                    }
                    self.rendering.push(template);
                }
                Ok(Some(PressEvent::SampleEnded { template, took })) => {
                    self.rendering.retain(|name| *name != template);
                    self.took.push((template, took));
                }
                Ok(Some(PressEvent::Ready { count, name, version, level })) => {
                    templates.insert(name, version);
                    if templates.len() == count {
                        self.end_step("the press restricts itself");
                        return Ok((templates, level));
                    }
                }
                Ok(Some(PressEvent::Broken { reason })) => return Err(StartError::Broken(reason)),
                Ok(Some(event)) => {
                    return Err(ended(self.stage, &format!("unexpected event {event:?} on the control socket")));
                }
                Ok(None) => return Err(ended(self.stage, "it closed its end of the control socket")),
                Err(error) => return Err(ended(self.stage, &error.to_string())),
            }
        }
    }

    fn end_step(&mut self, step: &'static str) {
        self.steps.push((step, self.step_began.elapsed()));
        self.step_began = Instant::now();
    }
}

fn ended(stage: StartStage, how: &str) -> StartError {
    StartError::Ended { stage, how: how.to_owned() }
}

/// Sends commands to the press and hands its events to those who wait for its runs. Ends when the press is gone;
/// by that the latter know that there will be no more events.
async fn control(socket: FunctionEnd, mut commands: mpsc::UnboundedReceiver<Command>) {
    let runs = Mutex::new(HashMap::new());
    let sending = async {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Fork { run, sample, pipes, state } => {
                    lock(&runs).insert(run, state);
                    socket.send(PressCommand::Fork { run, sample }, &pipes).await?;
                }
                Command::Kill { run } if lock(&runs).contains_key(&run) => {
                    socket.send(PressCommand::Kill { run }, &[]).await?;
                }
                // The run has ended, and the press has said so.
                Command::Kill { .. } => {}
            }
        }
        Ok::<_, io::Error>(())
    };
    let receiving = async {
        while let Some(event) = socket.receive().await? {
            let (run, state, is_over) = match event {
                PressEvent::Forked { run, pid } => {
                    (run, RunState::Forked { pid: u32::try_from(pid).map_err(io::Error::other)? }, false)
                }
                PressEvent::NotForked { run, errno } => (run, RunState::NotForked { errno }, true),
                PressEvent::Ended { run, end } => (run, RunState::Ended(end), true),
                event => return Err(io::Error::other(format!("unexpected event {event:?} on the control socket"))),
            };
            let mut runs = lock(&runs);
            if let Some(sender) = runs.get(&run) {
                sender.send_replace(state);
            }
            if is_over {
                runs.remove(&run);
            }
        }
        Ok(())
    };
    let closed = tokio::select! { closed = sending => closed, closed = receiving => closed };
    if let Err(error) = closed {
        tracing::warn!(%error, "the control socket of the press failed");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Logs what a press writes to stderr.
async fn log_stderr(stderr: pipe::Receiver) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::warn!("{line}");
    }
}
