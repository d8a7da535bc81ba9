//! One batch on its way: messages are read, documents go to free presses, and each PDF is stored
//! as soon as it is there, while others are still being set.
//!
//! All of it is one future, with no task of its own: when it is dropped, at the deadline, no
//! part of it goes on.

use std::cell::{Cell, RefCell};
use std::iter;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::limits::{Limits, MemoryLimit, TimeLimit};
use super::records::Record;
use super::verdict::{ErrorCode, Failure, Stored, Verdict};
use crate::job::{Body, Job, JobError, Surroundings};
use crate::press::frames::{Answer, Cause, Header};
use crate::press::room::{Outcome, Room};
use crate::storage::{InputError, Storage};

/// How many messages are read at once.
const MOST_READS: usize = 8;
/// How many PDFs are being stored at once.
pub const MOST_UPLOADS: usize = 8;
/// How often a document is set that is not to blame for the end of its runs.
const MOST_TRIES: usize = 3;

/// What a batch works with.
pub struct Workshop<'a> {
    pub storage: &'a Storage,
    pub surroundings: Surroundings<'a>,
    /// How many threads all documents together may have.
    pub cores: usize,
    pub limits: Limits,
}

/// The verdicts, in the order of the records; `None` while there is none.
pub type Verdicts = RefCell<Vec<Option<Verdict>>>;

/// A document that waits for a press.
struct Queued<'a> {
    index: usize,
    record: &'a Record,
    job: Job,
    /// What the job's files hold, in their order.
    files: Vec<Bytes>,
}

/// A PDF that waits to be stored.
struct Finished {
    index: usize,
    job: Job,
    stored: Stored,
    pdf: Bytes,
    /// Makes room for another PDF when it is dropped.
    _room: OwnedSemaphorePermit,
}

/// How the cores are shared: what a document may use that is being set.
struct Shares {
    cores: usize,
    waiting: Cell<usize>,
    working: Cell<usize>,
    threads: watch::Sender<usize>,
}

impl Shares {
    fn new(cores: usize, waiting: usize) -> Self {
        let shares = Self { cores, waiting: waiting.into(), working: 0.into(), threads: watch::Sender::new(1) };
        shares.update();
        shares
    }

    fn one_fewer_waits(&self) {
        self.waiting.set(self.waiting.get() - 1);
        self.update();
    }

    fn one_starts(&self) {
        self.working.set(self.working.get() + 1);
        self.one_fewer_waits();
    }

    fn one_ends(&self) {
        self.working.set(self.working.get() - 1);
        self.update();
    }

    /// Tells the documents under way, when it changes.
    fn update(&self) {
        let documents = self.waiting.get() + self.working.get();
        let share = self.cores.div_ceil(documents.max(1));
        self.threads.send_if_modified(|threads| std::mem::replace(threads, share) != share);
    }
}

/// A batch on its way.
struct Batch<'a> {
    workshop: &'a Workshop<'a>,
    records: &'a [Record],
    verdicts: &'a Verdicts,
    shares: Shares,
    /// As many permits as there may be PDFs in memory.
    room_for_pdfs: Arc<Semaphore>,
    /// The size of those that are.
    held_bytes: Cell<usize>,
    presses: usize,
    /// Documents that had too little memory while others had theirs.
    set_aside: RefCell<Vec<Queued<'a>>>,
}

/// Why a document has not been set.
enum NotSet {
    /// And will not be in this invocation.
    Decided(Verdict),
    /// It is to be set again, alone in a fresh run and with all the memory.
    NeedsMoreMemory,
}

/// Where documents wait for a press.
type Queue<'a> = Mutex<mpsc::UnboundedReceiver<Queued<'a>>>;

/// Sets and stores every record's document. Returns when each has its verdict and every run that
/// has seen one has ended.
pub async fn set_all(workshop: &Workshop<'_>, rooms: &mut [Room], records: &[Record], verdicts: &Verdicts) {
    let batch = Batch {
        workshop,
        records,
        verdicts,
        shares: Shares::new(workshop.cores, records.len()),
        room_for_pdfs: Arc::new(Semaphore::new(rooms.len() + MOST_UPLOADS)),
        held_bytes: Cell::new(0),
        presses: rooms.len(),
        set_aside: RefCell::default(),
    };
    let (to_presses, queue) = mpsc::unbounded_channel();
    let (to_storage, mut finished) = mpsc::unbounded_channel();
    let queue = Mutex::new(queue);

    let reading = batch.read_all(to_presses);
    let setting = async {
        join_all(rooms.iter_mut().map(|room| batch.keep_busy(room, &queue, &to_storage))).await;
        if let Some(room) = rooms.first_mut() {
            batch.set_those_set_aside(room, &to_storage).await;
        }
        drop(to_storage);
    };
    let storing = stream::poll_fn(|context| finished.poll_recv(context))
        .for_each_concurrent(MOST_UPLOADS, |pdf| batch.store(pdf));
    tokio::join!(reading, setting, storing);
}

impl<'a> Batch<'a> {
    /// Turns records into documents that wait for a press. Messages that are in S3 are fetched,
    /// the others are there at once.
    async fn read_all(&self, queue: mpsc::UnboundedSender<Queued<'a>>) {
        let queue = &queue;
        stream::iter(self.records.iter().enumerate())
            .for_each_concurrent(MOST_READS, async |(index, record)| match read(self.workshop, record).await {
                Ok((job, files)) => {
                    let waits = queue.send(Queued { index, record, job, files });
                    debug_assert!(waits.is_ok(), "the queue lives as long as its presses");
                }
                Err(verdict) => {
                    self.shares.one_fewer_waits();
                    self.decide(index, verdict);
                }
            })
            .await;
    }

    /// Gives a press one document after another, and ends its run when there are no more.
    async fn keep_busy(&self, room: &mut Room, queue: &Queue<'a>, storage: &mpsc::UnboundedSender<Finished>) {
        loop {
            let room_for_pdf = self.room_for_pdf(1).await;
            let Some(document) = queue.lock().await.recv().await else { break };
            self.shares.one_starts();
            self.set_and_pass_on(room, document, self.presses, room_for_pdf, storage).await;
            self.shares.one_ends();
        }
        room.end_invocation().await;
    }

    /// Sets one after another the documents that had too little memory: each when no other
    /// document is being set and no PDF waits to be stored, in a run of its own.
    async fn set_those_set_aside(&self, room: &mut Room, storage: &mpsc::UnboundedSender<Finished>) {
        let whole = self.presses + MOST_UPLOADS;
        loop {
            let Some(document) = self.set_aside.borrow_mut().pop() else { break };
            let mut room_for_pdf = self.room_for_pdf(u32::try_from(whole).unwrap_or(u32::MAX)).await;
            drop(room_for_pdf.split(whole - 1));
            self.set_and_pass_on(room, document, 1, room_for_pdf, storage).await;
            room.end_invocation().await;
        }
    }

    async fn room_for_pdf(&self, pdfs: u32) -> OwnedSemaphorePermit {
        self.room_for_pdfs.clone().acquire_many_owned(pdfs).await.expect("the semaphore is never closed")
    }

    /// Has a document set, with the memory that it may have while so many presses are at work,
    /// and passes on what came of it.
    async fn set_and_pass_on(
        &self,
        room: &mut Room,
        document: Queued<'a>,
        presses: usize,
        room_for_pdf: OwnedSemaphorePermit,
        storage: &mpsc::UnboundedSender<Finished>,
    ) {
        match self.set_one(room, &document, presses).await {
            Ok((stored, pdf)) => {
                let Queued { index, job, .. } = document;
                self.held_bytes.update(|held| held + pdf.len());
                let waits = storage.send(Finished { index, job, stored, pdf, _room: room_for_pdf });
                debug_assert!(waits.is_ok(), "PDFs are stored until the last press is done");
            }
            Err(NotSet::Decided(verdict)) => self.decide(document.index, verdict),
            Err(NotSet::NeedsMoreMemory) => self.set_aside.borrow_mut().push(document),
        }
    }

    /// Has a document set, again if its run ended and it was not to blame.
    async fn set_one(&self, room: &mut Room, document: &Queued<'a>, presses: usize) -> Result<(Stored, Bytes), NotSet> {
        let Queued { record, job, files, .. } = document;
        let content: Vec<Bytes> = iter::once(&job.data).chain(files).cloned().collect();
        let mut threads = self.shares.threads.subscribe();
        let mut lost = Failure::new(ErrorCode::RunLost, "no try has been made");
        for _ in 0..MOST_TRIES {
            let limits = &self.workshop.limits;
            let time = limits.time(self.shares.waiting.get() > 0 || !self.set_aside.borrow().is_empty());
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
                    return Ok((Stored { key: job.key.clone(), pages, bytes: pdf.len(), warnings, typesetting }, pdf));
                }
                Ok(Outcome::Answered(answer, _)) => {
                    log_last_words(&record.message_id, &answer);
                    not_set(answer, was_fresh, time, memory)?
                }
                Ok(Outcome::PressLost(error)) => {
                    Failure::new(ErrorCode::RunLost, format!("the press was lost: {error}"))
                }
                Err(error) => Failure::new(ErrorCode::RunLost, error.to_string()),
            };
            let (message_id, reason) = (&record.message_id, &lost.message);
            tracing::warn!(message_id, reason, "its process was lost, which is not the document's fault");
        }
        Err(NotSet::Decided(Verdict::TransientFailure(lost)))
    }

    async fn store(&self, finished: Finished) {
        let Finished { index, job, stored, pdf, _room } = finished;
        let bytes = pdf.len();
        let verdict = match self.workshop.storage.store(job, stored.pages, pdf).await {
            Ok(()) => Verdict::Stored(stored),
            Err(error) => Verdict::TransientFailure(Failure::new(ErrorCode::StorageUnavailable, error.to_string())),
        };
        self.held_bytes.update(|held| held - bytes);
        self.decide(index, verdict);
    }

    fn decide(&self, index: usize, verdict: Verdict) {
        self.verdicts.borrow_mut()[index] = Some(verdict);
    }
}

/// Reads a message and what it needs from S3.
async fn read(workshop: &Workshop<'_>, record: &Record) -> Result<(Job, Vec<Bytes>), Verdict> {
    let job = read_job(workshop, record).await?;
    let files = workshop.storage.read_files(&job.files).await.map_err(|error| not_read(&error))?;
    Ok((job, files))
}

async fn read_job(workshop: &Workshop<'_>, record: &Record) -> Result<Job, Verdict> {
    let invalid = |message: String| Verdict::PermanentFailure(Failure::new(ErrorCode::InvalidMessage, message));
    let body = record.body.as_deref().map_err(|problem| invalid(problem.to_owned()))?;
    let surroundings = Surroundings { message_id: &record.message_id, ..workshop.surroundings };
    match Body::parse(body).map_err(|error| invalid(error.to_string()))? {
        Body::Message(message) => Job::parse(message, surroundings).map_err(|error| refused(&error)),
        Body::Pointer(pointer) => {
            let message = workshop.storage.read_message(&pointer).await.map_err(|error| not_read(&error))?;
            Job::parse(&message, surroundings).map_err(|error| refused(&error))
        }
    }
}

fn refused(error: &JobError) -> Verdict {
    let code = match error {
        JobError::UnknownTemplate { .. } => ErrorCode::UnknownTemplate,
        _ => ErrorCode::InvalidMessage,
    };
    Verdict::PermanentFailure(Failure::new(code, error.to_string()))
}

fn not_read(error: &InputError) -> Verdict {
    match error {
        InputError::Unavailable { .. } => {
            Verdict::TransientFailure(Failure::new(ErrorCode::InputUnavailable, error.to_string()))
        }
        _ => Verdict::PermanentFailure(Failure::new(ErrorCode::InvalidMessage, error.to_string())),
    }
}

fn log_last_words(message_id: &str, answer: &Answer) {
    if let Answer::RunDied { end, .. } = answer {
        for line in end.stderr.lines().filter(|line| !line.trim().is_empty()) {
            tracing::warn!(message_id, "its run said: {line}");
        }
    }
}

/// What an answer without a PDF means. A failure that comes back is nobody's fault, and worth
/// another try: also a panic in a run that was not fresh, since Typst counts some things (paths of
/// files) over all documents of a process and panics when there are too many.
fn not_set(answer: Answer, was_fresh: bool, time: TimeLimit, memory: MemoryLimit) -> Result<Failure, NotSet> {
    let permanent = |failure| Err(NotSet::Decided(Verdict::PermanentFailure(failure)));
    let (end, cause) = match answer {
        Answer::Set { .. } => unreachable!("is a PDF"),
        Answer::DataRefused { violations } => return permanent(Failure::invalid_data(violations)),
        Answer::Refused { diagnostics } => return permanent(Failure::typst(diagnostics)),
        Answer::Panicked { message } if !was_fresh => {
            return Ok(Failure::new(
                ErrorCode::RunLost,
                format!("Typst panicked in a run that was not fresh: {message}"),
            ));
        }
        Answer::Panicked { message } => {
            let message = format!("Typst panicked, which is a bug of Typst's that these data bring out: {message}");
            return permanent(Failure::new(ErrorCode::TypstPanicked, message));
        }
        Answer::RunDied { end, cause } => (end, cause),
    };
    match cause {
        Cause::Nobody => Ok(Failure::run_died(ErrorCode::RunLost, &end)),
        Cause::Document => permanent(Failure::run_died(ErrorCode::RunKilled, &end)),
        Cause::TimeLimit if time.is_whole_grant => permanent(Failure::too_slow(time, &end)),
        Cause::TimeLimit => Err(NotSet::Decided(Verdict::TransientFailure(Failure::too_slow(time, &end)))),
        Cause::MemoryLimit if memory.is_whole_budget => permanent(Failure::too_large(memory, &end)),
        Cause::MemoryLimit => Err(NotSet::NeedsMoreMemory),
    }
}
