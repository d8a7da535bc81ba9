//! The walls around a press and its runs. A document's template may be wrong and Typst may have a
//! bug: neither is to reach another file, a socket or another program.
//!
//! A press is walled in once it is warm, and its runs inherit that: with Landlock they can open no
//! file, with seccomp no socket and no program. A run then allows itself only the system calls
//! that setting a document takes. What both need has been read before.

use std::fmt;
use std::io;
use std::str::FromStr;

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope};
use libc::c_long;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// How far a press and its runs are walled in. A kernel may lack one of these, and Lambda's own
/// filter may kill who asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// An empty environment, no inherited files, no core dumps, no new privileges.
    Bare,
    /// And seccomp.
    Seccomp,
    /// And Landlock.
    SeccompAndLandlock,
}

impl Level {
    /// What to try when this one cannot be had.
    #[must_use]
    pub fn lower(self) -> Option<Self> {
        match self {
            Self::SeccompAndLandlock => Some(Self::Seccomp),
            Self::Seccomp => Some(Self::Bare),
            Self::Bare => None,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Bare => "bare",
            Self::Seccomp => "seccomp",
            Self::SeccompAndLandlock => "seccomp+landlock",
        })
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Bare, Self::Seccomp, Self::SeccompAndLandlock]
            .into_iter()
            .find(|level| level.to_string() == text)
            .ok_or_else(|| format!("{text:?} is no level of the sandbox"))
    }
}

/// The system calls that a run may make once it is ready to set documents: threads, memory, its
/// pipes, time and the ways to end. Read off runs of many templates, and of aborts.
const CALLS_OF_A_RUN: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_ppoll,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_sigaltstack,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_prlimit64,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_getrandom,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_gettime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// What a press has no use for after its warm-up, and its runs neither.
const NOT_FOR_A_PRESS: &[c_long] = &[
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_mount,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_io_uring_setup,
];

/// Walls a press in, as far as `level` says and the kernel can.
///
/// # Errors
/// When the kernel refuses what the level asks for. It may also kill this process instead.
pub fn wall_in_press(level: Level) -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_no_new_privs()?;
    if level >= Level::SeccompAndLandlock {
        open_no_file()?;
    }
    if level >= Level::Seccomp {
        let denied = SeccompAction::Errno(Errno::EPERM as u32);
        apply(&filter(unconditional(NOT_FOR_A_PRESS), SeccompAction::Allow, denied)?)?;
    }
    Ok(())
}

/// Every right that Landlock knows is handled and none is granted: no file can be opened or
/// changed, no port used, and no process outside signalled.
fn open_no_file() -> io::Result<()> {
    let abi = ABI::V6;
    let status = Ruleset::default()
        // The first ABI is what is asked for; what newer ones add is taken where it is there.
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(abi)))
        .and_then(|rules| rules.scope(Scope::from_all(abi)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(io::Error::other)?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err(io::Error::other("this kernel has no Landlock")),
        _ => Ok(()),
    }
}

/// The filters of a run, compiled once by its press.
pub struct RunFilters(Vec<BpfProgram>);

impl RunFilters {
    /// # Errors
    /// When this is an architecture that seccompiler does not know.
    pub fn compile(level: Level) -> io::Result<Self> {
        if level < Level::Seccomp {
            return Ok(Self(Vec::new()));
        }
        // glibc tries these and goes on without: it starts a thread by `clone`, whose flags can
        // be looked at, and does not ask how the kernel overcommits.
        let tried = unconditional(&[libc::SYS_clone3, libc::SYS_openat]);
        let tried = filter(tried, SeccompAction::Allow, SeccompAction::Errno(Errno::ENOSYS as u32))?;
        let mut allowed = unconditional(CALLS_OF_A_RUN);
        allowed.push((libc::SYS_clone3, Vec::new()));
        allowed.push((libc::SYS_openat, Vec::new()));
        allowed.push((libc::SYS_clone, vec![first_argument_has(libc::CLONE_THREAD as u64)?]));
        allowed.push((libc::SYS_prctl, vec![first_argument_is(libc::PR_SET_NAME as u64)?]));
        let allowed = filter(allowed, SeccompAction::Trap, SeccompAction::Allow)?;
        // The kernel asks all filters and takes the strictest answer.
        Ok(Self(vec![tried, allowed]))
    }

    /// Allows this process, a run, no other call from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wall_in_run(&self) -> io::Result<()> {
        self.0.iter().try_for_each(apply)
    }
}

type Rules = Vec<(c_long, Vec<SeccompRule>)>;

fn unconditional(calls: &[c_long]) -> Rules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

fn first_argument_has(bits: u64) -> io::Result<SeccompRule> {
    first_argument(SeccompCmpOp::MaskedEq(bits), bits)
}

fn first_argument_is(value: u64) -> io::Result<SeccompRule> {
    first_argument(SeccompCmpOp::Eq, value)
}

fn first_argument(operator: SeccompCmpOp, value: u64) -> io::Result<SeccompRule> {
    let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value).map_err(io::Error::other)?;
    SeccompRule::new(vec![condition]).map_err(io::Error::other)
}

fn filter(rules: Rules, otherwise: SeccompAction, on_match: SeccompAction) -> io::Result<BpfProgram> {
    let architecture = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    SeccompFilter::new(rules.into_iter().collect(), otherwise, on_match, architecture)
        .and_then(TryInto::try_into)
        .map_err(io::Error::other)
}

fn apply(program: &BpfProgram) -> io::Result<()> {
    seccompiler::apply_filter(program).map_err(io::Error::other)
}
