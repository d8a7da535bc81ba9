//! A run as its press sees it: forked, fed, listened to, killed and waited for.

use std::fs::File;
use std::io::{self, Read as _, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{self, ForkResult, Pid};

use super::frames::{self, Frame, FrameReader, Kind, Read, RunEnd};
use super::run;
use super::sandbox::RunFilters;
use crate::os::{self, End, ThreadCount};
use crate::typeset::Typesetter;

/// More of what a run wrote to stderr does not travel.
const MOST_STDERR_BYTES: u64 = 4096;

/// The run that is waiting or working, as its press sees it.
pub(super) struct Run {
    pid: Pid,
    /// Does not block: a run that stops reading must not stop its press.
    requests: OwnedFd,
    /// Does not block either.
    pub answers: FrameReader<OwnedFd>,
    stderr: File,
    is_reaped: bool,
    /// Until it says that it is warm: a document would have to wait.
    pub is_warming: bool,
    pub forked_at: Instant,
}

impl Run {
    pub fn fork(
        typesetter: &Typesetter,
        most_threads: usize,
        filters: &RunFilters,
        threads: &mut ThreadCount,
        sample: Option<&str>,
    ) -> io::Result<Self> {
        let (requests_end, requests) = unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (answers, answers_end) = unistd::pipe2(OFlag::O_CLOEXEC)?;
        let stderr = File::from(memfd_create("run-stderr", MFdFlags::MFD_CLOEXEC)?);
        let press = unistd::getpid();
        match os::fork(threads)? {
            ForkResult::Child => {
                if let Err(error) = become_run(press, &requests_end, &answers_end, &stderr) {
                    eprintln!("run: {error}");
                    os::exit_now(1);
                }
                run::main(typesetter, most_threads, filters, sample)
            }
            ForkResult::Parent { child } => {
                set_non_blocking(&requests)?;
                set_non_blocking(&answers)?;
                Ok(Self {
                    pid: child,
                    requests,
                    answers: FrameReader::new(answers),
                    stderr,
                    is_reaped: false,
                    is_warming: sample.is_some(),
                    forked_at: Instant::now(),
                })
            }
        }
    }

    /// Writes a frame to the run. `false` when the run is gone.
    pub fn send(&self, frame: Frame) -> io::Result<bool> {
        let bytes = frames::encoded(frame)?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match unistd::write(&self.requests, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let mut file = [PollFd::new(self.requests.as_fd(), PollFlags::POLLOUT)];
                    poll_until(&mut file, None)?;
                }
                Err(Errno::EPIPE) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Reads what a waiting run says: that it is warm, once. `false` when it is gone, or says
    /// anything else.
    pub fn becomes_warm(&mut self) -> io::Result<bool> {
        let mut file = [PollFd::new(self.answers.pipe.as_fd(), PollFlags::POLLIN)];
        poll_until(&mut file, None)?;
        if self.answers.read()? == Read::End {
            return Ok(false);
        }
        let said = self.answers.buffered();
        let is_warm = matches!(&said, Ok(Some(frame)) if frame.kind == Kind::Warm) && self.is_warming;
        self.is_warming &= !is_warm;
        Ok(is_warm && self.has_said_no_more())
    }

    /// Whether nothing has been read from the run that nobody has asked for. It must never be
    /// taken for the answer to the next document.
    pub fn has_said_no_more(&mut self) -> bool {
        matches!(self.answers.buffered(), Ok(None))
    }

    /// Kills the run if it is still there, and waits for it. One that had ended by itself keeps
    /// the end it made.
    pub fn kill(&mut self) -> io::Result<(End, RunEnd)> {
        kill(self.pid, Signal::SIGKILL)?;
        let ended = os::wait(self.pid)?;
        self.is_reaped = true;
        Ok((ended.how, describe(&ended, self.stderr_text())))
    }

    /// What the run has written to stderr, the first of it.
    fn stderr_text(&mut self) -> String {
        let mut text = Vec::new();
        let read = self
            .stderr
            .seek(SeekFrom::Start(0))
            .and_then(|_| (&mut self.stderr).take(MOST_STDERR_BYTES).read_to_end(&mut text));
        match read {
            Ok(_) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => format!("(cannot be read: {error})"),
        }
    }
}

/// However a press ends by itself, it leaves no run that somebody else would have to reap.
impl Drop for Run {
    fn drop(&mut self) {
        if !self.is_reaped {
            let _ = self.kill();
        }
    }
}

/// Makes of the copy of a press a run: three files, and no life beyond its press.
fn become_run(press: Pid, requests: &OwnedFd, answers: &OwnedFd, stderr: &File) -> io::Result<()> {
    unistd::dup2_stdin(requests)?;
    unistd::dup2_stdout(answers)?;
    unistd::dup2_stderr(stderr)?;
    os::close_files_from(3)?;
    os::name_this_process(c"run");
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The press may have died before this was set.
    if unistd::getppid() == press { Ok(()) } else { Err(io::Error::other("the press is gone")) }
}

fn set_non_blocking(pipe: &OwnedFd) -> io::Result<()> {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Waits until one of the files is ready, or the time is over.
pub(super) fn poll_until(files: &mut [PollFd], end: Option<Instant>) -> io::Result<()> {
    loop {
        // Rounded up: with what is left of a millisecond it would poll without waiting.
        let timeout = end.map_or(PollTimeout::NONE, |end| {
            let left = end.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(files, timeout) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn describe(ended: &os::Ended, stderr: String) -> RunEnd {
    let how = match ended.how {
        End::Exited(code) => format!("exited with code {code}"),
        End::Killed(signal) => format!("was killed by {signal}"),
    };
    RunEnd { how, peak_memory_bytes: ended.peak_memory_bytes, cpu_time: ended.cpu_time, stderr }
}
