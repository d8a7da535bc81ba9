//! Which records of a batch wait for which others: those of a message group are processed in order,
//! and only one document at a time is stored under a key.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::cores::{CoreBudget, WaitingDocument};
use crate::function::outcome::{Failure, Outcome};
use crate::function::report::RecordReport;

/// Records that are processed one after another: those of a FIFO queue's message group, or a single
/// one.
#[derive(Default)]
pub(super) struct MessageGroup<'a>(VecDeque<(&'a RecordReport<'a>, WaitingDocument)>);

/// Puts records that have to stay in order into one group, and each other record into one of its own.
pub(super) fn group<'a>(
    records: impl Iterator<Item = &'a RecordReport<'a>>,
    cores: &CoreBudget,
) -> Vec<MessageGroup<'a>> {
    let mut groups: Vec<MessageGroup> = Vec::new();
    let mut index_of_group = HashMap::new();
    for record in records {
        let next = groups.len();
        let index = record.record.ordered_group().map_or(next, |name| *index_of_group.entry(name).or_insert(next));
        if index == next {
            groups.push(MessageGroup::default());
        }
        groups[index].0.push_back((record, cores.wait()));
    }
    groups
}

impl<'a> MessageGroup<'a> {
    /// How often the group's first message has been delivered.
    pub fn receive_count(&self) -> u32 {
        self.0.front().map_or(0, |(record, _)| record.record.receive_count)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the next record.
    pub fn pop(&mut self) -> Option<(&'a RecordReport<'a>, Option<WaitingDocument>)> {
        self.0.pop_front().map(|(record, waiting)| (record, Some(waiting)))
    }

    /// Fails the rest of the group without starting it, since it must not overtake the record that has
    /// failed.
    pub fn stop_after(self, failed: &RecordReport<'_>) {
        for (record, _waiting) in self.0 {
            record.finish(Outcome::TransientFailure(Failure::group_stopped(&failed.record.message_id)));
        }
    }
}

/// A lock for each S3 key that a batch writes.
#[derive(Default)]
pub(super) struct KeyLocks(RefCell<HashMap<String, Arc<Mutex<SentTimestamp>>>>);

/// When the message was sent whose PDF a batch has stored under a key, in milliseconds since 1970, if there is one
/// and that is known.
type SentTimestamp = Option<i64>;

/// The right to write a key, until it is dropped; and when the message was sent that has written it last.
pub(super) type KeyLock = OwnedMutexGuard<SentTimestamp>;

impl KeyLocks {
    /// Waits for those that have asked before. Whoever holds the lock must not wait for anything that
    /// could itself wait for the same key.
    pub async fn lock(&self, key: &str) -> KeyLock {
        let lock = self.0.borrow_mut().entry(key.to_owned()).or_default().clone();
        lock.lock_owned().await
    }
}
