//! The event: raw JSON in, records out, each parsed by itself.

use aws_lambda_events::event::sqs::SqsMessage;
use serde_json::Value;

/// An event that is not a batch of SQS records. Nothing has been started.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    #[error("the event is not an SQS event: it has no array \"Records\"")]
    NoRecords,
    #[error("the event is not an SQS event: record {index} has no messageId, so no failure of it could be reported")]
    NoMessageId { index: usize },
}

/// A record of an SQS event, as far as pressrun needs it.
#[derive(Clone, Debug)]
pub struct Record {
    pub message_id: String,
    /// The message, or why there is none.
    pub body: Result<String, String>,
    /// When it was sent, in milliseconds since 1970.
    pub sent_timestamp_ms: Option<i64>,
}

/// Takes an event apart. One record that is not as it should be is no reason to fail another.
///
/// # Errors
/// When it is no SQS event, or has a record whose failure could not be reported.
pub fn parse(event: Value) -> Result<Vec<Record>, EventError> {
    let Value::Object(mut event) = event else { return Err(EventError::NoRecords) };
    let Some(Value::Array(records)) = event.remove("Records") else { return Err(EventError::NoRecords) };
    records.into_iter().enumerate().map(|(index, record)| parse_record(index, record)).collect()
}

fn parse_record(index: usize, record: Value) -> Result<Record, EventError> {
    let message_id = record.get("messageId").and_then(Value::as_str).filter(|id| !id.is_empty()).map(str::to_owned);
    let message_id = message_id.ok_or(EventError::NoMessageId { index })?;
    Ok(match serde_json::from_value::<SqsMessage>(record) {
        Ok(message) => Record {
            message_id,
            sent_timestamp_ms: message.attributes.get("SentTimestamp").and_then(|sent| sent.parse().ok()),
            body: message.body.ok_or_else(|| "the record has no body".to_owned()),
        },
        Err(error) => Record {
            message_id,
            sent_timestamp_ms: None,
            body: Err(format!("the record is not as SQS writes it: {error}")),
        },
    })
}
