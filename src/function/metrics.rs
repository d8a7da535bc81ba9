//! Metrics in CloudWatch's embedded metric format: a line of JSON for each invocation, and one for each
//! document. CloudWatch extracts metrics from these lines of the log, so no API is called.
//!
//! Source: <https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use metrique_writer::core::config::EntryDimensions;
use metrique_writer::format::Format;
use metrique_writer::unit::{AsBytes, AsCount, AsPercent};
use metrique_writer::{Entry, EntryWriter};
use metrique_writer_format_emf::Emf;

use super::leak_check::Snapshot;
use super::outcome::ErrorCode;
use crate::census::{Counts, ProcessSnapshot};
use crate::press::{Cause, PressStats};

/// The namespace of all metrics in CloudWatch.
const NAMESPACE: &str = "pressrun";
const FUNCTION_NAME: &str = "FunctionName";
const TEMPLATE: &str = "Template";
/// Stands for the name of a template that is not deployed: messages may name anything, and a dimension
/// should have few values.
const NO_TEMPLATE: &str = "-";

/// The dimensions of a document's metrics beside the function's name: none, and the template.
const BY_TEMPLATE: EntryDimensions =
    EntryDimensions::new_static(&[Cow::Borrowed(&[] as &[Cow<str>]), Cow::Borrowed(&[Cow::Borrowed(TEMPLATE)])]);

/// Writes metrics, or nothing.
pub struct Metrics(Option<RefCell<Destination>>);

struct Destination {
    format: Emf,
    function_name: String,
    level: &'static str,
    writer: Box<dyn Write>,
}

/// The metrics of an invocation. Durations become milliseconds, as CloudWatch has them.
#[derive(Debug, Default, Entry)]
#[entry(rename_all = "PascalCase")]
pub(super) struct InvocationMetrics {
    #[entry(name = "requestId")]
    pub request_id: Option<String>,
    /// 1 for the first invocation of this process.
    pub cold_start: AsCount<u64>,
    /// The time until the press and its first run were warm. Only with a cold start.
    pub init_time: Option<Duration>,
    pub records: AsCount<u64>,
    pub runs_killed_for_time: AsCount<u64>,
    pub runs_killed_for_memory: AsCount<u64>,
    /// Runs that their documents have crashed.
    pub runs_crashed: AsCount<u64>,
    /// Runs that something outside has ended, while a document was rendered that is rendered again.
    pub runs_lost: AsCount<u64>,
    pub presses_replaced: AsCount<u64>,
    /// The kinds of things that there were more of after the invocation than before it.
    pub leaks: AsCount<u64>,
    pub function_memory: AsBytes<u64>,
    pub function_threads: AsCount<u64>,
    pub function_tasks: AsCount<u64>,
    pub function_children: AsCount<u64>,
    /// The function's open files without its connections.
    pub function_open_files: AsCount<u64>,
    pub function_connections: AsCount<u64>,
    pub press_memory: AsBytes<u64>,
    pub press_threads: AsCount<u64>,
    pub press_children: AsCount<u64>,
    pub press_open_files: AsCount<u64>,
    /// The peak memory of the run that had most.
    pub run_peak_memory: Option<AsBytes<u64>>,
    /// The CPU time of all runs that have ended.
    pub run_cpu_time: Option<Duration>,
    /// The most memory that function, press and runs may have had at one time, in percent of the memory
    /// size.
    pub memory_used: Option<AsPercent<f64>>,
}

/// The metrics of a document.
#[derive(Debug, Default, Entry)]
#[entry(rename_all = "PascalCase")]
pub(super) struct DocumentMetrics {
    #[entry(name = "requestId")]
    pub request_id: Option<String>,
    #[entry(name = "messageId")]
    pub message_id: String,
    #[entry(name = "worker")]
    pub worker: Option<String>,
    #[entry(ignore)]
    pub template: Option<String>,
    pub stored: AsCount<u64>,
    pub failed: AsCount<u64>,
    #[entry(ignore)]
    pub error: Option<ErrorCode>,
    pub pages: Option<AsCount<u64>>,
    /// How many parts the document was rendered in, if it was divided.
    pub parts: Option<AsCount<u64>>,
    pub pdf_size: Option<AsBytes<u64>>,
    pub render_time: Option<Duration>,
    /// How often the memo cache was evicted for want of memory, if it was.
    pub cache_evictions: Option<AsCount<u64>>,
    pub upload_time: Option<Duration>,
    /// The time that the document waited for memory to read it into, and for a worker.
    pub queue_wait: Option<Duration>,
    /// The time from when the message was sent until the record's outcome.
    pub message_age: Option<Duration>,
}

impl InvocationMetrics {
    /// The metrics of what is left after an invocation, and of what happened to press and runs.
    pub fn new(after: &Snapshot, stats: &PressStats, memory_bytes: Option<u64>) -> Self {
        let runs = || stats.ended_runs.iter();
        let ended = |causes: &[Cause]| {
            (runs().filter(|run| run.cause.is_some_and(|cause| causes.contains(&cause))).count() as u64).into()
        };
        let no_press = ProcessSnapshot::default();
        let press = after.press.as_ref().unwrap_or(&no_press);
        Self {
            runs_killed_for_time: ended(&[Cause::TimeLimit]),
            runs_killed_for_memory: ended(&[Cause::MemoryLimit, Cause::PdfTooLarge]),
            runs_crashed: ended(&[Cause::Document]),
            runs_lost: ended(&[Cause::External]),
            presses_replaced: (stats.replaced_presses as u64).into(),
            function_memory: after.function.resident_bytes.into(),
            function_threads: sum(&after.function.threads).into(),
            function_tasks: (after.tasks as u64).into(),
            function_children: sum(&after.function.children).into(),
            function_open_files: (sum(&after.function.open_files) - after.connections() as u64).into(),
            function_connections: (after.connections() as u64).into(),
            press_memory: press.resident_bytes.into(),
            press_threads: sum(&press.threads).into(),
            press_children: sum(&press.children).into(),
            press_open_files: sum(&press.open_files).into(),
            run_peak_memory: runs().map(|run| run.peak_memory_bytes).max().map(Into::into),
            run_cpu_time: runs().map(|run| run.cpu_time).reduce(Duration::saturating_add),
            memory_used: memory_bytes.map(|all| percent(max_memory(after, stats), all).into()),
            ..Self::default()
        }
    }
}

fn sum(groups: &Counts) -> u64 {
    groups.values().sum::<usize>() as u64
}

/// Returns the bytes that function, press and runs may have had at one time: what the function has, and
/// of each worker the largest of its runs, whose peak includes the memory that it shares with the press.
fn max_memory(after: &Snapshot, stats: &PressStats) -> u64 {
    let mut of_workers: BTreeMap<usize, u64> = BTreeMap::new();
    for run in &stats.ended_runs {
        let peak = of_workers.entry(run.worker).or_default();
        *peak = run.peak_memory_bytes.max(*peak);
    }
    let of_runs = of_workers.into_values().fold(0, u64::saturating_add);
    let of_press = after.press.as_ref().map_or(0, |press| press.resident_bytes);
    after.function.resident_bytes.saturating_add(of_runs.max(of_press))
}

#[expect(clippy::cast_precision_loss, reason = "a percentage needs none")]
fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole as f64
}

impl Metrics {
    /// Writes nothing.
    pub const NONE: Self = Self(None);

    /// Writes lines to `writer`. With JSON logs Lambda drops lines below its log level, and takes those
    /// without a `level` for INFO: so these have the `level` that just passes.
    /// Source: <https://docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs-log-level.html>.
    #[must_use]
    pub fn new(function_name: impl Into<String>, level: &'static str, writer: impl Write + 'static) -> Self {
        let format = Emf::builder(NAMESPACE.to_owned(), vec![vec![FUNCTION_NAME.to_owned()]]).build();
        let writer = Box::new(writer);
        Self(Some(RefCell::new(Destination { format, function_name: function_name.into(), level, writer })))
    }

    pub(super) fn emit_invocation(&self, invocation: &InvocationMetrics) {
        self.emit(invocation);
    }

    pub(super) fn emit_document(&self, document: &DocumentMetrics) {
        self.emit(&ByTemplate(document));
    }

    fn emit(&self, entry: &impl Entry) {
        let Self(Some(destination)) = self else { return };
        let Destination { format, function_name, level, writer } = &mut *destination.borrow_mut();
        let line = Line { time: SystemTime::now(), level, function_name, entry };
        let mut bytes = Vec::new();
        let written = format.format(&line, &mut bytes).map_err(|error| error.to_string());
        // A line is written at once, since the log goes to the same place.
        let written = written.and_then(|()| writer.write_all(&bytes).map_err(|error| error.to_string()));
        if let Err(error) = written {
            tracing::error!(error, "metrics could not be written");
        }
    }
}

/// A line: what all of them have in common, and an entry.
struct Line<'a, E> {
    time: SystemTime,
    level: &'a str,
    function_name: &'a str,
    entry: &'a E,
}

impl<E: Entry> Entry for Line<'_, E> {
    fn write<'a>(&'a self, writer: &mut impl EntryWriter<'a>) {
        writer.timestamp(self.time);
        // Lambda takes a line for one with a level only if it also has a time of this form.
        let timestamp = DateTime::from(self.time).fmt(DateTimeFormat::DateTime).unwrap_or_default();
        writer.value("timestamp", &timestamp);
        writer.value("level", self.level);
        writer.value(FUNCTION_NAME, self.function_name);
        self.entry.write(writer);
    }
}

struct ByTemplate<'a>(&'a DocumentMetrics);

impl Entry for ByTemplate<'_> {
    fn write<'a>(&'a self, writer: &mut impl EntryWriter<'a>) {
        let Self(document) = self;
        writer.config(const { &BY_TEMPLATE });
        writer.value(TEMPLATE, document.template.as_deref().unwrap_or(NO_TEMPLATE));
        if let Some(code) = document.error {
            writer.value(code.as_str(), &AsCount::from(1_u64));
        }
        document.write(writer);
    }
}
