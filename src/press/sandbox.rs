//! The sandbox of a press and its runs. A document's template may be wrong and Typst may have a
//! bug: neither is to reach another file, a socket, another program or another process.
//!
//! A press restricts itself once it is warm, and its runs inherit that: with Landlock they can open
//! no file, with seccomp they can make only the system calls that forking, passing and reaping take.
//! A run then allows itself only those that rendering takes. What both need has been read before.

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::process;
use std::str::FromStr;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreated, RulesetStatus, Scope};
use libc::c_long;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, rlim_t, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use serde::{Deserialize, Serialize};

/// How far a press and its runs are restricted. A kernel may lack one of these, and Lambda's own
/// filter may kill who asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SandboxLevel {
    /// An empty environment, no inherited files, no core dumps, no files written, no new privileges.
    Bare,
    /// The same, and an allow-list of system calls.
    Seccomp,
    /// The same, and no right to any file, port or process outside.
    SeccompAndLandlock,
}

impl SandboxLevel {
    /// The level to try if the kernel does not allow this one.
    #[must_use]
    pub fn lower(self) -> Option<Self> {
        match self {
            Self::SeccompAndLandlock => Some(Self::Seccomp),
            Self::Seccomp => Some(Self::Bare),
            Self::Bare => None,
        }
    }
}

impl fmt::Display for SandboxLevel {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Bare => "bare",
            Self::Seccomp => "seccomp",
            Self::SeccompAndLandlock => "seccomp+landlock",
        })
    }
}

impl FromStr for SandboxLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Bare, Self::Seccomp, Self::SeccompAndLandlock]
            .into_iter()
            .find(|level| level.to_string() == text)
            .ok_or_else(|| format!("{text:?} is no level of the sandbox"))
    }
}

/// The most files that a press has open, its runs' pipes while it passes them on included.
pub const MAX_FILES: RawFd = 64;

/// The system calls that a run may make with any arguments once it is ready to render documents:
/// threads, memory, its pipes, time and the ways to end. Read off runs of many templates, and of
/// aborts. [`run_rules`] has those whose arguments count.
const RUN_ALLOWLIST: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_ppoll,
    libc::SYS_munmap,
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
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_gettime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// What a press may do beyond its runs, which inherit this and give it up: counting its threads,
/// receiving and telling, reaping and killing, and what makes a run of its copy.
const PRESS_ALLOWLIST: &[c_long] = &[
    libc::SYS_lseek,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_wait4,
    libc::SYS_tgkill,
    libc::SYS_getppid,
    libc::SYS_fcntl,
    libc::SYS_dup3,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    libc::SYS_eventfd2,
    libc::SYS_seccomp,
];

/// The namespaces that a press could make for a copy of itself.
const NEW_NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;

/// What a press asks the kernel for before it gets warm, so that a filter around it which kills for
/// that kills early.
pub struct Preparation {
    level: SandboxLevel,
    ruleset: Option<RulesetCreated>,
}

impl Preparation {
    /// Prepares for a level, or for the one below it where the kernel has no Landlock.
    ///
    /// # Errors
    /// When the kernel refuses for another reason. It may also kill this process instead.
    pub fn for_level(level: SandboxLevel) -> io::Result<Self> {
        if level < SandboxLevel::SeccompAndLandlock {
            return Ok(Self { level, ruleset: None });
        }
        let abi = ABI::V6;
        // The first ABI is what is asked for; what newer ones add is taken where it is there.
        let ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(abi))
            .and_then(|rules| rules.handle_access(AccessNet::from_all(abi)))
            .and_then(|rules| rules.scope(Scope::from_all(abi)))
            .and_then(Ruleset::create)
            .map_err(io::Error::other)?;
        Ok(Self { level, ruleset: Some(ruleset) })
    }
}

/// Restricts a press that is warm, as far as it has prepared for that and the kernel can. Gives the
/// level that has been reached.
///
/// # Errors
/// When the kernel refuses. It may also kill this process instead.
pub fn restrict_press(preparation: Preparation) -> io::Result<SandboxLevel> {
    let Preparation { mut level, ruleset } = preparation;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    setrlimit(Resource::RLIMIT_FSIZE, 0, 0)?;
    let max_files = rlim_t::try_from(MAX_FILES).map_err(io::Error::other)?;
    setrlimit(Resource::RLIMIT_NOFILE, max_files, max_files)?;
    prctl::set_no_new_privs()?;
    // Every right that Landlock knows is handled and none is granted: no file can be opened or
    // changed, no port used, and no process outside signalled.
    if let Some(ruleset) = ruleset
        && ruleset.restrict_self().map_err(io::Error::other)?.ruleset == RulesetStatus::NotEnforced
    {
        level = SandboxLevel::Seccomp;
    }
    if level >= SandboxLevel::Seccomp {
        // glibc tries these and goes on without: it starts a thread by `clone`, whose flags can
        // be looked at, and does not ask how the kernel overcommits.
        let absent = SeccompAction::Errno(Errno::ENOSYS as u32);
        apply(filter(unconditional(TRIED_IN_VAIN), SeccompAction::Allow, absent)?)?;
        let denied = SeccompAction::Errno(Errno::EPERM as u32);
        apply(filter(press_rules()?, denied, SeccompAction::Allow)?)?;
    }
    Ok(level)
}

/// Restricts this process, a run, to what rendering takes. For any other system call it is killed.
/// The press has been restricted to the same level before, which holds here too.
///
/// # Errors
/// When the kernel refuses.
pub fn restrict_run(level: SandboxLevel) -> io::Result<()> {
    if level >= SandboxLevel::Seccomp {
        // With this process's own id in it, so it cannot be compiled ahead: 20 us.
        let own_id = u64::from(process::id());
        apply(filter(run_rules(own_id)?, SeccompAction::Trap, SeccompAction::Allow)?)?;
    }
    Ok(())
}

/// What glibc tries and goes on without. Allowed in later filters, since the kernel asks all of
/// them and takes the strictest answer.
const TRIED_IN_VAIN: &[c_long] = &[libc::SYS_clone3, libc::SYS_openat];

fn run_rules(own_id: u64) -> io::Result<Rules> {
    let mut rules = memory_rules()?;
    rules.extend(unconditional(RUN_ALLOWLIST));
    rules.extend([
        (libc::SYS_clone, vec![rule(&[has_bits(0, libc::CLONE_THREAD)?])?]),
        (libc::SYS_tgkill, vec![rule(&[is(0, own_id)?])?]),
        (libc::SYS_prctl, vec![rule(&[is(0, bits(libc::PR_SET_NAME))?])?]),
    ]);
    Ok(rules)
}

fn press_rules() -> io::Result<Rules> {
    let options = [libc::PR_SET_NAME, libc::PR_SET_PDEATHSIG, libc::PR_SET_NO_NEW_PRIVS];
    let mut rules = memory_rules()?;
    rules.extend(unconditional(RUN_ALLOWLIST));
    rules.extend(unconditional(PRESS_ALLOWLIST));
    rules.extend([
        (libc::SYS_clone, vec![rule(&[has_not_bits(0, NEW_NAMESPACES)?])?]),
        (libc::SYS_kill, vec![rule(&[is(1, bits(libc::SIGKILL))?])?]),
        (libc::SYS_prctl, options.iter().map(|option| rule(&[is(0, bits(*option))?])).collect::<io::Result<_>>()?),
    ]);
    Ok(rules)
}

/// Memory for this process alone and never executable, limits of itself alone.
fn memory_rules() -> io::Result<Rules> {
    let mut rules = unconditional(TRIED_IN_VAIN);
    rules.extend([
        (
            libc::SYS_mmap,
            vec![rule(&[
                has_not_bits(2, libc::PROT_EXEC)?,
                condition(3, SeccompCmpOp::MaskedEq(MAP_TYPE), bits(libc::MAP_PRIVATE))?,
            ])?],
        ),
        (libc::SYS_mprotect, vec![rule(&[has_not_bits(2, libc::PROT_EXEC)?])?]),
        (libc::SYS_prlimit64, vec![rule(&[is(0, 0)?])?]),
    ]);
    Ok(rules)
}

/// The bits of the flags of `mmap(2)` that say with whom memory is shared.
const MAP_TYPE: u64 = 0x0f;

type Rules = Vec<(c_long, Vec<SeccompRule>)>;

fn unconditional(calls: &[c_long]) -> Rules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

fn has_bits(argument: u8, bits: libc::c_int) -> io::Result<SeccompCondition> {
    condition(argument, SeccompCmpOp::MaskedEq(self::bits(bits)), self::bits(bits))
}

fn has_not_bits(argument: u8, bits: libc::c_int) -> io::Result<SeccompCondition> {
    condition(argument, SeccompCmpOp::MaskedEq(self::bits(bits)), 0)
}

/// A C constant as the kernel compares it: the lower 32 bits.
fn bits(constant: libc::c_int) -> u64 {
    u64::from(constant.cast_unsigned())
}

fn is(argument: u8, value: u64) -> io::Result<SeccompCondition> {
    condition(argument, SeccompCmpOp::Eq, value)
}

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> io::Result<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).map_err(io::Error::other)
}

/// Holds if all conditions do.
fn rule(conditions: &[SeccompCondition]) -> io::Result<SeccompRule> {
    SeccompRule::new(conditions.to_vec()).map_err(io::Error::other)
}

fn filter(rules: Rules, otherwise: SeccompAction, on_match: SeccompAction) -> io::Result<BpfProgram> {
    let architecture = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    SeccompFilter::new(rules.into_iter().collect(), otherwise, on_match, architecture)
        .and_then(TryInto::try_into)
        .map_err(io::Error::other)
}

#[expect(clippy::needless_pass_by_value, reason = "a filter is applied once")]
fn apply(program: BpfProgram) -> io::Result<()> {
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}
