//! One record, from its message to its outcome: read its inputs, render its document, store the PDF,
//! announce it or dead-letter the message, report.

use std::time::Instant;

use tokio::sync::oneshot;

use super::cores::{CoreShare, WaitingDocument};
use super::inputs::{Document, Inputs};
use super::outputs::PendingTimings;
use super::render::{PendingPdf, QueuedDocument, RenderFailure, Sharing};
use super::{Batch, WorkQueue};
use crate::function::outcome::Stored;
use crate::function::report::RecordReport;
use crate::press::Worker;

/// What has become of a record.
pub(super) enum RecordState {
    Acknowledged,
    /// It has failed, and is delivered again or dead-lettered by its queue.
    Failed,
    /// It has no outcome yet: it is to be processed again, alone and with all the memory.
    NeedsAllMemory,
}

/// A success, and the timings that are to be stored after it, if any are.
type StoredResult = Result<(Stored, Option<PendingTimings>), RenderFailure>;

impl<'a> Batch<'a> {
    /// Processes a record while others are processed beside it. The group's last record brings the
    /// group's share of the cores and its work queue, which are let go of as soon as its document has
    /// been rendered or sent to a worker.
    pub(super) async fn process_record(
        &self,
        record: &'a RecordReport<'a>,
        waiting: Option<WaitingDocument>,
        share: Option<CoreShare<'_>>,
        queue: Option<WorkQueue<'a>>,
    ) -> RecordState {
        let stored = Box::pin(self.render_and_store(record, waiting, share, queue)).await;
        self.finish(record, stored).await
    }

    async fn render_and_store(
        &self,
        record: &'a RecordReport<'a>,
        waiting: Option<WaitingDocument>,
        share: Option<CoreShare<'_>>,
        queue: Option<WorkQueue<'a>>,
    ) -> StoredResult {
        let document = match self.read_inputs(record).await? {
            Inputs::Document(document) => *document,
            Inputs::StoredBefore(stored) => return Ok((stored, None)),
        };
        let (document, pdf) = render_on_a_worker(document, waiting, queue).await?;
        drop(share);
        Ok(self.store(document, pdf).await?)
    }

    /// Processes a record again, when no other document is rendered and no PDF waits to be stored, in
    /// a run of its own with all the memory.
    pub(super) async fn process_exclusively(&self, worker: &mut Worker, record: &'a RecordReport<'a>) -> RecordState {
        let stored = Box::pin(self.render_exclusively_and_store(worker, record)).await;
        self.finish(record, stored).await
    }

    async fn render_exclusively_and_store(&self, worker: &mut Worker, record: &'a RecordReport<'a>) -> StoredResult {
        let reservation = self.memory.reserve_only_pdf().await;
        let share = self.cores.share();
        let mut document = match self.read_inputs(record).await? {
            Inputs::Document(document) => *document,
            Inputs::StoredBefore(stored) => return Ok((stored, None)),
        };
        // It is not to fail for the memory that a recording takes.
        document.timings_slower_than = None;
        let rendered = self.render(worker, document, Sharing::Exclusive, reservation).await;
        drop(share);
        worker.end_invocation().await;
        let (document, pdf) = rendered?;
        Ok(self.store(document, pdf).await?)
    }

    /// Announces the PDF or dead-letters the message, and reports the record's outcome.
    async fn finish(&self, record: &RecordReport<'_>, stored: StoredResult) -> RecordState {
        let (outcome, timings) = match stored {
            Ok((stored, timings)) => (self.announce(record, stored).await, timings),
            Err(RenderFailure::Failed(failure)) => (self.dead_letter(record, failure).await, None),
            Err(RenderFailure::NeedsAllMemory) => return RecordState::NeedsAllMemory,
        };
        let is_acknowledged = outcome.is_acknowledged();
        record.finish(outcome);
        if let Some(timings) = timings {
            Box::pin(self.store_timings(timings)).await;
        }
        if is_acknowledged { RecordState::Acknowledged } else { RecordState::Failed }
    }
}

/// Sends a document to whichever worker is free next, and waits for its PDF.
async fn render_on_a_worker<'a>(
    document: Document<'a>,
    waiting: Option<WaitingDocument>,
    queue: Option<WorkQueue<'a>>,
) -> Result<(Document<'a>, PendingPdf), RenderFailure> {
    let (response, rendered) = oneshot::channel();
    let queued = QueuedDocument { document, waiting, queued_at: Instant::now(), response };
    let is_sent = queue.is_some_and(|queue| queue.send(queued).is_ok());
    debug_assert!(is_sent, "workers wait as long as documents can be sent to them");
    rendered.await.expect("a worker responds for every document")
}
