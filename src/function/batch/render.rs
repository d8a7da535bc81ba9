//! Has a worker do a task of a document, again if its run was lost through no fault of the document.

use std::time::Duration;

use bytes::Bytes;
use tracing::Instrument;

use super::Batch;
use super::inputs::Document;
use super::limits::{MemoryLimit, TimeLimit, Turn};
use super::memory::MemoryReservation;
use super::queue::QueuedTask;
use crate::function::outcome::{ErrorCode, Failure};
use crate::function::report::RecordReport;
use crate::pdf::Level;
use crate::press::protocol::{DocumentHeader, Response, RunLimits, Task};
use crate::press::{Cause, Request, RunEnd, RunFailure, RunResponse, Worker};
use crate::render::diagnostics::Diagnostic;
use crate::render::parts::Division;

/// The most attempts at a document whose run is lost through no fault of the document.
const MAX_ATTEMPTS: usize = 3;

/// A task of a record's document.
pub(super) struct DocumentTask<'a> {
    pub record: &'a RecordReport<'a>,
    pub header: DocumentHeader,
    /// What it is done with: data or the PDFs of parts, followed by files.
    pub content: Vec<Bytes>,
    pub sharing: Sharing,
}

/// What has come of a task.
pub(super) enum Rendered {
    Pdf(PendingPdf),
    /// The document is too long for one part, and has been checked.
    Divided(Division),
}

/// A PDF that waits to be stored, or to be joined with others.
pub(super) struct PendingPdf {
    pub pages: usize,
    /// The level of the e-invoice, if it is one.
    pub e_invoice: Option<Level>,
    pub warnings: Vec<Diagnostic>,
    pub render_time: Duration,
    /// Whether the template has read where a part's pages stand in the whole document.
    pub reads_pages: bool,
    /// How many parts it was joined from, if it was.
    pub parts: Option<usize>,
    pub pdf: Bytes,
    /// Typst's timings, gzipped; empty if there are none.
    pub timings: Bytes,
    /// How often Typst's memo cache was evicted for want of memory.
    pub cache_evictions: u32,
    pub reservation: MemoryReservation,
}

/// How a document shares the memory for runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// With the documents on the other workers.
    Shared,
    /// With none: it has all of it.
    Exclusive,
}

/// Why there is no PDF of a document.
pub(super) enum RenderFailure {
    Failed(Failure),
    /// It is to be rendered again, alone and with all the memory.
    NeedsAllMemory,
}

impl From<Failure> for RenderFailure {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Why an attempt at a document gave no PDF.
enum AttemptError {
    /// No other attempt in this invocation would give one.
    Final(Failure),
    NeedsAllMemory,
    /// The run was lost through no fault of the document.
    RunLost(Failure),
}

impl Rendered {
    /// The PDF of a task that ends with one.
    pub fn into_pdf(self) -> Result<PendingPdf, Failure> {
        match self {
            Self::Pdf(pdf) => Ok(pdf),
            Self::Divided(_) => Err(Failure::new(ErrorCode::RunLost, "a run divided what is a part already")),
        }
    }
}

impl<'a> Batch<'a> {
    /// Does a task that a worker has taken from the queue, and responds to whoever waits for it. If nobody does any
    /// more, the worker's run is ended in the middle of it.
    pub(super) async fn render_queued(
        &self,
        worker: &mut Worker,
        queued: QueuedTask<'a>,
        reservation: MemoryReservation,
    ) {
        let QueuedTask { task, waiting, queued_at, mut response } = queued;
        drop(waiting);
        if response.is_closed() {
            return;
        }
        if matches!(task.header.task, Task::Render) {
            task.record.add_queue_wait(queued_at.elapsed());
        }
        let span = task.record.span.clone();
        let rendering = Box::pin(self.render(worker, task, reservation).instrument(span));
        let rendered = tokio::select! {
            rendered = rendering => Some(rendered),
            () = response.closed() => None,
        };
        match rendered {
            Some(rendered) => drop(response.send(rendered)),
            None => worker.cancel().await,
        }
    }

    /// Does a task, in up to [`MAX_ATTEMPTS`] attempts.
    async fn render(
        &self,
        worker: &mut Worker,
        task: DocumentTask<'a>,
        mut reservation: MemoryReservation,
    ) -> Result<Rendered, RenderFailure> {
        let DocumentTask { record, header, content, sharing } = task;
        record.set_worker(worker.number());
        // The record's own share of the cores is for its document as a whole.
        let _share = (header.task != Task::Render).then(|| self.cores.share());
        let mut threads = self.cores.threads();
        let mut lost = Failure::new(ErrorCode::RunLost, "no attempt has been made");
        for _ in 0..MAX_ATTEMPTS {
            let (time, memory) = self.limits(sharing, record);
            let limits =
                RunLimits { threads: *threads.borrow_and_update(), time: time.time, memory_bytes: memory.run_bytes() };
            let request = Request {
                header: header.clone(),
                limits,
                content: content.clone(),
                max_response_bytes: memory.response_bytes(),
            };
            let was_fresh = worker.is_fresh();
            let error = match worker.render(&request, &mut threads).await {
                Ok(RunResponse {
                    response: Response::Rendered { pages, e_invoice, warnings, render_time, reads_pages },
                    pdf,
                    timings,
                    cache_evictions,
                }) => {
                    reservation.resize(pdf.len() + timings.len());
                    return Ok(Rendered::Pdf(PendingPdf {
                        pages: pages as usize,
                        e_invoice,
                        warnings,
                        render_time,
                        reads_pages,
                        parts: None,
                        pdf,
                        timings,
                        cache_evictions,
                        reservation,
                    }));
                }
                Ok(RunResponse { response: Response::Divided(division), .. })
                    if self.may_be_divided(&header, &content, &division) =>
                {
                    return Ok(Rendered::Divided(division));
                }
                Ok(RunResponse { response, .. }) => not_rendered(response, was_fresh),
                Err(failure) => run_failed(failure, time, memory),
            };
            lost = match error {
                AttemptError::RunLost(failure) => failure,
                AttemptError::Final(failure) => return Err(failure.into()),
                AttemptError::NeedsAllMemory => return Err(RenderFailure::NeedsAllMemory),
            };
            tracing::warn!(reason = lost.message, "the document's run was lost through no fault of the document");
        }
        Err(lost.into())
    }

    /// Whether the documents of a template may be divided.
    pub(super) fn has_parts(&self, template: &str) -> bool {
        self.context.parse.templates.get(template).is_some_and(|version| version.part_size.is_some())
    }

    /// Whether a run that divides a document so says what can be.
    fn may_be_divided(&self, header: &DocumentHeader, content: &[Bytes], division: &Division) -> bool {
        let data_bytes = content.first().map_or(0, Bytes::len);
        header.task == Task::Render && self.has_parts(&header.template) && division.is_of(data_bytes)
    }

    /// What a run has to know of a document.
    pub(super) fn header(&self, document: &Document<'_>, task: Task) -> DocumentHeader {
        let Document { record, request, files, timings_slower_than, .. } = document;
        DocumentHeader {
            template: request.template.clone(),
            ident: record.record.message_id.clone(),
            timestamp_ms: record.record.sent_timestamp_ms.or(self.context.began_at_ms),
            files: request.files.keys().cloned().zip(files.iter().map(Bytes::len)).collect(),
            task,
            timings_slower_than: *timings_slower_than,
        }
    }

    /// The time and the memory that a document may have now.
    fn limits(&self, sharing: Sharing, record: &RecordReport<'_>) -> (TimeLimit, MemoryLimit) {
        let limits = &self.context.limits;
        let others_wait = self.cores.others_wait();
        let time = limits.time(Turn {
            is_redelivered: record.record.is_redelivered(),
            others_wait: others_wait || !self.set_aside.borrow().is_empty(),
            redelivered_wait: self.redelivered_wait.get(),
        });
        let memory = match sharing {
            Sharing::Shared => limits.shared_memory(self.workers, self.memory.bytes_unavailable_to_runs(others_wait)),
            Sharing::Exclusive => limits.exclusive_memory(self.memory.bytes_unavailable_to_runs(false)),
        };
        (time, memory)
    }
}

/// Judges a response without a PDF. A panic in a run that was not fresh proves nothing: Typst counts
/// some things, such as paths of files, over all documents of a process, and panics when there are too
/// many.
fn not_rendered(response: Response, was_fresh: bool) -> AttemptError {
    match response {
        Response::Rendered { .. } => unreachable!("is a PDF"),
        Response::Divided(_) => {
            let message = "the run divided what was not to be divided, or not as it can be";
            AttemptError::RunLost(Failure::new(ErrorCode::RunLost, message))
        }
        Response::InvalidData { violations } => AttemptError::Final(Failure::invalid_data(violations)),
        Response::TypstError { diagnostics } => AttemptError::Final(Failure::typst(diagnostics)),
        Response::Panicked { message } if !was_fresh => {
            let message = format!("Typst panicked in a run that was not fresh: {message}");
            AttemptError::RunLost(Failure::new(ErrorCode::RunLost, message))
        }
        Response::Panicked { message } => {
            let message = format!("Typst panicked, which is a bug in Typst that this document triggers: {message}");
            AttemptError::Final(Failure::new(ErrorCode::TypstPanicked, message))
        }
    }
}

/// Judges a run that has not responded.
fn run_failed(failure: RunFailure, time: TimeLimit, memory: MemoryLimit) -> AttemptError {
    let (cause, end) = match failure {
        RunFailure::Ended { cause, end, .. } => (cause, end),
        RunFailure::NotForked(reason) => return AttemptError::RunLost(Failure::new(ErrorCode::RunLost, reason)),
        RunFailure::PressLost(reason) => {
            let message = format!("the press was lost: {reason}");
            return AttemptError::RunLost(Failure::new(ErrorCode::RunLost, message));
        }
        RunFailure::GivenUp(reason) => return AttemptError::Final(Failure::new(ErrorCode::RunLost, reason)),
    };
    log_stderr_of_run(&end);
    match cause {
        Cause::External => AttemptError::RunLost(Failure::run_ended(ErrorCode::RunLost, &end)),
        Cause::Document => AttemptError::Final(Failure::run_ended(ErrorCode::RunKilled, &end)),
        Cause::TimeLimit => AttemptError::Final(Failure::time_limit(time, &end)),
        Cause::MemoryLimit if memory.is_full_limit => AttemptError::Final(Failure::memory_limit(memory, &end)),
        Cause::PdfTooLarge if memory.is_full_limit => AttemptError::Final(Failure::pdf_too_large(memory)),
        Cause::MemoryLimit | Cause::PdfTooLarge => AttemptError::NeedsAllMemory,
    }
}

fn log_stderr_of_run(end: &RunEnd) {
    for line in end.stderr_lines() {
        tracing::warn!("the document's run wrote to stderr: {line}");
    }
}
