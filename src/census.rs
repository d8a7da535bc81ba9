//! What processes hold, by name, as proc(5) has it: threads, children, open files and memory. The
//! way a goroutine profile says `100 @ pool.NewPool`, a census says who it is that leaks.
//!
//! Imports nothing of ours.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::fs;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How many there are of each name. Threads and children that differ in a number at the end of
/// their names only are one group: `page-1` and `page-2` are two `page-*`.
pub type Groups = BTreeMap<String, usize>;

/// Sockets, as [`Holdings::open_files`] names them.
pub const SOCKET: &str = "socket";

/// How long what has ended may take to be gone: the kernel still lists a thread for some
/// microseconds when it has been joined, and a connection that is dropped has a task of its own.
const PATIENCE: Duration = Duration::from_millis(50);

/// What a process holds at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    pub threads: Groups,
    /// Those that have ended and were not waited for included.
    pub children: Groups,
    /// By path, or by kind where there is none: `socket`, `pipe`.
    pub open_files: Groups,
    pub resident_bytes: u64,
}

/// Something that there is more of than there was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Whose it is, such as `press 1`.
    pub process: String,
    /// `threads`, `tasks`, `children`, `open files` or `resident KiB`.
    pub kind: &'static str,
    /// Which of them.
    pub name: String,
    pub before: usize,
    pub after: usize,
}

impl Holdings {
    /// Looks at a process. What cannot be seen, since it has just gone, is not there.
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

    /// As much of everything as there is in either.
    #[must_use]
    pub fn or_as_much_as(mut self, other: &Self) -> Self {
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

    /// What there is more of than in `before`. Memory is not judged here.
    #[must_use]
    pub fn growth_since(&self, before: &Self, process: &str) -> Vec<Growth> {
        let kinds = [
            ("threads", &before.threads, &self.threads),
            ("children", &before.children, &self.children),
            ("open files", &before.open_files, &self.open_files),
        ];
        let of_kind = |(kind, before, after): (&'static str, &Groups, &Groups)| {
            let grown = after.iter().map(|(name, after)| (name, before.get(name).copied().unwrap_or(0), *after));
            grown
                .filter(|(_, before, after)| after > before)
                .map(|(name, before, after)| Growth {
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

/// Looks until what is seen is as it should be, or all patience is gone. Gives what was seen last.
pub async fn look_patiently<T>(look: impl Fn() -> T, is_as_it_should_be: impl Fn(&T) -> bool) -> T {
    let end_of_patience = Instant::now() + PATIENCE;
    loop {
        let seen = look();
        if is_as_it_should_be(&seen) || Instant::now() > end_of_patience {
            return seen;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// Growths as a table, a line each.
pub struct GrowthTable<'a>(pub &'a [Growth]);

impl fmt::Display for GrowthTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:<16} {:<12} {:<32} {:>8} {:>8}", "process", "kind", "name", "before", "after")?;
        self.0.iter().try_for_each(|Growth { process, kind, name, before, after }| {
            write!(f, "\n{process:<16} {kind:<12} {name:<32} {before:>8} {after:>8}")
        })
    }
}

/// What this process and everything below it hold at this moment, as a table with a line a process.
#[must_use]
pub fn table_of_this_process() -> String {
    let mut table = format!("{:<24} {:>10}  {:<28} {}", "process", "resident", "threads", "open files");
    add_lines(&mut table, std::process::id(), 0);
    table
}

fn add_lines(table: &mut String, process: u32, depth: usize) {
    let Holdings { threads, open_files, resident_bytes, .. } = Holdings::of(process);
    let name = format!("{:indent$}{} {process}", "", name_of(&format!("/proc/{process}/comm")), indent = 2 * depth);
    let resident = format!("{} KiB", resident_bytes / 1024);
    let _ = write!(table, "\n{name:<24} {resident:>10}  {:<28} {}", listed(&threads), listed(&open_files));
    for child in children(process) {
        add_lines(table, child, depth + 1);
    }
}

fn listed(groups: &Groups) -> String {
    groups.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

fn grouped(names: impl Iterator<Item = String>) -> Groups {
    let mut groups = Groups::new();
    for name in names {
        *groups.entry(name).or_default() += 1;
    }
    groups
}

/// A process's or a thread's name, without the number at its end.
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

/// The processes that this one has started and not waited for.
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

/// The memory that a process has in RAM, shared pages included; none when it is gone.
#[must_use]
pub fn resident_bytes(process: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    pages * 4096
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::process::Command;
    use std::thread;

    /// One test, since the others of this program would be counted too.
    #[test]
    fn what_is_more_than_before_is_told_by_name() {
        let before = Holdings::of(std::process::id());
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = thread::Builder::new().name("leaky-7".to_owned()).spawn(move || stopped.recv()).unwrap();
        let file = File::open("/proc/self/limits").unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        // It is started before it has its name.
        while name_of(&format!("/proc/{}/comm", child.id())) != "sleep" {
            thread::yield_now();
        }
        let growth = Holdings::of(std::process::id()).growth_since(&before, "function");
        let told = GrowthTable(&growth).to_string();
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
