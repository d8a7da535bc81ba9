//! What is known of a record while it is processed, and what is reported of it in the end: one line in
//! the log, and its metrics.

use std::cell::{Cell, RefCell};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::Span;
use tracing::field::Empty;

use super::event::Record;
use super::metrics::{DocumentMetrics, Metrics};
use super::outcome::Outcome;
use crate::render::TemplateVersions;
use crate::text;

/// The longest message id or name of a template that is told whole, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// What a report needs beside its record.
#[derive(Clone, Copy)]
pub(super) struct ReportContext<'a> {
    pub metrics: &'a Metrics,
    /// Lambda's id of the invocation.
    pub request_id: Option<&'a str>,
    /// The templates that are deployed.
    pub templates: &'a TemplateVersions,
}

/// A record that is being processed. Every line that is logged within its span carries the record's
/// message id, template and worker.
pub(super) struct RecordReport<'a> {
    pub record: &'a Record,
    pub span: Span,
    context: ReportContext<'a>,
    template: RefCell<Option<String>>,
    worker: Cell<Option<usize>>,
    queue_wait: Cell<Option<Duration>>,
    upload_time: Cell<Option<Duration>>,
    outcome: RefCell<Option<Outcome>>,
}

impl<'a> RecordReport<'a> {
    pub fn new(record: &'a Record, context: ReportContext<'a>) -> Self {
        // A span below the log's level would be left out, and its fields with it.
        let message_id = text::shortened(&record.message_id, MAX_NAME_BYTES);
        let span = tracing::error_span!("record", messageId = &*message_id, template = Empty, worker = Empty);
        Self {
            record,
            span,
            context,
            template: RefCell::default(),
            worker: Cell::default(),
            queue_wait: Cell::default(),
            upload_time: Cell::default(),
            outcome: RefCell::default(),
        }
    }

    /// Sets the template that the message names, whether there is one of that name or not.
    pub fn set_template(&self, template: &str) {
        if self.template.borrow().is_none() {
            let template = text::shortened(template, MAX_NAME_BYTES);
            self.span.record("template", &*template);
            *self.template.borrow_mut() = Some(template.into_owned());
        }
    }

    /// The template that the message names, if it has been read.
    pub fn template(&self) -> Option<String> {
        self.template.borrow().clone()
    }

    /// Lambda's id of the invocation.
    pub fn request_id(&self) -> Option<&'a str> {
        self.context.request_id
    }

    /// Sets the number of the worker that renders the document.
    pub fn set_worker(&self, number: usize) {
        if self.worker.replace(Some(number)).is_none() {
            self.span.record("worker", number);
        }
    }

    /// Adds to the time that the record has waited for memory or for a worker.
    pub fn add_queue_wait(&self, time: Duration) {
        self.queue_wait.update(|waited| Some(waited.unwrap_or_default() + time));
    }

    pub fn set_upload_time(&self, time: Duration) {
        self.upload_time.set(Some(time));
    }

    /// Sets the record's outcome for good, logs it and emits the document's metrics.
    pub fn finish(&self, outcome: Outcome) {
        self.span.in_scope(|| log(&outcome));
        self.context.metrics.emit_document(&self.metrics(&outcome));
        *self.outcome.borrow_mut() = Some(outcome);
    }

    pub fn is_finished(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    /// The record's outcome, when it is finished.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome.borrow().clone()
    }

    /// The outcome, when it is finished, for another record of the same message in the same batch.
    pub fn repeated_outcome(&self) -> Option<Outcome> {
        self.outcome.borrow().as_ref().map(Outcome::repeated)
    }

    fn metrics(&self, outcome: &Outcome) -> DocumentMetrics {
        let document = DocumentMetrics {
            request_id: self.context.request_id.map(str::to_owned),
            message_id: text::shortened(&self.record.message_id, MAX_NAME_BYTES).into_owned(),
            worker: self.worker.get().map(|number| number.to_string()),
            template: self.template().filter(|name| self.context.templates.contains_key(name)),
            queue_wait: self.queue_wait.get(),
            upload_time: self.upload_time.get(),
            message_age: self.record.sent_timestamp_ms.and_then(age),
            ..DocumentMetrics::default()
        };
        match outcome {
            Outcome::Stored(stored) => DocumentMetrics {
                stored: 1.into(),
                pages: Some((stored.pages as u64).into()),
                parts: stored.parts.map(|parts| (parts as u64).into()),
                pdf_size: Some((stored.bytes as u64).into()),
                render_time: (!stored.was_stored_before).then_some(stored.render_time),
                cache_evictions: (stored.cache_evictions > 0).then(|| u64::from(stored.cache_evictions).into()),
                ..document
            },
            Outcome::Superseded { .. } => document,
            Outcome::Returned(returned) => DocumentMetrics {
                pages: Some((returned.pages as u64).into()),
                parts: returned.parts.map(|parts| (parts as u64).into()),
                pdf_size: Some((returned.pdf.len() as u64).into()),
                render_time: Some(returned.render_time),
                ..document
            },
            Outcome::DeadLettered(failure)
            | Outcome::PermanentFailure(failure)
            | Outcome::TransientFailure(failure) => {
                DocumentMetrics { failed: 1.into(), error: Some(failure.code), ..document }
            }
        }
    }
}

/// The time that has passed since a moment in milliseconds since 1970.
fn age(timestamp_ms: i64) -> Option<Duration> {
    let sent = UNIX_EPOCH + Duration::from_millis(u64::try_from(timestamp_ms).ok()?);
    Some(SystemTime::now().duration_since(sent).unwrap_or_default())
}

/// Logs a record's outcome, in one line beside those of its warnings.
fn log(outcome: &Outcome) {
    match outcome {
        Outcome::Stored(stored) => {
            let milliseconds = stored.render_time.as_secs_f64() * 1000.0;
            for warning in &stored.warnings {
                tracing::warn!("{warning}");
            }
            let (key, pages, bytes) = (&stored.key, stored.pages, stored.bytes);
            let what = if stored.was_stored_before { "had been stored by an earlier delivery" } else { "stored" };
            let cache_evictions = Some(stored.cache_evictions).filter(|evictions| *evictions > 0);
            let parts = stored.parts;
            tracing::info!(key, pages, parts, bytes, milliseconds, cacheEvictions = cache_evictions, "{what}");
        }
        Outcome::Returned(returned) => {
            let milliseconds = returned.render_time.as_secs_f64() * 1000.0;
            for warning in &returned.warnings {
                tracing::warn!("{warning}");
            }
            let (pages, parts, bytes) = (returned.pages, returned.parts, returned.pdf.len());
            tracing::info!(pages, parts, bytes, milliseconds, "returned to the caller");
        }
        Outcome::Superseded { key } => tracing::info!(key, "superseded: a message that was sent later has this key"),
        Outcome::DeadLettered(failure) | Outcome::PermanentFailure(failure) => {
            let is_dead_lettered = matches!(outcome, Outcome::DeadLettered(_));
            let diagnostics: Vec<_> = failure.diagnostics.iter().map(|diagnostic| &diagnostic.text).collect();
            let (code, reason) = (failure.code.as_str(), &failure.message);
            tracing::error!(code, reason, ?diagnostics, deadLettered = is_dead_lettered, "permanent failure");
        }
        Outcome::TransientFailure(failure) => {
            let (code, reason) = (failure.code.as_str(), &failure.message);
            tracing::warn!(code, reason, "transient failure");
        }
    }
}
