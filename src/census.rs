//! What processes hold, as proc(5) tells: threads, children, open files and memory. Counted by name, so
//! that a leak says whose it is, as a goroutine profile does.
//!
//! The crate `procfs` reads the same files, in more code than this: what is needed here are three folders'
//! entries and two files, of processes that may end meanwhile.
//!
//! Imports nothing of ours.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::fs;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How many there are of each name. Threads or children whose names differ only in a number at the end
/// are counted together: `page-1` and `page-2` are two `page-*`.
pub type Counts = BTreeMap<String, usize>;

/// The name of all sockets in [`ProcessSnapshot::open_files`].
pub const SOCKET: &str = "socket";

/// The longest that something which has ended may take to be gone: the kernel still lists a thread for
/// some microseconds after it has been joined, and a connection that is dropped has a task of its own.
const POLL_TIMEOUT: Duration = Duration::from_millis(50);

/// What a process holds at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessSnapshot {
    pub threads: Counts,
    /// The children, including those that have ended and have not been waited for.
    pub children: Counts,
    /// The open files by path, or by kind if they have none: `socket`, `pipe`.
    pub open_files: Counts,
    pub resident_bytes: u64,
}

/// Something that a process holds more of than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The process that holds it: `function`, `press`, or `run` with its worker's number.
    pub process: String,
    /// The kind: `threads`, `tasks`, `children`, `open files` or `resident KiB`.
    pub kind: &'static str,
    /// The name of the threads, children or files.
    pub name: String,
    pub before: usize,
    pub after: usize,
}

impl ProcessSnapshot {
    /// Takes a snapshot of a process. What has just gone counts as absent.
    #[must_use]
    pub fn of(process: u32) -> Self {
        let threads = thread_ids(process);
        let names = threads.iter().map(|thread| name_of(&format!("/proc/{process}/task/{thread}/comm")));
        Self {
            threads: grouped(names),
            children: grouped(children(process).iter().map(|child| name_of(&format!("/proc/{child}/comm")))),
            open_files: grouped(open_files(process)),
            resident_bytes: resident_bytes(process),
        }
    }

    /// Returns the larger count of each of two snapshots.
    #[must_use]
    pub fn max(mut self, other: &Self) -> Self {
        let kinds = [
            (&mut self.threads, &other.threads),
            (&mut self.children, &other.children),
            (&mut self.open_files, &other.open_files),
        ];
        for (groups, others) in kinds {
            for (name, count) in others {
                let own = groups.entry(name.clone()).or_default();
                *own = (*own).max(*count);
            }
        }
        self.resident_bytes = self.resident_bytes.max(other.resident_bytes);
        self
    }

    /// Returns what there is more of than in `before`. Memory is not compared.
    #[must_use]
    pub fn leaks_since(&self, before: &Self, process: &str) -> Vec<Leak> {
        let kinds = [
            ("threads", &before.threads, &self.threads),
            ("children", &before.children, &self.children),
            ("open files", &before.open_files, &self.open_files),
        ];
        let of_kind = |(kind, before, after): (&'static str, &Counts, &Counts)| {
            let grown = after.iter().map(|(name, after)| (name, before.get(name).copied().unwrap_or(0), *after));
            grown
                .filter(|(_, before, after)| after > before)
                .map(|(name, before, after)| Leak {
                    process: process.to_owned(),
                    kind,
                    name: name.clone(),
                    before,
                    after,
                })
                .collect::<Vec<_>>()
        };
        kinds.into_iter().flat_map(of_kind).collect()
    }
}

/// Polls until a value is as it should be, or until 50 ms are over. Returns the last value.
pub async fn poll_until<T>(poll: impl Fn() -> T, is_done: impl Fn(&T) -> bool) -> T {
    let give_up_at = Instant::now() + POLL_TIMEOUT;
    loop {
        let value = poll();
        if is_done(&value) || Instant::now() > give_up_at {
            return value;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// Leaks as a table, with a line for each.
pub struct LeakTable<'a>(pub &'a [Leak]);

impl fmt::Display for LeakTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:<16} {:<12} {:<32} {:>8} {:>8}", "process", "kind", "name", "before", "after")?;
        self.0.iter().try_for_each(|Leak { process, kind, name, before, after }| {
            write!(f, "\n{process:<16} {kind:<12} {name:<32} {before:>8} {after:>8}")
        })
    }
}

/// Returns what this process and all processes below it hold at this moment, as a table with a line for
/// each process.
#[must_use]
pub fn table_of_this_process() -> String {
    let mut table = format!("{:<24} {:>10}  {:<28} {}", "process", "resident", "threads", "open files");
    add_lines(&mut table, std::process::id(), 0);
    table
}

fn add_lines(table: &mut String, process: u32, depth: usize) {
    let ProcessSnapshot { threads, open_files, resident_bytes, .. } = ProcessSnapshot::of(process);
    let name = format!("{:indent$}{} {process}", "", name_of(&format!("/proc/{process}/comm")), indent = 2 * depth);
    let resident = format!("{} KiB", resident_bytes / 1024);
    let _ = write!(table, "\n{name:<24} {resident:>10}  {:<28} {}", listed(&threads), listed(&open_files));
    for child in children(process) {
        add_lines(table, child, depth + 1);
    }
}

fn listed(groups: &Counts) -> String {
    groups.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

fn grouped(names: impl Iterator<Item = String>) -> Counts {
    let mut groups = Counts::new();
    for name in names {
        *groups.entry(name).or_default() += 1;
    }
    groups
}

/// Reads the name of a process or a thread, without the number at its end.
fn name_of(comm: &str) -> String {
    let name = fs::read_to_string(comm).unwrap_or_default();
    let name = name.trim_end();
    match name.rsplit_once('-') {
        Some((group, number)) if number.parse::<usize>().is_ok() => format!("{group}-*"),
        _ if name.is_empty() => "(gone)".to_owned(),
        _ => name.to_owned(),
    }
}

fn thread_ids(process: u32) -> Vec<String> {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    threads.flatten().filter_map(|thread| thread.file_name().into_string().ok()).collect()
}

/// Returns the process ids of a process's children, including those that have not been waited for.
#[must_use]
pub fn children(process: u32) -> Vec<u32> {
    let of_thread = |thread: String| fs::read_to_string(format!("/proc/{process}/task/{thread}/children"));
    let lists: Result<Vec<String>, _> = thread_ids(process).into_iter().map(of_thread).collect();
    match lists {
        Ok(lists) => lists.iter().flat_map(|list| list.split_whitespace()).filter_map(|id| id.parse().ok()).collect(),
        // A thread has gone meanwhile, or the kernel is built without these lists.
        Err(_) => children_by_parent(process),
    }
}

fn children_by_parent(process: u32) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| parent_of(*id) == Some(process)).collect()
}

fn parent_of(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name before this may hold spaces and parentheses.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn open_files(process: u32) -> impl Iterator<Item = String> {
    let own_files = format!("/proc/{process}/");
    let files = fs::read_dir(format!("{own_files}fd")).into_iter().flatten().flatten();
    let targets = files.filter_map(|file| Some(fs::read_link(file.path()).ok()?.to_string_lossy().into_owned()));
    let names = targets.map(move |target| match (target.split_once(":["), target.strip_prefix(&own_files)) {
        (Some((kind, _)), _) => kind.to_owned(),
        // As it would be called in another press, to which this one is compared.
        (None, Some(own_file)) => format!("/proc/self/{own_file}"),
        (None, None) => target,
    });
    // The listing itself is a file that is open meanwhile.
    names.filter(|name| name != "/proc/self/fd")
}

/// Returns the bytes that a process has in RAM, including shared pages; 0 when it is gone.
#[must_use]
pub fn resident_bytes(process: u32) -> u64 {
    statm_bytes(process, 1)
}

/// Returns the bytes of a process's private writable mappings, which `RLIMIT_DATA` limits, and of its stack; 0 when
/// it is gone.
#[must_use]
pub fn data_bytes(process: u32) -> u64 {
    statm_bytes(process, 5)
}

/// Reads a field of `/proc/<pid>/statm`, which counts pages.
fn statm_bytes(process: u32, field: usize) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    let pages = statm.split_whitespace().nth(field).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    pages * 4096
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::process::Command;
    use std::thread;

    /// One test, since those that run beside it would be counted too.
    #[test]
    fn a_leak_is_told_by_name() {
        let before = ProcessSnapshot::of(std::process::id());
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (start, started) = std::sync::mpsc::channel();
        let wait = move || {
            start.send(()).unwrap();
            stopped.recv()
        };
        let thread = thread::Builder::new().name("leaky-7".to_owned()).spawn(wait).unwrap();
        // It runs before it has its name.
        started.recv().unwrap();
        let file = File::open("/proc/self/limits").unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        // It is started before it has its name.
        while name_of(&format!("/proc/{}/comm", child.id())) != "sleep" {
            thread::yield_now();
        }
        let leaks = ProcessSnapshot::of(std::process::id()).leaks_since(&before, "function");
        let told = LeakTable(&leaks).to_string();
        child.kill().unwrap();
        child.wait().unwrap();
        drop((file, stop));
        let _ = thread.join().unwrap();
        for [kind, name] in [["threads", "leaky-*"], ["children", "sleep"], ["open files", "limits"]] {
            let line = told.lines().find(|line| line.contains(kind) && line.contains(name));
            let line = line.unwrap_or_else(|| panic!("no {kind} {name} in\n{told}"));
            assert_eq!(line.split_whitespace().rev().take(2).collect::<Vec<_>>(), ["1", "0"], "{told}");
        }
    }

    #[test]
    fn a_child_is_found_with_and_without_the_kernels_lists() {
        let mut child = Command::new("tail").args(["-f", "/dev/null"]).spawn().unwrap();
        let (listed, searched) = (children(std::process::id()), children_by_parent(std::process::id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(listed.contains(&child.id()) && searched.contains(&child.id()));
    }
}
