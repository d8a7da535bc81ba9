//! The function's process as Lambda runs it: init, one event after the other, SIGTERM.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;

use super::deadline::Deadline;
use super::metrics::Metrics;
use super::{Function, Invocation, extension, logging};
use crate::aws::Clients;
use crate::census;
use crate::config::{self, Config, LogSettings};
use crate::os;

/// Runs the function until Lambda ends it.
#[must_use]
pub fn main() -> ExitCode {
    os::set_process_name(c"function");
    let log = LogSettings::from_env();
    logging::start(log);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Name lookups block, on a thread of their own that would otherwise stay for 10 s.
        .thread_keep_alive(Duration::ZERO)
        .thread_name("lookup")
        .build();
    let ran = match runtime {
        Ok(runtime) => {
            let ran = runtime.block_on(run(log));
            // Else a name lookup that hangs would be waited for.
            runtime.shutdown_background();
            ran
        }
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

async fn run(log: LogSettings) -> Result<(), lambda_runtime::Error> {
    if !config::is_in_lambda() {
        return Err("this is a Lambda function: start it with cargo lambda watch or sam local, \
                    or render documents without either with cargo run --example local"
            .into());
    }
    let config = Config::from_env()?;
    let metrics = Metrics::new(&config.function_name, log.level_name, io::stdout());
    let clients = Clients::from_env(config.has_own_s3_endpoint);
    let (started, registered) = tokio::join!(Function::start_while(config, clients), extension::register());
    let mut sigterm = signal(SignalKind::terminate())?;
    let owned_function = Mutex::new(started?.with_metrics(metrics));
    let function = &owned_function;
    // Not parsed by lambda_runtime, since a direct call's message has to stay as it was written.
    let handler = move |event: LambdaEvent<Box<RawValue>>| async move {
        let deadline = Deadline::from_lambda(event.context.deadline());
        let invocation = Invocation { deadline, request_id: Some(&event.context.request_id) };
        function
            .lock()
            .await
            .answer(event.payload.get(), invocation)
            .await
            .map_err(|error| Diagnostic { error_type: error.error_type.to_owned(), error_message: error.message })
    };
    let sigterm = async {
        sigterm.recv().await;
        let doing = if function.try_lock().is_ok() { "idle" } else { "working" };
        tracing::info!("SIGTERM while {doing}: press and runs are ended");
    };
    // SIGTERM drops the invocation under way: Lambda gets no response, and SQS delivers its messages again.
    let ran = tokio::select! {
        ran = lambda_runtime::run(service_fn(handler)) => ran,
        () = sigterm => Ok(()),
        error = log_census_on_request(|tasks, table| tracing::info!(tasks, "census\n{table}")) => {
            Err(error.into())
        }
        never = extension::stay_registered(registered) => match never {},
    };
    owned_function.into_inner().stop().await;
    ran
}

/// Takes a census of this process and all processes below it at each SIGUSR1, also while documents are
/// rendered, and hands it to `log` with the number of tokio's tasks. Nobody can send that signal on Lambda
/// itself; on a machine of one's own it shows which process holds what.
///
/// Returns only when the signal cannot be listened to.
pub async fn log_census_on_request(log: impl Fn(usize, &str)) -> io::Error {
    let mut requests = match signal(SignalKind::user_defined1()) {
        Ok(requests) => requests,
        Err(error) => return error,
    };
    loop {
        requests.recv().await;
        log(Handle::current().metrics().num_alive_tasks(), &census::table_of_this_process());
    }
}
