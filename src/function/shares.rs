//! How the cores are shared among the documents of a batch.

use std::cell::Cell;

use tokio::sync::watch;

/// How many documents still want a worker, and how many threads each may have meanwhile.
pub(super) struct Shares {
    cores: usize,
    /// Documents that no worker has taken yet.
    waiting: Cell<usize>,
    /// Documents that may be set at the same time: those under way, and the first ones of those
    /// that wait for each other.
    side_by_side: Cell<usize>,
    threads: watch::Sender<usize>,
}

impl Shares {
    pub fn new(cores: usize, waiting: usize) -> Self {
        Self { cores, waiting: waiting.into(), side_by_side: 1.into(), threads: watch::Sender::new(cores) }
    }

    /// So many documents may be set side by side from now on.
    pub fn begin(&self, side_by_side: usize) {
        self.side_by_side.set(side_by_side);
        self.update();
    }

    /// A document has a worker, or does not need one any more.
    pub fn one_fewer_waits(&self) {
        self.waiting.update(|waiting| waiting - 1);
    }

    /// A document is set, or will not be, and none takes its place.
    pub fn one_fewer_side_by_side(&self) {
        self.side_by_side.update(|side_by_side| side_by_side - 1);
        self.update();
    }

    pub fn others_wait(&self) -> bool {
        self.waiting.get() > 0
    }

    /// What a document may use, now and as it changes.
    pub fn threads(&self) -> watch::Receiver<usize> {
        self.threads.subscribe()
    }

    /// Tells the documents under way, when it changes.
    fn update(&self) {
        let share = self.cores.div_ceil(self.side_by_side.get().max(1));
        self.threads.send_if_modified(|threads| std::mem::replace(threads, share) != share);
    }
}
