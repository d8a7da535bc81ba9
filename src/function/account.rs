//! What is known of a record on its way, and what is told of it in the end: one line in the log,
//! and its metrics.

use std::cell::{Cell, RefCell};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::Span;
use tracing::field::Empty;

use super::metrics::{Metrics, OfDocument};
use super::records::Record;
use super::verdict::Verdict;
use crate::typeset::TemplateVersions;

/// A record's account. Every line that is logged within [`Account::span`] says whose it is.
pub(super) struct Account {
    pub span: Span,
    template: RefCell<Option<String>>,
    worker: Cell<Option<usize>>,
    /// For memory to read it into, and for a worker.
    queue_wait: Cell<Option<Duration>>,
    pub upload_time: Cell<Option<Duration>>,
    verdict: RefCell<Option<Verdict>>,
}

/// Who hears of a record in the end.
#[derive(Clone, Copy)]
pub(super) struct Audience<'a> {
    pub metrics: &'a Metrics,
    pub request_id: Option<&'a str>,
    /// Those that are deployed.
    pub templates: &'a TemplateVersions,
}

impl Account {
    pub fn open(record: &Record) -> Self {
        // A span below the log's level would be left out, and its fields with it.
        let span = tracing::error_span!("record", messageId = record.message_id, template = Empty, worker = Empty);
        Self {
            span,
            template: RefCell::default(),
            worker: Cell::default(),
            queue_wait: Cell::default(),
            upload_time: Cell::default(),
            verdict: RefCell::default(),
        }
    }

    /// The template that the message names, whether there is one or not.
    pub fn names_template(&self, template: &str) {
        let mut named = self.template.borrow_mut();
        if named.is_none() {
            self.span.record("template", template);
            *named = Some(template.to_owned());
        }
    }

    pub fn has_waited(&self, time: Duration) {
        self.queue_wait.update(|waited| Some(waited.unwrap_or_default() + time));
    }

    pub fn is_at_worker(&self, number: usize) {
        if self.worker.replace(Some(number)).is_none() {
            self.span.record("worker", number);
        }
    }

    /// Says what has become of the record, which nothing can change any more.
    pub fn decide(&self, record: &Record, verdict: Verdict, audience: Audience) {
        self.span.in_scope(|| log(&verdict));
        audience.metrics.tell_document(&self.metrics(record, &verdict, audience));
        *self.verdict.borrow_mut() = Some(verdict);
    }

    pub fn is_decided(&self) -> bool {
        self.verdict.borrow().is_some()
    }

    pub fn into_verdict(self) -> Option<Verdict> {
        self.verdict.into_inner()
    }

    fn metrics(&self, record: &Record, verdict: &Verdict, audience: Audience) -> OfDocument {
        let template = self.template.borrow().clone().filter(|name| audience.templates.contains_key(name));
        let of_document = OfDocument {
            request_id: audience.request_id.map(str::to_owned),
            message_id: record.message_id.clone(),
            worker: self.worker.get().map(|number| number.to_string()),
            template,
            queue_wait: self.queue_wait.get(),
            upload_time: self.upload_time.get(),
            message_age: record.sent_timestamp_ms.and_then(age),
            ..OfDocument::default()
        };
        match verdict {
            Verdict::Stored(stored) => OfDocument {
                stored: 1.into(),
                pages: Some((stored.pages as u64).into()),
                pdf_size: Some((stored.bytes as u64).into()),
                render_time: (!stored.was_there).then_some(stored.typesetting),
                ..of_document
            },
            Verdict::Parked(failure) | Verdict::PermanentFailure(failure) | Verdict::TransientFailure(failure) => {
                OfDocument { failed: 1.into(), error: Some(failure.code), ..of_document }
            }
        }
    }
}

/// How long ago a moment in milliseconds since 1970 was.
fn age(timestamp_ms: i64) -> Option<Duration> {
    let sent = UNIX_EPOCH + Duration::from_millis(u64::try_from(timestamp_ms).ok()?);
    Some(SystemTime::now().duration_since(sent).unwrap_or_default())
}

/// One line a record.
fn log(verdict: &Verdict) {
    match verdict {
        Verdict::Stored(stored) => {
            let milliseconds = stored.typesetting.as_secs_f64() * 1000.0;
            for warning in &stored.warnings {
                tracing::warn!("{warning}");
            }
            let (key, pages, bytes) = (&stored.key, stored.pages, stored.bytes);
            let what = if stored.was_there { "had been stored by an earlier delivery" } else { "stored" };
            tracing::info!(key, pages, bytes, milliseconds, "{what}");
        }
        Verdict::Parked(failure) | Verdict::PermanentFailure(failure) => {
            let is_parked = matches!(verdict, Verdict::Parked(_));
            let diagnostics: Vec<_> = failure.diagnostics.iter().map(|diagnostic| &diagnostic.text).collect();
            let (code, reason) = (failure.code.as_str(), &failure.message);
            tracing::error!(code, reason, ?diagnostics, is_parked, "permanent failure");
        }
        Verdict::TransientFailure(failure) => {
            let (code, reason) = (failure.code.as_str(), &failure.message);
            tracing::warn!(code, reason, "transient failure");
        }
    }
}
