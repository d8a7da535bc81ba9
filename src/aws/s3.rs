//! S3: reads messages that are too large for SQS and the files that messages name, and stores PDFs and
//! timings.

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
use crate::message::{E_INVOICE, IfExists, Pointer, RenderRequest, SENT_TIMESTAMP};
use crate::pdf::Level;
use crate::text::Quoted;

/// The two buckets that pressrun touches.
#[derive(Clone, Debug)]
pub struct Storage {
    client: Client,
    output_bucket: String,
    input_bucket: Option<String>,
    /// The most bytes of a message in S3, and of all its files together.
    max_data_bytes: usize,
}

/// Why a message or one of its files could not be read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("the message lies in the bucket {}, and only {} may be read", Quoted(.found), readable(.allowed.as_deref()))]
    ForeignBucket { found: String, allowed: Option<String> },
    #[error("the message names files, but INPUT_BUCKET, the bucket that they are read from, is not set")]
    NoInputBucket,
    #[error("the message has {bytes} bytes, more than the {most} that MAX_DATA_BYTES allows")]
    MessageTooLarge { bytes: usize, most: usize },
    #[error(
        "the message's files have together more than the {most} bytes that MAX_DATA_BYTES allows; {} is one too many",
        Quoted(.name)
    )]
    FilesTooLarge { name: String, most: usize },
    #[error("there is no object {} in the bucket {}", Quoted(.key), Quoted(.bucket))]
    NotFound { bucket: String, key: String },
    #[error("the message that the pointer points to is {0}, where JSON in UTF-8 is expected")]
    NotText(&'static str),
    #[error("S3 did not give {}: {reason}", Quoted(.key))]
    Unavailable { key: String, reason: String },
    #[error("S3 does not let the function read {}: {reason}", Quoted(.key))]
    Denied { key: String, reason: String },
}

/// An object has more bytes than may be read: so many, or at least so many.
struct TooLarge(usize);

/// Why a PDF was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "there is another message's object under {} already, and if_exists says \"fail\"; \
         give the message another key, or let it replace the object", Quoted(.key)
    )]
    KeyTaken { key: String },
    #[error("S3 does not let the function store the PDF: {0}")]
    Denied(String),
    /// A retry may succeed.
    #[error("S3 did not store the PDF: {0}")]
    Unavailable(String),
}

/// What there is under a request's key before its document is rendered.
#[derive(Debug)]
pub enum Found {
    /// Nothing, or an object that the document replaces.
    Nothing,
    /// The very object that the document would be.
    Own(StoredObject),
    /// The object of a message that was sent later, and that the document must not replace.
    SentLater,
}

/// A PDF that is in S3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    pub pages: usize,
    pub bytes: usize,
    /// The level of the e-invoice, if it is one.
    pub e_invoice: Option<Level>,
    pub e_tag: Option<String>,
    /// The object's version, if the bucket keeps versions.
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
            max_data_bytes: config.max_data_bytes,
        }
    }

    /// The only bucket that is written to.
    #[must_use]
    pub fn output_bucket(&self) -> &str {
        &self.output_bucket
    }

    /// The most bytes that all files of a message may have together.
    #[must_use]
    pub fn max_files_bytes(&self) -> usize {
        self.max_data_bytes
    }

    /// The most bytes that a message in S3 may have together with its files.
    #[must_use]
    pub fn max_message_and_files_bytes(&self) -> usize {
        self.max_data_bytes.saturating_mul(2)
    }

    /// Reads the message that a pointer points to. Its size is checked before its content is read.
    ///
    /// # Errors
    /// When it is not in the input bucket, does not exist, is too large, is not UTF-8, or S3 fails.
    pub async fn read_message(&self, pointer: &Pointer, attempt_timeout: Duration) -> Result<String, InputError> {
        let bucket = self.input_bucket.as_ref().filter(|bucket| **bucket == pointer.bucket);
        let bucket = bucket.ok_or_else(|| InputError::ForeignBucket {
            found: pointer.bucket.clone(),
            allowed: self.input_bucket.clone(),
        })?;
        let most = self.max_data_bytes;
        let message = self.read(bucket, &pointer.key, most, attempt_timeout).await?;
        let message = message.map_err(|TooLarge(bytes)| InputError::MessageTooLarge { bytes, most })?;
        String::from_utf8(message.into()).map_err(|error| InputError::NotText(encoding_of(error.as_bytes())))
    }

    /// Reads the files that a message names, one after the other. Together they may be as large as a
    /// message.
    ///
    /// # Errors
    /// When one does not exist, they are too large together, or S3 fails.
    pub async fn read_files(
        &self,
        files: &BTreeMap<String, String>,
        attempt_timeout: Duration,
    ) -> Result<Vec<Bytes>, InputError> {
        let mut contents = Vec::with_capacity(files.len());
        let mut left = self.max_data_bytes;
        for (name, key) in files {
            let bucket = self.input_bucket.as_ref().ok_or(InputError::NoInputBucket)?;
            let content = self.read(bucket, key, left, attempt_timeout).await?;
            let content = content
                .map_err(|TooLarge(_)| InputError::FilesTooLarge { name: name.clone(), most: self.max_data_bytes })?;
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
        attempt_timeout: Duration,
    ) -> Result<Result<Bytes, TooLarge>, InputError> {
        let asked = self.client.get_object().bucket(bucket).key(key).customize();
        let asked = asked.config_override(Builder::new().timeout_config(aws::timeout_config(attempt_timeout)));
        let object = asked.send().await.map_err(|error| read_error(bucket, key, &error))?;
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

    /// Looks for the object that a request would store: an earlier delivery of its message may have stored
    /// it, or a message that was sent later. A HEAD request that is denied counts as "not there": that is S3's response for an absent object
    /// if the role does not have `s3:ListBucket`.
    ///
    /// # Errors
    /// `Unavailable` if the HEAD request fails otherwise.
    pub async fn find(&self, request: &RenderRequest, attempt_timeout: Duration) -> Result<Found, StoreError> {
        match self.head(request, attempt_timeout).await {
            Ok((metadata, Some(object))) if request.would_make(&metadata) => Ok(Found::Own(object)),
            Ok((metadata, _)) => {
                let sent = metadata.get(SENT_TIMESTAMP).and_then(|sent| sent.parse().ok());
                Ok(if request.is_superseded_by(sent) { Found::SentLater } else { Found::Nothing })
            }
            Err(error) if matches!(aws::status(&error), Some(403 | 404)) => Ok(Found::Nothing),
            Err(error) => Err(StoreError::Unavailable(aws::summarize(&error))),
        }
    }

    /// Stores a PDF. S3 verifies the checksum that the SDK sends along.
    ///
    /// # Errors
    /// When S3 does not store it, after the SDK's own retries.
    pub async fn store(
        &self,
        request: &RenderRequest,
        pages: usize,
        e_invoice: Option<Level>,
        pdf: Bytes,
        attempt_timeout: Duration,
    ) -> Result<StoredObject, StoreError> {
        let bytes = pdf.len();
        let level = e_invoice.map(|level| (E_INVOICE.to_owned(), level.to_string()));
        let sent = request.sent_timestamp_ms.map(|sent| (SENT_TIMESTAMP.to_owned(), sent.to_string()));
        let stored = self
            .client
            .put_object()
            .bucket(&self.output_bucket)
            .key(&request.key)
            .content_type("application/pdf")
            .set_content_disposition(request.content_disposition.clone())
            .set_if_none_match((request.if_exists == IfExists::Fail).then(|| "*".to_owned()))
            .set_metadata(Some(request.metadata.clone().into_iter().chain(level).chain(sent).collect()))
            .metadata("pages", pages.to_string())
            .body(ByteStream::from(pdf))
            .customize()
            .config_override(Builder::new().timeout_config(aws::timeout_config(attempt_timeout)))
            .send()
            .await;
        match stored {
            Ok(stored) => {
                Ok(StoredObject { pages, bytes, e_invoice, e_tag: stored.e_tag, version_id: stored.version_id })
            }
            Err(error) if aws::status(&error) == Some(412) => self.find_owner(request, attempt_timeout).await,
            Err(error) if is_denied(&error) => Err(StoreError::Denied(aws::summarize(&error))),
            Err(error) => Err(StoreError::Unavailable(aws::summarize(&error))),
        }
    }

    /// Stores a document's timings beside its PDF, and returns their key. Earlier ones are replaced.
    ///
    /// They are stored as a gzip file, and not as JSON with a content encoding: `aws s3 cp` does not decode,
    /// and so name, type and bytes agree wherever the file is copied to.
    ///
    /// # Errors
    /// The reason, when S3 does not store them, after the SDK's own retries.
    pub async fn store_timings(
        &self,
        request: &RenderRequest,
        timings: Bytes,
        attempt_timeout: Duration,
    ) -> Result<String, String> {
        let whose = ["message-id", "template", "template-version", "template-digest"];
        let metadata = whose.iter().filter_map(|name| Some(((*name).to_owned(), request.metadata.get(*name)?.clone())));
        let key = request.timings_key();
        let stored = self
            .client
            .put_object()
            .bucket(&self.output_bucket)
            .key(&key)
            .content_type("application/gzip")
            .set_metadata(Some(metadata.collect()))
            .body(ByteStream::from(timings))
            .customize()
            .config_override(Builder::new().timeout_config(aws::timeout_config(attempt_timeout)))
            .send()
            .await;
        stored.map(|_| key).map_err(|error| aws::summarize(&error))
    }

    /// Looks, after a 412, at the object under the request's key: returns it if this message has stored it,
    /// in an earlier delivery, in an earlier attempt or under an earlier id, else `KeyTaken`.
    async fn find_owner(&self, request: &RenderRequest, attempt_timeout: Duration) -> Result<StoredObject, StoreError> {
        match self.head(request, attempt_timeout).await {
            Ok((metadata, Some(object))) if request.has_made(&metadata) => Ok(object),
            Ok(_) => Err(StoreError::KeyTaken { key: request.key.clone() }),
            Err(error) if is_denied(&error) => Err(StoreError::Denied(aws::summarize(&error))),
            Err(error) => Err(StoreError::Unavailable(aws::summarize(&error))),
        }
    }

    /// Reads the metadata of the object under a request's key, and describes it if pressrun has stored it.
    async fn head(
        &self,
        request: &RenderRequest,
        attempt_timeout: Duration,
    ) -> Result<(HashMap<String, String>, Option<StoredObject>), SdkError<HeadObjectError>> {
        let head = self
            .client
            .head_object()
            .bucket(&self.output_bucket)
            .key(&request.key)
            .customize()
            .config_override(Builder::new().timeout_config(aws::timeout_config(attempt_timeout)))
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

/// Whether S3 refused because of how the function is deployed, whatever the message says.
fn is_denied<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    aws::status(error) == Some(403) || error.code() == Some("NoSuchBucket")
}

/// Names what bytes are that are not UTF-8.
fn encoding_of(bytes: &[u8]) -> &'static str {
    match bytes {
        [0x1f, 0x8b, ..] => "gzipped",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "UTF-16",
        _ => "not UTF-8",
    }
}

fn read_error(bucket: &str, key: &str, error: &SdkError<GetObjectError>) -> InputError {
    let key = key.to_owned();
    match error.as_service_error() {
        Some(GetObjectError::NoSuchKey(_)) => InputError::NotFound { bucket: bucket.to_owned(), key },
        _ if is_denied(error) => InputError::Denied { key, reason: aws::summarize(error) },
        _ => InputError::Unavailable { key, reason: aws::summarize(error) },
    }
}
