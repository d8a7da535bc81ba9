//! Checks for leaks: what function, press and runs hold more of after an invocation than before it.

use tokio::runtime::Handle;

use super::batch::limits::{MAX_READS, MAX_UPLOADS};
use crate::aws::sqs::MAX_REQUESTS;
use crate::census::{self, Leak, LeakTable, ProcessSnapshot, SOCKET};
use crate::press::Supervisor;

/// The most connections that the function may keep from one invocation to the next. A pool may open one
/// more than it needs while another becomes free.
const MAX_CONNECTIONS: usize = 2 * (MAX_READS + MAX_UPLOADS + MAX_REQUESTS);

/// The SDK's clients of S3 and SQS have a task each, which looks after idle connections, from the first
/// connection on.
const TASKS_OF_CLIENTS: i64 = 2;

/// How much more memory than when it had become warm a press may have: it only forks.
const MAX_PRESS_GROWTH_BYTES: u64 = 4 * 1024 * 1024;

/// The press's name in a table of leaks.
const PRESS: &str = "press";

/// What function and press hold between invocations.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub function: ProcessSnapshot,
    pub tasks: usize,
    /// `None` if there is no press.
    pub press: Option<ProcessSnapshot>,
}

/// What there is more of than there was.
#[derive(Debug)]
pub(super) struct Leaks {
    pub function: Vec<Leak>,
    pub press: Vec<Leak>,
}

impl Snapshot {
    pub fn take(supervisor: &Supervisor) -> Self {
        Self {
            function: ProcessSnapshot::of(std::process::id()),
            tasks: Handle::current().metrics().num_alive_tasks(),
            press: supervisor.press_id().map(ProcessSnapshot::of),
        }
    }

    /// Takes a snapshot before an invocation. `start` is the one from before the first: what a dead press
    /// held counts as still held, so that its replacement is not a leak.
    pub fn take_before(start: &Self, supervisor: &Supervisor) -> Self {
        let Self { function, tasks, press } = Self::take(supervisor);
        Self {
            function: function.max(&start.function),
            tasks,
            press: press.map(|press| with_children_as_runs(&press).max(&supervisor.warm_press())),
        }
    }

    /// Takes a snapshot after an invocation, as soon as there are no leaks, or else the last one that
    /// there is time for; and what has leaked.
    pub async fn take_after(before: &Self, start: &Self, supervisor: &Supervisor) -> (Self, Leaks) {
        let look = || {
            let after = Self::take(supervisor);
            let leaks = after.leaks_since(before, start, supervisor);
            (after, leaks)
        };
        census::poll_until(look, |(_, leaks)| leaks.is_empty()).await
    }

    fn leaks_since(&self, before: &Self, start: &Self, supervisor: &Supervisor) -> Leaks {
        let press = match (&before.press, &self.press) {
            (Some(before), Some(after)) => leaks_of_press(supervisor, before, after),
            _ => Vec::new(),
        };
        Leaks { function: self.leaks_of_function(before, start), press }
    }

    fn leaks_of_function(&self, before: &Self, start: &Self) -> Vec<Leak> {
        let process = "function".to_owned();
        let mut leaks = self.function.leaks_since(&before.function, &process);
        leaks.retain(|leak| leak.name != SOCKET || leak.after > MAX_CONNECTIONS);
        let beside = self.tasks_beside_connections();
        let is_more = beside > before.tasks_beside_connections();
        if is_more && beside > start.tasks_beside_connections() + TASKS_OF_CLIENTS {
            let (name, before, after) = ("of tokio".to_owned(), before.tasks, self.tasks);
            leaks.push(Leak { process, kind: "tasks", name, before, after });
        }
        leaks
    }

    /// The tasks that do not belong to a connection: each that the SDK keeps has a task. Not every
    /// socket is one of those.
    fn tasks_beside_connections(&self) -> i64 {
        let [tasks, connections] = [self.tasks, self.connections()].map(|count| i64::try_from(count).unwrap_or(0));
        tasks - connections
    }

    pub fn connections(&self) -> usize {
        self.function.open_files.get(SOCKET).copied().unwrap_or(0)
    }
}

impl Leaks {
    fn is_empty(&self) -> bool {
        self.function.is_empty() && self.press.is_empty()
    }
}

/// The same, with all children counted as runs: one that has just been forked has the press's name, until it sets
/// its own.
fn with_children_as_runs(press: &ProcessSnapshot) -> ProcessSnapshot {
    let children = [("run".to_owned(), press.children.values().sum())].into();
    ProcessSnapshot { children, ..press.clone() }
}

fn leaks_of_press(supervisor: &Supervisor, before: &ProcessSnapshot, after: &ProcessSnapshot) -> Vec<Leak> {
    let has_more_children = after.children.values().sum::<usize>() > before.children.values().sum();
    let children_by_name = if has_more_children { after } else { &with_children_as_runs(after) };
    let mut leaks = children_by_name.leaks_since(before, PRESS);
    leaks.extend(memory_leak(supervisor, after));
    leaks
}

fn memory_leak(supervisor: &Supervisor, after: &ProcessSnapshot) -> Option<Leak> {
    let (before, after) = (supervisor.warm_press().resident_bytes, after.resident_bytes);
    let kib = |bytes: u64| usize::try_from(bytes / 1024).unwrap_or(usize::MAX);
    (after > before + MAX_PRESS_GROWTH_BYTES).then(|| Leak {
        process: PRESS.to_owned(),
        kind: "resident KiB",
        name: "since it was warm".to_owned(),
        before: kib(before),
        after: kib(after),
    })
}

/// Logs leaks as a table.
pub(super) fn log(leaks: &[Leak]) {
    if !leaks.is_empty() {
        tracing::error!("leak: there is more than before the invocation\n{}", LeakTable(leaks));
    }
}
