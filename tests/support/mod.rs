//! What the integration tests share: a function over an embedded S3, and events to give it.
#![allow(dead_code, reason = "each test uses a part of it")]

#[path = "../embedded/mod.rs"]
pub mod embedded;
pub mod emitted;
pub mod files;
pub mod log;
pub mod processes;
pub mod proxy;
pub mod templates;

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use embedded::s3::EmbeddedS3;
use embedded::sqs::EmbeddedSqs;
use emitted::EmittedMetrics;
use pressrun::aws::Clients;
use pressrun::config::Config;
use pressrun::function::deadline::Deadline;
use pressrun::function::metrics::Metrics;
use pressrun::function::{Function, Invocation};
use serde_json::{Value, json};

pub const OUTPUT: &str = "output";
pub const INPUT: &str = "input";

/// The queues that a test may name in `FAILED_QUEUE_URL` and `DONE_QUEUE_URL`.
pub const QUEUES: [&str; 5] = ["documents", "failed", "failed.fifo", "done", "done.fifo"];

/// Tests run side by side, except those that reckon with what this process holds. Every test has to hold this, also one
/// that needs nothing of the others: the thread of the next test is started when it ends.
static RUNNING_TESTS: RwLock<()> = RwLock::new(());

/// Held by a test that other tests may run beside.
pub fn beside_others() -> RwLockReadGuard<'static, ()> {
    RUNNING_TESTS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held by a test that counts this process's threads, children, files or memory, or depends on them.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    RUNNING_TESTS.write().unwrap_or_else(PoisonError::into_inner)
}

/// A function with a real press and runs, over the real SDK and stand-ins for S3 and SQS on loopback.
pub struct Stage {
    pub s3: EmbeddedS3,
    pub sqs: EmbeddedSqs,
    pub function: Function,
}

pub fn config(workers: usize) -> Config {
    Config {
        output_bucket: OUTPUT.to_owned(),
        output_prefix: String::new(),
        input_bucket: Some(INPUT.to_owned()),
        templates_dir: test_templates(),
        only_templates: Vec::new(),
        max_init_time: None,
        workers,
        cores: 2,
        max_data_bytes: 1024 * 1024,
        max_render_time: None,
        timings_slower_than: None,
        memory_bytes: None,
        failed_queue_url: None,
        done_queue_url: None,
        deadline_margin: Duration::from_millis(200),
        has_own_s3_endpoint: true,
        press_program: env!("CARGO_BIN_EXE_pressrun").into(),
        function_name: "documents".to_owned(),
    }
}

/// The templates that are made to test with: what a document can do, good and bad.
pub fn test_templates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates")
}

/// The templates that pressrun comes with.
pub fn real_templates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("templates")
}

impl Stage {
    pub async fn with(config: Config) -> Self {
        Self::with_queues(config, None, None).await
    }

    /// With a failed queue, and one on which documents are announced.
    pub async fn with_queues(mut config: Config, failed: Option<&str>, done: Option<&str>) -> Self {
        let s3 = EmbeddedS3::start(&[OUTPUT, INPUT]);
        let sqs = EmbeddedSqs::start(&QUEUES);
        config.failed_queue_url = failed.map(|queue| sqs.url(queue));
        config.done_queue_url = done.map(|queue| sqs.url(queue));
        let clients = Clients { s3: s3.client(), sqs: Some(sqs.client()) };
        let function = Function::start(config, clients).await.unwrap();
        Self { s3, sqs, function }
    }

    pub async fn with_workers(workers: usize) -> Self {
        Self::with(config(workers)).await
    }

    /// And what it tells CloudWatch.
    pub async fn with_metrics(config: Config) -> (Self, EmittedMetrics) {
        let emitted = EmittedMetrics::default();
        let metrics = Metrics::new(config.function_name.clone(), "INFO", emitted.clone());
        let Self { s3, sqs, function } = Self::with(config).await;
        (Self { s3, sqs, function: function.with_metrics(metrics) }, emitted)
    }

    /// With so much memory left for runs when function and press have theirs.
    pub async fn with_memory(workers: usize, megabytes_for_runs: u64) -> Self {
        Self::with(Self::config_with_memory(workers, megabytes_for_runs).await).await
    }

    /// The same to start a function with.
    pub async fn config_with_memory(workers: usize, megabytes_for_runs: u64) -> Config {
        let probe = Self::with_workers(workers).await;
        let processes = probe.function.press_id().into_iter().chain([std::process::id()]);
        let needed: u64 = processes.map(processes::resident_bytes).sum();
        drop(probe);
        Config { memory_bytes: Some(needed * 3 / 2 + megabytes_for_runs * 1_000_000), ..config(workers) }
    }

    /// Gives the function an event; the ids of the records that failed come back.
    pub async fn handle(&mut self, records: Vec<Value>) -> Vec<String> {
        self.handle_until(records, Deadline::NONE).await
    }

    pub async fn handle_until(&mut self, records: Vec<Value>, deadline: Deadline) -> Vec<String> {
        let invocation = Invocation { deadline, request_id: Some("8476a536-e9f4-11e8-9739-2dfe598c3fcd") };
        let response = self.function.handle(json!({"Records": records}), invocation).await.unwrap();
        let response = serde_json::to_value(response).unwrap();
        let failures = response["batchItemFailures"].as_array().unwrap();
        failures.iter().map(|failure| failure["itemIdentifier"].as_str().unwrap().to_owned()).collect()
    }

    /// The PDF of a message that did not choose its key.
    pub fn pdf(&self, template: &str, message_id: &str) -> Option<bytes::Bytes> {
        let object = self.s3.object(OUTPUT, &format!("{template}/{message_id}.pdf"))?;
        assert!(object.body.starts_with(b"%PDF-") && object.body.trim_ascii_end().ends_with(b"%%EOF"), "a whole PDF");
        Some(object.body)
    }
}

/// The body that the Extended Client Library sends for a message that lies in S3.
pub fn pointer(bucket: &str, key: &str) -> String {
    json!(["software.amazon.payloadoffloading.PayloadS3Pointer", {"s3BucketName": bucket, "s3Key": key}]).to_string()
}

/// A record as SQS writes it.
pub fn record_of(message_id: &str, body: impl Into<String>) -> Value {
    json!({
        "messageId": message_id,
        "receiptHandle": format!("handle-of-{message_id}"),
        "body": body.into(),
        "attributes": {
            "ApproximateReceiveCount": "1",
            "SentTimestamp": "1782988200000",
            "SenderId": "AIDAIENQZJOLO23YVJ4VO",
            "ApproximateFirstReceiveTimestamp": "1782988200010"
        },
        "messageAttributes": {},
        "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:eu-central-1:123456789012:documents",
        "awsRegion": "eu-central-1"
    })
}

/// A record that asks for a template with some data.
#[expect(clippy::needless_pass_by_value, reason = "callers write the data in place")]
pub fn record(message_id: &str, template: &str, data: Value) -> Value {
    record_of(message_id, json!({"template": template, "data": data}).to_string())
}

/// The same record, from a FIFO queue.
pub fn in_group(group: &str, mut record: Value) -> Value {
    record["attributes"]["MessageGroupId"] = group.into();
    record["eventSourceARN"] = "arn:aws:sqs:eu-central-1:123456789012:documents.fifo".into();
    record
}

/// The same record, delivered for the nth time.
pub fn received(times: u32, mut record: Value) -> Value {
    record["attributes"]["ApproximateReceiveCount"] = times.to_string().into();
    record
}

/// A letter with a key of its own.
pub fn letter_to(message_id: &str, key: &str) -> Value {
    record_of(message_id, json!({"template": "letter", "data": {"to": message_id}, "key": key}).to_string())
}

/// A letter: a good document of one page.
pub fn letter(message_id: &str) -> Value {
    record(message_id, "letter", json!({"to": message_id}))
}

/// Runs a test on one thread, as the function runs, while others run beside it.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let _beside_others = beside_others();
    block_on(test)
}

/// Runs a test on one thread while no other test runs.
pub fn run_alone<T>(test: impl Future<Output = T>) -> T {
    let _alone = alone();
    block_on(test)
}

/// Runs a test on one thread, for a test that holds [`alone`].
pub fn block_on<T>(test: impl Future<Output = T>) -> T {
    log::collect();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().thread_keep_alive(Duration::ZERO).build().unwrap();
    runtime.block_on(test)
}
