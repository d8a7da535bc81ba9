//! How much time and memory each document of an invocation may have, and how many are read and
//! stored at once, so that a batch always gets through and Lambda never ends the function for want
//! of memory.

use std::time::Duration;

use super::deadline::Deadline;

/// How many messages are read at once.
pub(super) const MOST_READS: usize = 8;
/// How many PDFs are being stored at once.
pub(super) const MOST_UPLOADS: usize = 8;

/// The longest that Lambda lets an invocation run, for when the deadline is not known.
/// Source: <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>.
const LONGEST_INVOCATION: Duration = Duration::from_mins(15);

/// The longest try of a request, for when the deadline is far.
const LONGEST_TRY: Duration = Duration::from_mins(1);

/// What an invocation has to give.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    deadline: Deadline,
    /// What every document is granted: one that takes longer is given up for good.
    grant: Duration,
    /// What all runs together may have, if there is a limit.
    memory_bytes: Option<u64>,
}

/// The memory limit of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// For its run and for its PDF in the function, in bytes. `None` is unlimited.
    pub bytes: Option<u64>,
    /// Whether that is all that any document can have.
    pub is_whole_budget: bool,
}

impl MemoryLimit {
    /// The share of the memory that is for the PDF in the function, as a divisor. A run has to hold
    /// a PDF, too, and much else beside it.
    const RESPONSE_SHARE: u64 = 8;

    /// What the run may have, in bytes.
    #[must_use]
    pub fn run_bytes(self) -> Option<u64> {
        self.bytes.map(|bytes| bytes - bytes / Self::RESPONSE_SHARE)
    }

    /// What the PDF, and its timings, may have in the function, in bytes.
    #[must_use]
    pub fn response_bytes(self) -> Option<u64> {
        self.bytes.map(|bytes| bytes / Self::RESPONSE_SHARE)
    }
}

/// The time that one document gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimit {
    pub time: Duration,
    /// Whether that is all that it is granted. If it is less, running out of it is no fault.
    pub is_whole_grant: bool,
}

impl Limits {
    /// The limits of an invocation that begins now. Without a grant of its own, every document
    /// is granted half of the invocation's time.
    #[must_use]
    pub fn new(deadline: Deadline, grant: Option<Duration>, memory_bytes: Option<u64>) -> Self {
        let whole = deadline.time_left().unwrap_or(LONGEST_INVOCATION);
        Self { deadline, grant: grant.unwrap_or(whole / 2), memory_bytes }
    }

    /// The memory for what is read ahead of the workers, a quarter of it all.
    #[must_use]
    pub fn memory_for_inputs(&self) -> Option<usize> {
        self.memory_bytes.map(|bytes| usize::try_from(bytes / 4).unwrap_or(usize::MAX))
    }

    /// The memory for a document that is set while as many as `workers` may be at work, and inputs
    /// and PDFs have so many bytes.
    #[must_use]
    pub fn shared_memory(&self, workers: usize, kept_bytes: usize) -> MemoryLimit {
        let bytes = self.memory_beside(kept_bytes).map(|left| left / workers as u64);
        MemoryLimit { bytes, is_whole_budget: false }
    }

    /// The memory for a document that is set alone, in a run that has set no other, from inputs of
    /// so many bytes.
    #[must_use]
    pub fn whole_memory(&self, kept_bytes: usize) -> MemoryLimit {
        MemoryLimit { bytes: self.memory_beside(kept_bytes), is_whole_budget: true }
    }

    fn memory_beside(&self, kept_bytes: usize) -> Option<u64> {
        self.memory_bytes.map(|budget| budget.saturating_sub(kept_bytes as u64))
    }

    /// The time for one try of a request that begins now: if its connection has gone silent, as
    /// much is left for another.
    #[must_use]
    pub fn time_of_a_try(&self) -> Duration {
        self.deadline.time_left().map_or(LONGEST_TRY, |left| (left / 2).min(LONGEST_TRY))
    }

    /// The time for a document that begins now. While others wait for a worker it gets at most
    /// half of what is left, and the others the rest.
    #[must_use]
    pub fn time(&self, others_wait: bool) -> TimeLimit {
        let left = self.deadline.time_left().unwrap_or(LONGEST_INVOCATION);
        let share = if others_wait { left / 2 } else { left };
        TimeLimit { time: share.min(self.grant), is_whole_grant: share >= self.grant }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn nine_endless_documents_leave_time_for_the_tenth() {
        let mut left = Duration::from_secs(59);
        for _ in 0..9 {
            let limits =
                Limits::new(Deadline::from_lambda(SystemTime::now() + left), Some(Duration::from_secs(30)), None);
            left = left.saturating_sub(limits.time(true).time);
        }
        assert!(left > Duration::from_millis(100), "{left:?}");
    }

    #[test]
    fn a_run_and_its_pdf_share_one_limit() {
        let limit = MemoryLimit { bytes: Some(64_000_001), is_whole_budget: true };
        assert_eq!(limit.run_bytes().unwrap() + limit.response_bytes().unwrap(), limit.bytes.unwrap());
        let none = MemoryLimit { bytes: None, is_whole_budget: true };
        assert_eq!((none.run_bytes(), none.response_bytes()), (None, None));
    }

    #[test]
    fn a_document_alone_has_its_grant_and_no_more() {
        let minute = Deadline::from_lambda(SystemTime::now() + Duration::from_mins(1));
        let whole = |time| TimeLimit { time, is_whole_grant: true };
        let limits = Limits::new(minute, Some(Duration::from_secs(2)), None);
        assert_eq!(limits.time(false), whole(Duration::from_secs(2)));
        assert_eq!(limits.time(true), whole(Duration::from_secs(2)));
        assert!(Limits::new(minute, None, None).time(false).is_whole_grant);
        assert!(!Limits::new(minute, Some(Duration::from_mins(2)), None).time(false).is_whole_grant);
        assert_eq!(Limits::new(Deadline::NONE, None, None).time(true), whole(LONGEST_INVOCATION / 2));
    }
}
