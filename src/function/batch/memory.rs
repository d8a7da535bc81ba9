//! How much a batch may hold in the function's own memory at a time: messages and files that are read
//! from S3 ahead of a worker, and PDFs that wait to be stored.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits::MAX_UPLOADS;

/// The unit of a permit for inputs, in bytes: a semaphore has too few permits for single bytes.
const KIB: usize = 1024;

/// What a batch may hold, and what it holds.
pub(super) struct BatchMemory {
    /// A permit for each KiB.
    inputs: Arc<Semaphore>,
    input_bytes: usize,
    inputs_held: Rc<Cell<usize>>,
    /// Whether any record brings something from S3.
    has_inputs: Cell<bool>,
    /// A permit for each PDF.
    pdfs: Arc<Semaphore>,
    pdfs_held: Rc<Cell<usize>>,
}

/// A claim on a part of the memory, until it is dropped.
pub(super) struct MemoryReservation {
    permit: OwnedSemaphorePermit,
    bytes: usize,
    held_bytes: Rc<Cell<usize>>,
}

impl BatchMemory {
    /// Allows `input_bytes` for the inputs of all documents, or any number if that is `None`; but always
    /// enough for one document, whose inputs have `max_document_bytes` at most.
    pub fn new(workers: usize, input_bytes: Option<usize>, max_document_bytes: usize) -> Self {
        let input_bytes = input_bytes.unwrap_or(usize::MAX).max(max_document_bytes);
        Self {
            inputs: Arc::new(Semaphore::new(kib(input_bytes) as usize)),
            input_bytes,
            inputs_held: Rc::default(),
            has_inputs: Cell::new(false),
            pdfs: Arc::new(Semaphore::new(workers + MAX_UPLOADS)),
            pdfs_held: Rc::default(),
        }
    }

    /// The bytes that runs cannot have: all that is held, and while more may be read, what is reserved
    /// for that.
    pub fn bytes_unavailable_to_runs(&self, more_may_be_read: bool) -> usize {
        let may_grow = more_may_be_read && self.has_inputs.get();
        let inputs = if may_grow { self.input_bytes } else { self.inputs_held.get() };
        inputs.saturating_add(self.pdfs_held.get())
    }

    /// Reserves memory for a document's inputs, of at most `max_bytes`.
    pub async fn reserve_inputs(&self, max_bytes: usize) -> MemoryReservation {
        self.has_inputs.set(true);
        reserve(&self.inputs, kib(max_bytes), &self.inputs_held).await
    }

    /// Reserves memory for a document's PDF and its timings.
    pub async fn reserve_pdf(&self) -> MemoryReservation {
        reserve(&self.pdfs, 1, &self.pdfs_held).await
    }
}

async fn reserve(semaphore: &Arc<Semaphore>, permits: u32, held_bytes: &Rc<Cell<usize>>) -> MemoryReservation {
    let permit = semaphore.clone().acquire_many_owned(permits).await.expect("the semaphore is never closed");
    MemoryReservation { permit, bytes: 0, held_bytes: held_bytes.clone() }
}

impl MemoryReservation {
    /// Counts so many bytes as held from now on.
    pub fn resize(&mut self, bytes: usize) {
        self.held_bytes.update(|held| held - self.bytes + bytes);
        self.bytes = bytes;
    }

    /// Counts what is held as before, and lets another PDF take its place: the parts of a document are kept until all
    /// are there, however many there are.
    pub fn give_up_place(&mut self) {
        drop(self.permit.split(self.permit.num_permits()));
    }

    /// Gives back what exceeds so many bytes.
    pub fn shrink(&mut self, bytes: usize) {
        let surplus = self.permit.num_permits().saturating_sub(kib(bytes) as usize);
        drop(self.permit.split(surplus));
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        self.resize(0);
    }
}

fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted_however_many_wait_to_be_joined() {
        let memory = BatchMemory::new(1, None, 0);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let parts: Vec<MemoryReservation> = runtime.block_on(async {
            let mut parts = Vec::new();
            for _ in 0..100 {
                let mut part = memory.reserve_pdf().await;
                part.resize(10);
                part.give_up_place();
                parts.push(part);
            }
            parts
        });
        assert_eq!(memory.bytes_unavailable_to_runs(false), 1000);
        drop(parts);
        assert_eq!(memory.bytes_unavailable_to_runs(false), 0);
    }
}
