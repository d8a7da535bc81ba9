//! Processes as the kernel sees them, from outside.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What a process holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSnapshot {
    /// The names of its threads, sorted.
    pub threads: Vec<String>,
    pub open_files: usize,
    pub children: usize,
}

/// Counts what a process holds at this moment.
pub fn holdings(process: u32) -> ProcessSnapshot {
    ProcessSnapshot {
        threads: threads(process),
        open_files: entries(&format!("/proc/{process}/fd")),
        children: children(process).len(),
    }
}

/// The names of a process's threads, sorted; none if it is gone.
pub fn threads(process: u32) -> Vec<String> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    let mut names: Vec<String> = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect();
    names.sort();
    names
}

/// The live children of a process.
pub fn children(process: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut children: Vec<u32> = ids.filter(|id| parent(*id) == Some(process)).collect();
    children.sort_unstable();
    children
}

fn parent(process: u32) -> Option<u32> {
    fields_of_stat(process)?.get(1)?.parse().ok()
}

fn is_asleep(process: u32) -> bool {
    fields_of_stat(process).is_some_and(|fields| fields[0] == "S")
}

/// Whether it has ended and waits to be reaped.
pub fn is_zombie(process: u32) -> bool {
    fields_of_stat(process).is_some_and(|fields| fields[0] == "Z")
}

/// What proc(5) says of a process behind its name, from its state on.
fn fields_of_stat(process: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// Resident memory in bytes.
pub fn resident_bytes(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn entries(folder: &str) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

pub fn signal(process: u32, signal: Signal) {
    // One that has just ended by itself is what the test wanted anyway.
    let _ = kill(Pid::from_raw(i32::try_from(process).unwrap()), signal);
}

pub fn is_alive(process: u32) -> bool {
    fs::metadata(format!("/proc/{process}")).is_ok()
}

/// The run that waits or works under a press that has one.
pub fn run_of(press: u32) -> u32 {
    let runs = children(press);
    assert_eq!(runs.len(), 1, "the press has exactly one run");
    runs[0]
}

/// Waits until a condition holds; ten seconds is for a machine that is very busy.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < patience, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until the runs of a press have nothing to do: their own warming is over.
pub async fn until_runs_wait(press: u32) {
    until("the runs wait", || {
        let runs = children(press);
        // One that has not yet begun to get warm also has one thread, but does not sleep.
        let waits = |run: &u32| threads(*run).len() == 1 && is_asleep(*run) && stdout(*run) != stdout(press);
        !runs.is_empty() && runs.iter().all(waits)
    })
    .await;
}

/// A run just forked still has its press's for some microseconds.
fn stdout(process: u32) -> Option<std::path::PathBuf> {
    fs::read_link(format!("/proc/{process}/fd/1")).ok()
}

/// Waits until a run of a press is rendering a document.
pub async fn until_run_works(press: u32) {
    until("the run works", || children(press).iter().any(|run| threads(*run).len() > 1)).await;
}
