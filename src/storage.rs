//! S3: reads the messages that pointers point to, and stores PDFs.

use aws_sdk_s3::Client;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};

use crate::aws;
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

/// Why a message behind a pointer could not be read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("the message lies in the bucket {found:?}, and only {} may be read", readable(.allowed.as_deref()))]
    ForeignBucket { found: String, allowed: Option<String> },
    #[error("the message has {bytes} bytes, more than the {most} that MAX_DATA_BYTES allows")]
    TooLarge { bytes: usize, most: usize },
    #[error("there is no object {key:?} in the bucket {bucket:?}")]
    NotFound { bucket: String, key: String },
    #[error("the message is not UTF-8")]
    NotText,
    #[error("S3 did not give the message: {0}")]
    Unavailable(String),
}

/// S3 did not take a PDF. Another try may succeed.
#[derive(Debug, thiserror::Error)]
#[error("S3 did not store the PDF: {0}")]
pub struct StoreError(String);

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

    /// Reads the message that a pointer points to. Its size is checked before its body is read.
    ///
    /// # Errors
    /// When it may not be read, is not there, is too large, or S3 fails.
    pub async fn read_message(&self, pointer: &Pointer) -> Result<String, InputError> {
        if self.input_bucket.as_deref() != Some(&pointer.bucket) {
            return Err(InputError::ForeignBucket {
                found: pointer.bucket.clone(),
                allowed: self.input_bucket.clone(),
            });
        }
        let object = self
            .client
            .get_object()
            .bucket(&pointer.bucket)
            .key(&pointer.key)
            .send()
            .await
            .map_err(|error| input_error(pointer, &error))?;
        let announced = object.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
        self.check_size(announced)?;
        let mut stream = object.body;
        let mut message = BytesMut::with_capacity(announced);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| InputError::Unavailable(aws::chain(&error)))?;
            self.check_size(message.len() + chunk.len())?;
            message.extend_from_slice(&chunk);
        }
        String::from_utf8(message.into()).map_err(|_| InputError::NotText)
    }

    fn check_size(&self, bytes: usize) -> Result<(), InputError> {
        let most = self.most_input_bytes;
        if bytes > most { Err(InputError::TooLarge { bytes, most }) } else { Ok(()) }
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
            .map_err(|error| StoreError(aws::in_short(&error)))
    }
}

fn input_error(pointer: &Pointer, error: &SdkError<GetObjectError>) -> InputError {
    match error.as_service_error() {
        Some(GetObjectError::NoSuchKey(_)) => {
            InputError::NotFound { bucket: pointer.bucket.clone(), key: pointer.key.clone() }
        }
        _ => InputError::Unavailable(aws::in_short(error)),
    }
}
