//! S3: reads the messages that pointers point to and the files that messages name, and stores PDFs.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::Builder;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::operation::head_object::HeadObjectError;
use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};

use crate::aws;
use crate::config::Config;
use crate::job::{E_INVOICE, IfExists, Job, Pointer};
use crate::pdf::Level;

/// The two buckets that pressrun touches.
#[derive(Clone, Debug)]
pub struct Storage {
    client: Client,
    output_bucket: String,
    input_bucket: Option<String>,
    most_input_bytes: usize,
}

/// Why what a message needs could not be read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("the message lies in the bucket {found:?}, and only {} may be read", readable(.allowed.as_deref()))]
    ForeignBucket { found: String, allowed: Option<String> },
    #[error("the message names files, but INPUT_BUCKET, the bucket that they are read from, is not set")]
    NoInputBucket,
    #[error("the message has {bytes} bytes, more than the {most} that MAX_DATA_BYTES allows")]
    MessageTooLarge { bytes: usize, most: usize },
    #[error(
        "the message's files have together more than the {most} bytes that MAX_DATA_BYTES allows; {name:?} is one too many"
    )]
    FilesTooLarge { name: String, most: usize },
    #[error("there is no object {key:?} in the bucket {bucket:?}")]
    NotFound { bucket: String, key: String },
    #[error("the message is not UTF-8")]
    NotText,
    #[error("S3 did not give {key:?}: {reason}")]
    Unavailable { key: String, reason: String },
    #[error("S3 does not let the function read {key:?}: {reason}")]
    Denied { key: String, reason: String },
}

/// How many bytes an object has, more than may be read.
struct TooLarge(usize);

/// Why there is no object.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "there is another message's object under {key:?} already, and if_exists says \"fail\"; \
         give the message another key, or let it replace the object"
    )]
    KeyTaken { key: String },
    #[error("S3 does not let the function store the PDF: {0}")]
    Denied(String),
    /// Another try may succeed.
    #[error("S3 did not store the PDF: {0}")]
    Unavailable(String),
}

/// An object that has been stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    pub pages: usize,
    pub bytes: usize,
    /// If it is an e-invoice.
    pub e_invoice: Option<Level>,
    pub e_tag: Option<String>,
    /// If the bucket keeps versions.
    pub version_id: Option<String>,
}

fn readable(bucket: Option<&str>) -> String {
    bucket.map_or_else(|| "the bucket named by INPUT_BUCKET, which is not set,".to_owned(), |name| format!("{name:?}"))
}

impl Storage {
    #[must_use]
    pub fn new(client: Client, config: &Config) -> Self {
        Self {
            client,
            output_bucket: config.output_bucket.clone(),
            input_bucket: config.input_bucket.clone(),
            most_input_bytes: config.most_data_bytes,
        }
    }

    /// The only bucket that is written.
    #[must_use]
    pub fn output_bucket(&self) -> &str {
        &self.output_bucket
    }

    /// How large a message's files may be, all together.
    #[must_use]
    pub fn largest_files(&self) -> usize {
        self.most_input_bytes
    }

    /// How large a message behind a pointer may be, and its files.
    #[must_use]
    pub fn largest_inputs(&self) -> usize {
        self.most_input_bytes.saturating_mul(2)
    }

    /// Reads the message that a pointer points to. Its size is checked before its body is read.
    ///
    /// # Errors
    /// When it may not be read, is not there, is too large, or S3 fails.
    pub async fn read_message(&self, pointer: &Pointer, time_of_a_try: Duration) -> Result<String, InputError> {
        let bucket = self.input_bucket.as_ref().filter(|bucket| **bucket == pointer.bucket);
        let bucket = bucket.ok_or_else(|| InputError::ForeignBucket {
            found: pointer.bucket.clone(),
            allowed: self.input_bucket.clone(),
        })?;
        let most = self.most_input_bytes;
        let message = self.read(bucket, &pointer.key, most, time_of_a_try).await?;
        let message = message.map_err(|TooLarge(bytes)| InputError::MessageTooLarge { bytes, most })?;
        String::from_utf8(message.into()).map_err(|_| InputError::NotText)
    }

    /// Reads the files that a message names, one after the other: together they may be as large
    /// as a message.
    ///
    /// # Errors
    /// When one is not there, they are too large, or S3 fails.
    pub async fn read_files(
        &self,
        files: &BTreeMap<String, String>,
        time_of_a_try: Duration,
    ) -> Result<Vec<Bytes>, InputError> {
        let mut contents = Vec::with_capacity(files.len());
        let mut left = self.most_input_bytes;
        for (name, key) in files {
            let bucket = self.input_bucket.as_ref().ok_or(InputError::NoInputBucket)?;
            let content = self.read(bucket, key, left, time_of_a_try).await?;
            let content = content
                .map_err(|TooLarge(_)| InputError::FilesTooLarge { name: name.clone(), most: self.most_input_bytes })?;
            left -= content.len();
            contents.push(content);
        }
        Ok(contents)
    }

    /// Reads an object, unless it is larger than `most` bytes.
    async fn read(
        &self,
        bucket: &str,
        key: &str,
        most: usize,
        time_of_a_try: Duration,
    ) -> Result<Result<Bytes, TooLarge>, InputError> {
        let asked = self.client.get_object().bucket(bucket).key(key).customize();
        let asked = asked.config_override(Builder::new().timeout_config(aws::try_for(time_of_a_try)));
        let object = asked.send().await.map_err(|error| not_given(bucket, key, &error))?;
        let announced = object.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
        if announced > most {
            return Ok(Err(TooLarge(announced)));
        }
        let mut stream = object.body;
        let mut content = BytesMut::with_capacity(announced);
        while let Some(chunk) = stream.next().await {
            let chunk =
                chunk.map_err(|error| InputError::Unavailable { key: key.to_owned(), reason: aws::chain(&error) })?;
            if content.len() + chunk.len() > most {
                return Ok(Err(TooLarge(content.len() + chunk.len())));
            }
            content.extend_from_slice(&chunk);
        }
        Ok(Ok(content.freeze()))
    }

    /// Looks for the object that a job would make: an earlier delivery of its message may have
    /// stored it.
    ///
    /// # Errors
    /// When S3 does not tell. Not when it may not: without `s3:ListBucket` that is what it says
    /// of an object that is not there.
    pub async fn find(&self, job: &Job, time_of_a_try: Duration) -> Result<Option<StoredObject>, StoreError> {
        match self.head(job, time_of_a_try).await {
            Ok((metadata, object)) => Ok(object.filter(|_| job.would_make(&metadata))),
            Err(error) if matches!(aws::status(&error), Some(403 | 404)) => Ok(None),
            Err(error) => Err(StoreError::Unavailable(aws::in_short(&error))),
        }
    }

    /// Stores a PDF whole. S3 verifies the checksum that the SDK sends along.
    ///
    /// # Errors
    /// When S3 does not take it, after the SDK's own retries.
    pub async fn store(
        &self,
        job: &Job,
        pages: usize,
        e_invoice: Option<Level>,
        pdf: Bytes,
        time_of_a_try: Duration,
    ) -> Result<StoredObject, StoreError> {
        let bytes = pdf.len();
        let level = e_invoice.map(|level| (E_INVOICE.to_owned(), level.to_string()));
        let stored = self
            .client
            .put_object()
            .bucket(&self.output_bucket)
            .key(&job.key)
            .content_type("application/pdf")
            .set_content_disposition(job.content_disposition.clone())
            .set_if_none_match((job.if_exists == IfExists::Fail).then(|| "*".to_owned()))
            .set_metadata(Some(job.metadata.clone().into_iter().chain(level).collect()))
            .metadata("pages", pages.to_string())
            .body(ByteStream::from(pdf))
            .customize()
            .config_override(Builder::new().timeout_config(aws::try_for(time_of_a_try)))
            .send()
            .await;
        match stored {
            Ok(stored) => {
                Ok(StoredObject { pages, bytes, e_invoice, e_tag: stored.e_tag, version_id: stored.version_id })
            }
            Err(error) if aws::status(&error) == Some(412) => self.find_owner(job, time_of_a_try).await,
            Err(error) if is_denied(&error) => Err(StoreError::Denied(aws::in_short(&error))),
            Err(error) => Err(StoreError::Unavailable(aws::in_short(&error))),
        }
    }

    /// Stores the trace of a job's PDF beside it, and gives its key. An earlier one is replaced.
    ///
    /// As a gzip file, and not as JSON that is encoded for its transport: then name, type and bytes
    /// agree wherever it is copied to, for `aws s3 cp` does not decode.
    ///
    /// # Errors
    /// With the reason, when S3 does not take it, after the SDK's own retries.
    pub async fn store_trace(&self, job: &Job, trace: Bytes, time_of_a_try: Duration) -> Result<String, String> {
        let whose = ["message-id", "template", "template-version", "template-digest"];
        let metadata = whose.iter().filter_map(|name| Some(((*name).to_owned(), job.metadata.get(*name)?.clone())));
        let key = job.trace_key();
        let stored = self
            .client
            .put_object()
            .bucket(&self.output_bucket)
            .key(&key)
            .content_type("application/gzip")
            .set_metadata(Some(metadata.collect()))
            .body(ByteStream::from(trace))
            .customize()
            .config_override(Builder::new().timeout_config(aws::try_for(time_of_a_try)))
            .send()
            .await;
        stored.map(|_| key).map_err(|error| aws::in_short(&error))
    }

    /// The object that stands where a job's was not to replace any: its own, if an earlier
    /// delivery or an earlier try has stored it, or another message's.
    async fn find_owner(&self, job: &Job, time_of_a_try: Duration) -> Result<StoredObject, StoreError> {
        match self.head(job, time_of_a_try).await {
            Ok((metadata, Some(object))) if job.has_made(&metadata) => Ok(object),
            Ok(_) => Err(StoreError::KeyTaken { key: job.key.clone() }),
            Err(error) if is_denied(&error) => Err(StoreError::Denied(aws::in_short(&error))),
            Err(error) => Err(StoreError::Unavailable(aws::in_short(&error))),
        }
    }

    /// The metadata of the object under a job's key, and the rest if it is one of ours.
    async fn head(
        &self,
        job: &Job,
        time_of_a_try: Duration,
    ) -> Result<(HashMap<String, String>, Option<StoredObject>), SdkError<HeadObjectError>> {
        let head = self
            .client
            .head_object()
            .bucket(&self.output_bucket)
            .key(&job.key)
            .customize()
            .config_override(Builder::new().timeout_config(aws::try_for(time_of_a_try)))
            .send()
            .await?;
        let bytes = head.content_length().and_then(|length| usize::try_from(length).ok());
        let metadata = head.metadata.unwrap_or_default();
        let pages = metadata.get("pages").and_then(|pages| pages.parse().ok());
        let e_invoice = metadata.get(E_INVOICE).and_then(|level| Level::parse(level));
        let (e_tag, version_id) = (head.e_tag, head.version_id);
        let object = pages.zip(bytes).map(|(pages, bytes)| StoredObject { pages, bytes, e_invoice, e_tag, version_id });
        Ok((metadata, object))
    }
}

/// Whether S3 refused because the deployment is not as it should be, whatever the message says.
fn is_denied<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    aws::status(error) == Some(403) || error.code() == Some("NoSuchBucket")
}

fn not_given(bucket: &str, key: &str, error: &SdkError<GetObjectError>) -> InputError {
    let key = key.to_owned();
    match error.as_service_error() {
        Some(GetObjectError::NoSuchKey(_)) => InputError::NotFound { bucket: bucket.to_owned(), key },
        _ if is_denied(error) => InputError::Denied { key, reason: aws::in_short(error) },
        _ => InputError::Unavailable { key, reason: aws::in_short(error) },
    }
}
