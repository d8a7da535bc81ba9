//! What becomes of a record in the end: its PDF stored and announced, or its message sent to the
//! failed queue.

use std::fmt;
use std::time::Instant;

use super::{Batch, Decision, Document, Slow, Typeset};
use crate::function::records::Record;
use crate::function::verdict::{ErrorCode, Failure, Stored, Verdict};
use crate::pdf::Level;
use crate::queues::{Announcement, FailedMessage};
use crate::storage::StoreError;

impl Batch<'_> {
    /// Tells queues what has become of a record. Only then its verdict holds.
    pub(super) async fn settle(&self, index: usize, decision: Decision) -> Verdict {
        let Decision { verdict, template } = decision;
        let record = &self.records[index];
        if let Some(template) = &template {
            self.accounts[index].names_template(template);
        }
        match verdict {
            Verdict::Stored(stored) => self.announce(record, template.as_deref().unwrap_or_default(), stored).await,
            Verdict::PermanentFailure(failure) => self.park(record, template.as_deref(), failure).await,
            verdict => verdict,
        }
    }

    /// Announces a stored document, if there is a queue for that. One that could not be announced
    /// will be when its message is delivered again.
    async fn announce(&self, record: &Record, template: &str, stored: Stored) -> Verdict {
        let announcement = Announcement {
            message_id: &record.message_id,
            template,
            bucket: self.workshop.storage.output_bucket(),
            key: &stored.key,
            version_id: stored.version_id.as_deref(),
            e_tag: stored.e_tag.as_deref().map(|e_tag| e_tag.trim_matches('"')),
            pages: stored.pages,
            bytes: stored.bytes,
            e_invoice: stored.e_invoice.map(Level::as_str),
        };
        let group = record.message_group.as_deref();
        match self.workshop.queues.announce(&announcement, group, self.workshop.limits.time_of_a_try()).await {
            Ok(()) => Verdict::Stored(stored),
            Err(reason) => {
                let message = format!("the PDF is stored, but DONE_QUEUE_URL did not take its announcement: {reason}");
                Verdict::TransientFailure(Failure::new(ErrorCode::AnnouncementFailed, message))
            }
        }
    }

    /// Sends a message that is given up to the failed queue, if there is one. If that queue does
    /// not take it the message stays in its own.
    async fn park(&self, record: &Record, template: Option<&str>, failure: Failure) -> Verdict {
        let Ok(body) = &record.body else { return Verdict::PermanentFailure(failure) };
        let message = FailedMessage {
            message_id: &record.message_id,
            body,
            attributes: &record.attributes,
            group: record.message_group.as_deref(),
            receive_count: record.receive_count,
            queue_arn: record.queue_arn.as_deref(),
            request_id: self.workshop.audience.request_id,
            template,
            error_code: failure.code.as_str(),
            error_message: &failure.message,
            diagnostics: serde_json::to_string(&failure).unwrap_or_default(),
        };
        let parked = self.workshop.queues.park(&message, self.workshop.limits.time_of_a_try()).await;
        match parked {
            Ok(true) => return Verdict::Parked(failure),
            Ok(false) => {}
            Err(reason) => {
                tracing::error!(%reason, "the failed queue did not take it, and it stays in its own");
            }
        }
        Verdict::PermanentFailure(failure)
    }

    /// Stores a document's PDF. If it was slow, its trace can be stored after it.
    pub(super) async fn store(&self, document: Document<'_>, typeset: Typeset) -> (Decision, Option<Slow>) {
        let _turn = self.uploads.acquire().await.expect("the semaphore is never closed");
        let Document { account, job, turn, trace_slower_than, .. } = document;
        let Typeset { pages, e_invoice, warnings, typesetting, pdf, trace, mut space } = typeset;
        let began = Instant::now();
        let stored =
            self.workshop.storage.store(&job, pages, e_invoice, pdf, self.workshop.limits.time_of_a_try()).await;
        account.upload_time.set(Some(began.elapsed()));
        space.holds(trace.len());
        let verdict = match stored {
            Ok(object) => Verdict::Stored(Stored::now(job.key.clone(), object, warnings, typesetting)),
            Err(error) => self.not_stored(&error),
        };
        let decision = Decision::of(&job, verdict);
        let is_slow = trace_slower_than.is_some_and(|slower_than| typesetting > slower_than);
        if is_slow && matches!(decision.verdict, Verdict::Stored(_)) {
            return (decision, Some(Slow { job, typesetting, trace, _turn: turn, _space: space }));
        }
        (decision, None)
    }

    /// Stores the trace of a slow document, and says where it is. The record has its verdict, which
    /// this does not change.
    pub(super) async fn store_trace(&self, slow: Slow) {
        let Slow { job, typesetting, trace, _turn, _space } = slow;
        let milliseconds = typesetting.as_secs_f64() * 1000.0;
        if trace.is_empty() {
            let reason = "it had too little of its time left";
            tracing::warn!(milliseconds, reason, "slow, and there is no trace of it");
            return;
        }
        let _upload = self.uploads.acquire().await.expect("the semaphore is never closed");
        let stored = self.workshop.storage.store_trace(&job, trace, self.workshop.limits.time_of_a_try()).await;
        match stored {
            Ok(trace) => tracing::info!(milliseconds, trace, "slow"),
            Err(reason) => {
                tracing::warn!(milliseconds, reason, "slow, and its trace could not be stored");
            }
        }
    }

    pub(super) fn not_stored(&self, error: &StoreError) -> Verdict {
        let failure = |code| Failure::new(code, error.to_string());
        match error {
            StoreError::KeyTaken { .. } => Verdict::PermanentFailure(failure(ErrorCode::KeyTaken)),
            StoreError::Unavailable(_) => Verdict::TransientFailure(failure(ErrorCode::StorageUnavailable)),
            StoreError::Denied(_) => {
                self.say_denied(&error);
                Verdict::TransientFailure(failure(ErrorCode::StorageDenied))
            }
        }
    }

    /// Says loudly, once for all records, that the deployment is not as it should be: no message
    /// can help that, and none is given up for it.
    pub(super) fn say_denied(&self, error: &dyn fmt::Display) {
        if !self.has_said_denied.replace(true) {
            tracing::error!(%error, "look at the function's role and at the names of the buckets");
        }
    }
}
