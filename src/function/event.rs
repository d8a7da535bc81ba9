//! Takes an SQS event apart into records, each parsed by itself, so that a malformed record fails alone.

use std::collections::HashMap;

use aws_lambda_events::event::sqs::{SqsMessage, SqsMessageAttribute};
use serde_json::Value;

use crate::json_error;

/// An event that is not a batch of SQS records. Nothing of it has been processed.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    #[error("the event is not an SQS event: it has no array \"Records\"")]
    NoRecords,
    #[error("the event is not an SQS event: record {index} has no messageId, so no failure of it could be reported")]
    NoMessageId { index: usize },
}

/// A record of an SQS event: what pressrun needs of it.
#[derive(Clone, Debug)]
pub struct Record {
    pub message_id: String,
    /// The message, or what is wrong with the record.
    pub body: Result<String, String>,
    /// When the message was sent, in milliseconds since 1970.
    pub sent_timestamp_ms: Option<i64>,
    /// How often the message has been received, this time included.
    pub receive_count: u32,
    pub receipt_handle: Option<String>,
    pub queue_arn: Option<String>,
    pub message_group: Option<String>,
    /// The sender's message attributes.
    pub attributes: HashMap<String, SqsMessageAttribute>,
}

impl Record {
    /// A record of a message that is delivered for the first time and of which nothing else is known.
    pub fn new(message_id: impl Into<String>, body: impl Into<String>) -> Self {
        Self {
            message_id: message_id.into(),
            body: Ok(body.into()),
            sent_timestamp_ms: None,
            receive_count: 1,
            receipt_handle: None,
            queue_arn: None,
            message_group: None,
            attributes: HashMap::new(),
        }
    }

    /// The message group, if its order counts. In a standard queue the group only serves SQS's fair
    /// queues.
    #[must_use]
    pub fn ordered_group(&self) -> Option<&str> {
        let is_standard = self.queue_arn.as_deref().is_some_and(|arn| !is_fifo(arn));
        self.message_group.as_deref().filter(|_| !is_standard)
    }
}

fn is_fifo(queue: &str) -> bool {
    queue.strip_suffix(".fifo").is_some()
}

/// Parses an event's records.
///
/// # Errors
/// When the event is not an SQS event, or has a record without a message id, whose failure could not be
/// reported.
pub fn parse(event: Value) -> Result<Vec<Record>, EventError> {
    let Value::Object(mut event) = event else { return Err(EventError::NoRecords) };
    let Some(Value::Array(records)) = event.remove("Records") else { return Err(EventError::NoRecords) };
    records.into_iter().enumerate().map(|(index, record)| parse_record(index, record)).collect()
}

fn parse_record(index: usize, record: Value) -> Result<Record, EventError> {
    let message_id = record.get("messageId").and_then(Value::as_str).filter(|id| !id.is_empty()).map(str::to_owned);
    let message_id = message_id.ok_or(EventError::NoMessageId { index })?;
    let mut parsed = Record::new(message_id, "");
    match serde_json::from_value::<SqsMessage>(record) {
        Ok(message) => {
            let system = |name: &str| message.attributes.get(name);
            parsed.sent_timestamp_ms = system("SentTimestamp").and_then(|sent| sent.parse().ok());
            parsed.receive_count = system("ApproximateReceiveCount").and_then(|count| count.parse().ok()).unwrap_or(1);
            parsed.message_group = system("MessageGroupId").cloned();
            parsed.receipt_handle = message.receipt_handle;
            parsed.queue_arn = message.event_source_arn;
            parsed.attributes = message.message_attributes;
            parsed.body = message.body.ok_or_else(|| "the record has no body".to_owned());
        }
        Err(error) => {
            parsed.body = Err(format!("the record is not as SQS writes it: {}", json_error::redacted(&error)));
        }
    }
    Ok(parsed)
}
