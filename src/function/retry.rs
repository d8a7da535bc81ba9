//! When records that have failed transiently are delivered again: exponential backoff with jitter.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::RecordOutcome;
use super::event::Record;
use super::outcome::Outcome;
use crate::aws::sqs::VisibilityChange;

/// The longest first delay. The SDK has already retried after shorter ones, within the invocation.
const BASE: Duration = Duration::from_secs(30);
/// The longest delay, and so the longest that a message waits when an outage is over. SQS would allow
/// 12 hours.
const CAP: Duration = Duration::from_mins(15);

/// Returns the records that have failed transiently, each with its delay, by the ARN of the queue that
/// they came from. Records that wait for an earlier one of their message group have its delay, so that
/// they stay in order.
pub(super) fn visibility_changes(outcomes: &[RecordOutcome]) -> HashMap<&str, Vec<VisibilityChange<'_>>> {
    let mut delay_of_group = HashMap::new();
    let mut of_queue: HashMap<&str, Vec<VisibilityChange>> = HashMap::new();
    for (record, outcome) in outcomes {
        let group = record.ordered_group();
        let delay = match outcome {
            Outcome::TransientFailure(_) => delay(record),
            // What has failed for good comes back after the queue's own visibility timeout.
            Outcome::Stored(_)
            | Outcome::Superseded { .. }
            | Outcome::Returned(_)
            | Outcome::DeadLettered(_)
            | Outcome::PermanentFailure(_) => continue,
        };
        let delay = group.map_or(delay, |group| *delay_of_group.entry(group).or_insert(delay));
        let (Some(queue), Some(receipt_handle)) = (&record.queue_arn, &record.receipt_handle) else { continue };
        of_queue.entry(queue).or_default().push(VisibilityChange { receipt_handle, delay });
    }
    of_queue
}

/// Returns at least half of what doubles with each delivery, and some of the other half as jitter, so that
/// the messages of a batch do not come back together. It is always the same for the same delivery.
fn delay(record: &Record) -> Duration {
    let doubled = 2_u32.checked_pow(record.receive_count.saturating_sub(1));
    let whole = doubled.and_then(|doubled| BASE.checked_mul(doubled)).map_or(CAP, |delay| delay.min(CAP));
    let mut hasher = DefaultHasher::new();
    (&record.message_id, record.receive_count).hash(&mut hasher);
    let chance = u32::try_from(hasher.finish() % 1000).expect("is small");
    whole / 2 + whole / 2 * chance / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delay_of(message_id: &str, receive_count: u32) -> Duration {
        delay(&Record { receive_count, ..Record::new(message_id, "{}") })
    }

    #[test]
    fn a_delay_doubles_with_each_delivery_up_to_a_quarter_of_an_hour() {
        for (receive_count, whole) in [(0, 30), (1, 30), (2, 60), (3, 120), (5, 480), (6, 900), (1000, 900)] {
            let whole = Duration::from_secs(whole);
            for message_id in ["a", "b", "c"] {
                let delay = delay_of(message_id, receive_count);
                assert!((whole / 2..whole).contains(&delay), "{receive_count}: {delay:?}");
            }
        }
    }

    #[test]
    fn messages_that_failed_together_do_not_come_back_together() {
        let delays = (0..100).map(|number| delay_of(&number.to_string(), 5)).collect::<std::collections::BTreeSet<_>>();
        assert!(delays.len() > 80, "{delays:?}");
    }
}
