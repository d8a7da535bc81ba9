//! What Lambda calls: the process of the function, from init to the last event.

use std::process::ExitCode;
use std::time::Duration;

use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use serde_json::Value;
use tokio::sync::Mutex;

use super::deadline::Deadline;
use super::{Function, Invocation};
use crate::aws::Clients;
use crate::config::{self, Config};

/// Is the function until Lambda ends it.
#[must_use]
pub fn main() -> ExitCode {
    lambda_runtime::tracing::init_default_subscriber();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Name lookups block, on a thread of their own that would otherwise stay for 10 s.
        .thread_keep_alive(Duration::ZERO)
        .build();
    let ran = match runtime {
        Ok(runtime) => runtime.block_on(run()),
        Err(error) => Err(error.into()),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), lambda_runtime::Error> {
    if !config::is_in_lambda() {
        return Err("this is a Lambda function: start it with cargo lambda watch or sam local, \
                    or set documents without either with cargo run --example local"
            .into());
    }
    let config = Config::from_env()?;
    let clients = Clients::from_env(config.has_own_s3_endpoint).await;
    let function = &Mutex::new(Function::start(config, clients).await?);
    let handler = move |event: LambdaEvent<Value>| async move {
        let deadline = Deadline::from_lambda(event.context.deadline());
        let invocation = Invocation { deadline, request_id: Some(&event.context.request_id) };
        function
            .lock()
            .await
            .handle(event.payload, invocation)
            .await
            .map_err(|error| Diagnostic { error_type: "EventError".to_owned(), error_message: error.to_string() })
    };
    lambda_runtime::run(service_fn(handler)).await
}
