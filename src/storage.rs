//! S3: reads the messages that pointers point to and the files that messages name, and stores PDFs.

use std::collections::BTreeMap;
use std::error::Error;

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};

use crate::config::Config;
use crate::job::{Job, Pointer};

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
}

/// How many bytes an object has, more than may be read.
struct TooLarge(usize);

/// S3 did not take a PDF. Another try may succeed.
#[derive(Debug, thiserror::Error)]
#[error("S3 did not store the PDF: {0}")]
pub struct StoreError(String);

fn readable(bucket: Option<&str>) -> String {
    bucket.map_or_else(|| "the bucket named by INPUT_BUCKET, which is not set,".to_owned(), |name| format!("{name:?}"))
}

/// An S3 client as every AWS tool makes it, from environment and profile. With an endpoint of
/// its own it uses path-style requests, since such an endpoint seldom has a host name for every
/// bucket.
pub async fn client(has_own_endpoint: bool) -> Client {
    let shared = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
    let config = aws_sdk_s3::config::Builder::from(&shared).force_path_style(has_own_endpoint).build();
    Client::from_conf(config)
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

    /// Reads the message that a pointer points to. Its size is checked before its body is read.
    ///
    /// # Errors
    /// When it may not be read, is not there, is too large, or S3 fails.
    pub async fn read_message(&self, pointer: &Pointer) -> Result<String, InputError> {
        let bucket = self.input_bucket.as_ref().filter(|bucket| **bucket == pointer.bucket);
        let bucket = bucket.ok_or_else(|| InputError::ForeignBucket {
            found: pointer.bucket.clone(),
            allowed: self.input_bucket.clone(),
        })?;
        let most = self.most_input_bytes;
        let message = self.read(bucket, &pointer.key, most).await?;
        let message = message.map_err(|TooLarge(bytes)| InputError::MessageTooLarge { bytes, most })?;
        String::from_utf8(message.into()).map_err(|_| InputError::NotText)
    }

    /// Reads the files that a message names, one after the other: together they may be as large
    /// as a message.
    ///
    /// # Errors
    /// When one is not there, they are too large, or S3 fails.
    pub async fn read_files(&self, files: &BTreeMap<String, String>) -> Result<Vec<Bytes>, InputError> {
        let mut contents = Vec::with_capacity(files.len());
        let mut left = self.most_input_bytes;
        for (name, key) in files {
            let bucket = self.input_bucket.as_ref().ok_or(InputError::NoInputBucket)?;
            let content = self.read(bucket, key, left).await?;
            let content = content
                .map_err(|TooLarge(_)| InputError::FilesTooLarge { name: name.clone(), most: self.most_input_bytes })?;
            left -= content.len();
            contents.push(content);
        }
        Ok(contents)
    }

    /// Reads an object, unless it is larger than `most` bytes.
    async fn read(&self, bucket: &str, key: &str, most: usize) -> Result<Result<Bytes, TooLarge>, InputError> {
        let unavailable = |reason| InputError::Unavailable { key: key.to_owned(), reason };
        let object = match self.client.get_object().bucket(bucket).key(key).send().await {
            Ok(object) => object,
            Err(error) if matches!(error.as_service_error(), Some(GetObjectError::NoSuchKey(_))) => {
                return Err(InputError::NotFound { bucket: bucket.to_owned(), key: key.to_owned() });
            }
            Err(error) => return Err(unavailable(in_short(&error))),
        };
        let announced = object.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
        if announced > most {
            return Ok(Err(TooLarge(announced)));
        }
        let mut stream = object.body;
        let mut content = BytesMut::with_capacity(announced);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| unavailable(chain(&error)))?;
            if content.len() + chunk.len() > most {
                return Ok(Err(TooLarge(content.len() + chunk.len())));
            }
            content.extend_from_slice(&chunk);
        }
        Ok(Ok(content.freeze()))
    }

    /// Stores a PDF whole. S3 verifies the checksum that the SDK sends along.
    ///
    /// # Errors
    /// When S3 does not take it, after the SDK's own retries.
    pub async fn store(&self, job: Job, pages: usize, pdf: Bytes) -> Result<(), StoreError> {
        self.client
            .put_object()
            .bucket(&self.output_bucket)
            .key(job.key)
            .content_type("application/pdf")
            .set_content_disposition(job.content_disposition)
            .set_metadata(Some(job.metadata.into_iter().collect()))
            .metadata("pages", pages.to_string())
            .body(ByteStream::from(pdf))
            .send()
            .await
            .map(drop)
            .map_err(|error| StoreError(in_short(&error)))
    }
}

/// What S3 said, or what came between it and us, in one line.
fn in_short<E: ProvideErrorMetadata + Error + 'static>(error: &SdkError<E>) -> String {
    match (error.code(), error.raw_response()) {
        (Some(code), Some(response)) => {
            let message = error.message().unwrap_or("no reason given");
            format!("{} {code}: {message}", response.status().as_u16())
        }
        _ => chain(error),
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
