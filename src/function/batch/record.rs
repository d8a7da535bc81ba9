//! One record, from its message to its outcome: read its inputs, render its document, store the PDF,
//! announce it or dead-letter the message, report.

use std::iter;

use super::Batch;
use super::cores::{CoreShare, WaitingDocument};
use super::inputs::{Document, Inputs};
use super::outputs::{PendingTimings, Success};
use super::queue::{WorkQueue, work_queue};
use super::render::{DocumentTask, PendingPdf, RenderFailure, Rendered, Sharing};
use crate::function::outcome::Outcome;
use crate::function::report::RecordReport;
use crate::press::Worker;
use crate::press::protocol::Task;

/// What has become of a record.
pub(super) enum RecordState {
    /// It is acknowledged, or has failed for good: no later delivery could have another outcome.
    Done,
    /// It has failed, and a later delivery may succeed.
    FailedTransiently,
    /// It has no outcome yet: it is to be processed again, alone and with all the memory.
    NeedsAllMemory,
}

/// What has become of a record's document, and the timings that are to be stored after it, if any are.
type RecordResult = Result<(Success, Option<PendingTimings>), RenderFailure>;

impl<'a> Batch<'a> {
    /// Processes a record while others are processed beside it. The group's last record brings the
    /// group's share of the cores and its work queue, which are let go of as soon as its document has
    /// been rendered or sent to a worker.
    pub(super) async fn process_record(
        &self,
        record: &'a RecordReport<'a>,
        waiting: Option<WaitingDocument>,
        share: Option<CoreShare<'_>>,
        queue: WorkQueue<'a>,
        sharing: Sharing,
    ) -> RecordState {
        let stored = Box::pin(self.render_and_store(record, waiting, share, queue, sharing)).await;
        self.finish(record, stored).await
    }

    /// Processes a record again, when no other document is rendered and no PDF waits to be stored, in
    /// a run of its own with all the memory.
    pub(super) async fn process_exclusively(&self, worker: &mut Worker, record: &'a RecordReport<'a>) -> RecordState {
        let (queue, work) = work_queue();
        let share = Some(self.cores.share());
        let processing = self.process_record(record, None, share, queue, Sharing::Exclusive);
        let (state, ()) = tokio::join!(processing, self.press_worker(worker, &work));
        state
    }

    async fn render_and_store(
        &self,
        record: &'a RecordReport<'a>,
        waiting: Option<WaitingDocument>,
        share: Option<CoreShare<'_>>,
        queue: WorkQueue<'a>,
        sharing: Sharing,
    ) -> RecordResult {
        let mut document = match self.read_inputs(record).await? {
            Inputs::Document(document) => *document,
            Inputs::StoredBefore(stored) => return Ok((Success::Stored(stored), None)),
            Inputs::Superseded { key } => return Ok((Success::Superseded { key }, None)),
        };
        if sharing == Sharing::Exclusive {
            // It is not to fail for the memory that a recording takes.
            document.timings_slower_than = None;
        }
        let pdf = self.render_document(&mut document, waiting, share, queue, sharing).await?;
        Ok(self.store_or_return(document, pdf).await?)
    }

    /// Renders a document on whichever worker is free next, or, if it is divided, in parts on all of them.
    async fn render_document(
        &self,
        document: &mut Document<'a>,
        waiting: Option<WaitingDocument>,
        share: Option<CoreShare<'_>>,
        queue: WorkQueue<'a>,
        sharing: Sharing,
    ) -> Result<PendingPdf, RenderFailure> {
        let header = self.header(document, Task::Render);
        let content = iter::once(&document.request.data).chain(&document.files).cloned().collect();
        let task = DocumentTask { record: document.record, header, content, sharing };
        let rendered = queue.send(task, waiting);
        // Workers may end their runs when nothing more can come; of most documents nothing does.
        let queue_for_parts = self.has_parts(&document.request.template).then_some(queue);
        match (rendered.await.expect("a worker responds for every task")?, queue_for_parts) {
            (Rendered::Divided(division), Some(queue)) => {
                // Each part has a share of its own.
                drop(share);
                self.render_in_parts(document, &division, queue, sharing).await
            }
            (rendered, _) => {
                document.drop_inputs();
                Ok(rendered.into_pdf()?)
            }
        }
    }

    /// Announces the PDF or dead-letters the message, and reports the record's outcome.
    async fn finish(&self, record: &RecordReport<'_>, stored: RecordResult) -> RecordState {
        let (outcome, timings) = match stored {
            Ok((Success::Stored(stored), timings)) => (self.announce(record, stored).await, timings),
            Ok((Success::Returned(returned), timings)) => (Outcome::Returned(returned), timings),
            Ok((Success::Superseded { key }, timings)) => (Outcome::Superseded { key }, timings),
            Err(RenderFailure::Failed(failure)) => (self.dead_letter(record, failure).await, None),
            Err(RenderFailure::NeedsAllMemory) => return RecordState::NeedsAllMemory,
        };
        let has_failed = matches!(outcome, Outcome::TransientFailure(_));
        record.finish(outcome);
        if let Some(timings) = timings {
            Box::pin(self.store_timings(timings)).await;
        }
        if has_failed { RecordState::FailedTransiently } else { RecordState::Done }
    }
}
