//! The AWS services that pressrun uses, S3 and SQS: clients, timeouts and errors are alike for both.
//!
//! Imports [`crate::config`], [`crate::message`], [`crate::pdf`] and [`crate::text`].

pub mod s3;
pub mod sqs;

use std::error::Error;
use std::time::Duration;

use aws_sdk_s3::config::SharedHttpClient;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::{Builder, ConnectorBuilder, tls};

use crate::text;

/// The longest that a connection may be idle and still be used again. Lambda freezes the function between
/// invocations, and whatever is on the way to AWS forgets a connection meanwhile without a word: a request on it
/// would wait for its whole timeout, and the next on another such connection as well. Between invocations that
/// follow each other at once the connections stay.
pub const MAX_IDLE_TIME: Duration = Duration::from_secs(3);

/// The longest reason of AWS's that is told whole, in bytes.
const MAX_REASON_BYTES: usize = 1000;

/// The clients of the AWS services.
#[derive(Clone, Debug)]
pub struct Clients {
    pub s3: aws_sdk_s3::Client,
    /// `None` if messages come from no queue: then nothing is sent to any.
    pub sqs: Option<aws_sdk_sqs::Client>,
}

impl Clients {
    /// Makes clients from environment and profile, as every AWS tool does. An endpoint other than AWS's
    /// own gets path-style requests, since it seldom has a host name for every bucket.
    pub async fn from_env(has_own_s3_endpoint: bool) -> Self {
        let shared =
            aws_config::defaults(aws_config::BehaviorVersion::latest()).http_client(http_client()).load().await;
        let s3 = aws_sdk_s3::config::Builder::from(&shared).force_path_style(has_own_s3_endpoint).build();
        Self { s3: aws_sdk_s3::Client::from_conf(s3), sqs: Some(aws_sdk_sqs::Client::new(&shared)) }
    }
}

/// A client of S3 alone, for messages that come from no queue.
impl From<aws_sdk_s3::Client> for Clients {
    fn from(s3: aws_sdk_s3::Client) -> Self {
        Self { s3, sqs: None }
    }
}

/// Makes the HTTP client that all clients of AWS's services share. It is the SDK's own but for one thing: a
/// connection that has been idle for longer than [`MAX_IDLE_TIME`] is not used again.
#[must_use]
pub fn http_client() -> SharedHttpClient {
    Builder::new().build_with_connector_fn(|settings, runtime_components| {
        let provider = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc);
        let mut builder = ConnectorBuilder::default().tls_provider(provider).pool_idle_timeout(MAX_IDLE_TIME);
        builder.set_connector_settings(settings.cloned());
        if let Some(components) = runtime_components {
            builder.set_sleep_impl(components.sleep_impl());
        }
        builder.set_proxy_config(Some(ProxyConfig::from_env()));
        builder.build()
    })
}

/// Limits a single attempt at a request. With only its connect timeout the SDK would wait for ever on a
/// connection that has gone silent, and never try another.
pub(crate) fn timeout_config(attempt_timeout: Duration) -> TimeoutConfig {
    TimeoutConfig::builder().operation_attempt_timeout(attempt_timeout).build()
}

/// Returns the HTTP status of a response, if there was one.
pub(crate) fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// Describes in one line what AWS responded, or why it did not.
pub(crate) fn summarize<E: ProvideErrorMetadata + Error + 'static>(error: &SdkError<E>) -> String {
    match (error.code(), status(error)) {
        (Some(code), Some(status)) => {
            let message = error.message().unwrap_or("no reason given");
            format!("{status} {code}: {}", text::shortened(message, MAX_REASON_BYTES))
        }
        (None, Some(status)) => status.to_string(),
        _ => chain(error),
    }
}

/// Describes an error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text::shortened(&text, MAX_REASON_BYTES).into_owned()
}
