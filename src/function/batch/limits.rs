//! How much time and memory each document of an invocation may have, and how many are read and stored
//! at once, so that every record of a batch gets its turn and Lambda never ends the function for lack of
//! memory.

use std::time::Duration;

use crate::function::deadline::Deadline;

/// The most messages that are read from S3 at once.
pub(in crate::function) const MAX_READS: usize = 8;
/// The most PDFs that are being uploaded at once.
pub(in crate::function) const MAX_UPLOADS: usize = 8;

/// The longest that Lambda lets an invocation run, which counts when the deadline is not known.
/// Source: <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>.
const MAX_INVOCATION: Duration = Duration::from_mins(15);

/// The most of an invocation's time that a document may be granted, in quarters. With all of it no document
/// could ever be found out to take too long.
const MAX_GRANTED_QUARTERS: u32 = 3;

/// The longest that one attempt at a request may take, however far the deadline is.
const MAX_ATTEMPT_TIMEOUT: Duration = Duration::from_mins(1);

/// The time and the memory that an invocation has.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    deadline: Deadline,
    /// The longest that any document may be rendered. One that takes longer fails permanently.
    max_render_time: Duration,
    /// The memory that all runs together may have, if that is limited.
    memory_bytes: Option<u64>,
}

/// The memory limit of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// The bytes for the document's run and for its PDF in the function. `None` is unlimited.
    pub bytes: Option<u64>,
    /// Whether that is all that any document can have, so that another attempt would not have more.
    pub is_full_limit: bool,
}

impl MemoryLimit {
    /// The part of the memory that is for the PDF in the function: one in so many. A run has to hold
    /// a PDF, too, and much else beside it.
    const RESPONSE_SHARE: u64 = 8;

    /// The bytes that the run may have.
    #[must_use]
    pub fn run_bytes(self) -> Option<u64> {
        self.bytes.map(|bytes| bytes - bytes / Self::RESPONSE_SHARE)
    }

    /// The bytes that the PDF and its timings may have in the function.
    #[must_use]
    pub fn response_bytes(self) -> Option<u64> {
        self.bytes.map(|bytes| bytes / Self::RESPONSE_SHARE)
    }
}

/// Whose turn it is when a document is about to be rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Whether the document's message was delivered before.
    pub is_redelivered: bool,
    /// Whether other documents wait for a worker.
    pub others_wait: bool,
    /// Whether documents of messages that were delivered before are to be rendered after it.
    pub redelivered_wait: bool,
}

/// The time limit of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimit {
    pub time: Duration,
    /// Whether that is all that any document may have. If it is less, running out of it is not the
    /// document's fault.
    pub is_full_limit: bool,
}

impl Limits {
    /// The limits of an invocation that begins now. If `max_render_time` is `None`, every document may
    /// have half of the invocation's time, and in any case at most three quarters of it.
    #[must_use]
    pub fn new(deadline: Deadline, max_render_time: Option<Duration>, memory_bytes: Option<u64>) -> Self {
        let invocation = deadline.time_left().unwrap_or(MAX_INVOCATION);
        let max_render_time = max_render_time.unwrap_or(invocation / 2).min(invocation / 4 * MAX_GRANTED_QUARTERS);
        Self { deadline, max_render_time, memory_bytes }
    }

    /// The bytes for what is read ahead of the workers: a quarter of the memory.
    #[must_use]
    pub fn memory_for_inputs(&self) -> Option<usize> {
        self.memory_bytes.map(|bytes| usize::try_from(bytes / 4).unwrap_or(usize::MAX))
    }

    /// The memory of a document that is rendered while up to `workers` documents are, and inputs and
    /// PDFs take `unavailable_bytes`.
    #[must_use]
    pub fn shared_memory(&self, workers: usize, unavailable_bytes: usize) -> MemoryLimit {
        let bytes = self.memory_beside(unavailable_bytes).map(|left| left / workers as u64);
        MemoryLimit { bytes, is_full_limit: false }
    }

    /// The memory of a document that is rendered alone, while inputs and PDFs take
    /// `unavailable_bytes`.
    #[must_use]
    pub fn exclusive_memory(&self, unavailable_bytes: usize) -> MemoryLimit {
        MemoryLimit { bytes: self.memory_beside(unavailable_bytes), is_full_limit: true }
    }

    fn memory_beside(&self, unavailable_bytes: usize) -> Option<u64> {
        self.memory_bytes.map(|bytes| bytes.saturating_sub(unavailable_bytes as u64))
    }

    /// The time that an attempt at a request may take that begins now: half of what is left, so that
    /// another attempt has as long if the connection has gone silent.
    #[must_use]
    pub fn attempt_timeout(&self) -> Duration {
        self.deadline.time_left().map_or(MAX_ATTEMPT_TIMEOUT, |left| (left / 2).min(MAX_ATTEMPT_TIMEOUT))
    }

    /// The time of a document that begins now.
    ///
    /// While others wait for a worker it has at most half of what is left of the invocation, so that there is
    /// always time for the others. But one whose message was delivered before has its full limit, if there is
    /// still as much time: it may have been cut short before, and would be again and again. While such documents
    /// wait, the time for one of them is kept free.
    #[must_use]
    pub fn time(&self, turn: Turn) -> TimeLimit {
        let left = self.deadline.time_left().unwrap_or(MAX_INVOCATION);
        let share = match turn {
            Turn { is_redelivered: true, .. } if left >= self.max_render_time => left,
            Turn { is_redelivered: false, redelivered_wait: true, .. } if left >= self.max_render_time => {
                // A little more than one needs, so that nobody has to be left without any time at all.
                let reserved = self.max_render_time + self.max_render_time / 16;
                (left.saturating_sub(reserved) / 2).max(self.max_render_time / 64)
            }
            Turn { others_wait: true, .. } | Turn { redelivered_wait: true, .. } => left / 2,
            Turn { .. } => left,
        };
        TimeLimit { time: share.min(self.max_render_time), is_full_limit: share >= self.max_render_time }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    const ALONE: Turn = Turn { is_redelivered: false, others_wait: false, redelivered_wait: false };
    const OTHERS_WAIT: Turn = Turn { others_wait: true, ..ALONE };
    const REDELIVERED_WAIT: Turn = Turn { redelivered_wait: true, ..OTHERS_WAIT };
    const REDELIVERED: Turn = Turn { is_redelivered: true, ..OTHERS_WAIT };

    fn in_time(left: Duration) -> Deadline {
        Deadline::from_lambda(SystemTime::now() + left)
    }

    #[test]
    fn nine_endless_documents_leave_time_for_the_tenth() {
        let mut left = Duration::from_secs(59);
        for _ in 0..9 {
            let limits = Limits::new(in_time(left), Some(Duration::from_secs(30)), None);
            left = left.saturating_sub(limits.time(OTHERS_WAIT).time);
        }
        assert!(left > Duration::from_millis(100), "{left:?}");
    }

    #[test]
    fn a_redelivered_document_has_its_full_limit_however_long_nine_before_it_took() {
        for max_render_time in [None, Some(9), Some(40), Some(100)] {
            let deadline = in_time(Duration::from_secs(59));
            let mut limits = Limits::new(deadline, max_render_time.map(Duration::from_secs), None);
            let mut left = Duration::from_secs(59);
            for _ in 0..9 {
                limits.deadline = in_time(left);
                left = left.saturating_sub(limits.time(REDELIVERED_WAIT).time);
            }
            limits.deadline = in_time(left);
            assert!(limits.time(REDELIVERED).is_full_limit, "{max_render_time:?}: {left:?} left");
        }
    }

    #[test]
    fn nobody_is_left_without_time_for_the_sake_of_a_redelivered_document() {
        for left in [59_000, 31_000, 29_600, 29_000, 1_000] {
            let mut limits = Limits::new(in_time(Duration::from_secs(59)), None, None);
            limits.deadline = in_time(Duration::from_millis(left));
            assert!(limits.time(REDELIVERED_WAIT).time > Duration::from_millis(400), "{left}");
        }
    }

    #[test]
    fn a_run_and_its_pdf_share_one_limit() {
        let limit = MemoryLimit { bytes: Some(64_000_001), is_full_limit: true };
        assert_eq!(limit.run_bytes().unwrap() + limit.response_bytes().unwrap(), limit.bytes.unwrap());
        let none = MemoryLimit { bytes: None, is_full_limit: true };
        assert_eq!((none.run_bytes(), none.response_bytes()), (None, None));
    }

    #[test]
    fn a_document_alone_has_its_full_limit_and_no_more() {
        let minute = in_time(Duration::from_mins(1));
        let full = |time| TimeLimit { time, is_full_limit: true };
        let limits = Limits::new(minute, Some(Duration::from_secs(2)), None);
        assert_eq!(limits.time(ALONE), full(Duration::from_secs(2)));
        assert_eq!(limits.time(OTHERS_WAIT), full(Duration::from_secs(2)));
        assert!(Limits::new(minute, None, None).time(ALONE).is_full_limit);
        assert!(!Limits::new(minute, None, None).time(OTHERS_WAIT).is_full_limit);
        assert!(Limits::new(minute, None, None).time(REDELIVERED).is_full_limit);
        assert_eq!(Limits::new(Deadline::NONE, None, None).time(OTHERS_WAIT), full(MAX_INVOCATION / 2));
    }
}
