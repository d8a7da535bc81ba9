//! One batch on its way: messages are read, documents go to free presses, and each PDF is stored
//! as soon as it is there, while others are still being set.
//!
//! All of it is one future, with no task of its own: when it is dropped, at the deadline, no
//! part of it goes on.

use std::cell::{Cell, RefCell};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::records::Record;
use super::verdict::{ErrorCode, Failure, Stored, Verdict};
use crate::job::{Body, Job, JobError, Pointer, Surroundings};
use crate::press::frames::{Answer, Blame, Header};
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
}

/// The verdicts, in the order of the records; `None` while there is none.
pub type Verdicts = RefCell<Vec<Option<Verdict>>>;

/// A document that waits for a press.
struct Queued {
    index: usize,
    job: Job,
    header: Header,
}

/// A PDF that waits to be stored.
struct Finished {
    index: usize,
    job: Job,
    stored: Stored,
    pdf: Bytes,
    /// Makes room for another PDF when it is dropped.
    _permit: OwnedSemaphorePermit,
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

/// Sets and stores every record's document. Returns when each has its verdict and every run that
/// has seen one has ended.
pub async fn set_all(workshop: &Workshop<'_>, rooms: &mut [Room], records: &[Record], verdicts: &Verdicts) {
    let shares = Shares::new(workshop.cores, records.len());
    let pdfs_held = std::sync::Arc::new(Semaphore::new(rooms.len() + MOST_UPLOADS));
    let (to_presses, queue) = mpsc::unbounded_channel();
    let (to_storage, mut finished) = mpsc::unbounded_channel();
    let queue = Mutex::new(queue);

    let reading = read_all(workshop, records, verdicts, &shares, to_presses);
    let setting = async {
        let presses =
            rooms.iter_mut().map(|room| keep_busy(room, &queue, &shares, &pdfs_held, to_storage.clone(), verdicts));
        join_all(presses).await;
        drop(to_storage);
    };
    let storing = stream::poll_fn(|context| finished.poll_recv(context))
        .for_each_concurrent(MOST_UPLOADS, |pdf| store(workshop.storage, pdf, verdicts));
    tokio::join!(reading, setting, storing);
}

/// Turns records into documents that wait for a press. Messages that are in S3 are fetched, the
/// others are there at once.
async fn read_all(
    workshop: &Workshop<'_>,
    records: &[Record],
    verdicts: &Verdicts,
    shares: &Shares,
    queue: mpsc::UnboundedSender<Queued>,
) {
    stream::iter(records.iter().enumerate())
        .for_each_concurrent(MOST_READS, |(index, record)| {
            let queue = &queue;
            async move {
                match read(workshop, record).await {
                    Ok(job) => {
                        let header = Header {
                            template: job.template.clone(),
                            ident: record.message_id.clone(),
                            timestamp_ms: record.sent_timestamp_ms,
                            threads: 1,
                        };
                        let waits = queue.send(Queued { index, job, header });
                        debug_assert!(waits.is_ok(), "the queue lives as long as its presses");
                    }
                    Err(verdict) => {
                        shares.one_fewer_waits();
                        verdicts.borrow_mut()[index] = Some(verdict);
                    }
                }
            }
        })
        .await;
}

async fn read(workshop: &Workshop<'_>, record: &Record) -> Result<Job, Verdict> {
    let invalid = |message: String| Verdict::PermanentFailure(Failure::new(ErrorCode::InvalidMessage, message));
    let body = record.body.as_deref().map_err(|problem| invalid(problem.to_owned()))?;
    let surroundings = Surroundings { message_id: &record.message_id, ..workshop.surroundings };
    match Body::parse(body).map_err(|error| invalid(error.to_string()))? {
        Body::Message(message) => Job::parse(message, surroundings).map_err(|error| refused(&error)),
        Body::Pointer(pointer) => {
            let message = read_pointer(workshop.storage, &pointer).await?;
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

async fn read_pointer(storage: &Storage, pointer: &Pointer) -> Result<String, Verdict> {
    storage.read_message(pointer).await.map_err(|error| match error {
        InputError::Unavailable(_) => {
            Verdict::TransientFailure(Failure::new(ErrorCode::InputUnavailable, error.to_string()))
        }
        _ => Verdict::PermanentFailure(Failure::new(ErrorCode::InvalidMessage, error.to_string())),
    })
}

/// Gives a press one document after another, and ends its run when there are no more.
async fn keep_busy(
    room: &mut Room,
    queue: &Mutex<mpsc::UnboundedReceiver<Queued>>,
    shares: &Shares,
    pdfs_held: &std::sync::Arc<Semaphore>,
    storage: mpsc::UnboundedSender<Finished>,
    verdicts: &Verdicts,
) {
    loop {
        let permit = pdfs_held.clone().acquire_owned().await.expect("the semaphore is never closed");
        let Some(Queued { index, job, header }) = queue.lock().await.recv().await else { break };
        shares.one_starts();
        let set = set_one(room, shares, &header, &job).await;
        shares.one_ends();
        match set {
            Ok((stored, pdf)) => {
                let pdf = Finished { index, job, stored, pdf, _permit: permit };
                let waits = storage.send(pdf);
                debug_assert!(waits.is_ok(), "PDFs are stored until the last press is done");
            }
            Err(verdict) => verdicts.borrow_mut()[index] = Some(verdict),
        }
    }
    room.end_invocation().await;
}

/// Has a document set, again if its run ended and it was not to blame.
async fn set_one(room: &mut Room, shares: &Shares, header: &Header, job: &Job) -> Result<(Stored, Bytes), Verdict> {
    let mut threads = shares.threads.subscribe();
    let mut lost = Failure::new(ErrorCode::RunLost, "no try has been made");
    for _ in 0..MOST_TRIES {
        match room.set(header, &job.data, &mut threads).await {
            Ok(Outcome::Answered(Answer::Set { pages, warnings, typesetting }, pdf)) => {
                return Ok((Stored { key: job.key.clone(), pages, bytes: pdf.len(), warnings, typesetting }, pdf));
            }
            Ok(Outcome::Answered(Answer::Refused { diagnostics }, _)) => {
                return Err(Verdict::PermanentFailure(Failure::typst(diagnostics)));
            }
            Ok(Outcome::Answered(Answer::Panicked { message }, _)) => {
                let message = format!("Typst panicked, which is a bug of Typst's that these data bring out: {message}");
                return Err(Verdict::PermanentFailure(Failure::new(ErrorCode::TypstPanicked, message)));
            }
            Ok(Outcome::Answered(Answer::RunDied { end, blame: Blame::Document }, _)) => {
                return Err(Verdict::PermanentFailure(Failure::run_died(ErrorCode::RunKilled, &end)));
            }
            Ok(Outcome::Answered(Answer::RunDied { end, blame: Blame::Nobody }, _)) => {
                lost = Failure::run_died(ErrorCode::RunLost, &end);
            }
            Ok(Outcome::PressLost(error)) => {
                lost = Failure::new(ErrorCode::RunLost, format!("the press was lost: {error}"));
            }
            Err(error) => {
                lost = Failure::new(ErrorCode::RunLost, error.to_string());
            }
        }
        tracing::warn!(message_id = header.ident, reason = lost.message, "set again: not the document's fault");
    }
    Err(Verdict::TransientFailure(lost))
}

async fn store(storage: &Storage, finished: Finished, verdicts: &Verdicts) {
    let Finished { index, job, stored, pdf, _permit } = finished;
    let verdict = match storage.store(job, stored.pages, pdf).await {
        Ok(()) => Verdict::Stored(stored),
        Err(error) => Verdict::TransientFailure(Failure::new(ErrorCode::StorageUnavailable, error.to_string())),
    };
    verdicts.borrow_mut()[index] = Some(verdict);
}
