//! What a record leaves behind: its PDF in S3, and an announcement; or its message in the failed queue.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Batch;
use super::groups::KeyLock;
use super::inputs::Document;
use super::memory::MemoryReservation;
use super::render::PendingPdf;
use crate::aws::s3::StoreError;
use crate::aws::sqs::{Announcement, FailedMessage};
use crate::function::outcome::{ErrorCode, Failure, Outcome, Returned, Stored};
use crate::function::report::RecordReport;
use crate::message::{RenderRequest, Respond};
use crate::pdf::Level;

/// Where a record's PDF is, or why none is needed.
pub(super) enum Success {
    Stored(Stored),
    /// It goes to the sender of a direct call.
    Returned(Returned),
    /// A message that was sent later has written this key already.
    Superseded {
        key: String,
    },
}

/// The timings of a document that took longer than `TIMINGS_SLOWER_THAN_MS`. Its PDF is stored.
pub(super) struct PendingTimings {
    request: RenderRequest,
    render_time: Duration,
    /// Gzipped; empty if there was no time to write them.
    timings: Bytes,
    _key_lock: Option<KeyLock>,
    _reservation: MemoryReservation,
}

/// The largest PDF that the answer to a direct call has room for: Lambda's limit is 6 MB, of which a kilobyte is
/// for the rest, and base64 makes four bytes of three.
/// Source: <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>.
const MAX_RETURNED_BYTES: usize = (6 * 1024 * 1024 - 1024) / 4 * 3;

/// Describes a stored document to whoever waits for it.
pub(in crate::function) fn announcement<'a>(
    message_id: &'a str,
    template: &'a str,
    bucket: &'a str,
    stored: &'a Stored,
) -> Announcement<'a> {
    Announcement {
        message_id,
        template,
        bucket,
        key: &stored.key,
        version_id: stored.version_id.as_deref(),
        e_tag: stored.e_tag.as_deref().map(|e_tag| e_tag.trim_matches('"')),
        pages: stored.pages,
        bytes: stored.bytes,
        e_invoice: stored.e_invoice.map(Level::as_str),
    }
}

impl Batch<'_> {
    /// Stores a document's PDF, or hands it back if its sender waits for it.
    pub(super) async fn store_or_return(
        &self,
        document: Document<'_>,
        pdf: PendingPdf,
    ) -> Result<(Success, Option<PendingTimings>), Failure> {
        if document.request.respond != Some(Respond::Inline) {
            let (stored, timings) = self.store(document, pdf).await?;
            return Ok((Success::Stored(stored), timings));
        }
        let PendingPdf { pages, e_invoice, warnings, render_time, parts, pdf, .. } = pdf;
        if pdf.len() > MAX_RETURNED_BYTES {
            return Err(Failure::pdf_too_large_to_return(pdf.len(), MAX_RETURNED_BYTES));
        }
        Ok((Success::Returned(Returned { pages, e_invoice, pdf, warnings, render_time, parts }), None))
    }

    /// Stores a document's PDF. With it come the document's timings, if they are to be stored too.
    async fn store(
        &self,
        document: Document<'_>,
        pdf: PendingPdf,
    ) -> Result<(Stored, Option<PendingTimings>), Failure> {
        let _permit = self.uploads.acquire().await.expect("the semaphore is never closed");
        let Document { record, request, mut key_lock, timings_slower_than, .. } = document;
        let PendingPdf {
            pages,
            e_invoice,
            warnings,
            render_time,
            parts,
            pdf,
            timings,
            cache_evictions,
            mut reservation,
            ..
        } = pdf;
        let began = Instant::now();
        let timeout = self.context.limits.attempt_timeout();
        let stored = self.context.storage.store(&request, pages, e_invoice, pdf, timeout).await;
        record.set_upload_time(began.elapsed());
        let object = stored.map_err(|error| self.not_stored(&error))?;
        if let Some(key_lock) = &mut key_lock {
            **key_lock = request.sent_timestamp_ms;
        }
        reservation.resize(timings.len());
        let stored =
            Stored { cache_evictions, parts, ..Stored::new(request.key.clone(), object, warnings, render_time) };
        let is_slow = timings_slower_than.is_some_and(|slower_than| render_time > slower_than);
        let timings = is_slow.then_some(PendingTimings {
            request,
            render_time,
            timings,
            _key_lock: key_lock,
            _reservation: reservation,
        });
        Ok((stored, timings))
    }

    /// Announces a stored document, if there is a queue for that. If the queue does not take the
    /// announcement, the message is delivered again and announced then.
    pub(super) async fn announce(&self, record: &RecordReport<'_>, stored: Stored) -> Outcome {
        let template = record.template().unwrap_or_default();
        let bucket = self.context.storage.output_bucket();
        let announcement = announcement(&record.record.message_id, &template, bucket, &stored);
        let group = record.record.message_group.as_deref();
        match self.context.queues.announce(&announcement, group, self.context.limits.attempt_timeout()).await {
            Ok(()) => Outcome::Stored(stored),
            Err(reason) => {
                let message = format!("the PDF is stored, but DONE_QUEUE_URL did not take its announcement: {reason}");
                Outcome::TransientFailure(Failure::new(ErrorCode::AnnouncementFailed, message))
            }
        }
    }

    /// Sends a message that has failed for good to the failed queue, if there is one. Without one, or if
    /// it does not take the message, that stays in its own queue.
    pub(super) async fn dead_letter(&self, record: &RecordReport<'_>, failure: Failure) -> Outcome {
        if !failure.code.is_permanent() {
            return Outcome::TransientFailure(failure);
        }
        // Whoever has called the function hears of it.
        if record.record.is_direct {
            return Outcome::PermanentFailure(failure);
        }
        let template = record.template();
        let Ok(body) = &record.record.body else { return Outcome::PermanentFailure(failure) };
        let message = FailedMessage {
            message_id: &record.record.message_id,
            body,
            attributes: &record.record.attributes,
            group: record.record.message_group.as_deref(),
            receive_count: record.record.receive_count,
            queue_arn: record.record.queue_arn.as_deref(),
            request_id: record.request_id(),
            template: template.as_deref(),
            error_code: failure.code.as_str(),
            error_message: &failure.message,
            diagnostics: serde_json::to_string(&failure).unwrap_or_default(),
        };
        match self.context.queues.dead_letter(&message, self.context.limits.attempt_timeout()).await {
            Ok(true) => Outcome::DeadLettered(failure),
            Ok(false) => Outcome::PermanentFailure(failure),
            Err(reason) => {
                tracing::error!(%reason, "the failed queue did not take the message, which stays in its own queue");
                Outcome::PermanentFailure(failure)
            }
        }
    }

    /// Stores a slow document's timings, and logs where. The record has its outcome, which this does
    /// not change.
    pub(super) async fn store_timings(&self, pending: PendingTimings) {
        let PendingTimings { request, render_time, timings, _key_lock, _reservation } = pending;
        let milliseconds = render_time.as_secs_f64() * 1000.0;
        if timings.is_empty() {
            let reason = "it had too little of its time left";
            tracing::warn!(milliseconds, reason, "slow, and its timings could not be written");
            return;
        }
        let _permit = self.uploads.acquire().await.expect("the semaphore is never closed");
        let stored = self.context.storage.store_timings(&request, timings, self.context.limits.attempt_timeout()).await;
        match stored {
            Ok(timings) => tracing::info!(milliseconds, timings, "slow"),
            Err(reason) => tracing::warn!(milliseconds, reason, "slow, and its timings could not be stored"),
        }
    }

    pub(super) fn not_stored(&self, error: &StoreError) -> Failure {
        let code = match error {
            StoreError::KeyTaken { .. } => ErrorCode::KeyTaken,
            StoreError::Unavailable(_) => ErrorCode::StorageUnavailable,
            StoreError::Denied(_) => {
                self.log_denied(&error);
                ErrorCode::StorageDenied
            }
        };
        Failure::new(code, error.to_string())
    }

    /// Logs, once for a batch, that the deployment does not allow what it has to. No message can help
    /// that, and none is dead-lettered for it.
    pub(super) fn log_denied(&self, error: &dyn fmt::Display) {
        if !self.has_logged_denied.replace(true) {
            tracing::error!(%error, "S3 denied access: check the function's role and the names of the buckets");
        }
    }
}
