//! A document at a worker: rendered, again if its run ended and it was not to blame.

use std::iter;

use bytes::Bytes;
use tracing::Instrument;

use super::memory::Space;
use super::{Batch, Beside, Decision, Document, Queue, Queued, Setting, Typeset};
use crate::function::limits::{MemoryLimit, TimeLimit};
use crate::function::verdict::{ErrorCode, Failure, Verdict};
use crate::press::protocol::{DocumentHeader, Response};
use crate::press::{Cause, Request, RunEnd, RunFailure, RunResponse, Worker};

/// Maximum attempts when the process is lost through no fault of the document.
const MAX_ATTEMPTS: usize = 3;

/// Why a document has not been set.
enum NotSet {
    /// And will not be in this invocation.
    Decided(Verdict),
    NeedsMoreMemory,
    /// That is nobody's fault.
    TryAgain(Failure),
}

impl<'a> Batch<'a> {
    /// Gives a worker one document after another, and ends its run when there are no more.
    pub(super) async fn keep_busy(&self, worker: &mut Worker, queue: &Queue<'a>) {
        loop {
            let space = self.memory.space_for_pdf().await;
            let Some(Queued { document, since, answer }) = queue.lock().await.recv().await else { break };
            self.shares.one_fewer_waits();
            document.account.has_waited(since.elapsed());
            let span = document.account.span.clone();
            let setting = self.render(worker, document, Beside::Others, space).instrument(span).await;
            let is_awaited = answer.send(setting).is_ok();
            debug_assert!(is_awaited, "a document's chain waits for it");
        }
        worker.end_invocation().await;
    }

    /// Has a document rendered, with the memory that it may have beside others, or all of it. Again if
    /// its run ended and it was not to blame.
    pub(super) async fn render(
        &self,
        worker: &mut Worker,
        mut document: Document<'a>,
        beside: Beside,
        mut space: Space,
    ) -> Setting<'a> {
        let Document { record, account, job, files, .. } = &document;
        account.is_at_worker(worker.number());
        let content: Vec<Bytes> = iter::once(&job.data).chain(files).cloned().collect();
        let mut threads = self.shares.threads();
        let mut lost = Failure::new(ErrorCode::RunLost, "no attempt has been made");
        for _ in 0..MAX_ATTEMPTS {
            let limits = &self.workshop.limits;
            let others_wait = self.shares.others_wait();
            let time = limits.time(others_wait || !self.set_aside.borrow().is_empty());
            let memory = match beside {
                Beside::Others => limits.shared_memory(self.workers, self.memory.bytes_kept_from_runs(others_wait)),
                Beside::Nobody => limits.whole_memory(self.memory.bytes_kept_from_runs(false)),
            };
            let header = DocumentHeader {
                template: job.template.clone(),
                ident: record.message_id.clone(),
                timestamp_ms: record.sent_timestamp_ms,
                files: job.files.keys().cloned().zip(files.iter().map(Bytes::len)).collect(),
                threads: *threads.borrow_and_update(),
                time_limit: time.time,
                memory_limit_bytes: memory.run_bytes(),
                timings_slower_than: document.trace_slower_than,
            };
            let request = Request { header, content: content.clone(), max_response_bytes: memory.response_bytes() };
            let was_fresh = worker.is_fresh();
            let not_set = match worker.render(&request, &mut threads).await {
                Ok(RunResponse {
                    response: Response::Rendered { pages, e_invoice, warnings, render_time },
                    pdf,
                    timings,
                }) => {
                    space.holds(pdf.len() + timings.len());
                    document.drop_inputs();
                    let (pages, typesetting) = (pages as usize, render_time);
                    let typeset = Typeset { pages, e_invoice, warnings, typesetting, pdf, trace: timings, space };
                    return Setting::Rendered(Box::new(document), typeset);
                }
                Ok(RunResponse { response, .. }) => not_rendered(response, was_fresh),
                Err(failure) => run_failed(failure, time, memory),
            };
            lost = match not_set {
                NotSet::TryAgain(failure) => failure,
                NotSet::Decided(verdict) => return Setting::Decided(Decision::of(&document.job, verdict)),
                NotSet::NeedsMoreMemory => return Setting::NeedsMoreMemory,
            };
            tracing::warn!(reason = lost.message, "its process was lost, which is not the document's fault");
        }
        Setting::Decided(Decision::of(&document.job, Verdict::TransientFailure(lost)))
    }
}

/// What a response without a PDF means. A panic in a run that was not fresh proves nothing: Typst
/// counts some things (paths of files) over all documents of a process, and panics when there are
/// too many.
fn not_rendered(response: Response, was_fresh: bool) -> NotSet {
    let permanent = |failure| NotSet::Decided(Verdict::PermanentFailure(failure));
    match response {
        Response::Rendered { .. } => unreachable!("is a PDF"),
        Response::InvalidData { violations } => permanent(Failure::invalid_data(violations)),
        Response::TypstError { diagnostics } => permanent(Failure::typst(diagnostics)),
        Response::Panicked { message } if !was_fresh => {
            let message = format!("Typst panicked in a run that was not fresh: {message}");
            NotSet::TryAgain(Failure::new(ErrorCode::RunLost, message))
        }
        Response::Panicked { message } => {
            let message = format!("Typst panicked, which is a bug of Typst's that these data bring out: {message}");
            permanent(Failure::new(ErrorCode::TypstPanicked, message))
        }
    }
}

/// What it means that a run has not answered.
fn run_failed(failure: RunFailure, time: TimeLimit, memory: MemoryLimit) -> NotSet {
    let permanent = |failure| NotSet::Decided(Verdict::PermanentFailure(failure));
    let transient = |failure| NotSet::Decided(Verdict::TransientFailure(failure));
    let (cause, end) = match failure {
        RunFailure::Ended { cause, end, .. } => (cause, end),
        RunFailure::NotForked(reason) => return NotSet::TryAgain(Failure::new(ErrorCode::RunLost, reason)),
        RunFailure::PressLost(reason) => {
            return NotSet::TryAgain(Failure::new(ErrorCode::RunLost, format!("the press was lost: {reason}")));
        }
        RunFailure::GivenUp(reason) => return transient(Failure::new(ErrorCode::RunLost, reason)),
    };
    log_stderr_of_run(&end);
    match cause {
        Cause::External => NotSet::TryAgain(Failure::run_died(ErrorCode::RunLost, &end)),
        Cause::Document => permanent(Failure::run_died(ErrorCode::RunKilled, &end)),
        Cause::TimeLimit if time.is_whole_grant => permanent(Failure::too_slow(time, &end)),
        Cause::TimeLimit => transient(Failure::too_slow(time, &end)),
        Cause::MemoryLimit if memory.is_whole_budget => permanent(Failure::too_large(memory, &end)),
        Cause::PdfTooLarge if memory.is_whole_budget => permanent(Failure::pdf_too_large(memory)),
        Cause::MemoryLimit | Cause::PdfTooLarge => NotSet::NeedsMoreMemory,
    }
}

fn log_stderr_of_run(end: &RunEnd) {
    for line in end.stderr_lines() {
        tracing::warn!("its run said: {line}");
    }
}
