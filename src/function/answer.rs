//! What an invocation is answered with: an SQS event with a partial batch response, and a direct call with what
//! was stored, with the PDF itself, or with an error.

use aws_lambda_events::encodings::Base64Data;
use aws_lambda_events::event::sqs::SqsBatchResponse;
use serde::Serialize;
use serde_json::{Value, json};

use super::batch::outputs;
use super::event::EventError;
use super::outcome::{Failure, Outcome, Returned};
use crate::pdf::Level;

/// What an invocation is answered with if it has not failed as a whole.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Answer {
    Batch(SqsBatchResponse),
    Direct(Value),
}

/// Why an invocation has failed as a whole. Lambda calls the two `errorType` and `errorMessage`.
#[derive(Debug, PartialEq, Eq)]
pub struct InvocationError {
    /// `EventError`, or the code of the failure.
    pub error_type: &'static str,
    pub message: String,
}

impl From<EventError> for InvocationError {
    fn from(error: EventError) -> Self {
        Self { error_type: "EventError", message: error.to_string() }
    }
}

impl From<Failure> for InvocationError {
    fn from(failure: Failure) -> Self {
        Self { error_type: failure.code.as_str(), message: failure.message }
    }
}

/// Answers a direct call with what has become of its message.
pub(super) fn to_direct_call(
    message_id: &str,
    template: &str,
    bucket: &str,
    outcome: Outcome,
) -> Result<Answer, InvocationError> {
    let answer = match outcome {
        Outcome::Stored(stored) => {
            serde_json::to_value(outputs::announcement(message_id, template, bucket, &stored)).unwrap_or_default()
        }
        Outcome::Superseded { key } => json!({"messageId": message_id, "template": template, "superseded": key}),
        Outcome::Returned(Returned { pages, e_invoice, pdf, .. }) => {
            let bytes = pdf.len();
            let mut answer = json!({
                "messageId": message_id, "template": template, "pages": pages, "bytes": bytes,
                "contentType": "application/pdf", "pdf": base64(pdf.into()),
            });
            if let Some(level) = e_invoice {
                answer["eInvoice"] = Level::as_str(level).into();
            }
            answer
        }
        Outcome::DeadLettered(failure) | Outcome::PermanentFailure(failure) | Outcome::TransientFailure(failure) => {
            return Err(failure.into());
        }
    };
    Ok(Answer::Direct(answer))
}

fn base64(bytes: Vec<u8>) -> Base64Data {
    let mut encoded = Base64Data::default();
    encoded.0 = bytes;
    encoded
}
