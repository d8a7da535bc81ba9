//! All `unsafe` code of pressrun, each use with its argument: `fork(2)`, `wait4(2)`, files that arrive by
//! `recvmsg(2)`, registering a socket with tokio, `_exit(2)` and the allocator with its settings.
//!
//! Imports nothing of ours.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{ForkResult, Pid};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

/// Counts this process's threads. It keeps `/proc/self/stat` open, so that it works when no file can be
/// opened any more.
#[derive(Debug)]
pub struct ThreadCount(File);

impl ThreadCount {
    /// Opens `/proc/self/stat`.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/stat").map(Self)
    }

    /// Returns the number of threads that the kernel knows of in the process that opened the file.
    ///
    /// # Errors
    /// When the file cannot be read, or is not as proc(5) says.
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

    /// Waits until this process has one thread: the kernel still lists a thread for some microseconds after
    /// it has been joined.
    ///
    /// # Errors
    /// When there are several threads after a second, so that one has leaked.
    pub fn wait_for_one(&mut self) -> Result<(), ForkError> {
        let give_up_at = Instant::now() + Duration::from_secs(1);
        loop {
            let threads = self.get().map_err(ForkError::Uncounted)?;
            if threads == 1 {
                return Ok(());
            }
            if Instant::now() > give_up_at {
                return Err(ForkError::Threads(threads));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// Why no process was forked.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    #[error("{0} threads are alive where one is expected")]
    Threads(usize),
    #[error("the threads cannot be counted: {0}")]
    Uncounted(#[source] io::Error),
    #[error("the kernel refuses: {0}")]
    Kernel(#[source] Errno),
}

/// Forks a process that has one thread.
///
/// # Errors
/// When the process has other threads, or the kernel refuses (out of memory or processes).
pub fn fork(threads: &mut ThreadCount) -> Result<ForkResult, ForkError> {
    match threads.get().map_err(ForkError::Uncounted)? {
        1 => {}
        threads => return Err(ForkError::Threads(threads)),
    }
    // SAFETY: After fork, a child of a process with several threads may only call what is
    // async-signal-safe, since another thread may have held a lock (the allocator's, say) at
    // that moment. This process has a single thread, as just checked: no lock is held but by
    // the caller itself, and the child may do all that the parent may.
    unsafe { nix::unistd::fork() }.map_err(ForkError::Kernel)
}

/// Names this process and its main thread after its role, since all roles have the same program. ps(1),
/// top(1) and a census show the name.
pub fn set_process_name(role: &CStr) {
    // The only error is of a name that cannot be read.
    let _ = nix::sys::prctl::set_name(role);
}

/// How a process ended and what it had used, as `wait4(2)` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEnd {
    pub status: ExitStatus,
    /// The largest resident set in bytes (`ru_maxrss`), including pages that are shared with the parent.
    pub peak_memory_bytes: u64,
    /// The CPU time in user and in system mode together.
    pub cpu_time: Duration,
}

/// A process's exit code, or the number of the signal that ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    Exited(i32),
    Killed(i32),
}

impl ExitStatus {
    /// The signal that ended the process, if one did and it has a name.
    #[must_use]
    pub fn signal(self) -> Option<Signal> {
        match self {
            Self::Exited(_) => None,
            Self::Killed(number) => Signal::try_from(number).ok(),
        }
    }
}

impl fmt::Display for ExitStatus {
    /// Formats for a sentence, as in "was killed by SIGSEGV".
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match (self, self.signal()) {
            (Self::Exited(code), _) => write!(f, "exited with code {code}"),
            (Self::Killed(_), Some(signal)) => write!(f, "was killed by {signal}"),
            (Self::Killed(number), None) => write!(f, "was killed by signal {number}"),
        }
    }
}

/// Waits until a child process has ended, and reaps it.
///
/// # Errors
/// When `child` is not a child of this process.
pub fn wait(child: Pid) -> io::Result<ProcessEnd> {
    loop {
        match wait4(child, 0) {
            Ok(Some((_, end))) => return Ok(end),
            Ok(None) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reaps a child process that has ended, if there is one. Never blocks.
///
/// # Errors
/// The errors of `wait4(2)`, except that there are no children.
pub fn reap_one() -> io::Result<Option<(Pid, ProcessEnd)>> {
    match wait4(Pid::from_raw(-1), libc::WNOHANG) {
        Err(Errno::ECHILD) => Ok(None),
        reaped => Ok(reaped?),
    }
}

fn wait4(child: Pid, options: i32) -> Result<Option<(Pid, ProcessEnd)>, Errno> {
    let mut status = 0;
    // SAFETY: `rusage` is a plain C struct of integers, for which zeros are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: Both pointers are to live, exclusively borrowed locals of the right type.
    let reaped = Errno::result(unsafe { libc::wait4(child.as_raw(), &raw mut status, options, &raw mut usage) })?;
    if reaped == 0 {
        return Ok(None);
    }
    let status = if libc::WIFSIGNALED(status) {
        ExitStatus::Killed(libc::WTERMSIG(status))
    } else {
        ExitStatus::Exited(libc::WEXITSTATUS(status))
    };
    let end = ProcessEnd {
        status,
        peak_memory_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0).saturating_mul(1024),
        cpu_time: duration(usage.ru_utime).saturating_add(duration(usage.ru_stime)),
    };
    Ok(Some((Pid::from_raw(reaped), end)))
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let microseconds = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(microseconds)
}

/// Registers a socket with tokio.
///
/// # Errors
/// When the kernel cannot poll it.
pub fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: An `OwnedFd` is open until it is dropped, and always the same file.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// The most files that one packet may bring.
pub const MAX_PACKET_FILES: usize = 3;

/// Receives a packet, and the files that come with it, from a `SOCK_SEQPACKET` socket. Never blocks. A length
/// of 0 means that the other end is closed, since no packet is empty.
///
/// # Errors
/// `WouldBlock` if there is no packet; an error if the packet or its files do not fit.
pub fn receive_packet(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut ancillary = nix::cmsg_space!([RawFd; MAX_PACKET_FILES]);
    let mut buffers = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let packet = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut buffers, Some(&mut ancillary), flags)?;
    let mut files = Vec::new();
    for message in packet.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = message {
            // SAFETY: The kernel has just opened these files for this process, and told nobody else.
            files.extend(received.into_iter().map(|file| unsafe { OwnedFd::from_raw_fd(file) }));
        }
    }
    if packet.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::other("a packet or its files did not fit"));
    }
    Ok((packet.bytes, files))
}

/// Ends this process at once, without destructors, `atexit` handlers or flushing. A forked copy must end so,
/// since all of those belong to its parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Returns what this build needs of the CPU and it does not have, if anything: without a check the process would be
/// killed by SIGILL at some instruction. cargo-lambda builds for CPUs with AVX2, which all of Lambda's have.
#[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
#[must_use]
pub fn missing_cpu_feature() -> Option<&'static str> {
    use std::arch::x86_64::__cpuid_count;
    // The macro `is_x86_feature_detected` takes for granted what the build takes for granted. Leaf 7 of CPUID says in
    // EBX whether there are AVX2 (bit 5) and BMI2 (bit 8), which came with the same CPUs as FMA and LZCNT.
    let has_both = __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).ebx & 0x120 == 0x120;
    (!has_both).then_some("AVX2 and BMI2, as Intel's CPUs have since Haswell")
}

/// Returns what this build needs of the CPU and it does not have: nothing, since every CPU has it.
#[cfg(not(all(target_arch = "x86_64", target_feature = "avx2")))]
#[must_use]
pub fn missing_cpu_feature() -> Option<&'static str> {
    None
}

/// Has all threads of this process share one arena of the allocator. To be called before another thread is started.
///
/// By default glibc gives each thread an arena of its own. That spares threads that work side by side a lock, but what
/// was freed in one arena is of no use in another, and only the main arena grows by more than a page at a time.
///
/// The arena also takes blocks of up to 32 MiB, and keeps 64 MiB that are free at its end. glibc would change both by what
/// is freed, and in about a third of the starts rendering then took 6 to 10 % longer (docs/performance.md).
#[cfg(target_env = "gnu")]
pub fn use_one_arena() {
    const MEBIBYTE: libc::c_int = 1024 * 1024;
    // SAFETY: The calls take integers. They fail only for values that make no sense.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 * MEBIBYTE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * MEBIBYTE);
    }
}

/// Other allocators have no such setting.
#[cfg(not(target_env = "gnu"))]
pub fn use_one_arena() {}

/// The exit code of a run that is refused memory.
pub const EXIT_OUT_OF_MEMORY: i32 = 83;

#[global_allocator]
static ALLOCATOR: ExitOnOomAllocator = ExitOnOomAllocator;

static EXITS_ON_OOM: AtomicBool = AtomicBool::new(false);

/// Has every allocation that the system refuses end this process with [`EXIT_OUT_OF_MEMORY`] from now on.
/// Without this the process would abort, as it does for other reasons too.
pub fn exit_on_out_of_memory() {
    EXITS_ON_OOM.store(true, Ordering::Relaxed);
}

/// Ends this process with [`EXIT_OUT_OF_MEMORY`], and writes to stderr how many bytes it was refused.
pub fn exit_out_of_memory(wanted_bytes: usize) -> ! {
    // The text is made on the stack, since there is no memory.
    let mut message = [0; 64];
    let mut rest = &mut message[..];
    let _ = writeln!(rest, "out of memory: {wanted_bytes} bytes more were wanted");
    let length = 64 - rest.len();
    let _ = nix::unistd::write(io::stderr(), &message[..length]);
    exit_now(EXIT_OUT_OF_MEMORY)
}

/// The system's allocator, which ends a run that is refused memory.
struct ExitOnOomAllocator;

impl ExitOnOomAllocator {
    fn checked(allocated: *mut u8, wanted_bytes: usize) -> *mut u8 {
        if allocated.is_null() && EXITS_ON_OOM.load(Ordering::Relaxed) {
            exit_out_of_memory(wanted_bytes);
        }
        allocated
    }
}

// SAFETY: Every call goes to the system's allocator with the same arguments, and what that returns is
// returned unchanged, if at all.
unsafe impl GlobalAlloc for ExitOnOomAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: The caller keeps the contract, which is the same.
        Self::checked(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: As above.
        Self::checked(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: As above.
        Self::checked(unsafe { System.realloc(block, layout, new_size) }, new_size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: As above.
        unsafe { System.dealloc(block, layout) }
    }
}
