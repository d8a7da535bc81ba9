//! SQS: sends messages that have failed for good to the failed queue, announces stored documents, and
//! changes the visibility of messages that have failed transiently.

use std::cell::Cell;
use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use aws_lambda_events::event::sqs::SqsMessageAttribute;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::Builder;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{ChangeMessageVisibilityBatchRequestEntry, MessageAttributeValue};
use futures_util::future::try_join_all;
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::aws;
use crate::config::Config;

/// The most requests to SQS that are under way at once, and so the most connections to it.
pub const MAX_REQUESTS: usize = 8;
/// SQS's limit for a message with its attributes, in bytes.
/// Source: <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// SQS's limit for the number of a message's attributes. The source is the same.
const MAX_ATTRIBUTES: usize = 10;
/// SQS's limit for the entries of a batch request. The source is the same.
const MAX_BATCH_ENTRIES: usize = 10;
/// The most bytes of an error message in a message attribute. Lambda writes as many into its own
/// dead-letter queues.
const MAX_ERROR_MESSAGE_BYTES: usize = 1024;

/// The queues that the function sends to.
#[derive(Debug)]
pub struct Queues {
    client: Option<Client>,
    failed_queue_url: Option<String>,
    done_queue_url: Option<String>,
    requests: Semaphore,
    /// Whether it has been logged that the role may not change visibilities.
    has_logged_denied: Cell<bool>,
}

/// A message that has failed for good, and why.
#[derive(Debug)]
pub struct FailedMessage<'a> {
    pub message_id: &'a str,
    pub body: &'a str,
    pub attributes: &'a HashMap<String, SqsMessageAttribute>,
    pub group: Option<&'a str>,
    pub receive_count: u32,
    pub queue_arn: Option<&'a str>,
    pub request_id: Option<&'a str>,
    pub template: Option<&'a str>,
    pub error_code: &'a str,
    pub error_message: &'a str,
    /// The failure with all its diagnostics, as JSON.
    pub diagnostics: String,
}

/// The announcement of a stored document, as JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Announcement<'a> {
    pub message_id: &'a str,
    pub template: &'a str,
    pub bucket: &'a str,
    pub key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e_tag: Option<&'a str>,
    pub pages: usize,
    pub bytes: usize,
    /// The level of the e-invoice, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e_invoice: Option<&'a str>,
}

/// A message whose visibility is to be changed, so that it is delivered again after a delay.
#[derive(Clone, Debug)]
pub struct VisibilityChange<'a> {
    pub receipt_handle: &'a str,
    pub delay: Duration,
}

/// Why a queue did not take a message.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("{0}")]
    Refused(String),
    #[error("FAILED_QUEUE_URL is the queue that the message came from, where it would go round for ever")]
    SameQueue,
}

impl Queues {
    #[must_use]
    pub fn new(client: Option<Client>, config: &Config) -> Self {
        Self {
            client,
            failed_queue_url: config.failed_queue_url.clone(),
            done_queue_url: config.done_queue_url.clone(),
            requests: Semaphore::new(MAX_REQUESTS),
            has_logged_denied: Cell::new(false),
        }
    }

    /// Sends a message that has failed for good to the failed queue. Returns `false` if there is none.
    ///
    /// # Errors
    /// When SQS does not take it, after the SDK's own retries.
    pub async fn dead_letter(
        &self,
        message: &FailedMessage<'_>,
        attempt_timeout: Duration,
    ) -> Result<bool, QueueError> {
        let (Some(client), Some(url)) = (&self.client, &self.failed_queue_url) else { return Ok(false) };
        if message.queue_arn.and_then(queue_url).is_some_and(|source| queue_path(&source) == queue_path(url)) {
            return Err(QueueError::SameQueue);
        }
        let attributes = failed_attributes(message);
        let group = message.group.unwrap_or(message.message_id);
        self.send(client, url, message.body, Some(attributes), group, message.message_id, attempt_timeout).await?;
        Ok(true)
    }

    /// Announces a stored document, if there is a queue for that.
    ///
    /// # Errors
    /// When SQS does not take it, after the SDK's own retries.
    ///
    /// # Panics
    /// Never: an announcement has a JSON form.
    pub async fn announce(
        &self,
        announcement: &Announcement<'_>,
        group: Option<&str>,
        attempt_timeout: Duration,
    ) -> Result<(), QueueError> {
        let (Some(client), Some(url)) = (&self.client, &self.done_queue_url) else { return Ok(()) };
        let body = serde_json::to_string(announcement).expect("an announcement has a JSON form");
        let id = announcement.message_id;
        self.send(client, url, &body, None, group.unwrap_or(id), id, attempt_timeout).await
    }

    #[expect(clippy::too_many_arguments, reason = "they are SendMessage's own")]
    async fn send(
        &self,
        client: &Client,
        url: &str,
        body: &str,
        attributes: Option<HashMap<String, MessageAttributeValue>>,
        group: &str,
        deduplication_id: &str,
        attempt_timeout: Duration,
    ) -> Result<(), QueueError> {
        let _permit = self.requests.acquire().await.expect("the semaphore is never closed");
        let is_fifo = is_fifo(url);
        client
            .send_message()
            .queue_url(url)
            .message_body(body)
            .set_message_attributes(attributes)
            .set_message_group_id(is_fifo.then(|| group.to_owned()))
            .set_message_deduplication_id(is_fifo.then(|| deduplication_id.to_owned()))
            .customize()
            .config_override(Builder::new().timeout_config(aws::timeout_config(attempt_timeout)))
            .send()
            .await
            .map(drop)
            .map_err(|error| QueueError::Refused(aws::summarize(&error)))
    }

    /// Changes the visibility of messages of a queue, so that each is delivered again after its delay. An
    /// error is logged, but only once for a function whose role does not allow it: then the queue's own
    /// visibility timeout holds.
    pub async fn change_visibility(&self, queue_arn: &str, messages: &[VisibilityChange<'_>], time_limit: Duration) {
        let (Some(client), Some(url)) = (&self.client, queue_url(queue_arn)) else { return };
        let requests = messages
            .chunks(MAX_BATCH_ENTRIES)
            .map(|chunk| self.change_visibility_batch(client, &url, chunk, time_limit / 2));
        let problem = match tokio::time::timeout(time_limit, try_join_all(requests)).await {
            Ok(Ok(_)) => return,
            Ok(Err(problem)) => problem,
            Err(_) => Problem::Other(format!("SQS had not answered after {} ms", time_limit.as_millis())),
        };
        match problem {
            Problem::Denied(reason) => {
                if !self.has_logged_denied.replace(true) {
                    tracing::warn!(
                        reason,
                        "the function may not change the visibility of messages (sqs:ChangeMessageVisibility); until it \
                         may, messages that fail transiently come back after the queue's own visibility timeout"
                    );
                }
            }
            Problem::Other(reason) => {
                tracing::warn!(
                    reason,
                    "the visibility of messages could not be changed; the queue's own visibility timeout holds"
                );
            }
        }
    }

    async fn change_visibility_batch(
        &self,
        client: &Client,
        url: &str,
        messages: &[VisibilityChange<'_>],
        attempt_timeout: Duration,
    ) -> Result<(), Problem> {
        let _permit = self.requests.acquire().await.expect("the semaphore is never closed");
        let entries = messages.iter().enumerate().map(|(index, message)| {
            ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(index.to_string())
                .receipt_handle(message.receipt_handle)
                .visibility_timeout(i32::try_from(message.delay.as_secs()).unwrap_or(i32::MAX))
                .build()
                .expect("all that is required is there")
        });
        let answer = client
            .change_message_visibility_batch()
            .queue_url(url)
            .set_entries(Some(entries.collect()))
            .customize()
            .config_override(Builder::new().timeout_config(aws::timeout_config(attempt_timeout)))
            .send()
            .await
            .map_err(|error| Problem::of(&error))?;
        match answer.failed().first() {
            None => Ok(()),
            Some(entry) => {
                Err(Problem::Other(format!("{}: {}", entry.code(), entry.message().unwrap_or("no reason given"))))
            }
        }
    }
}

/// Why the visibility of messages was not changed.
enum Problem {
    Denied(String),
    Other(String),
}

impl Problem {
    fn of<E: ProvideErrorMetadata + Error + 'static>(error: &SdkError<E>) -> Self {
        let reason = aws::summarize(error);
        let is_denied = error.code().is_some_and(|code| code.contains("AccessDenied"));
        if is_denied { Self::Denied(reason) } else { Self::Other(reason) }
    }
}

/// Returns the URL of the queue with this ARN, in the partitions `aws`, `aws-us-gov` and `aws-cn`, or `None`
/// if it is not the ARN of a queue.
fn queue_url(arn: &str) -> Option<String> {
    let parts: Vec<&str> = arn.split(':').collect();
    let ["arn", partition, "sqs", region, account, name] = parts[..] else { return None };
    let domain = if partition == "aws-cn" { "amazonaws.com.cn" } else { "amazonaws.com" };
    Some(format!("https://sqs.{region}.{domain}/{account}/{name}"))
}

/// Returns account and name of the queue with this URL, which identify it whatever the host is.
fn queue_path(url: &str) -> Option<(&str, &str)> {
    let (rest, name) = url.rsplit_once('/')?;
    Some((rest.rsplit_once('/')?.1, name))
}

/// Whether a queue with this URL or ARN is a FIFO queue.
pub(crate) fn is_fifo(queue: &str) -> bool {
    queue.strip_suffix(".fifo").is_some()
}

/// Returns the attributes of a message that has failed for good: its own as they came, and of pressrun's as
/// many as SQS has room for, the most important ones first. They replace those of an earlier failure.
fn failed_attributes(message: &FailedMessage) -> HashMap<String, MessageAttributeValue> {
    let receive_count = message.receive_count.to_string();
    let first_line = message.error_message.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let ours = [
        ("ErrorCode", "String", message.error_code),
        ("ErrorMessage", "String", first_line),
        ("MessageId", "String", message.message_id),
        ("Template", "String", message.template.unwrap_or_default()),
        ("RequestId", "String", message.request_id.unwrap_or_default()),
        ("ReceiveCount", "Number", &receive_count),
        ("Diagnostics", "String", &message.diagnostics),
    ];
    let is_ours = |name: &str| ours.iter().any(|(our_name, ..)| *our_name == name);
    let originals = message.attributes.iter().filter(|(name, _)| !is_ours(name));
    let mut attributes: HashMap<_, _> =
        originals.filter_map(|(name, value)| Some((name.clone(), original_attribute(value)?))).collect();
    let taken: usize = attributes.iter().map(|(name, value)| name.len() + size_of(value)).sum();
    let mut room = MAX_MESSAGE_BYTES.saturating_sub(message.body.len() + taken);
    for (name, data_type, value) in ours {
        let mut value = without_forbidden_characters(value);
        let room_for_value = room.saturating_sub(name.len() + data_type.len());
        if name == "ErrorMessage" {
            value.truncate(value.floor_char_boundary(room_for_value.min(MAX_ERROR_MESSAGE_BYTES)));
        }
        // SQS takes no empty values.
        if value.is_empty() || value.len() > room_for_value || attributes.len() == MAX_ATTRIBUTES {
            continue;
        }
        room = room_for_value - value.len();
        let attribute = MessageAttributeValue::builder().data_type(data_type).string_value(value).build();
        attributes.insert(name.to_owned(), attribute.expect("it has its data type"));
    }
    attributes
}

/// Converts an attribute from Lambda's form into SQS's.
fn original_attribute(attribute: &SqsMessageAttribute) -> Option<MessageAttributeValue> {
    MessageAttributeValue::builder()
        .set_data_type(attribute.data_type.clone())
        .set_string_value(attribute.string_value.clone())
        .set_binary_value(attribute.binary_value.as_ref().map(|value| Blob::new(value.0.clone())))
        .build()
        .ok()
}

fn size_of(attribute: &MessageAttributeValue) -> usize {
    let text = attribute.string_value().map_or(0, str::len);
    let binary = attribute.binary_value().map_or(0, |value| value.as_ref().len());
    attribute.data_type().len() + text + binary
}

/// Removes the characters that SQS refuses a message for.
/// Source: <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html>.
fn without_forbidden_characters(text: &str) -> String {
    let is_allowed = |character: &char| matches!(character, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    text.chars().filter(is_allowed).collect()
}
