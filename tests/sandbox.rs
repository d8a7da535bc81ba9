//! What a document can reach if its template or Typst goes wrong: each restriction with a process
//! that tries. Needs a `main` of its own, since the processes are this program in other roles.
#![allow(unsafe_code, reason = "system calls that no library makes for what nobody should do")]

mod support;

use std::fs::{self, File};
use std::io;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, fork};
use pressrun::config::Config;
use pressrun::os;
use pressrun::press::sandbox::{SandboxLevel, restrict_press, restrict_run};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use support::{Stage, config, letter, run};

/// Something that is tried within the sandbox: its name, and how. It answers whether it was refused.
type Attempt = (&'static str, fn() -> bool);

/// A process of the same user that is none of the sandbox's.
static STRANGER: AtomicI32 = AtomicI32::new(0);

/// What neither a press nor a run may do. A press is told no, a run is ended.
const AS_EITHER: &[Attempt] = &[
    ("opens_a_file", || refused(File::open("/etc/passwd"))),
    ("lists_a_folder", || refused(fs::read_dir("/"))),
    ("opens_a_socket", || refused(TcpStream::connect("127.0.0.1:9"))),
    ("starts_a_program", || refused(Command::new("/bin/true").status())),
    ("limits_another_process", || refused(prlimit(stranger()))),
    ("shares_memory", || refused(map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED))),
    ("maps_executable_memory", || refused(map(libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE))),
    ("makes_memory_executable", || refused(make_executable())),
    ("asks_for_ptrace", || refused(ptrace())),
];

/// What a press has to do, and a run must not.
const AS_A_RUN: &[Attempt] = &[
    // SAFETY: The child, if there is one, ends at once.
    ("forks", || match unsafe { fork() } {
        Ok(nix::unistd::ForkResult::Child) => os::exit_now(0),
        forked => refused(forked.map_err(io::Error::from)),
    }),
    ("signals_another_process", || refused(kill(Pid::from_raw(stranger()), None).map_err(io::Error::from))),
    ("signals_a_thread_of_another_process", || refused(tgkill(stranger()))),
    ("receives_a_file", || refused(os::receive_packet(&io::stdin(), &mut [0; 1]))),
];

fn refused<T>(result: io::Result<T>) -> bool {
    // Not refused but absent would prove nothing.
    let kind = result.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw);
    matches!(kind, Some(Errno::EACCES | Errno::EPERM | Errno::ENOSYS))
}

fn stranger() -> i32 {
    STRANGER.load(Ordering::Relaxed)
}

fn raise_lowered_limit() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_DATA, 1 << 30, 1 << 30)?;
    Ok(setrlimit(Resource::RLIMIT_DATA, 1 << 31, 1 << 31)?)
}

fn prlimit(process: i32) -> io::Result<i32> {
    // SAFETY: Null pointers are for what is not asked for.
    let result = unsafe { libc::prlimit(process, libc::RLIMIT_NOFILE, ptr::null(), ptr::null_mut()) };
    Ok(Errno::result(result)?)
}

fn tgkill(process: i32) -> io::Result<i64> {
    // SAFETY: The call takes three integers, and signal 0 does nothing.
    Ok(Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, process, process, 0) })?)
}

fn ptrace() -> io::Result<i64> {
    // SAFETY: It takes no other arguments.
    Ok(Errno::result(unsafe { libc::ptrace(libc::PTRACE_TRACEME) })?)
}

fn map(protection: i32, sharing: i32) -> io::Result<usize> {
    // SAFETY: New memory, which nothing else points to.
    let address = unsafe { libc::mmap(ptr::null_mut(), 4096, protection, sharing | libc::MAP_ANONYMOUS, -1, 0) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address as usize) }
}

fn make_executable() -> io::Result<i32> {
    let page = map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
    // SAFETY: Nothing else points to it.
    Ok(Errno::result(unsafe { libc::mprotect(page as *mut libc::c_void, 4096, libc::PROT_READ | libc::PROT_EXEC) })?)
}

/// The attempt that no level allows.
const LIMIT: usize = usize::MAX;

/// Who tries something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Press,
    Run,
}

/// What a process exits with that cannot be restricted so far.
const NO_SUCH_LEVEL: i32 = 77;

/// How often a press is to be killed at its start, as its program is told by the environment of the
/// test, which a press does not have: so by a file.
const KILLS_FILE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/kills-at-start");

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|role| role == "press") {
        return press_in_a_harsh_world();
    }
    if let [_, action, level, role, number] = &arguments[..]
        && action == "try"
    {
        let role = if role == "run" { Role::Run } else { Role::Press };
        return try_within(level.parse().unwrap(), role, number.parse().unwrap());
    }
    let mut report = Report::default();
    for level in [SandboxLevel::Seccomp, SandboxLevel::SeccompAndLandlock] {
        let attempts = AS_EITHER.len() + AS_A_RUN.len();
        if status_of(level, Role::Press, 0).code() == Some(NO_SUCH_LEVEL) {
            println!("This kernel has no {level}: {attempts} attempts are not made.");
            report.skipped += attempts;
            continue;
        }
        for role in [Role::Press, Role::Run] {
            for number in numbers(role) {
                let who = if role == Role::Run { "run" } else { "press" };
                let name = format!("within_{level}_no_{who} {}", attempt(number).0);
                report.add(&name, is_kept_from(level, role, number));
            }
        }
    }
    for number in numbers(Role::Run) {
        let name = format!("without_a_sandbox_a_process {}", attempt(number).0);
        report.add(&name, !is_kept_from(SandboxLevel::Bare, Role::Run, number));
    }
    let is_kept = is_kept_from_raising_a_limit();
    report.add("no_process_raises_a_limit_that_it_has_lowered", is_kept);
    report.add("a_press_has_an_empty_environment_and_no_files_but_its_own", starts_with_nothing());
    report.add("a_press_comes_up_where_asking_for_landlock_kills", comes_up_without_landlock());
    report.add("a_press_that_is_killed_once_in_its_start_keeps_its_sandbox", keeps_its_sandbox());
    report.end()
}

#[derive(Default)]
struct Report {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Report {
    fn add(&mut self, name: &str, holds: bool) {
        println!("test {name} ... {}", if holds { "ok" } else { "FAILED" });
        if holds { self.passed += 1 } else { self.failed += 1 }
    }

    fn end(self) -> ExitCode {
        let Self { passed, failed, skipped } = self;
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn numbers(role: Role) -> std::ops::Range<usize> {
    0..if role == Role::Run { AS_EITHER.len() + AS_A_RUN.len() } else { AS_EITHER.len() }
}

fn attempt(number: usize) -> &'static Attempt {
    AS_EITHER.iter().chain(AS_A_RUN).nth(number).unwrap()
}

fn status_of(level: SandboxLevel, role: Role, number: usize) -> ExitStatus {
    let role = if role == Role::Run { "run" } else { "press" };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["try", &level.to_string(), role, &number.to_string()]).stdin(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap()
}

/// Kept from it politely, or ended for it if it is a run.
fn is_kept_from(level: SandboxLevel, role: Role, number: usize) -> bool {
    let status = status_of(level, role, number);
    let is_ended = status.signal() == Some(Signal::SIGSYS as i32);
    status.success() || (role == Role::Run && is_ended)
}

/// Of a user who is not root, as on Lambda.
fn is_kept_from_raising_a_limit() -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["try", "bare", "press", &LIMIT.to_string()]).stderr(Stdio::null()).status().unwrap().success()
}

fn try_within(level: SandboxLevel, role: Role, number: usize) -> ExitCode {
    // As on Lambda, where nobody is root.
    // SAFETY: The calls take integers, and this process has one thread.
    unsafe {
        libc::setgid(65534);
        libc::setuid(65534);
    }
    STRANGER.store(start_stranger(), Ordering::Relaxed);
    if restrict_press(level).is_err() {
        os::exit_now(NO_SUCH_LEVEL);
    }
    if role == Role::Run {
        restrict_run(level).unwrap();
    }
    let is_refused = if number == LIMIT { refused(raise_lowered_limit()) } else { (attempt(number).1)() };
    os::exit_now(i32::from(!is_refused))
}

fn start_stranger() -> i32 {
    let parent = nix::unistd::getpid();
    // SAFETY: The child only makes system calls.
    match unsafe { fork() }.unwrap() {
        nix::unistd::ForkResult::Parent { child } => child.as_raw(),
        nix::unistd::ForkResult::Child => {
            prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
            // The parent may have ended before this was set.
            while nix::unistd::getppid() == parent {
                nix::unistd::pause();
            }
            os::exit_now(0)
        }
    }
}

/// A press that asking for Landlock kills, or that is killed by somebody else a few times.
fn press_in_a_harsh_world() -> ExitCode {
    match fs::read_to_string(KILLS_FILE).ok().map(|kills| kills.parse::<u32>().unwrap()) {
        None => {
            let killed_for_landlock = [(libc::SYS_landlock_create_ruleset, vec![])];
            let filter = SeccompFilter::new(
                killed_for_landlock.into_iter().collect(),
                SeccompAction::Allow,
                SeccompAction::KillProcess,
                std::env::consts::ARCH.try_into().unwrap(),
            );
            let program: BpfProgram = filter.unwrap().try_into().unwrap();
            seccompiler::apply_filter(&program).unwrap();
        }
        Some(0) => {}
        Some(kills) => {
            fs::write(KILLS_FILE, (kills - 1).to_string()).unwrap();
            kill(nix::unistd::getpid(), Signal::SIGKILL).unwrap();
        }
    }
    pressrun::run_press_if_requested().unwrap()
}

fn starts_with_nothing() -> bool {
    run(async {
        let stage = Stage::with_workers(2).await;
        let press = stage.function.press_id().unwrap();
        let environment = fs::read(format!("/proc/{press}/environ")).unwrap();
        // Stdin, stdout, stderr; the thread count and the signals; of its runs only what is theirs.
        let files = support::processes::holdings(press).open_files;
        let runs = support::processes::children(press);
        let of_runs: Vec<usize> = runs.into_iter().map(|run| support::processes::holdings(run).open_files).collect();
        println!("  environment {} bytes, files {files}, of its runs {of_runs:?}", environment.len());
        let is_limited = [press].into_iter().chain(support::processes::children(press)).all(is_limited);
        environment.is_empty() && files == 5 && of_runs == [4, 4] && is_limited
    })
}

/// It gains no privileges, dumps no core and writes no file.
fn is_limited(process: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let is_zero = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line.trim_start_matches(name).split_whitespace().take(2).eq(["0", "0"])
    };
    status.contains("NoNewPrivs:\t1") && is_zero("Max core file size") && is_zero("Max file size")
}

async fn stage_in_a_harsh_world() -> Stage {
    Stage::with(Config { press_program: std::env::current_exe().unwrap(), ..config(2) }).await
}

fn comes_up_without_landlock() -> bool {
    let _ = fs::remove_file(KILLS_FILE);
    run(async {
        let mut stage = stage_in_a_harsh_world().await;
        let failed = stage.handle(vec![letter("a"), letter("b")]).await;
        stage.function.sandbox_level() == SandboxLevel::Seccomp
            && failed.is_empty()
            && stage.pdf("letter", "a").is_some()
    })
}

fn keeps_its_sandbox() -> bool {
    fs::write(KILLS_FILE, "1").unwrap();
    let kept = run(async {
        let stage = stage_in_a_harsh_world().await;
        let untouched = Stage::with_workers(1).await;
        stage.function.sandbox_level() == untouched.function.sandbox_level()
    });
    fs::remove_file(KILLS_FILE).unwrap();
    kept
}
