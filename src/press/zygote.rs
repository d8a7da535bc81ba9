//! The press's own process: the warm parent of runs. Loads fonts and templates, renders each
//! template's sample once so that caches are warm, and from then on only forks, kills and reaps.
//!
//! It has one thread and never sees a message: a run's pipes pass through its hands, and it neither
//! reads nor writes them. It never blocks but to wait for what comes next, so that no run waits for
//! another. When anything is out of order it exits, and its runs die with it.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{self, ForkResult, Pid};

use super::control_socket::{PressEnd, Received};
use super::protocol::{PressCommand, PressEvent, StartStage};
use super::run;
use super::sandbox::{self, Preparation, SandboxLevel};
use crate::os::{self, ForkError, ThreadCount};
use crate::render::{RenderError, Renderer, TemplateVersion, pool};

/// Runs the role of a press until the function, whose process id is `function`, closes its end of the control
/// socket, which is stdin. Of the templates it has those that are named in `only`, or all if none is.
pub fn main(templates_dir: &Path, only: &[String], cores: usize, level: SandboxLevel, function: u32) -> ExitCode {
    os::set_process_name(c"press");
    if cores == 1 {
        // The main thread of a run only waits while another renders.
        os::use_one_arena();
    }
    match Zygote::start(templates_dir, only, cores, level, function)
        .and_then(|zygote| zygote.map_or(Ok(()), Zygote::serve))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("press: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Zygote {
    renderer: Renderer,
    /// The templates, by the index that a sample is asked for with.
    templates: Vec<String>,
    cores: usize,
    level: SandboxLevel,
    pid: Pid,
    threads: ThreadCount,
    control: PressEnd,
    /// Tells that a run has ended.
    child_signals: SignalFd,
    runs: BTreeMap<u64, Pid>,
    /// Whether a run has been forked before.
    has_forked: bool,
    unsent: VecDeque<PressEvent>,
}

/// The run's ends of its pipes.
struct RunPipes {
    requests: OwnedFd,
    responses: OwnedFd,
    stderr: OwnedFd,
}

impl Zygote {
    /// Loads, warms and restricts this process. `None` when its templates are broken, and the
    /// function knows.
    fn start(
        templates_dir: &Path,
        only: &[String],
        cores: usize,
        level: SandboxLevel,
        function: u32,
    ) -> io::Result<Option<Self>> {
        die_with(Pid::from_raw(i32::try_from(function).map_err(io::Error::other)?))?;
        close_inherited_files()?;
        let control = PressEnd(io::stdin());
        control.send(&PressEvent::Starting { stage: StartStage::Sandbox })?;
        let preparation = Preparation::for_level(level)?;
        control.send(&PressEvent::Starting { stage: StartStage::Loading })?;
        let renderer = match warm_renderer(templates_dir, only, cores, &control) {
            Ok(renderer) => renderer,
            Err(reason) => return control.send(&PressEvent::broken(reason)).map(|()| None),
        };
        control.send(&PressEvent::Starting { stage: StartStage::Sandbox })?;
        let mut threads = ThreadCount::open()?;
        threads.wait_for_one().map_err(io::Error::other)?;
        let child_signals = SigSet::from(Signal::SIGCHLD);
        child_signals.thread_block()?;
        let child_signals = SignalFd::with_flags(&child_signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let level = sandbox::restrict_press(preparation)?;
        let versions: Vec<(String, TemplateVersion)> =
            renderer.templates().map(|(name, version)| (name.to_owned(), version)).collect();
        for (name, version) in versions.iter().cloned() {
            control.send(&PressEvent::Ready { count: versions.len(), name, version, level })?;
        }
        Ok(Some(Self {
            renderer,
            templates: versions.into_iter().map(|(name, _)| name).collect(),
            cores,
            level,
            pid: unistd::getpid(),
            threads,
            control,
            child_signals,
            runs: BTreeMap::new(),
            has_forked: false,
            unsent: VecDeque::new(),
        }))
    }

    /// Does what the function asks for, until it closes its end.
    fn serve(mut self) -> io::Result<()> {
        loop {
            self.send_events()?;
            self.wait()?;
            self.reap_runs()?;
            loop {
                match self.control.receive()? {
                    Received::Command(PressCommand::Fork { run, sample }, files) => {
                        self.fork_run(run, sample, files)?;
                    }
                    Received::Command(PressCommand::Kill { run }, _) => self.kill_run(run)?,
                    Received::WouldBlock => break,
                    Received::Closed => return self.end_runs(),
                }
            }
        }
    }

    /// Waits until the function asks for something, a run has ended, or there is room for an event.
    fn wait(&self) -> io::Result<()> {
        let mut wanted = PollFlags::POLLIN;
        wanted.set(PollFlags::POLLOUT, !self.unsent.is_empty());
        let mut files =
            [PollFd::new(self.control.0.as_fd(), wanted), PollFd::new(self.child_signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut files, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn send_events(&mut self) -> io::Result<()> {
        while let Some(event) = self.unsent.front() {
            if !self.control.try_send(event)? {
                break;
            }
            self.unsent.pop_front();
        }
        Ok(())
    }

    fn reap_runs(&mut self) -> io::Result<()> {
        while self.child_signals.read_signal()?.is_some() {}
        while let Some((pid, end)) = os::reap_one()? {
            let run = self.runs.iter().find_map(|(run, of_run)| (*of_run == pid).then_some(*run));
            if let Some(run) = run {
                self.runs.remove(&run);
                self.unsent.push_back(PressEvent::Ended { run, end });
            }
        }
        Ok(())
    }

    fn fork_run(&mut self, run: u64, sample: Option<usize>, files: Vec<OwnedFd>) -> io::Result<()> {
        let pipes = RunPipes::try_from(files)?;
        let event = match os::fork(&mut self.threads) {
            Ok(ForkResult::Child) => self.become_run(sample, &pipes),
            Ok(ForkResult::Parent { child }) => {
                self.runs.insert(run, child);
                self.has_forked = true;
                PressEvent::Forked { run, pid: child.as_raw() }
            }
            Err(ForkError::Kernel(errno)) => PressEvent::NotForked { run, errno: errno as i32 },
            Err(error) => return Err(io::Error::other(error)),
        };
        self.unsent.push_back(event);
        Ok(())
    }

    fn kill_run(&self, run: u64) -> io::Result<()> {
        // A run that is missing here has ended, and the function has been told.
        self.runs.get(&run).map_or(Ok(()), |pid| Ok(kill(*pid, Signal::SIGKILL)?))
    }

    /// Kills and reaps all runs: the function is gone, or wants no more of them.
    fn end_runs(self) -> io::Result<()> {
        self.runs.values().try_for_each(|pid| kill(*pid, Signal::SIGKILL))?;
        self.runs.into_values().try_for_each(|pid| os::wait(pid).map(drop))
    }

    /// Turns this process, a fresh fork of the press, into a run.
    fn become_run(&self, sample: Option<usize>, pipes: &RunPipes) -> ! {
        if let Err(error) = pipes.take_over().and_then(|()| {
            os::set_process_name(c"run");
            SigSet::from(Signal::SIGCHLD).thread_unblock()?;
            die_with(self.pid)
        }) {
            eprintln!("run: {error}");
            os::exit_now(1);
        }
        let sample = sample.and_then(|index| self.templates.get(index)).map(String::as_str);
        run::main(&self.renderer, self.cores, self.level, sample, !self.has_forked)
    }
}

impl TryFrom<Vec<OwnedFd>> for RunPipes {
    type Error = io::Error;

    fn try_from(files: Vec<OwnedFd>) -> io::Result<Self> {
        let [requests, responses, stderr] = <[OwnedFd; 3]>::try_from(files)
            .map_err(|files| io::Error::other(format!("{} files came with a fork, not 3", files.len())))?;
        Ok(Self { requests, responses, stderr })
    }
}

impl RunPipes {
    /// Makes them stdin, stdout and stderr, and closes everything else.
    fn take_over(&self) -> io::Result<()> {
        unistd::dup2_stdin(&self.requests)?;
        unistd::dup2_stdout(&self.responses)?;
        unistd::dup2_stderr(&self.stderr)?;
        // RLIMIT_NOFILE allows no higher numbers. Their owners are in stack frames that this process never returns
        // to, so nothing is closed twice.
        (3..sandbox::MAX_FILES).for_each(close_if_open);
        Ok(())
    }
}

/// Has the kernel kill this process when its parent is gone, as it may be already.
fn die_with(parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if unistd::getppid() == parent { Ok(()) } else { Err(io::Error::other("the parent process is gone")) }
}

/// Closes what whoever started the function has left open for its children.
fn close_inherited_files() -> io::Result<()> {
    let numbers = fs::read_dir("/proc/self/fd")?.flatten().filter_map(|file| file.file_name().to_str()?.parse().ok());
    let inherited: Vec<RawFd> = numbers.filter(|number| *number > 2).collect();
    inherited.into_iter().for_each(close_if_open);
    Ok(())
}

fn close_if_open(file: RawFd) {
    // close(2) releases the descriptor on every error but EBADF, and then it was not open.
    let _ = unistd::close(file);
}

/// Loads everything and renders each template's sample, side by side on `cores` threads that are
/// joined. Says which one begins and ends, since one that never ends would not tell by itself.
fn warm_renderer(templates_dir: &Path, only: &[String], cores: usize, control: &PressEnd) -> Result<Renderer, String> {
    let renderer = Renderer::load_only(templates_dir, only).map_err(|error| error.to_string())?;
    // What goes to stderr is a warning in the log.
    renderer.unused().iter().for_each(|unused| eprintln!("{unused}"));
    let templates: Vec<String> = renderer.templates().map(|(name, _)| name.to_owned()).collect();
    let next = AtomicUsize::new(0);
    let problems = Mutex::new(BTreeMap::new());
    let render_samples = || {
        while let Some(template) = templates.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(problem) = render_sample(&renderer, template, control) {
                problems.lock().expect("nothing panics with it").insert(template, problem);
            }
        }
    };
    thread::scope(|scope| {
        // Each of these threads only waits for the pool of its sample, which has one thread.
        let threads: Vec<_> = (0..cores.min(templates.len())).map(|_| scope.spawn(render_samples)).collect();
        // A scope waits for the closures, but not until the threads have exited.
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    let problems: Vec<String> = problems.into_inner().expect("nothing panics with it").into_values().collect();
    if problems.is_empty() { Ok(renderer) } else { Err(problems.join("\n")) }
}

fn render_sample(renderer: &Renderer, template: &str, control: &PressEnd) -> Result<(), String> {
    let tell = |event| control.send(&event).map_err(|error| error.to_string());
    tell(PressEvent::SampleBegun { template: template.to_owned() })?;
    let sample = renderer.sample(template).expect("every template has a sample");
    // One thread, since others render other samples.
    let began = Instant::now();
    let result = pool::on_fixed_pool(1, || renderer.render(sample))
        .map_err(|error| format!("no thread can be started: {error}"))?;
    tell(PressEvent::SampleEnded { template: template.to_owned(), took: began.elapsed() })?;
    let diagnostics = match result {
        Ok(pdf) => {
            for warning in pdf.warnings {
                eprintln!("template {template}: its sample.json: {}", warning.to_string().replace('\n', " "));
            }
            return Ok(());
        }
        Err(RenderError::Data(diagnostics) | RenderError::Typst(diagnostics)) => diagnostics,
        Err(RenderError::UnknownTemplate) => Vec::new(),
    };
    let texts: Vec<String> = diagnostics.into_iter().map(|diagnostic| diagnostic.text).collect();
    Err(format!("template {template}: its sample.json cannot be rendered\n{}", texts.join("\n")))
}
