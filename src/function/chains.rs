//! Which records of a batch have to wait for which others.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::records::Record;

/// Records that are worked through one after another, as their places in the batch.
pub(super) type Chain = VecDeque<usize>;

/// Makes a chain of each message group whose order counts, and of each other record one of its own.
pub(super) fn chains(records: &[Record]) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::with_capacity(records.len());
    let mut chain_of_group = HashMap::new();
    for (index, record) in records.iter().enumerate() {
        let next = chains.len();
        let chain = record.ordered_group().map_or(next, |group| *chain_of_group.entry(group).or_insert(next));
        if chain == next {
            chains.push(Chain::new());
        }
        chains[chain].push_back(index);
    }
    chains
}

/// Whose turn it is to write a key.
#[derive(Default)]
pub(super) struct Turns(RefCell<HashMap<String, Arc<Mutex<()>>>>);

/// While it is held, nobody else writes the key.
pub(super) type Turn = OwnedMutexGuard<()>;

impl Turns {
    /// Waits for those that have asked before. Not to be held while something waits that could be
    /// waiting for the same key.
    pub async fn take(&self, key: &str) -> Turn {
        let turn = self.0.borrow_mut().entry(key.to_owned()).or_default().clone();
        turn.lock_owned().await
    }
}
