//! What a batch may have in the function's own memory at a time: messages and files that are read
//! from S3 ahead of a worker, and PDFs that wait to be stored.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::function::limits::MOST_UPLOADS;

/// What space is given out by.
const KIB: usize = 1024;

pub(super) struct Memory {
    /// A permit a KiB.
    inputs: Arc<Semaphore>,
    input_bytes: usize,
    inputs_held: Rc<Cell<usize>>,
    /// Whether any record wants something from S3.
    has_inputs: Cell<bool>,
    /// A permit a PDF.
    pdfs: Arc<Semaphore>,
    most_pdfs: usize,
    pdfs_held: Rc<Cell<usize>>,
}

/// A part of the memory, until it is dropped.
pub(super) struct Space {
    permit: OwnedSemaphorePermit,
    bytes: usize,
    held_bytes: Rc<Cell<usize>>,
}

impl Memory {
    /// With so many bytes for the inputs of all documents, if that is limited, but with enough for
    /// one, which has `largest_inputs` at most.
    pub fn new(workers: usize, input_bytes: Option<usize>, largest_inputs: usize) -> Self {
        let most_pdfs = workers + MOST_UPLOADS;
        let input_bytes = input_bytes.unwrap_or(usize::MAX).max(largest_inputs);
        Self {
            inputs: Arc::new(Semaphore::new(kib(input_bytes) as usize)),
            input_bytes,
            inputs_held: Rc::default(),
            has_inputs: Cell::new(false),
            pdfs: Arc::new(Semaphore::new(most_pdfs)),
            most_pdfs,
            pdfs_held: Rc::default(),
        }
    }

    /// What runs cannot have: all that is held, and while more may be read, the space for that.
    pub fn bytes_kept_from_runs(&self, more_may_be_read: bool) -> usize {
        let may_grow = more_may_be_read && self.has_inputs.get();
        let inputs = if may_grow { self.input_bytes } else { self.inputs_held.get() };
        inputs.saturating_add(self.pdfs_held.get())
    }

    /// Space for inputs of so many bytes at most.
    pub async fn space_for_inputs(&self, most_bytes: usize) -> Space {
        self.has_inputs.set(true);
        space(&self.inputs, kib(most_bytes), &self.inputs_held).await
    }

    /// Space for a document's PDF, and its trace.
    pub async fn space_for_pdf(&self) -> Space {
        space(&self.pdfs, 1, &self.pdfs_held).await
    }

    /// The same when there is no other PDF any more.
    pub async fn space_for_the_only_pdf(&self) -> Space {
        let all = u32::try_from(self.most_pdfs).unwrap_or(u32::MAX);
        let mut space = space(&self.pdfs, all, &self.pdfs_held).await;
        drop(space.permit.split(self.most_pdfs - 1));
        space
    }
}

async fn space(semaphore: &Arc<Semaphore>, permits: u32, held_bytes: &Rc<Cell<usize>>) -> Space {
    let permit = semaphore.clone().acquire_many_owned(permits).await.expect("the semaphore is never closed");
    Space { permit, bytes: 0, held_bytes: held_bytes.clone() }
}

impl Space {
    /// So much is in it from now on.
    pub fn holds(&mut self, bytes: usize) {
        self.held_bytes.update(|held| held - self.bytes + bytes);
        self.bytes = bytes;
    }

    /// There will not be more in it than so much: the rest is for others.
    pub fn shrinks_to(&mut self, bytes: usize) {
        let surplus = self.permit.num_permits().saturating_sub(kib(bytes) as usize);
        drop(self.permit.split(surplus));
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.holds(0);
    }
}

fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX)
}
