//! What there is more of after an invocation than before it, in the function, its press and the
//! runs.

use tokio::runtime::Handle;

use super::limits::{MOST_READS, MOST_UPLOADS};
use crate::census::{self, Growth, GrowthTable, Holdings, SOCKET};
use crate::press::Supervisor;
use crate::queues::MOST_REQUESTS;

/// The connections that the function may keep from one invocation to the next. A pool may open one
/// more than it needs while another becomes free.
const MOST_CONNECTIONS: usize = 2 * (MOST_READS + MOST_UPLOADS + MOST_REQUESTS);

/// The SDK's clients, of S3 and SQS, have a task each that looks after idle connections, from the
/// first one on.
const TASKS_OF_CLIENTS: i64 = 2;

/// How much larger than when it was warm a press may be: it only forks.
const MAX_PRESS_GROWTH_BYTES: u64 = 4 * 1024 * 1024;

/// How a table names it.
const PRESS: &str = "press";

/// What function and press hold between invocations.
#[derive(Clone, Debug)]
pub(super) struct Census {
    pub function: Holdings,
    pub tasks: usize,
    /// None where there is no press.
    pub press: Option<Holdings>,
}

/// What there is more of.
#[derive(Debug)]
pub(super) struct Grown {
    pub function: Vec<Growth>,
    pub press: Vec<Growth>,
}

impl Census {
    pub fn take(supervisor: &Supervisor) -> Self {
        Self {
            function: Holdings::of(std::process::id()),
            tasks: Handle::current().metrics().num_alive_tasks(),
            press: supervisor.press_id().map(Holdings::of),
        }
    }

    /// Takes a census before an invocation. `start` is from before all of them: what a dead press
    /// held counts as still held, so that its replacement is not a leak.
    pub fn take_before(start: &Self, supervisor: &Supervisor) -> Self {
        let Self { function, tasks, press } = Self::take(supervisor);
        Self {
            function: function.or_as_much_as(&start.function),
            tasks,
            press: press.map(|press| press.or_as_much_as(&supervisor.warm_press())),
        }
    }

    /// Takes a census after an invocation, as soon as there is no more than before, or after all
    /// patience. What there is more of comes with it.
    pub async fn take_after(before: &Self, start: &Self, supervisor: &Supervisor) -> (Self, Grown) {
        let look = || {
            let after = Self::take(supervisor);
            let grown = after.grown_since(before, start, supervisor);
            (after, grown)
        };
        census::look_patiently(look, |(_, grown)| grown.is_nothing()).await
    }

    fn grown_since(&self, before: &Self, start: &Self, supervisor: &Supervisor) -> Grown {
        let press = match (&before.press, &self.press) {
            (Some(before), Some(after)) => growth_of_press(supervisor, before, after),
            _ => Vec::new(),
        };
        Grown { function: self.growth_of_function(before, start), press }
    }

    fn growth_of_function(&self, before: &Self, start: &Self) -> Vec<Growth> {
        let process = "function".to_owned();
        let mut growth = self.function.growth_since(&before.function, &process);
        growth.retain(|growth| growth.name != SOCKET || growth.after > MOST_CONNECTIONS);
        let beside = self.tasks_beside_connections();
        let is_more = beside > before.tasks_beside_connections();
        if is_more && beside > start.tasks_beside_connections() + TASKS_OF_CLIENTS {
            let (name, before, after) = ("of tokio".to_owned(), before.tasks, self.tasks);
            growth.push(Growth { process, kind: "tasks", name, before, after });
        }
        growth
    }

    /// Each of the SDK's connections, which it keeps, has a task. Not every socket is one of those.
    fn tasks_beside_connections(&self) -> i64 {
        let [tasks, connections] = [self.tasks, self.connections()].map(|count| i64::try_from(count).unwrap_or(0));
        tasks - connections
    }

    pub fn connections(&self) -> usize {
        self.function.open_files.get(SOCKET).copied().unwrap_or(0)
    }
}

impl Grown {
    fn is_nothing(&self) -> bool {
        self.function.is_empty() && self.press.is_empty()
    }
}

fn growth_of_press(supervisor: &Supervisor, before: &Holdings, after: &Holdings) -> Vec<Growth> {
    // A run that has just been forked is called as its press is, until it names itself.
    let total = |holdings: &Holdings| {
        let children = [("run".to_owned(), holdings.children.values().sum())].into();
        Holdings { children, ..holdings.clone() }
    };
    let has_more_children = after.children.values().sum::<usize>() > before.children.values().sum();
    let (before, after) = if has_more_children { (before, after) } else { (&total(before), &total(after)) };
    let mut growth = after.growth_since(before, PRESS);
    growth.extend(growth_of_memory(supervisor, after));
    growth
}

fn growth_of_memory(supervisor: &Supervisor, after: &Holdings) -> Option<Growth> {
    let (before, after) = (supervisor.warm_press().resident_bytes, after.resident_bytes);
    let kib = |bytes: u64| usize::try_from(bytes / 1024).unwrap_or(usize::MAX);
    (after > before + MAX_PRESS_GROWTH_BYTES).then(|| Growth {
        process: PRESS.to_owned(),
        kind: "resident KiB",
        name: "since it was warm".to_owned(),
        before: kib(before),
        after: kib(after),
    })
}

/// Logs what there is more of, as a table.
pub(super) fn log(growth: &[Growth]) {
    if !growth.is_empty() {
        tracing::error!("there is more than before the invocation\n{}", GrowthTable(growth));
    }
}
