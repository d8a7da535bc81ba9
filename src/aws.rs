//! What is the same for every AWS service: its clients, how long a request may take, and what it
//! said when it failed.

use std::error::Error;
use std::time::Duration;

use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

/// The clients that the function speaks to AWS with.
#[derive(Clone, Debug)]
pub struct Clients {
    pub s3: aws_sdk_s3::Client,
    /// Without one no queue is spoken to.
    pub sqs: Option<aws_sdk_sqs::Client>,
}

impl Clients {
    /// Clients as every AWS tool makes them, from environment and profile. With an endpoint of
    /// its own S3 gets path-style requests, since such an endpoint seldom has a host name for
    /// every bucket.
    pub async fn from_env(has_own_s3_endpoint: bool) -> Self {
        let shared = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
        let s3 = aws_sdk_s3::config::Builder::from(&shared).force_path_style(has_own_s3_endpoint).build();
        Self { s3: aws_sdk_s3::Client::from_conf(s3), sqs: Some(aws_sdk_sqs::Client::new(&shared)) }
    }
}

/// S3 alone, as where no queue has sent the messages.
impl From<aws_sdk_s3::Client> for Clients {
    fn from(s3: aws_sdk_s3::Client) -> Self {
        Self { s3, sqs: None }
    }
}

/// Limits a single try of a request: with nothing but its connect timeout the SDK would wait for
/// ever for a connection that has gone silent, and never try another.
pub(crate) fn try_for(time: Duration) -> TimeoutConfig {
    TimeoutConfig::builder().operation_attempt_timeout(time).build()
}

/// The status of an answer, if there was one.
pub(crate) fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// What AWS said, or what came between it and us, in one line.
pub(crate) fn in_short<E: ProvideErrorMetadata + Error + 'static>(error: &SdkError<E>) -> String {
    match (error.code(), status(error)) {
        (Some(code), Some(status)) => {
            let message = error.message().unwrap_or("no reason given");
            format!("{status} {code}: {message}")
        }
        (None, Some(status)) => status.to_string(),
        _ => chain(error),
    }
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
