//! The deadline of an invocation.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio::time::error::Elapsed;

/// The moment at which Lambda ends the invocation, if it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// No deadline is known.
    pub const NONE: Self = Self(None);

    /// The deadline that Lambda sends with an invocation. One that is past already counts as unknown:
    /// `cargo lambda watch` sends ten minutes past midnight, 1 January 1970.
    #[must_use]
    pub fn from_lambda(deadline: SystemTime) -> Self {
        Self(deadline.duration_since(SystemTime::now()).ok().map(|left| Instant::now() + left))
    }

    /// This deadline, earlier by a margin, but by at most half of the time that is left.
    #[must_use]
    pub fn minus(self, margin: Duration) -> Self {
        Self(self.0.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            deadline - margin.min(left / 2)
        }))
    }

    /// The time until the deadline, if that is known.
    #[must_use]
    pub fn time_left(self) -> Option<Duration> {
        self.0.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Waits for a future until the deadline, and drops it when that comes first.
    ///
    /// # Errors
    /// When the deadline came first.
    pub async fn timeout<T>(self, future: impl Future<Output = T>) -> Result<T, Elapsed> {
        match self.0 {
            Some(deadline) => tokio::time::timeout_at(deadline, future).await,
            None => Ok(future.await),
        }
    }
}
