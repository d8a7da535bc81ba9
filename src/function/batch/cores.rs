//! How the cores are shared among the documents of a batch.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::watch;

/// The number of threads that each document may have: the cores, divided by the documents that can be
/// rendered side by side.
pub(super) struct CoreBudget {
    cores: usize,
    /// Documents that no worker has taken yet.
    waiting: Rc<Cell<usize>>,
    /// Documents that can be rendered at the same time: one for each message group that still has any.
    shares: Cell<usize>,
    threads: watch::Sender<usize>,
}

/// A document that no worker has taken yet, until this is dropped.
pub(super) struct WaitingDocument(Rc<Cell<usize>>);

/// A message group's share of the cores, until this is dropped.
pub(super) struct CoreShare<'a>(&'a CoreBudget);

impl CoreBudget {
    pub fn new(cores: usize) -> Self {
        Self { cores, waiting: Rc::default(), shares: Cell::default(), threads: watch::Sender::new(cores) }
    }

    /// Counts a document that waits for a worker.
    pub fn wait(&self) -> WaitingDocument {
        self.waiting.update(|waiting| waiting + 1);
        WaitingDocument(self.waiting.clone())
    }

    /// Takes a share of the cores for a group.
    pub fn share(&self) -> CoreShare<'_> {
        self.shares.update(|shares| shares + 1);
        self.update_threads();
        CoreShare(self)
    }

    /// Whether any document waits for a worker.
    pub fn others_wait(&self) -> bool {
        self.waiting.get() > 0
    }

    /// The number of threads that a document may use, now and as it changes.
    pub fn threads(&self) -> watch::Receiver<usize> {
        self.threads.subscribe()
    }

    fn update_threads(&self) {
        let share = self.cores.div_ceil(self.shares.get().max(1));
        self.threads.send_if_modified(|threads| std::mem::replace(threads, share) != share);
    }
}

impl Drop for WaitingDocument {
    fn drop(&mut self) {
        self.0.update(|waiting| waiting - 1);
    }
}

impl Drop for CoreShare<'_> {
    fn drop(&mut self) {
        self.0.shares.update(|shares| shares - 1);
        self.0.update_threads();
    }
}
