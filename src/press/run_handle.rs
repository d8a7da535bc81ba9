//! One run as the function sees it: its pipes, its responses, and how it ended.
//!
//! There are two sources of truth. What a run writes to its pipes is about its document, and is bounded. How it
//! ended comes from the press, through [`RunState`].

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::codec::{FramedRead, FramedWrite};

use super::exchange::{RESPONSE_GRACE, Reception, Request, RunResponse, Stop, exchange};
use super::memory_watch::MemoryWatch;
use super::press_process::{Command, RunState};
use super::protocol::{FrameCodec, FrameKind};
use crate::os::{EXIT_OUT_OF_MEMORY, ExitStatus, ProcessEnd};

/// The longest that a run may take to end when it is killed: the kernel needs 200 ms to free 2 GB.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest that reading what a run has written may take after it has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(100);

/// The most bytes that are kept of a run's stderr.
const MAX_STDERR_BYTES: usize = 4096;
/// The most lines of it that are logged, and the most bytes of a line.
const MAX_STDERR_LINES: usize = 5;
const MAX_STDERR_LINE_BYTES: usize = 200;

/// Why there is no response for a document.
#[derive(Debug)]
pub enum RunFailure {
    /// The run has ended, by itself or killed by the function.
    Ended {
        cause: Cause,
        /// Whether it had begun with the document.
        has_begun: bool,
        end: RunEnd,
    },
    /// The press could not fork a run, which is not the document's fault.
    NotForked(String),
    /// The press is gone, and the run with it, or it does not respond. That is not the document's fault.
    PressLost(String),
    /// One run or press after the other has ended before it had begun with a document, and no other is started in
    /// this invocation.
    GivenUp(String),
}

/// Why a run ended before it had responded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The document had begun, and the way its run ended is one that a document can cause.
    Document,
    /// The document had used its time, and the function had the run killed.
    TimeLimit,
    /// The run was refused memory.
    MemoryLimit,
    /// The PDF is larger than the function has memory for, and the function had the run killed.
    PdfTooLarge,
    /// The run was ended from outside, or before the document had begun, or because it broke the protocol: the
    /// document is rendered again.
    External,
}

/// How a run ended, and the beginning of what it had written to stderr.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunEnd {
    pub process: ProcessEnd,
    pub stderr: String,
}

impl RunEnd {
    /// The first few lines of the run's stderr, shortened.
    pub fn stderr_lines(&self) -> impl Iterator<Item = &str> {
        let lines = self.stderr.lines().filter(|line| !line.trim().is_empty());
        lines.take(MAX_STDERR_LINES).map(|line| &line[..line.floor_char_boundary(MAX_STDERR_LINE_BYTES)])
    }
}

/// The function's handle of a run. Dropping it has the run killed.
pub(super) struct RunHandle {
    number: u64,
    press: mpsc::UnboundedSender<Command>,
    state: watch::Receiver<RunState>,
    requests: FramedWrite<pipe::Sender, FrameCodec>,
    responses: FramedRead<pipe::Receiver, FrameCodec>,
    stderr: Stderr,
    forked_at: Instant,
    /// The index of the template whose sample the run warms itself with, if any.
    sample: Option<usize>,
    /// Whether the run has not said yet that it is warm, so that a document would have to wait.
    is_warming: bool,
    progress: RunProgress,
    /// The least memory that a document of it might have: a run cannot get more again.
    memory_limit_bytes: Option<u64>,
}

/// What a run has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunProgress {
    /// It has seen no byte of a message.
    Unused,
    /// It has a document that it has not responded for.
    Rendering { is_first: bool },
    /// It has responded for all its documents.
    Idle,
}

impl RunHandle {
    /// Asks the press for a run. A document can be sent to it at once.
    ///
    /// # Errors
    /// When the function can open no more files.
    pub fn fork(number: u64, press: mpsc::UnboundedSender<Command>, sample: Option<usize>) -> io::Result<Self> {
        let (requests_of_run, requests) = unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (responses, responses_of_run) = unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, stderr_of_run) = unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (state_sender, state) = watch::channel(RunState::Requested);
        // The function's ends do not block. The run's do, or writing to a full stderr would be an error there.
        let (requests, responses) = (pipe::Sender::from_owned_fd(requests)?, pipe::Receiver::from_owned_fd(responses)?);
        let stderr = Stderr::read(pipe::Receiver::from_owned_fd(stderr)?);
        let pipes = [requests_of_run, responses_of_run, stderr_of_run];
        // If the press is gone, the state says so.
        let _ = press.send(Command::Fork { run: number, sample, pipes, state: state_sender });
        Ok(Self {
            number,
            press,
            state,
            requests: FramedWrite::new(requests, FrameCodec::default()),
            responses: FramedRead::new(responses, FrameCodec::default()),
            stderr,
            forked_at: Instant::now(),
            sample,
            is_warming: sample.is_some(),
            progress: RunProgress::Unused,
            memory_limit_bytes: None,
        })
    }

    pub fn has_seen_message(&self) -> bool {
        self.progress != RunProgress::Unused
    }

    /// Whether it has not responded for any document yet.
    pub fn is_fresh(&self) -> bool {
        matches!(self.progress, RunProgress::Unused | RunProgress::Rendering { is_first: true })
    }

    /// Whether it waits for another document after one that it has responded for.
    pub fn is_idle(&self) -> bool {
        self.progress == RunProgress::Idle
    }

    /// The index of the template whose sample it warms itself with, if any.
    pub fn sample(&self) -> Option<usize> {
        self.sample
    }

    pub fn pid(&self) -> Option<u32> {
        match *self.state.borrow() {
            RunState::Forked { pid } => Some(pid),
            _ => None,
        }
    }

    /// Whether it has been asked for and has not ended, as far as the press has said.
    pub fn is_alive(&self) -> bool {
        let is_told = matches!(*self.state.borrow(), RunState::Requested | RunState::Forked { .. });
        is_told && self.state.has_changed().is_ok()
    }

    /// The time since it was asked for, if it is not warm yet.
    pub fn warming_for(&self) -> Option<Duration> {
        self.is_warming.then(|| self.forked_at.elapsed())
    }

    /// Waits until it has rendered a sample in its sandbox, as the first run of a press does. Returns `false` if it
    /// has ended or says something else.
    pub async fn wait_sandboxed(&mut self) -> bool {
        matches!(self.responses.next().await, Some(Ok(frame)) if frame.kind == FrameKind::Sandboxed)
    }

    /// Waits until it is warm, and returns how long that took it, or `None` if it has ended or says something else.
    pub async fn warmed(&mut self) -> Option<Duration> {
        loop {
            let frame = self.responses.next().await?.ok()?;
            match frame.kind {
                FrameKind::Sandboxed => {}
                FrameKind::Warm => {
                    self.is_warming = false;
                    // It cannot have taken longer than it is there.
                    return frame.parse::<Duration>().ok().map(|took| took.min(self.forked_at.elapsed()));
                }
                _ => return None,
            }
        }
    }

    /// Whether it has written something that the function has not read.
    pub fn has_unread_output(&self) -> bool {
        let mut pipe = [PollFd::new(self.responses.get_ref().as_fd(), PollFlags::POLLIN)];
        !self.responses.read_buffer().is_empty() || poll(&mut pipe, PollTimeout::ZERO) != Ok(0)
    }

    /// Waits until the press has forked it or has said that it cannot. Returns `false` if it says neither.
    pub async fn wait_forked(&mut self) -> bool {
        let is_told = |state: &RunState| *state != RunState::Requested;
        timeout(KILL_TIMEOUT, self.state.wait_for(is_told)).await.is_ok_and(|told| told.is_ok())
    }

    /// Has the press kill it, if it has not ended by itself. Returns at once.
    pub fn kill(&self) {
        // If the press is gone its runs are too.
        let _ = self.press.send(Command::Kill { run: self.number });
    }

    /// The commands of the press that this is a run of.
    pub fn press(&self) -> &mpsc::UnboundedSender<Command> {
        &self.press
    }

    /// Waits until the run, which has been killed, has ended and been reaped.
    ///
    /// # Errors
    /// When it was not forked, the press is gone, or the press does not say that it has ended.
    pub async fn ended(&mut self) -> Result<RunEnd, RunFailure> {
        let process = ended_in_time(&mut self.state).await?;
        Ok(RunEnd { process, stderr: self.stderr.take().await })
    }

    /// Has a document rendered, with more threads as `threads` allows them, and waits for the response or the end of
    /// the run. A run that breaks the protocol is killed.
    ///
    /// # Errors
    /// When the run has ended without a response. The document then needs another run.
    pub async fn render(
        &mut self,
        request: &Request,
        threads: &mut watch::Receiver<usize>,
    ) -> Result<RunResponse, RunFailure> {
        let was_fresh = self.is_fresh();
        self.progress = RunProgress::Rendering { is_first: was_fresh };
        let mut reception = Reception::new(request.max_response_bytes);
        let mut memory = self.watch_memory(request.limits.memory_bytes);
        let stop = tokio::select! {
            stop = exchange(
                &mut self.requests, &mut self.responses, request, threads, memory.as_mut(), &mut reception,
            ) => stop,
            _ = ended(&mut self.state) => Stop::RunEnded,
        };
        if let Some(response) = reception.response.take() {
            self.progress = RunProgress::Idle;
            return Ok(reception.into_response(response));
        }
        if matches!(stop, Stop::PipeClosed) {
            // Most likely it is ending by itself, and how is to be known.
            let _ = timeout(RESPONSE_GRACE, ended(&mut self.state)).await;
        }
        self.kill();
        let process = ended_in_time(&mut self.state).await?;
        // A complete response counts, even if the run has died after it.
        self.drain(&mut reception).await;
        if let Some(response) = reception.response.take() {
            return Ok(reception.into_response(response));
        }
        let end = RunEnd { process, stderr: self.stderr.take().await };
        let has_begun = reception.has_begun;
        Err(RunFailure::Ended { cause: cause(&stop, has_begun, was_fresh, &end), has_begun, end })
    }

    /// Watches the memory of the run, if it is limited.
    fn watch_memory(&mut self, limit_bytes: Option<u64>) -> Option<MemoryWatch> {
        self.memory_limit_bytes = self.memory_limit_bytes.into_iter().chain(limit_bytes).min();
        self.memory_limit_bytes.map(|limit_bytes| MemoryWatch::new(self.state.clone(), limit_bytes))
    }

    /// Reads what is left of a response.
    async fn drain(&mut self, reception: &mut Reception) {
        let reading = async {
            while let Some(Ok(frame)) = self.responses.next().await {
                if reception.take(&frame).is_err() || reception.response.is_some() {
                    break;
                }
            }
        };
        let _ = timeout(DRAIN_TIMEOUT, reading).await;
    }
}

impl Drop for RunHandle {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until the press says how a run has ended.
async fn ended(state: &mut watch::Receiver<RunState>) -> Result<ProcessEnd, RunFailure> {
    loop {
        match *state.borrow_and_update() {
            RunState::Ended(end) => return Ok(end),
            RunState::NotForked { errno } => {
                let error = Errno::from_raw(errno);
                return Err(RunFailure::NotForked(format!("the press cannot fork a run: {error}")));
            }
            RunState::Requested | RunState::Forked { .. } => {}
        }
        if state.changed().await.is_err() {
            return Err(RunFailure::PressLost("the press has ended".to_owned()));
        }
    }
}

/// Waits until the press says how a run has ended that has been killed. A press that does not say so hangs.
async fn ended_in_time(state: &mut watch::Receiver<RunState>) -> Result<ProcessEnd, RunFailure> {
    timeout(KILL_TIMEOUT, ended(state)).await.unwrap_or_else(|_| {
        let seconds = KILL_TIMEOUT.as_secs();
        Err(RunFailure::PressLost(format!("the press did not end a run within {seconds} s")))
    })
}

/// Judges why a run ended. A document is blamed only for what a document can do, and for a crash only in a run that
/// had rendered no other: Typst counts some things over all documents of a process.
fn cause(stop: &Stop, has_begun: bool, was_fresh: bool, end: &RunEnd) -> Cause {
    if !has_begun {
        return Cause::External;
    }
    match (stop, end.process.status) {
        (Stop::NotBegun, _) => Cause::External,
        (Stop::TimedOut, _) => Cause::TimeLimit,
        (Stop::TooLarge, _) => Cause::PdfTooLarge,
        (_, ExitStatus::Exited(EXIT_OUT_OF_MEMORY)) => Cause::MemoryLimit,
        (_, status) => match status.signal() {
            // Rust's standard library panics there when a new thread has no room for its signal stack.
            Some(Signal::SIGABRT) if end.stderr.contains("/unix/stack_overflow.rs:") => Cause::MemoryLimit,
            Some(Signal::SIGABRT | Signal::SIGSEGV | Signal::SIGBUS | Signal::SIGILL | Signal::SIGSYS) if was_fresh => {
                Cause::Document
            }
            _ => Cause::External,
        },
    }
}

/// Reads a run's stderr all the time, so that the run never blocks on it.
struct Stderr {
    /// The first bytes of it.
    kept: Arc<Mutex<Vec<u8>>>,
    reading: JoinHandle<()>,
}

impl Stderr {
    fn read(mut pipe: pipe::Receiver) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let reading = tokio::spawn({
            let kept = kept.clone();
            async move {
                let mut chunk = [0; MAX_STDERR_BYTES];
                while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    let room = MAX_STDERR_BYTES - kept.len();
                    kept.extend_from_slice(&chunk[..length.min(room)]);
                }
            }
        });
        Self { kept, reading }
    }

    /// Returns what the run has written, when it has ended.
    async fn take(&mut self) -> String {
        if !self.reading.is_finished() && timeout(DRAIN_TIMEOUT, &mut self.reading).await.is_err() {
            // Another process has the pipe open, too, and is not waited for.
            self.reading.abort();
        }
        let kept = mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        String::from_utf8_lossy(&kept).into_owned()
    }
}

impl Drop for Stderr {
    fn drop(&mut self) {
        self.reading.abort();
    }
}
