//! Watches the memory of a run while it renders a document, and says when its memo cache is to be evicted.
//!
//! Most of the memory of a long document is Typst's memo cache, which it can do without. But a document whose
//! layout depends on itself, such as a page total in its footer, is laid out twice and finds in the cache what
//! has stayed the same. So the cache is left alone until the run has half of its memory. From then on what has not
//! been used for a while is evicted again and again, so that the rest is left for what cannot be evicted.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::press_process::RunState;
use crate::census;

/// How often a run's memory is read, and its cache evicted if that is short; what was used since the last time stays.
/// A table grows by some 300 MB a second, so by 6 MB meanwhile.
const INTERVAL: Duration = Duration::from_millis(20);

/// The memory of one run, while it renders one document.
pub(super) struct MemoryWatch {
    /// Says which process the run is, once the press has forked it.
    state: watch::Receiver<RunState>,
    /// The bytes from which on the cache is evicted.
    threshold_bytes: u64,
    next_poll: Instant,
}

impl MemoryWatch {
    /// Watches a run that may have `limit_bytes`.
    pub fn new(state: watch::Receiver<RunState>, limit_bytes: u64) -> Self {
        Self { state, threshold_bytes: limit_bytes / 2, next_poll: Instant::now() + INTERVAL }
    }

    /// Waits until the cache is to be evicted. Can be dropped and called again.
    pub async fn wait(&mut self) {
        loop {
            sleep_until(self.next_poll).await;
            self.next_poll = Instant::now() + INTERVAL;
            if self.data_bytes() >= self.threshold_bytes {
                return;
            }
        }
    }

    fn data_bytes(&self) -> u64 {
        match *self.state.borrow() {
            RunState::Forked { pid } => census::data_bytes(pid),
            _ => 0,
        }
    }
}
