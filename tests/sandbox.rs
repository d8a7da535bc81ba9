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
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, fork};
use pressrun::config::Config;
use pressrun::function::deadline::Deadline;
use pressrun::os;
use pressrun::press::sandbox::{Preparation, SandboxLevel, restrict_press, restrict_run};
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
    ("signals_another_process", || refused(kill(Pid::from_raw(stranger()), Signal::SIGCONT).map_err(io::Error::from))),
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

/// What is to happen to presses in their starts, a line each: a press has no environment that could
/// say so.
const STARTS_FILE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/starts-of-presses");

/// System calls that a filter around this process may kill for.
const KILLED_FOR: [(&str, &[libc::c_long]); 2] = [
    ("landlock", &[libc::SYS_landlock_create_ruleset, libc::SYS_landlock_restrict_self]),
    ("pidfd", &[libc::SYS_pidfd_open, libc::SYS_close_range, libc::SYS_memfd_create]),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|role| role == "press") {
        return press_in_a_harsh_world();
    }
    if arguments.get(1).is_some_and(|role| role == "function-without-pidfd") {
        kill_for("pidfd");
        fs::write(STARTS_FILE, "pidfd\n").unwrap();
        let is_stored = run(async {
            let mut stage = stage_in_a_harsh_world().await;
            stage.handle(vec![letter("a"), letter("b")]).await.is_empty()
        });
        return if is_stored { ExitCode::SUCCESS } else { ExitCode::FAILURE };
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
    report.add("function_and_press_come_up_where_asking_for_pidfds_kills", comes_up_without_pidfd());
    report.add("a_press_that_is_killed_once_in_its_start_keeps_its_sandbox", keeps_its_sandbox());
    report.add("a_press_that_hangs_in_its_start_is_not_waited_for_beyond_the_deadline", is_not_waited_for());
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
    if Preparation::for_level(level).and_then(restrict_press).ok() != Some(level) {
        os::exit_now(NO_SUCH_LEVEL);
    }
    if role == Role::Run {
        restrict_run(level).unwrap();
    }
    let is_refused = if number == LIMIT { refused(raise_lowered_limit()) } else { (attempt(number).1)() };
    os::exit_now(i32::from(!is_refused))
}

/// Starts a process that ends with this one. A death signal would not end it: Landlock keeps that, as every signal of
/// the restricted process, from others.
fn start_stranger() -> i32 {
    let (ours, theirs) = nix::unistd::pipe().unwrap();
    // SAFETY: The child only makes system calls.
    match unsafe { fork() }.unwrap() {
        nix::unistd::ForkResult::Parent { child } => {
            // Open until this process ends, which is what the child waits for.
            std::mem::forget(theirs);
            child.as_raw()
        }
        nix::unistd::ForkResult::Child => {
            drop(theirs);
            let _ = nix::unistd::read(&ours, &mut [0]);
            os::exit_now(0)
        }
    }
}

/// A press to which happens what the next line of the file says.
fn press_in_a_harsh_world() -> ExitCode {
    let starts = fs::read_to_string(STARTS_FILE).unwrap_or_default();
    let (start, rest) = starts.split_once('\n').unwrap_or_default();
    fs::write(STARTS_FILE, rest).unwrap();
    match start {
        "" => {}
        "kill" => kill(nix::unistd::getpid(), Signal::SIGKILL).unwrap(),
        "stop" => kill(nix::unistd::getpid(), Signal::SIGSTOP).unwrap(),
        calls => kill_for(calls),
    }
    pressrun::run_press_if_requested().unwrap()
}

/// Has this process killed for some system calls.
fn kill_for(calls: &str) {
    let (_, calls) = KILLED_FOR.iter().find(|(name, _)| *name == calls).unwrap();
    let filter = SeccompFilter::new(
        calls.iter().map(|call| (*call, vec![])).collect(),
        SeccompAction::Allow,
        SeccompAction::KillProcess,
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

fn starts_with_nothing() -> bool {
    run(async {
        let stage = Stage::with_workers(2).await;
        let press = stage.function.press_id().unwrap();
        support::processes::until("two runs wait", || support::processes::children(press).len() == 2).await;
        support::processes::until_runs_wait(press).await;
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
    let press_program = std::env::current_exe().unwrap();
    // Much, for a machine that is slow.
    Stage::with(Config { press_program, deadline_margin: Duration::from_secs(2), ..config(2) }).await
}

fn comes_up_without_landlock() -> bool {
    fs::write(STARTS_FILE, "landlock\n".repeat(10)).unwrap();
    run(async {
        let mut stage = stage_in_a_harsh_world().await;
        let failed = stage.handle(vec![letter("a"), letter("b")]).await;
        let starts = 10 - fs::read_to_string(STARTS_FILE).unwrap().lines().count();
        // Twice at the level that it cannot have, and once at the next.
        stage.function.sandbox_level() == SandboxLevel::Seccomp && failed.is_empty() && starts == 3
    })
}

fn comes_up_without_pidfd() -> bool {
    Command::new(std::env::current_exe().unwrap()).arg("function-without-pidfd").status().unwrap().success()
}

fn keeps_its_sandbox() -> bool {
    fs::write(STARTS_FILE, "kill\n").unwrap();
    run(async {
        let stage = stage_in_a_harsh_world().await;
        let untouched = Stage::with_workers(1).await;
        stage.function.sandbox_level() == untouched.function.sandbox_level()
    })
}

/// The handler does not wait beyond its deadline for a press that hangs in its start.
fn is_not_waited_for() -> bool {
    fs::write(STARTS_FILE, "").unwrap();
    run(async {
        let mut stage = stage_in_a_harsh_world().await;
        let press = stage.function.press_id().unwrap();
        fs::write(STARTS_FILE, "stop\nstop\nstop\n").unwrap();
        support::processes::signal(press, Signal::SIGKILL);
        let began = Instant::now();
        let deadline = Deadline::from_lambda(SystemTime::now() + Duration::from_secs(5));
        let failed = stage.handle_until(vec![letter("a"), letter("b")], deadline).await;
        let is_in_time = began.elapsed() < Duration::from_secs(5);
        let left = support::processes::children(std::process::id());
        fs::write(STARTS_FILE, "").unwrap();
        let is_well = stage.handle(vec![letter("c")]).await.is_empty();
        println!("  failed {failed:?}, in time {is_in_time}, left {left:?}, well {is_well}");
        failed == ["a", "b"] && is_in_time && left.is_empty() && is_well
    })
}
