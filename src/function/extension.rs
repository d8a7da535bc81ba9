//! Registers a Lambda extension that wants no events, so that Lambda announces the end of the execution
//! environment: it sends SIGTERM, and SIGKILL 500 ms later, only where an extension is registered.
//!
//! `lambda_runtime` can do this too (`graceful-shutdown`), but panics where there are no
//! extensions, exits by itself, and brings `lambda-extension` with two log APIs.
//! Source: <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-extensions-api.html>.

use std::convert::Infallible;
use std::future;
use std::time::Duration;

use lambda_runtime::Error;
use lambda_runtime_api_client::body::Body;
use lambda_runtime_api_client::{PooledClient, build_request};
use tokio::time::timeout;

/// The extension's name, which no other extension of the function may have.
const NAME: &str = "pressrun-sigterm";

/// The header with the id that Lambda has given the extension.
const ID_HEADER: &str = "Lambda-Extension-Identifier";

/// The longest that registering may take. Lambda answers within a millisecond; an emulator that never
/// answers must not stop init.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(1);

/// An extension that has been registered.
pub struct Extension {
    client: PooledClient,
    id: String,
}

/// Registers the extension, which has to be done before the first event is asked for. An emulator may
/// have no extensions: SIGTERM then comes from somebody else or not at all.
pub async fn register() -> Option<Extension> {
    let error = match timeout(REGISTER_TIMEOUT, Extension::register()).await {
        Ok(Ok(extension)) => return Some(extension),
        Ok(Err(error)) => error,
        Err(elapsed) => elapsed.into(),
    };
    tracing::info!(%error, "no extension can be registered: this is not Lambda, or it will not send SIGTERM");
    None
}

/// Asks for the extension's next event, which never comes: Lambda takes init for done only when that has
/// been asked for.
pub async fn stay_registered(extension: Option<Extension>) -> Infallible {
    if let Some(extension) = extension
        && let Err(error) = extension.next_event().await
    {
        tracing::warn!(%error, "the extension is lost that makes Lambda send SIGTERM");
    }
    future::pending().await
}

impl Extension {
    async fn register() -> Result<Self, Error> {
        let client = PooledClient::builder().build();
        let request = build_request()
            .method("POST")
            .uri("/2020-01-01/extension/register")
            .header("Lambda-Extension-Name", NAME)
            .header("Content-Type", "application/json")
            .body(Body::from(r#"{"events": []}"#))?;
        let response = client.call(request).await?;
        match response.headers().get(ID_HEADER) {
            Some(id) if response.status().is_success() => Ok(Self { id: id.to_str()?.to_owned(), client }),
            _ => Err(format!("the runtime API answered with {}", response.status()).into()),
        }
    }

    async fn next_event(&self) -> Result<(), Error> {
        let request = build_request().uri("/2020-01-01/extension/event/next").header(ID_HEADER, &self.id);
        self.client.call(request.body(Body::empty())?).await?;
        Ok(())
    }
}
