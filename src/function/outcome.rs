//! What becomes of a record: each has exactly one outcome.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::batch::limits::{MemoryLimit, TimeLimit};
use crate::aws::s3::StoredObject;
use crate::pdf::Level;
use crate::press::RunEnd;
use crate::render::diagnostics::Diagnostic;
use crate::text;

/// The longest message of a failure that is told whole, in bytes. A byte may take six in the log.
const MAX_MESSAGE_BYTES: usize = 4096;
/// The bytes of what Lambda calls a MB.
const MEBIBYTE: u64 = 1024 * 1024;

/// The outcome of one record.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The PDF is in S3, whole, and has been announced.
    Stored(Stored),
    /// A message that was sent later has written this key already, and its PDF stays.
    Superseded { key: String },
    /// The PDF goes back to whoever has called the function, and is not stored.
    Returned(Returned),
    /// A retry would fail in the same way. The message is in the failed queue, with the reason.
    DeadLettered(Failure),
    /// A retry would fail in the same way. The message stays in its queue, whose redrive policy takes it
    /// to the dead-letter queue.
    PermanentFailure(Failure),
    /// A retry may succeed. The message is delivered again.
    TransientFailure(Failure),
}

/// A document whose PDF is in S3.
#[derive(Clone, Debug)]
pub struct Stored {
    pub key: String,
    pub pages: usize,
    pub bytes: usize,
    /// The level of the e-invoice, if it is one.
    pub e_invoice: Option<Level>,
    pub e_tag: Option<String>,
    /// The object's version, if the bucket keeps versions.
    pub version_id: Option<String>,
    /// Whether an earlier delivery of the message had stored it, so that nothing was rendered.
    pub was_stored_before: bool,
    pub warnings: Vec<Diagnostic>,
    /// The time from when the run had the whole request until it had the PDF.
    pub render_time: Duration,
    /// How often Typst's memo cache was evicted for want of memory.
    pub cache_evictions: u32,
    /// How many parts it was rendered in, if it was divided.
    pub parts: Option<usize>,
}

/// A PDF that is returned to the caller.
#[derive(Clone, Debug)]
pub struct Returned {
    pub pages: usize,
    /// The level of the e-invoice, if it is one.
    pub e_invoice: Option<Level>,
    pub pdf: Bytes,
    pub warnings: Vec<Diagnostic>,
    pub render_time: Duration,
    /// How many parts it was rendered in, if it was divided.
    pub parts: Option<usize>,
}

/// Why a record has failed.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    pub code: ErrorCode,
    /// One sentence that says what was wrong, what was expected and what to do.
    pub message: String,
    /// Typst's own diagnostics, or where data violate a schema.
    pub diagnostics: Vec<Diagnostic>,
}

/// The kinds of failure: a closed set, for operators to count and to act on. Each is either permanent
/// or transient ([`ErrorCode::is_permanent`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ErrorCode {
    /// The message, or the object that it points to, violates the message contract.
    InvalidMessage,
    /// No template of that name is deployed.
    UnknownTemplate,
    /// The data violate the template's schema, or the XML of an e-invoice cannot be used.
    InvalidData,
    /// Typst reported an error, or the PDF is not the e-invoice that its template makes.
    TypstError,
    /// Typst panicked.
    TypstPanicked,
    /// Rendering took longer than any document may take.
    TimeLimit,
    /// Rendering takes more memory than there is for a single document.
    MemoryLimit,
    /// The document crashed its run.
    RunKilled,
    /// Another message's object has the same key, and `if_exists` is `fail`.
    KeyTaken,
    /// The run or the press was killed from outside, in each attempt.
    RunLost,
    /// S3 did not return the message or one of its files.
    InputUnavailable,
    /// S3 did not store the PDF.
    StorageUnavailable,
    /// S3 denies the function access, or a bucket does not exist.
    StorageDenied,
    /// The PDF is stored, but could not be announced.
    AnnouncementFailed,
    /// An earlier record of its message group failed.
    GroupStopped,
    /// The invocation's time was over before the record was done.
    DeadlineReached,
}

impl Outcome {
    /// Whether the message is to be deleted from its queue. If not, it is reported as a batch item
    /// failure.
    #[must_use]
    pub fn is_acknowledged(&self) -> bool {
        match self {
            Self::Stored(_) | Self::Superseded { .. } | Self::Returned(_) | Self::DeadLettered(_) => true,
            Self::PermanentFailure(_) | Self::TransientFailure(_) => false,
        }
    }

    /// The same outcome, for another record of the same message in the same batch.
    #[must_use]
    pub(super) fn repeated(&self) -> Self {
        match self {
            Self::Stored(stored) => {
                Self::Stored(Stored { was_stored_before: true, warnings: Vec::new(), ..stored.clone() })
            }
            outcome => outcome.clone(),
        }
    }
}

impl Stored {
    /// A document that has been rendered and stored.
    #[must_use]
    pub fn new(key: String, object: StoredObject, warnings: Vec<Diagnostic>, render_time: Duration) -> Self {
        let StoredObject { pages, bytes, e_invoice, e_tag, version_id } = object;
        Self {
            key,
            pages,
            bytes,
            e_invoice,
            e_tag,
            version_id,
            was_stored_before: false,
            warnings,
            render_time,
            cache_evictions: 0,
            parts: None,
        }
    }

    /// A document that an earlier delivery of the message had stored.
    #[must_use]
    pub fn before(key: String, object: StoredObject) -> Self {
        Self { was_stored_before: true, ..Self::new(key, object, Vec::new(), Duration::ZERO) }
    }
}

impl Failure {
    /// A failure without diagnostics.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let message = text::shortened(&message.into(), MAX_MESSAGE_BYTES).into_owned();
        Self { code, message, diagnostics: Vec::new() }
    }

    /// The data violate the template's schema, or a file cannot be used.
    #[must_use]
    pub fn invalid_data(violations: Vec<Diagnostic>) -> Self {
        let first = violations.first().map_or("it gave no reason", |violation| &violation.message);
        let others = match violations.len() {
            0 | 1 => String::new(),
            violations => format!(" (and {} more)", violations - 1),
        };
        let what = match violations.first().and_then(|violation| violation.file.as_ref()) {
            Some(file) => format!("the message's file {file} is not what the template takes"),
            None => "the data are not what the template's schema says".to_owned(),
        };
        let message = format!("{what}: {first}{others}");
        Self { diagnostics: violations, ..Self::new(ErrorCode::InvalidData, message) }
    }

    /// Typst reported errors.
    #[must_use]
    pub fn typst(diagnostics: Vec<Diagnostic>) -> Self {
        let message = diagnostics.first().map_or_else(|| "Typst gave no reason".to_owned(), ToString::to_string);
        Self { diagnostics, ..Self::new(ErrorCode::TypstError, message) }
    }

    /// The document needed more memory than there is for a single one.
    #[must_use]
    pub fn memory_limit(limit: MemoryLimit, end: &RunEnd) -> Self {
        let had = limit.bytes.map_or_else(|| "all there was".to_owned(), |bytes| format!("{} MB", bytes / MEBIBYTE));
        let wanted = end.stderr.lines().find(|line| line.contains("were wanted")).unwrap_or("out of memory");
        let message = format!(
            "the document did not fit into {had} of memory, all that the function has for a single one ({wanted}); \
             give the function more memory, or the template less to do"
        );
        Self::new(ErrorCode::MemoryLimit, message)
    }

    /// The PDF has more bytes than the function has memory for.
    #[must_use]
    pub fn pdf_too_large(limit: MemoryLimit) -> Self {
        let megabytes = limit.response_bytes().unwrap_or_default() / MEBIBYTE;
        let message = format!(
            "the PDF, with its timings, has more than {megabytes} MB, all that the function has room for beside the \
             run that makes it; give the function more memory, or the template smaller images"
        );
        Self::new(ErrorCode::MemoryLimit, message)
    }

    /// The document took more time than it had: all that a document may have, or only its share of what
    /// was left of the invocation.
    #[must_use]
    pub fn time_limit(limit: TimeLimit, end: &RunEnd) -> Self {
        let milliseconds = limit.time.as_millis();
        let cpu_milliseconds = end.process.cpu_time.as_millis();
        if limit.is_full_limit {
            let message = format!(
                "rendering the document was ended after {milliseconds} ms ({cpu_milliseconds} ms of CPU time), all that \
                 MAX_RENDER_MS allows a document; is there an endless loop in the template?"
            );
            Self::new(ErrorCode::TimeLimit, message)
        } else {
            let message = format!(
                "rendering the document was ended after {milliseconds} ms ({cpu_milliseconds} ms of CPU time), its share \
                 of what the invocation had left while others waited; when its message is delivered again, it has all \
                 that a document is granted"
            );
            Self::new(ErrorCode::DeadlineReached, message)
        }
    }

    /// The PDF does not fit into the answer to a direct call.
    #[must_use]
    pub fn pdf_too_large_to_return(bytes: usize, max_bytes: usize) -> Self {
        let message = format!(
            "the PDF has {bytes} bytes, and the answer to a direct call has room for {max_bytes}; leave \
             \"respond\": \"inline\" out, so that the PDF is stored"
        );
        Self::new(ErrorCode::InvalidMessage, message)
    }

    /// An earlier record of the message group failed.
    #[must_use]
    pub fn group_stopped(message_id: &str) -> Self {
        let message = format!("message {message_id} before it in its message group failed, and must not be overtaken");
        Self::new(ErrorCode::GroupStopped, message)
    }

    /// The run ended before it had responded.
    #[must_use]
    pub fn run_ended(code: ErrorCode, end: &RunEnd) -> Self {
        let process = &end.process;
        let mut message = format!(
            "the process that rendered the document {}, after {} ms of CPU time and with {} MB of memory at its peak",
            process.status,
            process.cpu_time.as_millis(),
            process.peak_memory_bytes / MEBIBYTE
        );
        if let Some(line) = end.stderr_lines().next() {
            message = format!("{message}; it said: {line}");
        }
        Self::new(code, message)
    }
}

impl ErrorCode {
    /// Whether a retry would fail in the same way. A message that has failed permanently is dead-lettered
    /// at once, another is delivered again.
    #[must_use]
    pub fn is_permanent(self) -> bool {
        match self {
            Self::InvalidMessage
            | Self::UnknownTemplate
            | Self::InvalidData
            | Self::TypstError
            | Self::TypstPanicked
            | Self::TimeLimit
            | Self::MemoryLimit
            | Self::RunKilled
            | Self::KeyTaken => true,
            Self::RunLost
            | Self::InputUnavailable
            | Self::StorageUnavailable
            | Self::StorageDenied
            | Self::AnnouncementFailed
            | Self::GroupStopped
            | Self::DeadlineReached => false,
        }
    }

    /// The code's name in log, metrics and message attributes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidMessage => "InvalidMessage",
            Self::UnknownTemplate => "UnknownTemplate",
            Self::InvalidData => "InvalidData",
            Self::TypstError => "TypstError",
            Self::TypstPanicked => "TypstPanicked",
            Self::TimeLimit => "TimeLimit",
            Self::MemoryLimit => "MemoryLimit",
            Self::RunKilled => "RunKilled",
            Self::RunLost => "RunLost",
            Self::InputUnavailable => "InputUnavailable",
            Self::StorageUnavailable => "StorageUnavailable",
            Self::KeyTaken => "KeyTaken",
            Self::StorageDenied => "StorageDenied",
            Self::AnnouncementFailed => "AnnouncementFailed",
            Self::GroupStopped => "GroupStopped",
            Self::DeadlineReached => "DeadlineReached",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
