//! Takes an SQS event apart into records, each parsed by itself, so that a malformed record fails alone.
//!
//! Only what is needed is read, and only what cannot be done without is required: a record's message id and its
//! body. `EventBridge` Pipes, emulators and events written by hand leave out or spell otherwise what SQS writes.

use std::collections::HashMap;

use aws_lambda_events::event::sqs::SqsMessageAttribute;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::aws::sqs;
use crate::json;
use crate::json_error;

/// An event that is neither a batch of SQS records nor a message. Nothing of it has been processed.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    #[error("the event is not JSON: {0}")]
    NotJson(String),
    #[error("the event is not an SQS event: it has no array \"Records\"; nor is it a message: it has no \"template\"")]
    NoRecords,
    #[error("the event is not an SQS event: record {index} has no messageId, so no failure of it could be reported")]
    NoMessageId { index: usize },
}

/// What the function was invoked with.
#[derive(Debug)]
pub enum Event {
    /// The records of a batch, whose failures are reported one by one.
    Batch(Vec<Record>),
    /// A message of whoever has invoked the function and waits for the answer, as a record.
    Direct(Box<Record>),
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
    /// Whether the message is the event itself, so that its sender waits for the answer.
    pub is_direct: bool,
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
            is_direct: false,
        }
    }

    /// Whether the message was delivered before.
    #[must_use]
    pub fn is_redelivered(&self) -> bool {
        self.receive_count > 1
    }

    /// The message group, if its order counts. In a standard queue the group only serves SQS's fair
    /// queues.
    #[must_use]
    pub fn ordered_group(&self) -> Option<&str> {
        let is_standard = self.queue_arn.as_deref().is_some_and(|arn| !sqs::is_fifo(arn));
        self.message_group.as_deref().filter(|_| !is_standard)
    }
}

/// The message id of a direct call whose request id is not known.
const DIRECT_ID: &str = "direct";

/// Parses an event of any kind. A message has the request id as its message id, and its JSON is taken as it was
/// written.
///
/// # Errors
/// When the event is none of what [`Event`] lists.
pub fn parse_any(event: &str, request_id: Option<&str>) -> Result<Event, EventError> {
    let event = json::without_byte_order_mark(event);
    let malformed = |error| EventError::NotJson(json_error::redacted(&error));
    if is_message(event) {
        let record = Record { is_direct: true, ..Record::new(request_id.unwrap_or(DIRECT_ID), event) };
        return Ok(Event::Direct(Box::new(record)));
    }
    parse(serde_json::from_str(event).map_err(malformed)?).map(Event::Batch)
}

/// Whether an event is meant as a message: an object that has the message's own fields and no records.
fn is_message(event: &str) -> bool {
    #[derive(Deserialize)]
    struct Fields {
        template: Option<IgnoredAny>,
        data: Option<IgnoredAny>,
        #[serde(rename = "Records")]
        records: Option<IgnoredAny>,
    }
    let is_object = event.trim_start().starts_with('{');
    // A field that stands twice is the message's error, and is told as such.
    let is_malformed_message =
        |error: serde_json::Error| error.is_data() && error.to_string().starts_with("duplicate field");
    is_object
        && serde_json::from_str(event).map_or_else(is_malformed_message, |fields: Fields| {
            fields.records.is_none() && (fields.template.is_some() || fields.data.is_some())
        })
}

/// Parses an event's records, which stand in its array `Records`, or are the event.
///
/// # Errors
/// When the event is not an SQS event, or has a record without a message id, whose failure could not be
/// reported.
pub fn parse(event: Value) -> Result<Vec<Record>, EventError> {
    let records = match event {
        // As EventBridge Pipes sends them.
        Value::Array(records) if records.iter().all(Value::is_object) => Some(records),
        Value::Object(mut event) => match event.remove("Records") {
            Some(Value::Array(records)) => Some(records),
            _ => None,
        },
        _ => None,
    };
    let records = records.ok_or(EventError::NoRecords)?;
    records.iter().enumerate().map(|(index, record)| parse_record(index, record)).collect()
}

fn parse_record(index: usize, record: &Value) -> Result<Record, EventError> {
    let message_id = record.get("messageId").and_then(Value::as_str).filter(|id| !id.is_empty());
    let message_id = message_id.ok_or(EventError::NoMessageId { index })?;
    let system = |name: &str| text(record.get("attributes")?.get(name)?);
    Ok(Record {
        body: body(record),
        sent_timestamp_ms: system("SentTimestamp").and_then(|sent| sent.parse().ok()),
        receive_count: system("ApproximateReceiveCount").and_then(|count| count.parse().ok()).unwrap_or(1),
        message_group: system("MessageGroupId"),
        receipt_handle: record.get("receiptHandle").and_then(text),
        queue_arn: record.get("eventSourceARN").and_then(text),
        attributes: message_attributes(record),
        ..Record::new(message_id, "")
    })
}

fn body(record: &Value) -> Result<String, String> {
    let found = match record.get("body") {
        Some(Value::String(body)) => return Ok(body.clone()),
        None | Some(Value::Null) => return Err("the record has no \"body\"".to_owned()),
        Some(Value::Bool(_)) => "a boolean",
        Some(Value::Number(_)) => "a number",
        Some(Value::Array(_)) => "an array",
        Some(Value::Object(_)) => "an object",
    };
    Err(format!(
        "the record's \"body\" is {found}, and has to be a string: the text of the message's JSON, as SQS delivers it"
    ))
}

/// Returns the sender's attributes. One that cannot be read is left out: it is only passed on.
fn message_attributes(record: &Value) -> HashMap<String, SqsMessageAttribute> {
    let attributes = record.get("messageAttributes").and_then(Value::as_object).into_iter().flatten();
    attributes.filter_map(|(name, attribute)| Some((name.clone(), message_attribute(attribute)?))).collect()
}

fn message_attribute(attribute: &Value) -> Option<SqsMessageAttribute> {
    // SQS's own API spells the names with a capital, and some emulators pass them on so.
    let field = |name: &str, in_the_api: &str| attribute.get(name).or_else(|| attribute.get(in_the_api)).and_then(text);
    let string_value = field("stringValue", "StringValue");
    let binary_value = field("binaryValue", "BinaryValue");
    let usual_type = if string_value.is_some() { "String" } else { "Binary" };
    let data_type = field("dataType", "DataType").unwrap_or_else(|| usual_type.to_owned());
    let attribute = json!({"stringValue": string_value, "binaryValue": binary_value, "dataType": data_type});
    serde_json::from_value(attribute).ok()
}

/// Returns a value as text. SQS writes numbers as strings, and not everything that stands in for it does.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
