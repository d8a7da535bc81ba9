//! What a record's document is rendered from: its message, which may lie in S3, and the files that it
//! names; and whether an earlier delivery has stored the document already.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Batch;
use super::groups::KeyLock;
use super::memory::MemoryReservation;
use crate::aws::s3::{Found, InputError};
use crate::function::outcome::{ErrorCode, Failure, Stored};
use crate::function::report::RecordReport;
use crate::message::{self, Body, MessageError, RenderRequest};
use crate::render::diagnostics::Diagnostic;

/// What a record's message asks for.
pub(super) enum Inputs<'a> {
    Document(Box<Document<'a>>),
    /// An earlier delivery of the message has stored the document.
    StoredBefore(Stored),
    /// A message that was sent later has written this key already.
    Superseded {
        key: String,
    },
}

/// A document with all that it is rendered from.
pub(super) struct Document<'a> {
    pub record: &'a RecordReport<'a>,
    pub request: RenderRequest,
    /// The contents of the request's files, in their order.
    pub files: Vec<Bytes>,
    /// The memory of what was read from S3, if anything was.
    pub reservation: Option<MemoryReservation>,
    /// The right to write the document's key, until its PDF is stored.
    pub key_lock: Option<KeyLock>,
    /// The render time from which on the document's timings are stored, if they are to be.
    pub timings_slower_than: Option<Duration>,
}

impl Document<'_> {
    /// Lets go of what the document was rendered from.
    pub fn drop_inputs(&mut self) {
        self.request.data = Bytes::new();
        self.files = Vec::new();
        self.reservation = None;
    }
}

impl<'a> Batch<'a> {
    /// Reads all that a record's document is rendered from, once no other record writes its key.
    pub(super) async fn read_inputs(&self, record: &'a RecordReport<'a>) -> Result<Inputs<'a>, Failure> {
        let (request, mut reservation) = Box::pin(self.read_message(record)).await?;
        record.set_template(&request.template);
        let mut key_lock = self.key_locks.lock(&request.key).await;
        if request.is_superseded_by(*key_lock) {
            return Ok(Inputs::Superseded { key: request.key });
        }
        if record.record.is_redelivered() {
            match Box::pin(self.find_stored(&request)).await? {
                Found::Nothing => {}
                Found::Own(object) => {
                    *key_lock = request.sent_timestamp_ms;
                    return Ok(Inputs::StoredBefore(Stored::before(request.key, object)));
                }
                Found::SentLater => return Ok(Inputs::Superseded { key: request.key }),
            }
        }
        let key_lock = Some(key_lock);
        let files = Box::pin(self.read_files(&request)).await?;
        let bytes = request.data.len() + files.iter().map(Bytes::len).sum::<usize>();
        if let Some(reservation) = &mut reservation {
            reservation.resize(bytes);
            reservation.shrink(bytes);
        }
        let timings_slower_than = self.context.timings_slower_than;
        Ok(Inputs::Document(Box::new(Document { record, request, files, reservation, key_lock, timings_slower_than })))
    }

    /// Reads a record's message, with a memory reservation for what it brings from S3, if anything.
    async fn read_message(
        &self,
        record: &RecordReport<'_>,
    ) -> Result<(RenderRequest, Option<MemoryReservation>), Failure> {
        let storage = self.context.storage;
        let body = record.record.body.as_deref();
        let body = body.map_err(|problem| Failure::new(ErrorCode::InvalidMessage, problem.clone()))?;
        match Body::parse(body).map_err(|error| refused(&error))? {
            Body::Message(message) => {
                let request = self.parse(message, record)?;
                if request.files.is_empty() {
                    return Ok((request, None));
                }
                let reservation = self.reserve_inputs(record, storage.max_files_bytes()).await;
                Ok((request, Some(reservation)))
            }
            Body::Pointer(pointer) => {
                let mut reservation = self.reserve_inputs(record, storage.max_message_and_files_bytes()).await;
                let _permit = self.reads.acquire().await.expect("the semaphore is never closed");
                let read = storage.read_message(&pointer, self.context.limits.attempt_timeout()).await;
                let message = read.map_err(|error| self.not_read(&error))?;
                let request = self.parse(&message, record)?;
                let files = if request.files.is_empty() { 0 } else { storage.max_files_bytes() };
                reservation.resize(request.data.len());
                reservation.shrink(request.data.len() + files);
                Ok((request, Some(reservation)))
            }
        }
    }

    fn parse(&self, message: &str, record: &RecordReport<'_>) -> Result<RenderRequest, Failure> {
        let (id, sent_timestamp_ms) = (&record.record.message_id, record.record.sent_timestamp_ms);
        let request = RenderRequest::parse(message, id, self.context.parse);
        let allowed = request.and_then(|request| match request.respond {
            Some(_) if !record.record.is_direct => Err(MessageError::RespondFromAQueue),
            _ => Ok(request.with_sent_timestamp(sent_timestamp_ms)),
        });
        allowed.map_err(|error| {
            if let Some(template) = message::template_named_in(message) {
                record.set_template(&template);
            }
            refused(&error)
        })
    }

    async fn reserve_inputs(&self, record: &RecordReport<'_>, max_bytes: usize) -> MemoryReservation {
        let began = Instant::now();
        let reservation = self.memory.reserve_inputs(max_bytes).await;
        record.add_queue_wait(began.elapsed());
        reservation
    }

    async fn read_files(&self, request: &RenderRequest) -> Result<Vec<Bytes>, Failure> {
        if request.files.is_empty() {
            return Ok(Vec::new());
        }
        let _permit = self.reads.acquire().await.expect("the semaphore is never closed");
        let read = self.context.storage.read_files(&request.files, self.context.limits.attempt_timeout()).await;
        read.map_err(|error| self.not_read(&error))
    }

    fn not_read(&self, error: &InputError) -> Failure {
        let code = match error {
            InputError::Denied { .. } => {
                self.log_denied(error);
                ErrorCode::StorageDenied
            }
            InputError::Unavailable { .. } => ErrorCode::InputUnavailable,
            _ => ErrorCode::InvalidMessage,
        };
        Failure::new(code, error.to_string())
    }

    /// Looks at the object under the key: an earlier delivery of the same message may have stored it, or a
    /// message that was sent later.
    async fn find_stored(&self, request: &RenderRequest) -> Result<Found, Failure> {
        let _permit = self.reads.acquire().await.expect("the semaphore is never closed");
        let found = self.context.storage.find(request, self.context.limits.attempt_timeout()).await;
        found.map_err(|error| self.not_stored(&error))
    }
}

fn refused(error: &MessageError) -> Failure {
    let code = match error {
        MessageError::MisreadData { .. } => {
            let violations = vec![Diagnostic::in_data(&error.to_string(), None)];
            return Failure { diagnostics: violations, ..Failure::new(ErrorCode::InvalidData, error.to_string()) };
        }
        MessageError::UnknownTemplate { .. } => ErrorCode::UnknownTemplate,
        _ => ErrorCode::InvalidMessage,
    };
    Failure::new(code, error.to_string())
}
