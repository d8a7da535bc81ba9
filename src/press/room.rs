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

use super::frames::{self, Answer, Frame, FrameCodec, Header, Kind, Readiness, RunEnd};
use super::sandbox::Level;
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
    Answered(Answer, Bytes),
    /// The press itself is gone: nobody's fault.
    PressLost(io::Error),
}

/// The place of one press. It stays when the press is replaced.
pub struct Room {
    number: usize,
    settings: PressSettings,
    press: Option<Press>,
    state: State,
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
                    return Ok((Self { number, settings, press: Some(press), state: State::Fresh }, templates));
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

    /// Has a document set from its data and, behind these, the files that the header lists; with
    /// more threads as `threads` allows them. If the press is gone another is started first.
    ///
    /// # Errors
    /// When there is no press and none can be started.
    pub async fn set(
        &mut self,
        header: &Header,
        content: &[Bytes],
        threads: &mut watch::Receiver<usize>,
    ) -> Result<Outcome, StartError> {
        let press = match &mut self.press {
            Some(press) => press,
            none => none.insert(Press::start(self.number, &self.settings).await?.0),
        };
        self.state = State::Busy;
        // The press keeps the time. This is for one that does not.
        match in_time(header.time_limit + PATIENCE, press.set(header, content, threads)).await {
            Ok((answer, pdf)) => {
                self.state = match answer {
                    Answer::RunDied { .. } => State::Fresh,
                    Answer::Panicked { .. } => State::Ending,
                    _ => State::Used,
                };
                Ok(Outcome::Answered(answer, pdf))
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
        if let Some(press) = &mut self.press
            && self.state != State::Fresh
        {
            match in_time(PATIENCE, press.end_invocation()).await {
                Ok(run) => self.log_run(&run),
                Err(error) => {
                    tracing::warn!(press = self.number, %error, "a press could not end its invocation");
                    self.close().await;
                }
            }
        }
        self.state = State::Fresh;
        if self.press.is_none() {
            match Press::start(self.number, &self.settings).await {
                Ok((press, _)) => self.press = Some(press),
                // The next document tries again, and says so if it fails too.
                Err(error) => tracing::error!(press = self.number, %error, "a press cannot be replaced"),
            }
        }
    }

    fn log_run(&self, run: &RunEnd) {
        let (peak_memory_bytes, cpu_time) = (run.peak_memory_bytes, run.cpu_time);
        tracing::debug!(press = self.number, peak_memory_bytes, ?cpu_time, "a run has ended with its invocation");
        for line in run.stderr.lines() {
            tracing::warn!(press = self.number, "a run said: {line}");
        }
    }

    /// Ends the press and waits for it; with it its run ends.
    pub async fn close(&mut self) {
        if let Some(press) = self.press.take() {
            press.close(self.number).await;
        }
        self.state = State::Fresh;
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
            log: tokio::spawn(log_stderr(number, stderr)),
        };
        let mut template = String::new();
        match in_time(INIT_PATIENCE, press.readiness(&mut template)).await {
            Ok(Readiness::Warm { templates }) => Ok((press, templates)),
            Ok(Readiness::Broken { reason }) => {
                press.close(number).await;
                Err(StartError::Broken(reason))
            }
            Err(error) => {
                press.close(number).await;
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
    ) -> io::Result<(Answer, Bytes)> {
        self.requests.feed(Frame::json(Kind::Document, header)).await?;
        for chunk in content.iter().flat_map(|part| frames::chunks(Kind::Data, part)) {
            self.requests.feed(chunk).await?;
        }
        self.requests.send(Frame::empty(Kind::Set)).await?;

        let mut pdf = BytesMut::new();
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
                _ => return Ok((expect(&frame, Kind::Verdict)?.parse()?, pdf.freeze())),
            }
        }
    }

    async fn end_invocation(&mut self) -> io::Result<RunEnd> {
        self.requests.send(Frame::empty(Kind::EndInvocation)).await?;
        loop {
            let frame = self.next_frame().await?;
            match frame.kind {
                // Of a document that was given up.
                Kind::Pdf | Kind::Verdict => {}
                _ => return expect(&frame, Kind::InvocationEnded)?.parse(),
            }
        }
    }

    async fn next_frame(&mut self) -> io::Result<Frame> {
        self.answers.next().await.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
    }

    /// Tells the press to end, which reaps its run and exits; kills it if it does not.
    async fn close(mut self, number: usize) {
        drop((self.requests, self.answers));
        if in_time(ENDING, self.process.wait()).await.is_err()
            && let Err(error) = self.process.kill().await
        {
            tracing::error!(press = number, %error, "a press cannot be killed and waited for");
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
async fn log_stderr(number: usize, stderr: ChildStderr) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::warn!(press = number, "{line}");
    }
}
