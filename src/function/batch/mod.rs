//! Schedules one batch: message groups side by side, the records of a group in order, and each
//! worker rendering one document after another. Messages that were delivered before come last, since one of them
//! may be what took too long the last time.
//!
//! [`record`] is a record's way from its message to its outcome, in the steps [`inputs`], [`render`]
//! and [`outputs`], and [`parts`] that of a long document; [`queue`] is where they wait for a worker.
//! [`groups`] says which records wait for which, and [`limits`], [`memory`] and [`cores`] how much of what
//! there is a document may have.
//!
//! A batch is one future without a task of its own: when it is dropped at the deadline, no part of it
//! goes on. Imports [`crate::aws`], [`crate::message`], [`crate::press`] and the rest of
//! [`crate::function`]. It must never be true that a record gets two outcomes, or none.

mod cores;
mod groups;
mod inputs;
pub mod limits;
mod memory;
pub mod outputs;
mod parts;
mod queue;
mod record;
mod render;

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tracing::Instrument;

use super::report::RecordReport;
use crate::aws::s3::Storage;
use crate::aws::sqs::Queues;
use crate::message::ParseContext;
use crate::press::Worker;
use cores::CoreBudget;
use groups::{KeyLocks, MessageGroup};
use limits::{Limits, MAX_READS, MAX_UPLOADS};
use memory::BatchMemory;
use queue::{Work, WorkQueue, work_queue};
use record::RecordState;
use render::Sharing;

/// What all records of a batch share.
pub(super) struct BatchContext<'a> {
    pub storage: &'a Storage,
    pub queues: &'a Queues,
    pub parse: ParseContext<'a>,
    /// The number of threads that all documents may have together.
    pub cores: usize,
    /// The render time from which on a document's timings are stored, if they are to be.
    pub timings_slower_than: Option<Duration>,
    pub limits: Limits,
    /// When the invocation began, in milliseconds since 1970: the time of a document whose message has none.
    pub began_at_ms: Option<i64>,
}

/// A batch that is being processed.
struct Batch<'a> {
    context: &'a BatchContext<'a>,
    workers: usize,
    cores: CoreBudget,
    key_locks: KeyLocks,
    /// A permit for each read from S3 that may be under way.
    reads: Semaphore,
    /// A permit for each upload that may be under way.
    uploads: Semaphore,
    memory: BatchMemory,
    has_logged_denied: Cell<bool>,
    set_aside: RefCell<Vec<SetAside<'a>>>,
    /// Whether messages that were delivered before are processed after those that are processed now.
    redelivered_wait: Cell<bool>,
}

/// A record whose document needs more memory than one may have beside others, and the rest of its
/// group, which waits for it.
struct SetAside<'a> {
    record: &'a RecordReport<'a>,
    rest: MessageGroup<'a>,
}

/// Processes every record of a batch. When this returns each report has its outcome, and every run
/// that has seen a message has ended.
pub(super) async fn process<'a>(
    context: &'a BatchContext<'a>,
    workers: &mut [Worker],
    reports: impl Iterator<Item = &'a RecordReport<'a>>,
) {
    let batch = Batch {
        context,
        workers: workers.len(),
        cores: CoreBudget::new(context.cores),
        key_locks: KeyLocks::default(),
        reads: Semaphore::new(MAX_READS),
        uploads: Semaphore::new(MAX_UPLOADS),
        memory: BatchMemory::new(
            workers.len(),
            context.limits.memory_for_inputs(),
            context.storage.max_message_and_files_bytes(),
        ),
        has_logged_denied: Cell::new(false),
        set_aside: RefCell::default(),
        redelivered_wait: Cell::new(false),
    };
    let groups = groups::group(reports, &batch.cores);
    let (mut redelivered, first_deliveries): (Vec<_>, Vec<_>) =
        groups.into_iter().partition(|group| group.receive_count() > 1);
    // Whoever has come back most often has its full time limit most surely.
    redelivered.sort_by_key(|group| Reverse(group.receive_count()));
    batch.redelivered_wait.set(!redelivered.is_empty());
    batch.process_all(workers, first_deliveries).await;
    batch.redelivered_wait.set(false);
    batch.process_all(workers, redelivered).await;
}

impl<'a> Batch<'a> {
    /// Processes groups, and after them alone what of them needs all the memory.
    async fn process_all(&self, workers: &mut [Worker], mut groups: Vec<MessageGroup<'a>>) {
        while !groups.is_empty() {
            self.process_groups(workers, groups).await;
            groups = match workers.first_mut() {
                Some(worker) => self.retry_exclusively(worker).await,
                None => return,
            };
        }
    }

    /// Processes groups side by side on all workers.
    async fn process_groups(&self, workers: &mut [Worker], groups: Vec<MessageGroup<'a>>) {
        let (queue, work) = work_queue();
        let shares: Vec<_> = groups.iter().map(|_| self.cores.share()).collect();
        let groups =
            groups.into_iter().zip(shares).map(|(group, share)| self.process_group(group, share, queue.clone()));
        let groups = join_all(groups);
        drop(queue);
        let workers = join_all(workers.iter_mut().map(|worker| self.press_worker(worker, &work)));
        tokio::join!(groups, workers);
    }

    /// Processes the records of a group in order, until one fails transiently or has to be set aside. The share
    /// of the cores and the work queue are let go of with the group's last document.
    async fn process_group(&self, mut group: MessageGroup<'a>, share: cores::CoreShare<'_>, queue: WorkQueue<'a>) {
        let (mut share, mut queue) = (Some(share), Some(queue));
        while let Some((record, waiting)) = group.pop() {
            let is_last = group.is_empty();
            let share = if is_last { share.take() } else { None };
            let queue = if is_last { queue.take() } else { queue.clone() };
            let queue = queue.expect("it is let go of with the last record");
            let span = record.span.clone();
            match self.process_record(record, waiting, share, queue, Sharing::Shared).instrument(span).await {
                RecordState::Done => {}
                RecordState::FailedTransiently => return group.stop_after(record),
                RecordState::NeedsAllMemory => {
                    return self.set_aside.borrow_mut().push(SetAside { record, rest: group });
                }
            }
        }
    }

    /// Processes one after another the records that were set aside, each alone and with all the
    /// memory. Returns what waited for them and can go on.
    async fn retry_exclusively(&self, worker: &mut Worker) -> Vec<MessageGroup<'a>> {
        let mut groups = Vec::new();
        loop {
            let Some(SetAside { record, rest }) = self.set_aside.borrow_mut().pop() else { return groups };
            let span = record.span.clone();
            match self.process_exclusively(worker, record).instrument(span).await {
                RecordState::Done if rest.is_empty() => {}
                RecordState::Done => groups.push(rest),
                RecordState::FailedTransiently | RecordState::NeedsAllMemory => rest.stop_after(record),
            }
        }
    }

    /// Does one task after another on a worker, and ends its run when there are no more.
    async fn press_worker(&self, worker: &mut Worker, work: &Work<'a>) {
        loop {
            let reservation = self.memory.reserve_pdf().await;
            let Some(queued) = work.next().await else { break };
            self.render_queued(worker, queued, reservation).await;
        }
        worker.end_invocation().await;
    }
}
