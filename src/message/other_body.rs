//! Bodies that are plainly no message of pressrun's, and what to do about each.

use std::fmt;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// A text of fewer bytes is not taken for base64, since a word may look like it.
const MIN_BASE64_BYTES: usize = 16;
/// How base64 of anything gzipped begins.
const BASE64_OF_GZIP: &str = "H4sI";

/// A body that is plainly of another kind than pressrun's, and that somebody has sent in good faith.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherBody {
    SnsEnvelope,
    EventBridgeEvent,
    S3Notification,
    SqsEvent,
    EncodedTwice,
    Base64,
    Base64OfGzip,
}

impl fmt::Display for OtherBody {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::SnsEnvelope => {
                "the body is an SNS envelope around a message: set RawMessageDelivery to true on the topic's \
                 subscription, so that SNS delivers the message alone"
            }
            Self::EventBridgeEvent => {
                "the body is an EventBridge event: give the rule's target the input path $.detail, or an input \
                 transformer, so that EventBridge delivers the message alone"
            }
            Self::S3Notification => {
                "the body is a notification of S3's that an object has changed, which names no template: send a message, \
                 or a pointer to one as the SQS Extended Client Library writes it"
            }
            Self::SqsEvent => {
                "the body is a whole event of SQS's for Lambda: send what stands in the \"body\" of each of its records"
            }
            Self::EncodedTwice => {
                "the body is a JSON string, where a JSON object is expected: the message has been encoded twice, so \
                 encode it once"
            }
            Self::Base64 => "the body is base64, where JSON is expected: send the JSON text itself",
            Self::Base64OfGzip => {
                "the body is gzipped and in base64, where JSON is expected: send the JSON text itself, or what is too \
                 large for SQS with the SQS Extended Client Library"
            }
        })
    }
}

impl OtherBody {
    /// Tells what a body is that is no message.
    pub(super) fn of(body: &str) -> Option<Self> {
        let is_base64_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"+/-_=\r\n".contains(&byte);
        let body = body.trim();
        if body.len() >= MIN_BASE64_BYTES && body.bytes().all(is_base64_byte) {
            return Some(if body.starts_with(BASE64_OF_GZIP) { Self::Base64OfGzip } else { Self::Base64 });
        }
        if body.starts_with('"') {
            return serde_json::from_str::<IgnoredAny>(body).is_ok().then_some(Self::EncodedTwice);
        }
        let fields: EnvelopeFields = serde_json::from_str(body).ok()?;
        match fields {
            EnvelopeFields { template: Some(_), .. } => None,
            EnvelopeFields { sns_type: Some(_), topic_arn: Some(_), .. } => Some(Self::SnsEnvelope),
            EnvelopeFields { detail_type: Some(_), detail: Some(_), .. } => Some(Self::EventBridgeEvent),
            EnvelopeFields { service: Some(service), .. } if service == "Amazon S3" => Some(Self::S3Notification),
            EnvelopeFields { records: Some(records), .. } => {
                let source = records.first().and_then(|record| record.event_source.as_deref());
                match source {
                    Some("aws:s3") => Some(Self::S3Notification),
                    Some("aws:sqs") => Some(Self::SqsEvent),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// The fields that envelopes of AWS's services are known by.
#[derive(Deserialize)]
struct EnvelopeFields {
    template: Option<IgnoredAny>,
    #[serde(rename = "Type")]
    sns_type: Option<IgnoredAny>,
    #[serde(rename = "TopicArn")]
    topic_arn: Option<IgnoredAny>,
    #[serde(rename = "detail-type")]
    detail_type: Option<IgnoredAny>,
    detail: Option<IgnoredAny>,
    /// S3 sends a test event when notifications are set up.
    #[serde(rename = "Service")]
    service: Option<String>,
    #[serde(rename = "Records")]
    records: Option<Vec<EnvelopeRecord>>,
}

#[derive(Deserialize)]
struct EnvelopeRecord {
    #[serde(rename = "eventSource")]
    event_source: Option<String>,
}
