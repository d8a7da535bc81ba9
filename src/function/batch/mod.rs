//! One batch on its way: each record's message is read, its document rendered by a free worker, and the
//! PDF stored as soon as it is there, while others are still being set.
//!
//! All of it is one future, with no task of its own: when it is dropped, at the deadline, no
//! part of it goes on. This module says what waits for what; [`reading`], [`setting`] and
//! [`settling`] do the work, [`memory`] says how much there may be at a time.

mod memory;
mod reading;
mod setting;
mod settling;

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tracing::Instrument;

use super::account::{Account, Audience};
use super::chains::{Chain, Turn, Turns, chains};
use super::limits::{Limits, MOST_READS, MOST_UPLOADS};
use super::records::Record;
use super::shares::Shares;
use super::verdict::{Failure, Verdict};
use crate::job::{Job, Surroundings};
use crate::pdf::Level;
use crate::press::Worker;
use crate::queues::Queues;
use crate::storage::Storage;
use crate::typeset::diagnostics::Diagnostic;
use memory::{Memory, Space};

/// What a batch works with.
pub struct Workshop<'a> {
    pub storage: &'a Storage,
    pub queues: &'a Queues,
    pub audience: Audience<'a>,
    pub surroundings: Surroundings<'a>,
    /// How many threads all documents together may have.
    pub cores: usize,
    /// Documents that take longer to set are traced, if any are.
    pub trace_slower_than: Option<Duration>,
    pub limits: Limits,
}

/// A record whose message is read.
struct Document<'a> {
    record: &'a Record,
    account: &'a Account,
    job: Job,
    /// What the job's files hold, in their order.
    files: Vec<Bytes>,
    /// For what of it comes from S3, if anything does.
    space: Option<Space>,
    /// To write its key.
    turn: Option<Turn>,
    trace_slower_than: Option<Duration>,
}

/// A document that waits for a worker.
struct Queued<'a> {
    document: Document<'a>,
    since: Instant,
    answer: oneshot::Sender<Setting<'a>>,
}

/// What comes of a document at a worker.
enum Setting<'a> {
    Rendered(Box<Document<'a>>, Typeset),
    /// It is not set, or an earlier delivery of its message has stored it.
    Decided(Decision),
    /// It is to be set again, alone in a fresh run and with all the memory.
    NeedsMoreMemory,
}

/// Who else may be at work while a document is set.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    /// Documents at the other workers; others are read, and stored.
    Others,
    Nobody,
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
    e_invoice: Option<Level>,
    warnings: Vec<Diagnostic>,
    typesetting: Duration,
    pdf: Bytes,
    /// Empty if there is none.
    trace: Bytes,
    space: Space,
}

/// A document that took longer than `TRACE_SLOWER_THAN_MS`. Its PDF is stored, its trace is not.
struct Slow {
    job: Job,
    typesetting: Duration,
    trace: Bytes,
    _turn: Option<Turn>,
    _space: Space,
}

/// Sender of the work queue. Dropping the last clone ends the invocation on every worker.
type ToWorkers<'a> = mpsc::UnboundedSender<Queued<'a>>;

/// Where documents wait for a worker.
type Queue<'a> = Mutex<mpsc::UnboundedReceiver<Queued<'a>>>;

/// A record whose document had too little memory while others had theirs, and the records that
/// have to wait for it.
struct SetAside {
    index: usize,
    rest: Chain,
}

/// A batch on its way.
struct Batch<'a> {
    workshop: &'a Workshop<'a>,
    records: &'a [Record],
    accounts: &'a [Account],
    shares: Shares,
    turns: Turns,
    reads: Semaphore,
    uploads: Semaphore,
    memory: Memory,
    workers: usize,
    /// Whether it has been said that S3 does not let the function do its work.
    has_said_denied: Cell<bool>,
    set_aside: RefCell<Vec<SetAside>>,
}

/// Sets and stores every record's document. Returns when each has its verdict and every run that
/// has seen one has ended.
pub async fn set_all(workshop: &Workshop<'_>, workers: &mut [Worker], records: &[Record], accounts: &[Account]) {
    let batch = Batch {
        workshop,
        records,
        accounts,
        shares: Shares::new(workshop.cores, records.len()),
        turns: Turns::default(),
        reads: Semaphore::new(MOST_READS),
        uploads: Semaphore::new(MOST_UPLOADS),
        memory: Memory::new(workers.len(), workshop.limits.memory_for_inputs(), workshop.storage.largest_inputs()),
        workers: workers.len(),
        has_said_denied: Cell::new(false),
        set_aside: RefCell::default(),
    };
    let mut chains = chains(records);
    loop {
        batch.work_side_by_side(workers, std::mem::take(&mut chains)).await;
        let Some(worker) = workers.first_mut() else { return };
        loop {
            let Some(set_aside) = batch.set_aside.borrow_mut().pop() else { break };
            chains.extend(batch.work_alone(worker, set_aside).await);
        }
        if chains.is_empty() {
            return;
        }
    }
}

impl<'a> Batch<'a> {
    /// Works through chains side by side, on all workers.
    async fn work_side_by_side(&self, workers: &mut [Worker], chains: Vec<Chain>) {
        let (to_workers, queue) = mpsc::unbounded_channel();
        let queue = Mutex::new(queue);
        self.shares.begin(chains.len());
        let working = join_all(chains.into_iter().map(|chain| self.work_through(chain, to_workers.clone())));
        drop(to_workers);
        let setting = join_all(workers.iter_mut().map(|worker| self.keep_busy(worker, &queue)));
        tokio::join!(working, setting);
    }

    /// Works through a chain, until a document of it has to be set aside.
    async fn work_through(&self, mut chain: Chain, to_workers: ToWorkers<'a>) {
        let mut to_workers = Some(to_workers);
        while let Some(index) = chain.pop_front() {
            let span = &self.accounts[index].span;
            let to_worker = if chain.is_empty() { to_workers.take() } else { to_workers.clone() };
            let setting = self.read_and_set(index, to_worker).instrument(span.clone()).await;
            let is_last = chain.is_empty();
            if is_last {
                self.shares.one_fewer_side_by_side();
            }
            match self.conclude(index, setting, chain).instrument(span.clone()).await {
                Some(rest) => chain = rest,
                None if is_last => return,
                None => return self.shares.one_fewer_side_by_side(),
            }
        }
    }

    /// Decides a record's verdict, when its PDF is stored if there is one. Gives back the records
    /// that come after it in its chain, if they can go on.
    async fn conclude(&self, index: usize, setting: Setting<'a>, rest: Chain) -> Option<Chain> {
        let (decision, slow) = match setting {
            Setting::Rendered(document, typeset) => Box::pin(self.store(*document, typeset)).await,
            Setting::Decided(decision) => (decision, None),
            Setting::NeedsMoreMemory => {
                self.set_aside.borrow_mut().push(SetAside { index, rest });
                return None;
            }
        };
        let verdict = Box::pin(self.settle(index, decision)).await;
        let is_settled = verdict.is_settled();
        self.decide(index, verdict);
        if let Some(slow) = slow {
            Box::pin(self.store_trace(slow)).await;
        }
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

    /// Reads a record's message and has its document set. Gives `to_worker` back as soon as it is
    /// not needed.
    async fn read_and_set(&self, index: usize, to_worker: Option<ToWorkers<'a>>) -> Setting<'a> {
        let document = match self.prepare(index).await {
            Ok(document) => document,
            Err(decision) => {
                self.shares.one_fewer_waits();
                return Setting::Decided(decision);
            }
        };
        let (answer, answered) = oneshot::channel();
        let queued = Queued { document, since: Instant::now(), answer };
        let waits = to_worker.is_some_and(|workers| workers.send(queued).is_ok());
        debug_assert!(waits, "workers wait as long as documents can be sent to them");
        answered.await.expect("a worker answers for every document")
    }

    /// Reads all that a record's document is set from, when it is its turn to write its key.
    async fn prepare(&self, index: usize) -> Result<Document<'a>, Decision> {
        let (record, account) = (&self.records[index], &self.accounts[index]);
        let (job, mut space) = Box::pin(self.read(record, account)).await?;
        account.names_template(&job.template);
        let turn = Some(self.turns.take(&job.key).await);
        if record.receive_count > 1
            && let Some(verdict) = Box::pin(self.find(&job)).await
        {
            return Err(Decision::of(&job, verdict));
        }
        let files = Box::pin(self.read_files(&job)).await?;
        let bytes = job.data.len() + files.iter().map(Bytes::len).sum::<usize>();
        if let Some(space) = &mut space {
            space.holds(bytes);
            space.shrinks_to(bytes);
        }
        let trace_slower_than = self.workshop.trace_slower_than;
        Ok(Document { record, account, job, files, space, turn, trace_slower_than })
    }

    /// Sets a document again, when no other is being set and no PDF waits to be stored, in a run
    /// of its own. What had to wait for it can then go on.
    async fn work_alone(&self, worker: &mut Worker, set_aside: SetAside) -> Option<Chain> {
        let SetAside { index, rest } = set_aside;
        let space = self.memory.space_for_the_only_pdf().await;
        self.shares.begin(1);
        let span = &self.accounts[index].span;
        let setting = async {
            match self.prepare(index).await {
                // It is not to fail for the memory that its trace takes.
                Ok(document) => {
                    self.render(worker, Document { trace_slower_than: None, ..document }, Beside::Nobody, space).await
                }
                Err(decision) => Setting::Decided(decision),
            }
        };
        let setting = Box::pin(setting).instrument(span.clone()).await;
        worker.end_invocation().await;
        self.conclude(index, setting, rest).instrument(span.clone()).await
    }

    fn decide(&self, index: usize, verdict: Verdict) {
        self.accounts[index].decide(&self.records[index], verdict, self.workshop.audience);
    }
}

impl Document<'_> {
    /// Lets go of what it was set from.
    fn drop_inputs(&mut self) {
        self.job.data = Bytes::new();
        self.files = Vec::new();
        self.space = None;
    }
}

impl Decision {
    fn of(job: &Job, verdict: Verdict) -> Self {
        Self { verdict, template: Some(job.template.clone()) }
    }
}
