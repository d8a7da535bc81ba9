//! What becomes of a record: exactly one verdict each.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::limits::{MemoryLimit, TimeLimit};
use crate::pdf::Level;
use crate::press::RunEnd;
use crate::storage::StoredObject;
use crate::typeset::diagnostics::Diagnostic;

/// What Lambda calls a MB.
const MEBIBYTE: u64 = 1024 * 1024;

/// The outcome of one record.
#[derive(Debug)]
pub enum Verdict {
    /// The PDF is in S3, whole.
    Stored(Stored),
    /// A retry would give the same answer. The message is in the failed queue, with the reason.
    Parked(Failure),
    /// A retry would give the same answer. The message stays in its queue, whose redrive policy
    /// takes it to the dead-letter queue.
    PermanentFailure(Failure),
    /// A retry may succeed.
    TransientFailure(Failure),
}

/// A success.
#[derive(Debug)]
pub struct Stored {
    pub key: String,
    pub pages: usize,
    pub bytes: usize,
    /// If it is an e-invoice.
    pub e_invoice: Option<Level>,
    pub e_tag: Option<String>,
    /// If the bucket keeps versions.
    pub version_id: Option<String>,
    /// An earlier delivery of the message had stored it: nothing was set.
    pub was_there: bool,
    pub warnings: Vec<Diagnostic>,
    /// From the request being whole until the PDF was.
    pub typesetting: Duration,
}

/// Why there is no PDF.
#[derive(Debug, Serialize)]
pub struct Failure {
    pub code: ErrorCode,
    /// One sentence: what was wrong, what was expected, what to do.
    pub message: String,
    /// What Typst said, if it did.
    pub diagnostics: Vec<Diagnostic>,
}

/// The kinds of failure: a closed set, for operators to count and to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ErrorCode {
    /// The message, or the object it points to, is not what the contract says.
    InvalidMessage,
    /// There is no such template.
    UnknownTemplate,
    /// The data, or the XML of an e-invoice, are not what the template takes.
    InvalidData,
    /// Typst found an error, or the PDF is not the e-invoice that its template says it is.
    TypstError,
    /// Typst panicked.
    TypstPanicked,
    /// The document took longer than every document is granted.
    TimeLimit,
    /// The document wants more memory than there is.
    MemoryLimit,
    /// The document brought its run down.
    RunKilled,
    /// There is another message's object under its key, and it is not to be replaced.
    KeyTaken,
    /// The run or the press was killed from outside, repeatedly.
    RunLost,
    /// S3 did not give the message.
    InputUnavailable,
    /// S3 did not take the PDF.
    StorageUnavailable,
    /// S3 does not let the function read or write, or a bucket is not there.
    StorageDenied,
    /// The PDF is stored, and that could not be announced.
    AnnouncementFailed,
    /// A record before it in its message group failed.
    GroupStopped,
    /// The invocation's time was over.
    DeadlineReached,
}

impl Verdict {
    /// Whether the record is done with. If not, it is to be delivered again.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        matches!(self, Self::Stored(_) | Self::Parked(_))
    }
}

impl Stored {
    /// The document has been set and stored.
    #[must_use]
    pub fn now(key: String, object: StoredObject, warnings: Vec<Diagnostic>, typesetting: Duration) -> Self {
        let StoredObject { pages, bytes, e_invoice, e_tag, version_id } = object;
        Self { key, pages, bytes, e_invoice, e_tag, version_id, was_there: false, warnings, typesetting }
    }

    /// An earlier delivery of the message had stored the document.
    #[must_use]
    pub fn earlier(key: String, object: StoredObject) -> Self {
        Self { was_there: true, ..Self::now(key, object, Vec::new(), Duration::ZERO) }
    }
}

impl Failure {
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), diagnostics: Vec::new() }
    }

    /// The data are not what the template's schema says, or a file is not what the template takes.
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
        Self { code: ErrorCode::InvalidData, message, diagnostics: violations }
    }

    /// Typst refused the document.
    #[must_use]
    pub fn typst(diagnostics: Vec<Diagnostic>) -> Self {
        let message = diagnostics.first().map_or_else(|| "Typst gave no reason".to_owned(), ToString::to_string);
        Self { code: ErrorCode::TypstError, message, diagnostics }
    }

    /// The document wanted more memory than there is.
    #[must_use]
    pub fn too_large(limit: MemoryLimit, end: &RunEnd) -> Self {
        let had = limit.bytes.map_or_else(|| "all there was".to_owned(), |bytes| format!("{} MB", bytes / MEBIBYTE));
        let wanted = end.stderr.lines().find(|line| line.contains("were wanted")).unwrap_or("out of memory");
        let message = format!(
            "the document did not fit into {had} of memory, all that the function has for a single one ({wanted}); \
             give the function more memory, or the template less to do"
        );
        Self::new(ErrorCode::MemoryLimit, message)
    }

    /// The PDF is larger than the function has room for.
    #[must_use]
    pub fn pdf_too_large(limit: MemoryLimit) -> Self {
        let megabytes = limit.response_bytes().unwrap_or_default() / MEBIBYTE;
        let message = format!(
            "the PDF, with its timings, has more than {megabytes} MB, all that the function has room for beside the \
             run that makes it; give the function more memory, or the template smaller images"
        );
        Self::new(ErrorCode::MemoryLimit, message)
    }

    /// The document took more time than it was given.
    #[must_use]
    pub fn too_slow(limit: TimeLimit, end: &RunEnd) -> Self {
        let milliseconds = limit.time.as_millis();
        let cpu_milliseconds = end.process.cpu_time.as_millis();
        if limit.is_whole_grant {
            let message = format!(
                "rendering the document was ended after {milliseconds} ms ({cpu_milliseconds} ms of CPU time), all that \
                 MAX_RENDER_MS grants a document; is there an endless loop in the template?"
            );
            Self::new(ErrorCode::TimeLimit, message)
        } else {
            let message = format!(
                "rendering the document was ended after {milliseconds} ms ({cpu_milliseconds} ms of CPU time), its share \
                 of what the invocation had left"
            );
            Self::new(ErrorCode::DeadlineReached, message)
        }
    }

    /// A record before it in its message group failed.
    #[must_use]
    pub fn group_stopped(message_id: &str) -> Self {
        let message = format!("message {message_id} before it in its message group failed, and must not be overtaken");
        Self::new(ErrorCode::GroupStopped, message)
    }

    /// The run ended before it had answered.
    #[must_use]
    pub fn run_died(code: ErrorCode, end: &RunEnd) -> Self {
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
    /// As logs and metrics have it.
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
