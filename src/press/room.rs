//! The function's end of a press: starts it, feeds it documents, and replaces it when it dies.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, FramedWrite};
use tracing::{Instrument, Span};

use super::frames::{self, Answer, Cause, Frame, FrameCodec, Header, Kind, Readiness, RunEnd};
use super::sandbox::Level;
use crate::census::{self, Growth, Holdings};
use crate::job::Editions;

/// The first argument of this program in the role of a press.
pub const PRESS_ROLE: &str = "press";

/// How much later than a press the function takes a document's time to be over.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a press may take to load and to set its samples. Lambda waits 10 s at init; where
/// nobody else does, a sample that never ends is to be an error.
const INIT_PATIENCE: Duration = Duration::from_secs(30);

/// How long a press may take to end its run and itself when it is told to. Lambda gives a function
/// 500 ms from SIGTERM on, and the kernel needs 36 ms to take back 400 MB from a run.
const ENDING: Duration = Duration::from_millis(200);

/// How long the last lines of a press that has ended may take to be read.
const LAST_WORDS: Duration = Duration::from_millis(100);

const MEBIBYTE: u64 = 1024 * 1024;

/// How to start a press.
#[derive(Clone, Debug)]
pub struct PressSettings {
    /// A program whose `main` hands over to [`crate::play_press_role`], as pressrun itself.
    pub program: PathBuf,
    pub templates_dir: PathBuf,
    /// The most threads that a document may have.
    pub most_threads: usize,
    /// How far to wall presses in, at most.
    pub level: Level,
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
        "{} MB of memory are too little: function and presses have {} MB already, and each press ({presses} of them) \
         needs 64 MB for a document; give the function more memory (MEMORY_MB outside Lambda) or fewer WORKERS",
        memory_bytes / MEBIBYTE, resident_bytes / MEBIBYTE
    )]
    Memory { memory_bytes: u64, resident_bytes: u64, presses: usize },
    #[error("a press ended before it was ready: {0}")]
    Ended(#[source] io::Error),
    #[error(
        "a press was not warm after {} s: it was setting sample.json of the template {template:?}; does that never end?",
        INIT_PATIENCE.as_secs()
    )]
    Slow { template: String },
}

/// What came of a document.
#[derive(Debug)]
pub enum Outcome {
    Answered(Answered),
    /// The press itself is gone: nobody's fault.
    PressLost(io::Error),
}

/// What a press has answered for a document.
#[derive(Debug)]
pub struct Answered {
    pub answer: Answer,
    /// Empty if it was not set.
    pub pdf: Bytes,
    /// Empty if there is none.
    pub trace: Bytes,
}

/// The place of one press. It stays when the press is replaced.
pub struct Room {
    number: usize,
    settings: PressSettings,
    press: Option<Press>,
    state: State,
    warm: Warm,
    happened: Happened,
}

/// What a press and its run held when the press had just become warm.
#[derive(Default)]
struct Warm {
    press: Holdings,
    run: Holdings,
}

/// What has happened in a room since it was asked last.
#[derive(Debug, Default)]
pub struct Happened {
    /// The runs that have ended after they had seen a message.
    pub ended_runs: Vec<EndedRun>,
    pub replaced_presses: usize,
    /// What runs held more of between two documents than when they were fresh.
    pub growth_of_runs: Vec<Growth>,
}

/// A run that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedRun {
    /// Why it had not answered for its document. `None` when it had.
    pub cause: Option<Cause>,
    /// The largest resident set, what it shares with its press included.
    pub peak_memory_bytes: u64,
    pub cpu_time: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The press's run has seen no message.
    Fresh,
    /// It has seen one, and waits for more.
    Used,
    /// It has seen one and ends by itself. The next document finds another.
    Ending,
    /// A document is on its way, or was when nobody waited for it any longer.
    Busy,
}

struct Press {
    process: Child,
    requests: FramedWrite<ChildStdin, FrameCodec>,
    answers: FramedRead<ChildStdout, FrameCodec>,
    log: JoinHandle<()>,
}

impl Room {
    /// Starts a press and waits until it is warm. Also gives the templates that it has.
    ///
    /// # Errors
    /// When the program cannot be started, or a template is broken.
    pub async fn start(number: usize, settings: PressSettings) -> Result<(Self, Editions), StartError> {
        let mut settings = settings;
        loop {
            let failure = match Press::start(number, &settings).await {
                Ok((press, templates)) => {
                    let warm = Warm::look_at(&press);
                    let happened = Happened::default();
                    let room = Self { number, settings, press: Some(press), state: State::Fresh, warm, happened };
                    return Ok((room, templates));
                }
                Err(failure) => failure,
            };
            // It may have been killed for asking for a wall, or the kernel may lack it.
            match (&failure, settings.level.lower()) {
                (StartError::Ended(_), Some(lower)) => settings.level = lower,
                _ => return Err(failure),
            }
        }
    }

    /// From 1.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// As a census names the press.
    #[must_use]
    pub fn name(&self) -> String {
        format!("press {}", self.number)
    }

    /// What the press held when it had just become warm.
    #[must_use]
    pub fn warm_press(&self) -> &Holdings {
        &self.warm.press
    }

    /// What has happened since this was asked last.
    pub fn take_happened(&mut self) -> Happened {
        std::mem::take(&mut self.happened)
    }

    /// How far the press is walled in.
    #[must_use]
    pub fn level(&self) -> Level {
        self.settings.level
    }

    /// The press's process id, while there is one.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.press.as_ref()?.process.id()
    }

    /// Whether the next document finds a run that has seen none.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        matches!(self.state, State::Fresh | State::Ending)
    }

    /// Whether the run there is ends by itself, so that the next document wants another.
    #[must_use]
    pub fn run_is_ending(&self) -> bool {
        self.state == State::Ending
    }

    /// Has a document set from its data and, behind these, the files that the header lists; with
    /// more threads as `threads` allows them. If the press is gone another is started first.
    ///
    /// # Errors
    /// When there is no press and none can be started.
    ///
    /// # Panics
    /// Never: there is a press then.
    pub async fn set(
        &mut self,
        header: &Header,
        content: &[Bytes],
        threads: &mut watch::Receiver<usize>,
    ) -> Result<Outcome, StartError> {
        self.fill().await?;
        let press = self.press.as_mut().expect("it has just been filled");
        self.state = State::Busy;
        // The press keeps the time. This is for one that does not.
        match in_time(header.time_limit + PATIENCE, press.set(header, content, threads)).await {
            Ok(answered) => {
                self.state = match &answered.answer {
                    Answer::RunDied { end, cause } => {
                        self.happened.ended_runs.push(EndedRun::of(end, Some(*cause)));
                        State::Fresh
                    }
                    Answer::Panicked { .. } => State::Ending,
                    _ => State::Used,
                };
                Ok(Outcome::Answered(answered))
            }
            Err(error) => {
                self.close().await;
                Ok(Outcome::PressLost(error))
            }
        }
    }

    /// Ends the run that has seen this invocation's documents, and waits until it has been
    /// reaped. A document that is still under way is given up. Replaces the press if it is gone.
    pub async fn end_invocation(&mut self) {
        let span = span_of_press(self.number);
        self.end_run().instrument(span.clone()).await;
        self.replace_if_gone().instrument(span).await;
    }

    /// Starts another press if this one has ended since the last invocation.
    pub async fn replace_if_dead(&mut self) {
        let Some(press) = &mut self.press else { return };
        if !matches!(press.process.try_wait(), Ok(None)) {
            tracing::warn!(press = self.number, "a press has ended while nobody asked it for anything");
            self.replace().await;
        }
    }

    /// Starts another press in place of this one.
    pub async fn replace(&mut self) {
        let span = span_of_press(self.number);
        self.close().instrument(span.clone()).await;
        self.replace_if_gone().instrument(span).await;
    }

    async fn end_run(&mut self) {
        if self.state == State::Used {
            self.look_at_run().await;
        }
        if let Some(press) = &mut self.press
            && self.state != State::Fresh
        {
            match in_time(PATIENCE, press.end_invocation()).await {
                Ok(run) => {
                    log_run(&run);
                    self.happened.ended_runs.push(EndedRun::of(&run, None));
                }
                Err(error) => {
                    tracing::warn!(%error, "a press could not end its invocation");
                    self.close().await;
                }
            }
        }
        self.state = State::Fresh;
    }

    async fn replace_if_gone(&mut self) {
        // The next document tries again, and says so if it fails too.
        if let Err(error) = self.fill().await {
            tracing::error!(%error, "a press cannot be replaced");
        }
    }

    /// Starts a press if there is none.
    async fn fill(&mut self) -> Result<(), StartError> {
        if self.press.is_none() {
            let (press, _) = Press::start(self.number, &self.settings).await?;
            self.warm = Warm::look_at(&press);
            self.press = Some(press);
            self.happened.replaced_presses += 1;
        }
        Ok(())
    }

    /// Looks whether the run, which has answered for all its documents, holds more than when it
    /// was fresh.
    async fn look_at_run(&mut self) {
        let Some(run) = self.press.as_ref().and_then(Press::run) else { return };
        let process = format!("run of {}", self.name());
        let look = || Holdings::of(run).growth_since(&self.warm.run, &process);
        let growth = census::look_patiently(look, Vec::is_empty).await;
        self.happened.growth_of_runs.extend(growth);
    }

    /// Ends the press and waits for it; with it its run ends.
    pub async fn close(&mut self) {
        if let Some(press) = self.press.take() {
            press.close().await;
        }
        self.state = State::Fresh;
    }
}

impl Warm {
    fn look_at(press: &Press) -> Self {
        let Some(process) = press.process.id() else { return Self::default() };
        Self { press: Holdings::of(process), run: press.run().map(Holdings::of).unwrap_or_default() }
    }
}

impl EndedRun {
    fn of(end: &RunEnd, cause: Option<Cause>) -> Self {
        Self { cause, peak_memory_bytes: end.peak_memory_bytes, cpu_time: end.cpu_time }
    }
}

/// What is logged within it says whose it is. A span below the log's level would be left out.
fn span_of_press(number: usize) -> Span {
    tracing::error_span!("press", press = number)
}

fn log_run(run: &RunEnd) {
    let (peak_memory_bytes, cpu_time) = (run.peak_memory_bytes, run.cpu_time);
    tracing::debug!(peak_memory_bytes, ?cpu_time, "a run has ended with its invocation");
    for line in run.stderr.lines() {
        tracing::warn!("a run said: {line}");
    }
}

impl Press {
    async fn start(number: usize, settings: &PressSettings) -> Result<(Self, Editions), StartError> {
        let mut process = Command::new(&settings.program)
            .arg(PRESS_ROLE)
            .arg(&settings.templates_dir)
            .arg(settings.most_threads.to_string())
            .arg(settings.level.to_string())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| StartError::Spawn { program: settings.program.clone(), error })?;
        let requests = process.stdin.take().expect("stdin is piped");
        let answers = process.stdout.take().expect("stdout is piped");
        let stderr = process.stderr.take().expect("stderr is piped");
        let mut press = Self {
            process,
            requests: FramedWrite::new(requests, FrameCodec::default()),
            answers: FramedRead::new(answers, FrameCodec::default()),
            log: tokio::spawn(
                log_stderr(stderr).instrument(tracing::error_span!(parent: None, "press", press = number)),
            ),
        };
        let mut template = String::new();
        match in_time(INIT_PATIENCE, press.readiness(&mut template)).await {
            Ok(Readiness::Warm { templates }) => Ok((press, templates)),
            Ok(Readiness::Broken { reason }) => {
                press.close().await;
                Err(StartError::Broken(reason))
            }
            Err(error) => {
                press.close().await;
                let is_slow = error.kind() == io::ErrorKind::TimedOut;
                Err(if is_slow { StartError::Slow { template } } else { StartError::Ended(error) })
            }
        }
    }

    /// Waits until the press is warm. `template` is the one whose sample is being set.
    async fn readiness(&mut self, template: &mut String) -> io::Result<Readiness> {
        loop {
            let frame = self.next_frame().await?;
            match frame.kind {
                Kind::Warming => *template = frame.parse()?,
                _ => return expect(&frame, Kind::Ready)?.parse(),
            }
        }
    }

    async fn set(
        &mut self,
        header: &Header,
        content: &[Bytes],
        threads: &mut watch::Receiver<usize>,
    ) -> io::Result<Answered> {
        self.requests.feed(Frame::json(Kind::Document, header)).await?;
        for chunk in content.iter().flat_map(|part| frames::chunks(Kind::Data, part)) {
            self.requests.feed(chunk).await?;
        }
        self.requests.send(Frame::empty(Kind::Set)).await?;

        let (mut pdf, mut trace) = (BytesMut::new(), BytesMut::new());
        loop {
            let frame = tokio::select! {
                frame = self.answers.next() => frame.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))?,
                Ok(()) = threads.changed() => {
                    let allowed = *threads.borrow_and_update();
                    self.requests.send(Frame::json(Kind::Threads, &allowed)).await?;
                    continue;
                }
            };
            match frame.kind {
                Kind::Pdf => pdf.extend_from_slice(&frame.payload),
                Kind::Trace => trace.extend_from_slice(&frame.payload),
                _ => {
                    let answer = expect(&frame, Kind::Verdict)?.parse()?;
                    return Ok(Answered { answer, pdf: pdf.freeze(), trace: trace.freeze() });
                }
            }
        }
    }

    async fn end_invocation(&mut self) -> io::Result<RunEnd> {
        self.requests.send(Frame::empty(Kind::EndInvocation)).await?;
        loop {
            let frame = self.next_frame().await?;
            match frame.kind {
                // Of a document that was given up.
                Kind::Pdf | Kind::Trace | Kind::Verdict => {}
                _ => return expect(&frame, Kind::InvocationEnded)?.parse(),
            }
        }
    }

    async fn next_frame(&mut self) -> io::Result<Frame> {
        self.answers.next().await.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
    }

    /// The run that waits or works.
    fn run(&self) -> Option<u32> {
        census::children(self.process.id()?).first().copied()
    }

    /// Tells the press to end, which reaps its run and exits; kills it if it does not.
    async fn close(mut self) {
        drop((self.requests, self.answers));
        if in_time(ENDING, self.process.wait()).await.is_err()
            && let Err(error) = self.process.kill().await
        {
            tracing::error!(%error, "a press cannot be killed and waited for");
        }
        // Ends with the press, if that was the only one to hold the other end.
        if timeout(LAST_WORDS, &mut self.log).await.is_err() {
            self.log.abort();
            let _ = self.log.await;
        }
    }
}

async fn in_time<T>(limit: Duration, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, future).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn expect(frame: &Frame, kind: Kind) -> io::Result<&Frame> {
    if frame.kind == kind {
        return Ok(frame);
    }
    let problem = format!("a {:?} frame where {kind:?} is expected", frame.kind);
    Err(io::Error::new(io::ErrorKind::InvalidData, problem))
}

/// Passes on to the log what a press says of itself.
async fn log_stderr(stderr: ChildStderr) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::warn!("{line}");
    }
}
