//! One batch on its way: each record's message is read, its document set by a free press, and the
//! PDF stored as soon as it is there, while others are still being set.
//!
//! All of it is one future, with no task of its own: when it is dropped, at the deadline, no
//! part of it goes on.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::chains::{Chain, Turn, Turns, chains};
use super::limits::{Limits, MemoryLimit, TimeLimit};
use super::records::Record;
use super::shares::Shares;
use super::verdict::{ErrorCode, Failure, Stored, Verdict};
use crate::job::{self, Body, Job, JobError, Surroundings};
use crate::press::frames::{Answer, Cause, Header};
use crate::press::room::{Outcome, Room};
use crate::queues::{Announcement, FailedMessage, Queues};
use crate::storage::{InputError, Storage, StoreError};
use crate::typeset::diagnostics::Diagnostic;

/// How many messages are read at once.
const MOST_READS: usize = 8;
/// How many PDFs are being stored at once.
pub const MOST_UPLOADS: usize = 8;
/// How often a document is set that is not to blame for the end of its runs.
const MOST_TRIES: usize = 3;

/// What a batch works with.
pub struct Workshop<'a> {
    pub storage: &'a Storage,
    pub queues: &'a Queues,
    pub request_id: Option<&'a str>,
    pub surroundings: Surroundings<'a>,
    /// How many threads all documents together may have.
    pub cores: usize,
    pub limits: Limits,
}

/// The verdicts, in the order of the records; `None` while there is none.
pub type Verdicts = RefCell<Vec<Option<Verdict>>>;

/// A record whose message is read.
struct Document<'a> {
    record: &'a Record,
    job: Job,
    /// What the job's files hold, in their order.
    files: Vec<Bytes>,
    /// To write its key.
    turn: Option<Turn>,
}

/// A document that waits for a press.
struct Queued<'a> {
    document: Document<'a>,
    answer: oneshot::Sender<Setting<'a>>,
}

/// What comes of a document at a press.
enum Setting<'a> {
    Set(Document<'a>, Typeset),
    /// It is not set, or an earlier delivery of its message has stored it.
    Decided(Decision),
    /// It is to be set again, alone in a fresh run and with all the memory.
    NeedsMoreMemory(Document<'a>),
}

/// What becomes of a record, but for what queues have to be told.
struct Decision {
    verdict: Verdict,
    /// As the message names it.
    template: Option<String>,
}

/// A PDF that waits to be stored.
struct Typeset {
    pages: usize,
    warnings: Vec<Diagnostic>,
    typesetting: Duration,
    pdf: Bytes,
    /// Makes room for another PDF when it is dropped.
    _room: OwnedSemaphorePermit,
}

/// Where documents are sent that want a press. The presses' invocation ends when nobody can send
/// any more.
type ToPresses<'a> = mpsc::UnboundedSender<Queued<'a>>;

/// Where documents wait for a press.
type Queue<'a> = Mutex<mpsc::UnboundedReceiver<Queued<'a>>>;

/// A document that had too little memory while others had theirs, and the records that have to
/// wait for it.
struct SetAside<'a> {
    index: usize,
    document: Document<'a>,
    rest: Chain,
}

/// A batch on its way.
struct Batch<'a> {
    workshop: &'a Workshop<'a>,
    records: &'a [Record],
    verdicts: &'a Verdicts,
    shares: Shares,
    turns: Turns,
    reads: Semaphore,
    uploads: Semaphore,
    /// As many permits as there may be PDFs in memory.
    room_for_pdfs: Arc<Semaphore>,
    /// The size of those that are.
    held_bytes: Cell<usize>,
    presses: usize,
    /// Whether it has been said that S3 does not let the function do its work.
    has_said_denied: Cell<bool>,
    set_aside: RefCell<Vec<SetAside<'a>>>,
}

/// Sets and stores every record's document. Returns when each has its verdict and every run that
/// has seen one has ended.
pub async fn set_all(workshop: &Workshop<'_>, rooms: &mut [Room], records: &[Record], verdicts: &Verdicts) {
    let batch = Batch {
        workshop,
        records,
        verdicts,
        shares: Shares::new(workshop.cores, records.len()),
        turns: Turns::default(),
        reads: Semaphore::new(MOST_READS),
        uploads: Semaphore::new(MOST_UPLOADS),
        room_for_pdfs: Arc::new(Semaphore::new(rooms.len() + MOST_UPLOADS)),
        held_bytes: Cell::new(0),
        presses: rooms.len(),
        has_said_denied: Cell::new(false),
        set_aside: RefCell::default(),
    };
    let mut chains = chains(records);
    loop {
        batch.work_side_by_side(rooms, std::mem::take(&mut chains)).await;
        let Some(room) = rooms.first_mut() else { return };
        loop {
            let Some(set_aside) = batch.set_aside.borrow_mut().pop() else { break };
            chains.extend(batch.work_alone(room, set_aside).await);
        }
        if chains.is_empty() {
            return;
        }
    }
}

impl<'a> Batch<'a> {
    /// Works through chains side by side, on all presses.
    async fn work_side_by_side(&self, rooms: &mut [Room], chains: Vec<Chain>) {
        let (to_presses, queue) = mpsc::unbounded_channel();
        let queue = Mutex::new(queue);
        self.shares.begin(chains.len());
        let working = join_all(chains.into_iter().map(|chain| self.work_through(chain, to_presses.clone())));
        drop(to_presses);
        let setting = join_all(rooms.iter_mut().map(|room| self.keep_busy(room, &queue)));
        tokio::join!(working, setting);
    }

    /// Works through a chain, until a document of it has to be set aside.
    async fn work_through(&self, mut chain: Chain, to_presses: ToPresses<'a>) {
        let mut to_presses = Some(to_presses);
        while let Some(index) = chain.pop_front() {
            let to_press = if chain.is_empty() { to_presses.take() } else { to_presses.clone() };
            let setting = self.read_and_set(index, to_press).await;
            let is_last = chain.is_empty();
            if is_last {
                self.shares.one_fewer_side_by_side();
            }
            match self.conclude(index, setting, chain).await {
                Some(rest) => chain = rest,
                None if is_last => return,
                None => return self.shares.one_fewer_side_by_side(),
            }
        }
    }

    /// Decides a record's verdict, when its PDF is stored if there is one. Gives back the records
    /// that come after it in its chain, if they can go on.
    async fn conclude(&self, index: usize, setting: Setting<'a>, rest: Chain) -> Option<Chain> {
        let decision = match setting {
            Setting::Set(document, typeset) => Box::pin(self.store(document, typeset)).await,
            Setting::Decided(decision) => decision,
            Setting::NeedsMoreMemory(mut document) => {
                // Others that write the same key would wait for it, and it waits for all others.
                document.turn = None;
                self.set_aside.borrow_mut().push(SetAside { index, document, rest });
                return None;
            }
        };
        let verdict = Box::pin(self.settle(&self.records[index], decision)).await;
        let is_settled = verdict.is_settled();
        self.decide(index, verdict);
        if !is_settled {
            self.stop(index, rest);
            return None;
        }
        Some(rest).filter(|rest| !rest.is_empty())
    }

    /// Fails the rest of a message group, unstarted: it must not overtake the record that failed.
    fn stop(&self, failed: usize, rest: Chain) {
        for index in rest {
            self.shares.one_fewer_waits();
            self.decide(index, Verdict::TransientFailure(Failure::group_stopped(&self.records[failed].message_id)));
        }
    }

    /// Reads a record's message and has its document set. Gives `to_press` back as soon as it is
    /// not needed.
    async fn read_and_set(&self, index: usize, to_press: Option<ToPresses<'a>>) -> Setting<'a> {
        let record = &self.records[index];
        let job = match Box::pin(self.read(record)).await {
            Ok(job) => job,
            Err(decision) => {
                self.shares.one_fewer_waits();
                return Setting::Decided(decision);
            }
        };
        let turn = Some(self.turns.take(&job.key).await);
        if record.receive_count > 1
            && let Some(verdict) = Box::pin(self.find(&job)).await
        {
            self.shares.one_fewer_waits();
            return Setting::Decided(Decision::of(&job, verdict));
        }
        let files = match Box::pin(self.read_files(&job)).await {
            Ok(files) => files,
            Err(decision) => {
                self.shares.one_fewer_waits();
                return Setting::Decided(decision);
            }
        };
        let (answer, answered) = oneshot::channel();
        let document = Document { record, job, files, turn };
        let waits = to_press.is_some_and(|press| press.send(Queued { document, answer }).is_ok());
        debug_assert!(waits, "presses wait as long as documents can be sent to them");
        answered.await.expect("a press answers for every document")
    }

    async fn read(&self, record: &Record) -> Result<Job, Decision> {
        let body = record.body.as_deref().map_err(|problem| invalid(None, &problem))?;
        let surroundings = Surroundings { message_id: &record.message_id, ..self.workshop.surroundings };
        match Body::parse(body).map_err(|error| refused(body, &error))? {
            Body::Message(message) => Job::parse(message, surroundings).map_err(|error| refused(message, &error)),
            Body::Pointer(pointer) => {
                let _turn = self.reads.acquire().await.expect("the semaphore is never closed");
                let read = self.workshop.storage.read_message(&pointer, self.workshop.limits.time_of_a_try()).await;
                let message = read.map_err(|error| self.not_read(None, &error))?;
                Job::parse(&message, surroundings).map_err(|error| refused(&message, &error))
            }
        }
    }

    async fn read_files(&self, job: &Job) -> Result<Vec<Bytes>, Decision> {
        if job.files.is_empty() {
            return Ok(Vec::new());
        }
        let _turn = self.reads.acquire().await.expect("the semaphore is never closed");
        let read = self.workshop.storage.read_files(&job.files, self.workshop.limits.time_of_a_try()).await;
        read.map_err(|error| self.not_read(Some(job.template.clone()), &error))
    }

    fn not_read(&self, template: Option<String>, error: &InputError) -> Decision {
        let code = match error {
            InputError::Denied { .. } => {
                self.say_denied(error);
                ErrorCode::StorageDenied
            }
            InputError::Unavailable { .. } => ErrorCode::InputUnavailable,
            _ => return invalid(template, error),
        };
        Decision { verdict: Verdict::TransientFailure(Failure::new(code, error.to_string())), template }
    }

    /// Looks whether an earlier delivery of a message has stored its document. `None` if it is to
    /// be set.
    async fn find(&self, job: &Job) -> Option<Verdict> {
        let _turn = self.reads.acquire().await.expect("the semaphore is never closed");
        let found = self.workshop.storage.find(job, self.workshop.limits.time_of_a_try()).await;
        match found {
            Ok(object) => Some(Verdict::Stored(Stored::earlier(job.key.clone(), object?))),
            Err(error) => Some(self.not_stored(&error)),
        }
    }

    /// Gives a press one document after another, and ends its run when there are no more.
    async fn keep_busy(&self, room: &mut Room, queue: &Queue<'a>) {
        loop {
            let room_for_pdf = self.room_for_pdf(1).await;
            let Some(Queued { document, answer }) = queue.lock().await.recv().await else { break };
            self.shares.one_fewer_waits();
            let setting = self.set(room, document, self.presses, room_for_pdf).await;
            let is_awaited = answer.send(setting).is_ok();
            debug_assert!(is_awaited, "a document's chain waits for it");
        }
        room.end_invocation().await;
    }

    /// Sets a document again, when no other is being set and no PDF waits to be stored, in a run
    /// of its own. What had to wait for it can then go on.
    async fn work_alone(&self, room: &mut Room, set_aside: SetAside<'a>) -> Option<Chain> {
        let SetAside { index, document, rest } = set_aside;
        let whole = self.presses + MOST_UPLOADS;
        let mut room_for_pdf = self.room_for_pdf(u32::try_from(whole).unwrap_or(u32::MAX)).await;
        drop(room_for_pdf.split(whole - 1));
        self.shares.begin(1);
        let setting = self.set(room, document, 1, room_for_pdf).await;
        room.end_invocation().await;
        self.conclude(index, setting, rest).await
    }

    async fn room_for_pdf(&self, pdfs: u32) -> OwnedSemaphorePermit {
        self.room_for_pdfs.clone().acquire_many_owned(pdfs).await.expect("the semaphore is never closed")
    }

    /// Has a document set, with the memory that it may have while so many presses are at work.
    /// Again if its run ended and it was not to blame.
    async fn set(
        &self,
        room: &mut Room,
        document: Document<'a>,
        presses: usize,
        room_for_pdf: OwnedSemaphorePermit,
    ) -> Setting<'a> {
        let Document { record, job, files, .. } = &document;
        let content: Vec<Bytes> = iter::once(&job.data).chain(files).cloned().collect();
        let mut threads = self.shares.threads();
        let mut lost = Failure::new(ErrorCode::RunLost, "no try has been made");
        for _ in 0..MOST_TRIES {
            let limits = &self.workshop.limits;
            let time = limits.time(self.shares.others_wait() || !self.set_aside.borrow().is_empty());
            let memory = limits.memory(presses, self.held_bytes.get());
            let memory = MemoryLimit { is_whole_budget: memory.is_whole_budget && room.is_fresh(), ..memory };
            let header = Header {
                template: job.template.clone(),
                ident: record.message_id.clone(),
                timestamp_ms: record.sent_timestamp_ms,
                files: job.files.keys().cloned().zip(files.iter().map(Bytes::len)).collect(),
                threads: *threads.borrow_and_update(),
                time_limit: time.time,
                memory_limit_bytes: memory.bytes,
            };
            let was_fresh = room.is_fresh();
            lost = match room.set(&header, &content, &mut threads).await {
                Ok(Outcome::Answered(Answer::Set { pages, warnings, typesetting }, pdf)) => {
                    self.held_bytes.update(|held| held + pdf.len());
                    let typeset = Typeset { pages, warnings, typesetting, pdf, _room: room_for_pdf };
                    return Setting::Set(document, typeset);
                }
                Ok(Outcome::Answered(answer, _)) => {
                    log_last_words(&record.message_id, &answer);
                    match not_set(answer, was_fresh, time, memory) {
                        NotSet::TryAgain(failure) => failure,
                        NotSet::Decided(verdict) => return Setting::Decided(Decision::of(&document.job, verdict)),
                        NotSet::NeedsMoreMemory => return Setting::NeedsMoreMemory(document),
                    }
                }
                Ok(Outcome::PressLost(error)) => {
                    Failure::new(ErrorCode::RunLost, format!("the press was lost: {error}"))
                }
                Err(error) => Failure::new(ErrorCode::RunLost, error.to_string()),
            };
            let (message_id, reason) = (&record.message_id, &lost.message);
            tracing::warn!(message_id, reason, "its process was lost, which is not the document's fault");
        }
        Setting::Decided(Decision::of(&document.job, Verdict::TransientFailure(lost)))
    }

    /// Tells queues what has become of a record. Only then its verdict holds.
    async fn settle(&self, record: &Record, decision: Decision) -> Verdict {
        let Decision { verdict, template } = decision;
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
            request_id: self.workshop.request_id,
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
                let message_id = &record.message_id;
                tracing::error!(message_id, %reason, "the failed queue did not take it, and it stays in its own");
            }
        }
        Verdict::PermanentFailure(failure)
    }

    async fn store(&self, document: Document<'a>, typeset: Typeset) -> Decision {
        let _turn = self.uploads.acquire().await.expect("the semaphore is never closed");
        let Document { job, turn: _turn, .. } = document;
        let Typeset { pages, warnings, typesetting, pdf, _room } = typeset;
        let bytes = pdf.len();
        let stored = self.workshop.storage.store(&job, pages, pdf, self.workshop.limits.time_of_a_try()).await;
        self.held_bytes.update(|held| held - bytes);
        let verdict = match stored {
            Ok(object) => Verdict::Stored(Stored::now(job.key.clone(), object, warnings, typesetting)),
            Err(error) => self.not_stored(&error),
        };
        Decision::of(&job, verdict)
    }

    fn not_stored(&self, error: &StoreError) -> Verdict {
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
    fn say_denied(&self, error: &dyn fmt::Display) {
        if !self.has_said_denied.replace(true) {
            tracing::error!(%error, "look at the function's role and at the names of the buckets");
        }
    }

    fn decide(&self, index: usize, verdict: Verdict) {
        self.verdicts.borrow_mut()[index] = Some(verdict);
    }
}

/// Why a document has not been set.
enum NotSet {
    /// And will not be in this invocation.
    Decided(Verdict),
    NeedsMoreMemory,
    /// That is nobody's fault.
    TryAgain(Failure),
}

impl Decision {
    fn of(job: &Job, verdict: Verdict) -> Self {
        Self { verdict, template: Some(job.template.clone()) }
    }
}

fn refused(message: &str, error: &JobError) -> Decision {
    let template = job::template_named_in(message);
    match error {
        JobError::UnknownTemplate { .. } => {
            let failure = Failure::new(ErrorCode::UnknownTemplate, error.to_string());
            Decision { verdict: Verdict::PermanentFailure(failure), template }
        }
        _ => invalid(template, error),
    }
}

fn invalid(template: Option<String>, problem: &dyn fmt::Display) -> Decision {
    let failure = Failure::new(ErrorCode::InvalidMessage, problem.to_string());
    Decision { verdict: Verdict::PermanentFailure(failure), template }
}

fn log_last_words(message_id: &str, answer: &Answer) {
    if let Answer::RunDied { end, .. } = answer {
        for line in end.stderr.lines().filter(|line| !line.trim().is_empty()) {
            tracing::warn!(message_id, "its run said: {line}");
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
