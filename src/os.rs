//! The only `unsafe` in pressrun: what `fork(2)`, `wait4(2)`, `close_range(2)`, `_exit(2)` and the
//! allocator need, each with its argument. Imports nothing of ours.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid};

/// Counts this process's threads. Keeps `/proc/self/stat` open, so that it works where no file
/// can be opened any more.
#[derive(Debug)]
pub struct ThreadCount(File);

impl ThreadCount {
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/stat").map(Self)
    }

    /// The number of threads the kernel knows of in the process that opened the file.
    ///
    /// # Errors
    /// When the file cannot be read, or is not what proc(5) says.
    pub fn get(&mut self) -> io::Result<usize> {
        let mut stat = String::new();
        self.0.seek(SeekFrom::Start(0))?;
        self.0.read_to_string(&mut stat)?;
        // The command's name, field 2, may hold spaces and parentheses; num_threads is field 20.
        stat.rsplit_once(')')
            .and_then(|(_, after_name)| after_name.split_whitespace().nth(17))
            .and_then(|field| field.parse().ok())
            .ok_or_else(|| io::Error::other(format!("/proc/self/stat reads {stat:?}")))
    }

    /// Waits until this process has one thread. A joined thread may still be on its way out of
    /// the kernel's list for some microseconds.
    ///
    /// # Errors
    /// When there are still several after a second: a thread was leaked.
    pub fn wait_for_one(&mut self) -> io::Result<()> {
        let patience = Instant::now() + Duration::from_secs(1);
        loop {
            let threads = self.get()?;
            if threads == 1 {
                return Ok(());
            }
            if Instant::now() > patience {
                return Err(io::Error::other(format!("{threads} threads are alive where one is expected")));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// Forks a process that has one thread.
///
/// # Errors
/// When the process has other threads, or the kernel refuses (out of memory or processes).
pub fn fork(threads: &mut ThreadCount) -> io::Result<ForkResult> {
    threads.wait_for_one()?;
    // SAFETY: After fork, a child of a process with several threads may only call what is
    // async-signal-safe, since another thread may have held a lock (the allocator's, say) at
    // that moment. This process has a single thread, as just checked: no lock is held but by
    // the caller itself, and the child may do all that the parent may.
    unsafe { nix::unistd::fork() }.map_err(io::Error::from)
}

/// Gives this process, and so its main thread, the name by which ps(1), top(1) and a census show
/// it: its role, where all have the same program.
pub fn name_this_process(role: &CStr) {
    // The only error is of a name that cannot be read.
    let _ = nix::sys::prctl::set_name(role);
}

/// How a child process ended, and what it had used by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub how: End,
    /// The largest resident set, in bytes (`ru_maxrss`); pages shared with the parent count.
    pub peak_memory_bytes: u64,
    /// User and system time together.
    pub cpu_time: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Exited(i32),
    Killed(Signal),
}

/// Waits for a child process to end, and reaps it.
///
/// # Errors
/// When `child` is not a child of this process.
pub fn wait(child: Pid) -> io::Result<Ended> {
    let mut status = 0;
    // SAFETY: `rusage` is a plain C struct of integers, for which zeros are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: Both pointers are to live, exclusively borrowed locals of the right type.
        let reaped = unsafe { libc::wait4(child.as_raw(), &raw mut status, 0, &raw mut usage) };
        if reaped == child.as_raw() {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let how = if libc::WIFSIGNALED(status) {
        let number = libc::WTERMSIG(status);
        Signal::try_from(number).map_or(End::Exited(128 + number), End::Killed)
    } else {
        End::Exited(libc::WEXITSTATUS(status))
    };
    Ok(Ended {
        how,
        peak_memory_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
        cpu_time: duration(usage.ru_utime) + duration(usage.ru_stime),
    })
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let microseconds = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(microseconds)
}

/// Closes every file of this process from `first` on. For a child just forked, which owns the
/// copies of files that its parent's values hold.
///
/// # Errors
/// When the kernel is older than 5.9, which has no `close_range(2)`.
pub fn close_files_from(first: RawFd) -> io::Result<()> {
    let first = libc::c_ulong::try_from(first).map_err(io::Error::other)?;
    let last = libc::c_ulong::from(libc::c_uint::MAX);
    // SAFETY: The call takes three integers. Values that own one of these files are in the
    // child's copy of the parent's frames, which it never returns to: it ends by `exit_now`.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0 as libc::c_ulong) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ends this process at once: no destructors, no `atexit` handlers, no flushing. What a forked
/// copy must do, since all of those belong to its parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// The code that a run exits with when it is refused memory.
pub const EXIT_OUT_OF_MEMORY: i32 = 83;

#[global_allocator]
static ALLOCATOR: TellingAllocator = TellingAllocator;

static TELLS: AtomicBool = AtomicBool::new(false);

/// From now on, an allocation that the system refuses ends this process with
/// [`EXIT_OUT_OF_MEMORY`]. Without this it would abort, as it does for other reasons too.
pub fn exit_when_out_of_memory() {
    TELLS.store(true, Ordering::Relaxed);
}

/// Ends this process as one that was refused this much memory.
pub fn exit_out_of_memory(wanted_bytes: usize) -> ! {
    // Written from a buffer on the stack: there is no memory to be had.
    let mut message = [0; 64];
    let mut rest = &mut message[..];
    let _ = writeln!(rest, "out of memory: {wanted_bytes} bytes more were wanted");
    let length = 64 - rest.len();
    let _ = nix::unistd::write(io::stderr(), &message[..length]);
    exit_now(EXIT_OUT_OF_MEMORY)
}

/// The system's allocator, which in a run does not return when it is refused memory.
struct TellingAllocator;

impl TellingAllocator {
    fn told(allocated: *mut u8, wanted_bytes: usize) -> *mut u8 {
        if allocated.is_null() && TELLS.load(Ordering::Relaxed) {
            exit_out_of_memory(wanted_bytes);
        }
        allocated
    }
}

// SAFETY: Every call goes to the system's allocator with the same arguments, and what that
// returns is returned unchanged, if at all.
unsafe impl GlobalAlloc for TellingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: The caller keeps the contract, which is the same.
        Self::told(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: As above.
        Self::told(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: As above.
        Self::told(unsafe { System.realloc(block, layout, new_size) }, new_size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: As above.
        unsafe { System.dealloc(block, layout) }
    }
}
