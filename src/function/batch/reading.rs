//! What a record needs to be set: its message, the files that it names, and whether an earlier
//! delivery has made its object already.

use std::fmt;
use std::time::Instant;

use bytes::Bytes;

use super::memory::Space;
use super::{Batch, Decision};
use crate::function::account::Account;
use crate::function::records::Record;
use crate::function::verdict::{ErrorCode, Failure, Stored, Verdict};
use crate::job::{self, Body, Job, JobError, Surroundings};
use crate::storage::InputError;

impl Batch<'_> {
    /// Reads a record's message. With it comes the space for what is read from S3, if anything is.
    pub(super) async fn read(&self, record: &Record, account: &Account) -> Result<(Job, Option<Space>), Decision> {
        let storage = self.workshop.storage;
        let body = record.body.as_deref().map_err(|problem| invalid(None, &problem))?;
        let surroundings = Surroundings { message_id: &record.message_id, ..self.workshop.surroundings };
        match Body::parse(body).map_err(|error| refused(body, &error))? {
            Body::Message(message) => {
                let job = Job::parse(message, surroundings).map_err(|error| refused(message, &error))?;
                if job.files.is_empty() {
                    return Ok((job, None));
                }
                Ok((job, Some(self.space_for_inputs(account, storage.largest_files()).await)))
            }
            Body::Pointer(pointer) => {
                let mut space = self.space_for_inputs(account, storage.largest_inputs()).await;
                let _turn = self.reads.acquire().await.expect("the semaphore is never closed");
                let read = storage.read_message(&pointer, self.workshop.limits.time_of_a_try()).await;
                let message = read.map_err(|error| self.not_read(None, &error))?;
                let job = Job::parse(&message, surroundings).map_err(|error| refused(&message, &error))?;
                let files = if job.files.is_empty() { 0 } else { storage.largest_files() };
                space.holds(job.data.len());
                space.shrinks_to(job.data.len() + files);
                Ok((job, Some(space)))
            }
        }
    }

    async fn space_for_inputs(&self, account: &Account, most_bytes: usize) -> Space {
        let began = Instant::now();
        let space = self.memory.space_for_inputs(most_bytes).await;
        account.has_waited(began.elapsed());
        space
    }

    pub(super) async fn read_files(&self, job: &Job) -> Result<Vec<Bytes>, Decision> {
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
    pub(super) async fn find(&self, job: &Job) -> Option<Verdict> {
        let _turn = self.reads.acquire().await.expect("the semaphore is never closed");
        let found = self.workshop.storage.find(job, self.workshop.limits.time_of_a_try()).await;
        match found {
            Ok(object) => Some(Verdict::Stored(Stored::earlier(job.key.clone(), object?))),
            Err(error) => Some(self.not_stored(&error)),
        }
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
