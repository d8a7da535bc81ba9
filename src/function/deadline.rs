//! How long an invocation may take.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio::time::error::Elapsed;

/// The moment at which Lambda ends the invocation, if it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// No end in sight.
    pub const NONE: Self = Self(None);

    /// The deadline that Lambda sends with an invocation, as a time. One that is past already
    /// means that it is not known: `cargo lambda watch` sends ten minutes past midnight,
    /// 1 January 1970.
    #[must_use]
    pub fn from_lambda(deadline: SystemTime) -> Self {
        Self(deadline.duration_since(SystemTime::now()).ok().map(|left| Instant::now() + left))
    }

    /// The same, earlier by a margin, but not by more than half of the time that is left.
    #[must_use]
    pub fn less(self, margin: Duration) -> Self {
        Self(self.0.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            deadline - margin.min(left / 2)
        }))
    }

    /// How long there is, if that is known.
    #[must_use]
    pub fn time_left(self) -> Option<Duration> {
        self.0.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Waits for a future until the deadline, and drops it then.
    ///
    /// # Errors
    /// When the deadline came first.
    pub async fn cut_short<T>(self, future: impl Future<Output = T>) -> Result<T, Elapsed> {
        match self.0 {
            Some(deadline) => tokio::time::timeout_at(deadline, future).await,
            None => Ok(future.await),
        }
    }
}
