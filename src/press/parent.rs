//! A press: the warm parent of runs. Loads fonts and templates, sets each sample once so that
//! caches are warm, and from then on forks, relays, watches, kills and reaps.
//!
//! It has one thread and never sets a message's document. It relays in chunks and never holds a
//! document. When it cannot keep the function's pipe in order it exits, and the function starts
//! another.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;

use super::child::{Run, poll_until};
use super::frames::{self, Answer, Cause, Frame, FrameReader, Header, Kind, Read, Readiness};
use super::run;
use super::sandbox::{self, Level, RunFilters};
use crate::job::Edition;
use crate::os::{self, End, ThreadCount};
use crate::typeset::{SetError, Typesetter, pool};

/// More of what is wrong with templates is not told: it has to fit into a frame.
const MOST_REASON_BYTES: usize = 16 * 1024;

/// Is a press until the function closes stdin.
pub fn main(templates_dir: &Path, most_threads: usize, level: Level) -> ExitCode {
    os::name_this_process(c"press");
    if let Err(error) = os::close_files_from(3) {
        eprintln!("press: files that were inherited cannot be closed: {error}");
    }
    let typesetter = match warm_typesetter(templates_dir, most_threads) {
        Ok(typesetter) => typesetter,
        Err(mut reason) => {
            reason.truncate(reason.floor_char_boundary(MOST_REASON_BYTES));
            let broken = Frame::json(Kind::Ready, &Readiness::Broken { reason });
            return exit_code(frames::write(&io::stdout(), broken));
        }
    };
    exit_code(Press::start(typesetter, most_threads, level).and_then(|mut press| press.serve()))
}

fn exit_code(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_end_of_function(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("press: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the function has closed its end of the pipes, in the middle of something. It knows.
fn is_end_of_function(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe)
}

/// Loads everything and sets each template's sample, on a pool that is joined. Says which one it
/// sets, since one that never ends would not tell by itself.
fn warm_typesetter(templates_dir: &Path, most_threads: usize) -> Result<Typesetter, String> {
    let typesetter = Typesetter::load(templates_dir).map_err(|error| error.to_string())?;
    let mut problems = Vec::new();
    for (name, _) in typesetter.templates() {
        frames::write(&io::stdout(), Frame::json(Kind::Warming, &name)).map_err(|error| error.to_string())?;
        let sample = typesetter.sample(name).expect("every template has a sample");
        let set = pool::on_fixed_pool(most_threads, || typesetter.set(sample))
            .map_err(|error| format!("no thread can be started: {error}"))?;
        if let Err(SetError::Data(diagnostics) | SetError::Typst(diagnostics)) = set {
            let said: Vec<String> = diagnostics.into_iter().map(|diagnostic| diagnostic.text).collect();
            problems.push(format!("template {name}: its sample.json cannot be set\n{}", said.join("\n")));
        }
    }
    if problems.is_empty() { Ok(typesetter) } else { Err(problems.join("\n")) }
}

struct Press {
    typesetter: Typesetter,
    most_threads: usize,
    filters: RunFilters,
    threads: ThreadCount,
    function: FrameReader<io::Stdin>,
    answers: io::Stdout,
    run: Run,
    /// What the next run warms itself with.
    last_template: String,
    /// How long that took, by template.
    warming_times: BTreeMap<String, Duration>,
}

/// Why relaying a document stopped before its verdict.
enum Stop {
    /// The run is gone, or says what makes no sense.
    Run,
    /// The document has used all the time it was given.
    TimeIsOver,
    /// The function has no more documents in this invocation, not even this one.
    Abandoned,
}

impl Press {
    fn start(typesetter: Typesetter, most_threads: usize, level: Level) -> io::Result<Self> {
        let mut threads = ThreadCount::open()?;
        sandbox::wall_in_press(level)?;
        let filters = RunFilters::compile(level)?;
        let edition = |name, version| Edition { version, digest: typesetter.digest(name).to_owned() };
        let templates =
            typesetter.templates().map(|(name, version)| (name.to_owned(), edition(name, version))).collect();
        let last_template = typesetter.templates().next().map(|(name, _)| name.to_owned()).unwrap_or_default();
        let mut run = Run::fork(&typesetter, most_threads, &filters, &mut threads, Some(&last_template))?;
        // Proves that a document can be set within these walls.
        if !run.becomes_warm()? {
            let (_, end) = run.kill()?;
            return Err(io::Error::other(format!("the first run {}. {}", end.how, end.stderr.trim_end())));
        }
        let answers = io::stdout();
        frames::write(&answers, Frame::json(Kind::Ready, &Readiness::Warm { templates }))?;
        let function = FrameReader::new(io::stdin());
        let warming_times = BTreeMap::from([(last_template.clone(), run.forked_at.elapsed())]);
        Ok(Self { typesetter, most_threads, filters, threads, function, answers, run, last_template, warming_times })
    }

    /// Serves the function until it closes its end. An error means that the pipe to it is out of
    /// order.
    fn serve(&mut self) -> io::Result<()> {
        while let Some(frame) = self.next_request()? {
            match frame.kind {
                Kind::Document => self.relay_document(frame)?,
                Kind::EndInvocation => self.end_invocation()?,
                // Came too late for the document it was meant for.
                Kind::Threads => {}
                kind => return Err(io::Error::other(format!("a {kind:?} frame where it makes no sense"))),
            }
        }
        Ok(())
    }

    /// Waits for the function, and meanwhile replaces a run that has gone: nobody's outcome.
    fn next_request(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.function.buffered()? {
                return Ok(Some(frame));
            }
            let (function_is_ready, run_is_ready) = wait_for_both(&self.function.pipe, &self.run.answers.pipe)?;
            if run_is_ready && !self.run_becomes_warm()? {
                let (how, end) = self.run.kill()?;
                if how != End::Exited(run::EXIT_AFTER_PANIC) {
                    eprintln!("press: a waiting run {}. {}", end.how, end.stderr.trim_end());
                }
                self.fork_run(None)?;
            }
            if function_is_ready && self.function.read()? == Read::End {
                return Ok(None);
            }
        }
    }

    /// Passes a document on to the run, and the run's answer back. The function gets exactly one
    /// verdict for it, whatever the run does; unless it ends the invocation before.
    fn relay_document(&mut self, document: Frame) -> io::Result<()> {
        let Header { template, time_limit, wants_another_run, .. } = document.parse()?;
        // One that says what nobody asked for is not to be trusted.
        let is_fit = !wants_another_run && self.is_warm_in_time()? && self.run.has_said_no_more();
        self.last_template = template;
        if !is_fit {
            self.run.kill()?;
            self.fork_run(None)?;
        }
        let mut time = None;
        let relayed = match self.relay_request(document)? {
            Ok(()) => self.relay_answer(time_limit, &mut time)?,
            Err(stop) => Err(stop),
        };
        match relayed {
            Ok(()) => Ok(()),
            Err(Stop::Abandoned) => self.end_invocation(),
            Err(stop @ (Stop::Run | Stop::TimeIsOver)) => {
                let (how, end) = self.run.kill()?;
                let cause = match stop {
                    Stop::TimeIsOver => Cause::TimeLimit,
                    _ => cause(how, time.is_some(), &end.stderr),
                };
                let answer = Answer::RunDied { end, cause };
                // First the run, so that it is there when the function hears of this.
                self.fork_run(None)?;
                frames::write(&self.answers, Frame::json(Kind::Verdict, &answer))
            }
        }
    }

    /// Waits for a run that is nearly warm. Else a cold run that begins now is sooner done with a
    /// document: that takes about as long as getting warm, and in a warm run half of it.
    fn is_warm_in_time(&mut self) -> io::Result<bool> {
        if !self.run.is_warming {
            return Ok(true);
        }
        let Some(&usual) = self.warming_times.get(&self.last_template) else { return Ok(false) };
        if self.run.forked_at.elapsed() < usual / 2 {
            return Ok(false);
        }
        let mut answers = [PollFd::new(self.run.answers.pipe.as_fd(), PollFlags::POLLIN)];
        poll_until(&mut answers, Some(self.run.forked_at + usual * 3 / 2))?;
        Ok(answers[0].any() == Some(true) && self.run_becomes_warm()?)
    }

    fn run_becomes_warm(&mut self) -> io::Result<bool> {
        let is_warm = self.run.becomes_warm()?;
        if is_warm {
            self.warming_times.insert(self.last_template.clone(), self.run.forked_at.elapsed());
        }
        Ok(is_warm)
    }

    /// Passes a request on, frame by frame; what is left of it when the run has gone is drained.
    fn relay_request(&mut self, document: Frame) -> io::Result<Result<(), Stop>> {
        let mut frame = document;
        let mut run_is_there = true;
        loop {
            let is_last = frame.kind == Kind::Set;
            run_is_there = run_is_there && self.run.send(frame)?;
            if is_last {
                return Ok(if run_is_there { Ok(()) } else { Err(Stop::Run) });
            }
            frame = self.function.wait()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            match frame.kind {
                Kind::Data | Kind::Set | Kind::Threads => {}
                Kind::EndInvocation => return Ok(Err(Stop::Abandoned)),
                kind => return Err(io::Error::other(format!("a {kind:?} frame within a request"))),
            }
        }
    }

    /// Passes the answer on. `ends_at` is set when the document has begun.
    fn relay_answer(&mut self, time_limit: Duration, ends_at: &mut Option<Instant>) -> io::Result<Result<(), Stop>> {
        loop {
            match self.run.answers.buffered() {
                Ok(Some(frame)) => match frame.kind {
                    Kind::Begun => *ends_at = Some(Instant::now() + time_limit),
                    Kind::Pdf | Kind::Trace => frames::write(&self.answers, frame)?,
                    Kind::Verdict => {
                        frames::write(&self.answers, frame)?;
                        return Ok(Ok(()));
                    }
                    _ => return Ok(Err(Stop::Run)),
                },
                Err(_) => return Ok(Err(Stop::Run)),
                Ok(None) => {
                    if let Some(stop) = self.hear_both(*ends_at)? {
                        return Ok(Err(stop));
                    }
                }
            }
        }
    }

    /// Waits until the run or the function says something, while a document is being set.
    fn hear_both(&mut self, ends_at: Option<Instant>) -> io::Result<Option<Stop>> {
        while let Some(frame) = self.function.buffered()? {
            match frame.kind {
                // Whether it arrives is not decisive: if the run is gone, the next read says so.
                Kind::Threads => drop(self.run.send(frame)?),
                Kind::EndInvocation => return Ok(Some(Stop::Abandoned)),
                kind => return Err(io::Error::other(format!("a {kind:?} frame while a document is being set"))),
            }
        }
        let (function_is_ready, run_is_ready) =
            wait_for_both_until(&self.function.pipe, &self.run.answers.pipe, ends_at)?;
        if ends_at.is_some_and(|ends_at| Instant::now() >= ends_at) {
            return Ok(Some(Stop::TimeIsOver));
        }
        if function_is_ready && self.function.read()? == Read::End {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if run_is_ready && self.run.answers.read()? == Read::End {
            return Ok(Some(Stop::Run));
        }
        Ok(None)
    }

    /// Ends the run, waits for it, and forks the next one ahead of the next invocation.
    fn end_invocation(&mut self) -> io::Result<()> {
        let (_, end) = self.run.kill()?;
        let sample = self.last_template.clone();
        self.fork_run(Some(&sample))?;
        frames::write(&self.answers, Frame::json(Kind::InvocationEnded, &end))
    }

    fn fork_run(&mut self, sample: Option<&str>) -> io::Result<()> {
        self.run = Run::fork(&self.typesetter, self.most_threads, &self.filters, &mut self.threads, sample)?;
        Ok(())
    }
}

/// Waits until there is something to read, or an end, on either.
fn wait_for_both(one: &impl AsFd, other: &impl AsFd) -> io::Result<(bool, bool)> {
    wait_for_both_until(one, other, None)
}

/// The same, but not for ever.
fn wait_for_both_until(one: &impl AsFd, other: &impl AsFd, end: Option<Instant>) -> io::Result<(bool, bool)> {
    let mut files = [PollFd::new(one.as_fd(), PollFlags::POLLIN), PollFd::new(other.as_fd(), PollFlags::POLLIN)];
    poll_until(&mut files, end)?;
    Ok((files[0].any() == Some(true), files[1].any() == Some(true)))
}

/// A document is blamed only for what a document can do. A SIGKILL came from outside or from
/// us after the run had said what makes no sense, which is no proof either.
fn cause(how: End, begun: bool, stderr: &str) -> Cause {
    match how {
        End::Exited(os::EXIT_OUT_OF_MEMORY) if begun => Cause::MemoryLimit,
        // What Rust says when a new thread has no room for its signal stack.
        End::Killed(Signal::SIGABRT) if begun && stderr.contains("failed to allocate an alternative stack") => {
            Cause::MemoryLimit
        }
        End::Killed(Signal::SIGABRT | Signal::SIGSEGV | Signal::SIGBUS | Signal::SIGILL | Signal::SIGSYS) if begun => {
            Cause::Document
        }
        _ => Cause::Nobody,
    }
}
