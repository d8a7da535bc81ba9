//! A document at a press: set, again if its run ended and it was not to blame.

use std::iter;

use bytes::Bytes;
use tracing::Instrument;

use super::memory::Space;
use super::{Batch, Beside, Decision, Document, Queue, Queued, Setting, Typeset};
use crate::function::limits::{MemoryLimit, TimeLimit};
use crate::function::verdict::{ErrorCode, Failure, Verdict};
use crate::press::frames::{Answer, Cause, Header};
use crate::press::room::{Answered, Outcome, Room};

/// How often a document is set that is not to blame for the end of its runs.
const MOST_TRIES: usize = 3;

/// Why a document has not been set.
enum NotSet {
    /// And will not be in this invocation.
    Decided(Verdict),
    NeedsMoreMemory,
    /// That is nobody's fault.
    TryAgain(Failure),
}

impl<'a> Batch<'a> {
    /// Gives a press one document after another, and ends its run when there are no more.
    pub(super) async fn keep_busy(&self, room: &mut Room, queue: &Queue<'a>) {
        loop {
            let space = self.memory.space_for_pdf().await;
            let Some(Queued { document, since, answer }) = queue.lock().await.recv().await else { break };
            self.shares.one_fewer_waits();
            document.account.has_waited(since.elapsed());
            let span = document.account.span.clone();
            let setting = self.set(room, document, Beside::Others, space).instrument(span).await;
            let is_awaited = answer.send(setting).is_ok();
            debug_assert!(is_awaited, "a document's chain waits for it");
        }
        room.end_invocation().await;
    }

    /// Has a document set, with the memory that it may have beside others, or all of it. Again if its run ended and it was not to blame.
    pub(super) async fn set(
        &self,
        room: &mut Room,
        mut document: Document<'a>,
        beside: Beside,
        mut space: Space,
    ) -> Setting<'a> {
        let Document { record, account, job, files, .. } = &document;
        account.is_at_press(room.number());
        let content: Vec<Bytes> = iter::once(&job.data).chain(files).cloned().collect();
        let mut threads = self.shares.threads();
        let mut lost = Failure::new(ErrorCode::RunLost, "no try has been made");
        for _ in 0..MOST_TRIES {
            let limits = &self.workshop.limits;
            let others_wait = self.shares.others_wait();
            let time = limits.time(others_wait || !self.set_aside.borrow().is_empty());
            let memory = match beside {
                Beside::Others => limits.shared_memory(self.presses, self.memory.bytes_kept_from_runs(others_wait)),
                Beside::Nobody => limits.whole_memory(self.memory.bytes_kept_from_runs(false)),
            };
            let header = Header {
                template: job.template.clone(),
                ident: record.message_id.clone(),
                timestamp_ms: record.sent_timestamp_ms,
                files: job.files.keys().cloned().zip(files.iter().map(Bytes::len)).collect(),
                threads: *threads.borrow_and_update(),
                time_limit: time.time,
                memory_limit_bytes: memory.bytes,
                wants_another_run: room.run_is_ending(),
                trace_slower_than: document.trace_slower_than,
            };
            let was_fresh = room.is_fresh();
            lost = match room.set(&header, &content, &mut threads).await {
                Ok(Outcome::Answered(Answered {
                    answer: Answer::Set { pages, warnings, typesetting },
                    pdf,
                    trace,
                })) => {
                    space.holds(pdf.len() + trace.len());
                    document.drop_inputs();
                    let typeset = Typeset { pages, warnings, typesetting, pdf, trace, space };
                    return Setting::Set(Box::new(document), typeset);
                }
                Ok(Outcome::Answered(Answered { answer, .. })) => {
                    log_last_words(&answer);
                    match not_set(answer, was_fresh, time, memory) {
                        NotSet::TryAgain(failure) => failure,
                        NotSet::Decided(verdict) => return Setting::Decided(Decision::of(&document.job, verdict)),
                        NotSet::NeedsMoreMemory => return Setting::NeedsMoreMemory,
                    }
                }
                Ok(Outcome::PressLost(error)) => {
                    Failure::new(ErrorCode::RunLost, format!("the press was lost: {error}"))
                }
                Err(error) => Failure::new(ErrorCode::RunLost, error.to_string()),
            };
            tracing::warn!(reason = lost.message, "its process was lost, which is not the document's fault");
        }
        Setting::Decided(Decision::of(&document.job, Verdict::TransientFailure(lost)))
    }
}

fn log_last_words(answer: &Answer) {
    if let Answer::RunDied { end, .. } = answer {
        for line in end.stderr.lines().filter(|line| !line.trim().is_empty()) {
            tracing::warn!("its run said: {line}");
        }
    }
}

/// What an answer without a PDF means. A panic in a run that was not fresh proves nothing: Typst
/// counts some things (paths of files) over all documents of a process, and panics when there are
/// too many.
fn not_set(answer: Answer, was_fresh: bool, time: TimeLimit, memory: MemoryLimit) -> NotSet {
    let permanent = |failure| NotSet::Decided(Verdict::PermanentFailure(failure));
    let (end, cause) = match answer {
        Answer::Set { .. } => unreachable!("is a PDF"),
        Answer::DataRefused { violations } => return permanent(Failure::invalid_data(violations)),
        Answer::Refused { diagnostics } => return permanent(Failure::typst(diagnostics)),
        Answer::Panicked { message } if !was_fresh => {
            let message = format!("Typst panicked in a run that was not fresh: {message}");
            return NotSet::TryAgain(Failure::new(ErrorCode::RunLost, message));
        }
        Answer::Panicked { message } => {
            let message = format!("Typst panicked, which is a bug of Typst's that these data bring out: {message}");
            return permanent(Failure::new(ErrorCode::TypstPanicked, message));
        }
        Answer::RunDied { end, cause } => (end, cause),
    };
    match cause {
        Cause::Nobody => NotSet::TryAgain(Failure::run_died(ErrorCode::RunLost, &end)),
        Cause::Document => permanent(Failure::run_died(ErrorCode::RunKilled, &end)),
        Cause::TimeLimit if time.is_whole_grant => permanent(Failure::too_slow(time, &end)),
        Cause::TimeLimit => NotSet::Decided(Verdict::TransientFailure(Failure::too_slow(time, &end))),
        Cause::MemoryLimit if memory.is_whole_budget => permanent(Failure::too_large(memory, &end)),
        Cause::MemoryLimit => NotSet::NeedsMoreMemory,
    }
}
