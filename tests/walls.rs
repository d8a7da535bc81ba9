//! What a document can reach if its template or Typst goes wrong: each wall with a process that
//! tries. Needs a `main` of its own, since the processes are this program in other roles.

mod support;

use std::fs::{self, File};
use std::net::TcpStream;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use pressrun::config::Config;
use pressrun::os::{self, ThreadCount};
use pressrun::press::sandbox::{Level, RunFilters, wall_in_press};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use support::{Stage, config, letter, run};

/// What is tried within walls: its name, and how. It answers whether it was kept from it.
type Attempt = (&'static str, fn() -> bool);

const AS_A_PRESS: &[Attempt] = &[
    ("opens a file", || refused(File::open("/etc/passwd").map(drop))),
    ("lists a folder", || refused(fs::read_dir("/").map(drop))),
    ("writes a file", || {
        let file = std::env::temp_dir().join(format!("pressrun-walls-{}", std::process::id()));
        refused(fs::write(&file, "x").and_then(|()| fs::remove_file(&file)))
    }),
    ("opens a socket", || refused(TcpStream::connect("127.0.0.1:9").map(drop))),
    ("starts a program", || refused(Command::new("/bin/true").status().map(drop))),
    ("signals a stranger", || refused(nix::sys::signal::kill(nix::unistd::getppid(), None).map_err(Into::into))),
    ("gains privileges", || prctl::get_no_new_privs() == Ok(true)),
    ("dumps core", || getrlimit(Resource::RLIMIT_CORE) == Ok((0, 0))),
];

/// So many of those are possible where there is neither Landlock nor seccomp.
const WITH_WALLS_ONLY: usize = 6;

/// What a process exits with that cannot be walled in.
const NO_SUCH_WALLS: i32 = 77;

/// A run is ended for trying what no document's run ever does.
const AS_A_RUN: &[Attempt] = &[
    ("run opens a file", || refused(File::open("/etc/passwd").map(drop))),
    ("run opens a socket", || refused(TcpStream::connect("127.0.0.1:9").map(drop))),
    ("run starts a program", || refused(Command::new("/bin/true").status().map(drop))),
    ("run forks", || {
        let forked = ThreadCount::open().and_then(|mut threads| os::fork(&mut threads));
        refused(forked.map(drop))
    }),
];

fn refused(result: std::io::Result<()>) -> bool {
    let Err(error) = result else { return false };
    // Not refused but absent would prove nothing.
    let kind = error.raw_os_error().map(Errno::from_raw);
    matches!(kind, Some(Errno::EACCES | Errno::EPERM | Errno::ENOSYS))
}

fn main() -> ExitCode {
    // This program is also what the function starts as a press below.
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|role| role == "press") {
        let killed_for_landlock = [libc::SYS_landlock_create_ruleset].map(|call| (call, vec![]));
        let filter = SeccompFilter::new(
            killed_for_landlock.into_iter().collect(),
            SeccompAction::Allow,
            SeccompAction::KillProcess,
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
        return pressrun::play_press_role().unwrap();
    }
    if let [_, role, level, number] = &arguments[..]
        && role == "try"
    {
        return try_within_walls(level.parse().unwrap(), number.parse().unwrap());
    }
    if status_of(Level::SeccompAndLandlock, 0).code() == Some(NO_SUCH_WALLS) {
        println!("0 passed, 0 failed, {} skipped", AS_A_PRESS.len() + AS_A_RUN.len() + 2);
        println!("This kernel has no Landlock or no seccomp: presses say so at init and do without.");
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    let mut passed = 0;
    let mut report = |name: &str, holds: bool| {
        println!("test {name} ... {}", if holds { "ok" } else { "FAILED" });
        if holds { passed += 1 } else { failed += 1 }
    };
    for (number, (name, _)) in AS_A_PRESS.iter().chain(AS_A_RUN).enumerate() {
        report(&format!("nothing_within_the_walls {name}"), is_kept_from(Level::SeccompAndLandlock, number));
    }
    for (number, (name, _)) in AS_A_PRESS.iter().enumerate().take(WITH_WALLS_ONLY) {
        report(&format!("without_walls_a_process {name}"), !is_kept_from(Level::Bare, number));
    }
    report("a_press_has_an_empty_environment_and_no_files_but_its_own", starts_with_nothing());
    report("presses_come_up_where_asking_for_landlock_kills", comes_up_without_landlock());
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn attempt(number: usize) -> (&'static Attempt, bool) {
    let is_run = number >= AS_A_PRESS.len();
    (if is_run { &AS_A_RUN[number - AS_A_PRESS.len()] } else { &AS_A_PRESS[number] }, is_run)
}

fn status_of(level: Level, number: usize) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("try").arg(level.to_string()).arg(number.to_string()).stderr(Stdio::null()).status().unwrap()
}

fn is_kept_from(level: Level, number: usize) -> bool {
    let status = status_of(level, number);
    let (_, is_run) = attempt(number);
    // Kept from it politely, or ended for it.
    let ended = std::os::unix::process::ExitStatusExt::signal(&status) == Some(Signal::SIGSYS as i32);
    status.success() || (is_run && ended)
}

fn try_within_walls(level: Level, number: usize) -> ExitCode {
    let ((_, attempt), is_run) = attempt(number);
    if wall_in_press(level).is_err() {
        os::exit_now(NO_SUCH_WALLS);
    }
    if is_run {
        RunFilters::compile(level).unwrap().wall_in_run().unwrap();
    }
    let kept = attempt();
    os::exit_now(i32::from(!kept))
}

fn starts_with_nothing() -> bool {
    run(async {
        let stage = Stage::with_presses(1).await;
        let press = stage.function.press_ids().next().unwrap();
        let environment = fs::read(format!("/proc/{press}/environ")).unwrap();
        // Stdin, stdout, stderr; the thread count; and of its run two pipe ends and what it says.
        let files = support::processes::holdings(press).open_files;
        let of_run = support::processes::holdings(support::processes::run_of(press)).open_files;
        println!("  environment {} bytes, files {files}, of its run {of_run}", environment.len());
        environment.is_empty() && files == 7 && of_run == 4
    })
}

fn comes_up_without_landlock() -> bool {
    run(async {
        let config = Config { press_program: std::env::current_exe().unwrap(), ..config(2) };
        let mut stage = Stage::with(config).await;
        let failed = stage.handle(vec![letter("a"), letter("b")]).await;
        stage.function.level() == Level::Seccomp && failed.is_empty() && stage.pdf("letter", "a").is_some()
    })
}
