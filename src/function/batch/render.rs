//! Renders a document on a worker, again if its run was lost through no fault of the document.

use std::iter;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::Batch;
use super::cores::WaitingDocument;
use super::inputs::Document;
use super::limits::{MemoryLimit, TimeLimit, Turn};
use super::memory::MemoryReservation;
use crate::function::outcome::{ErrorCode, Failure};
use crate::function::report::RecordReport;
use crate::pdf::Level;
use crate::press::protocol::{DocumentHeader, Response};
use crate::press::{Cause, Request, RunEnd, RunFailure, RunResponse, Worker};
use crate::render::diagnostics::Diagnostic;

/// The most attempts at a document whose run is lost through no fault of the document.
const MAX_ATTEMPTS: usize = 3;

/// A document that waits for a worker.
pub(super) struct QueuedDocument<'a> {
    pub document: Document<'a>,
    pub waiting: Option<WaitingDocument>,
    pub queued_at: Instant,
    pub response: oneshot::Sender<Result<(Document<'a>, PendingPdf), RenderFailure>>,
}

/// A PDF that waits to be stored.
pub(super) struct PendingPdf {
    pub pages: usize,
    /// The level of the e-invoice, if it is one.
    pub e_invoice: Option<Level>,
    pub warnings: Vec<Diagnostic>,
    pub render_time: Duration,
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

impl<'a> Batch<'a> {
    /// Renders a document that a worker has taken from the queue, and responds to whoever waits for it.
    pub(super) async fn render_queued(
        &self,
        worker: &mut Worker,
        queued: QueuedDocument<'a>,
        reservation: MemoryReservation,
    ) {
        let QueuedDocument { document, waiting, queued_at, response } = queued;
        drop(waiting);
        document.record.add_queue_wait(queued_at.elapsed());
        let span = document.record.span.clone();
        let rendered = self.render(worker, document, Sharing::Shared, reservation).instrument(span).await;
        let is_awaited = response.send(rendered).is_ok();
        debug_assert!(is_awaited, "the document's record waits for it");
    }

    /// Renders a document, in up to [`MAX_ATTEMPTS`] attempts.
    pub(super) async fn render(
        &self,
        worker: &mut Worker,
        mut document: Document<'a>,
        sharing: Sharing,
        mut reservation: MemoryReservation,
    ) -> Result<(Document<'a>, PendingPdf), RenderFailure> {
        document.record.set_worker(worker.number());
        let content: Vec<Bytes> = iter::once(&document.request.data).chain(&document.files).cloned().collect();
        let mut threads = self.cores.threads();
        let mut lost = Failure::new(ErrorCode::RunLost, "no attempt has been made");
        for _ in 0..MAX_ATTEMPTS {
            let (time, memory) = self.limits(sharing, document.record);
            let began_at_ms = self.context.began_at_ms;
            let header = header(&document, began_at_ms, *threads.borrow_and_update(), time, memory);
            let request = Request { header, content: content.clone(), max_response_bytes: memory.response_bytes() };
            let was_fresh = worker.is_fresh();
            let error = match worker.render(&request, &mut threads).await {
                Ok(RunResponse {
                    response: Response::Rendered { pages, e_invoice, warnings, render_time },
                    pdf,
                    timings,
                    cache_evictions,
                }) => {
                    reservation.resize(pdf.len() + timings.len());
                    document.drop_inputs();
                    let pages = pages as usize;
                    let pdf = PendingPdf {
                        pages,
                        e_invoice,
                        warnings,
                        render_time,
                        pdf,
                        timings,
                        cache_evictions,
                        reservation,
                    };
                    return Ok((document, pdf));
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

fn header(
    document: &Document<'_>,
    began_at_ms: Option<i64>,
    threads: usize,
    time: TimeLimit,
    memory: MemoryLimit,
) -> DocumentHeader {
    let Document { record, request, files, timings_slower_than, .. } = document;
    DocumentHeader {
        template: request.template.clone(),
        ident: record.record.message_id.clone(),
        timestamp_ms: record.record.sent_timestamp_ms.or(began_at_ms),
        files: request.files.keys().cloned().zip(files.iter().map(Bytes::len)).collect(),
        threads,
        time_limit: time.time,
        memory_limit_bytes: memory.run_bytes(),
        timings_slower_than: *timings_slower_than,
    }
}

/// Judges a response without a PDF. A panic in a run that was not fresh proves nothing: Typst counts
/// some things, such as paths of files, over all documents of a process, and panics when there are too
/// many.
fn not_rendered(response: Response, was_fresh: bool) -> AttemptError {
    match response {
        Response::Rendered { .. } => unreachable!("is a PDF"),
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
