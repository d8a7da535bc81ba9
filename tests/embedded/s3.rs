//! An S3 server on a free loopback port, in this process: s3s speaks the protocol, a map under
//! one lock is the store. Knows what pressrun needs and refuses the rest.
//!
//! It verifies signatures and checksums, and does not create buckets that it was not started
//! with.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_sdk_s3::config::retry::RetryPartition;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use s3s::auth::SimpleAuth;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum, Crc32, Md5};
use s3s::dto::{
    ETag, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, PutObjectInput, PutObjectOutput,
    StreamingBlob, Timestamp,
};
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use super::faults::Faults;
use super::server::Server;

pub const ACCESS_KEY: &str = "AKIAEMBEDDEDS3EXAMPLE";
pub const SECRET_KEY: &str = "embedded-s3-secret-key";

/// An object as S3 keeps it.
#[derive(Clone, Debug)]
pub struct Object {
    pub body: Bytes,
    pub content_type: Option<String>,
    pub content_disposition: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub e_tag: String,
    pub last_modified: SystemTime,
}

/// What a request is answered with instead of being served.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// 500 `InternalError`.
    InternalError,
    /// 503 `SlowDown`.
    SlowDown,
    /// 403 `AccessDenied`.
    AccessDenied,
    /// 404 `NoSuchBucket`.
    NoSuchBucket,
    /// 409 `ConditionalRequestConflict`.
    Conflict,
    /// A PUT whose body has been altered on its way.
    Altered,
    /// Served, but answered with 500 `InternalError`.
    ErrorOnceServed,
    /// Served, but that much later.
    Delay(Duration),
}

type Buckets = BTreeMap<String, BTreeMap<String, Object>>;

#[derive(Default)]
struct Store {
    buckets: Mutex<Buckets>,
    /// By request, as `PUT bucket/key`.
    faults: Faults<Fault>,
    /// One in so many requests gets a fault, by chance.
    stumbles_one_in: Mutex<Option<u64>>,
    /// All requests, as `PUT bucket/key`.
    requests: Mutex<Vec<String>>,
}

/// A running server. Ends, with its thread, when it is dropped.
pub struct EmbeddedS3 {
    store: Arc<Store>,
    server: Server,
}

impl EmbeddedS3 {
    /// Starts a server that has these buckets, all empty.
    pub fn start(buckets: &[&str]) -> Self {
        let store = Arc::new(Store::default());
        *store.buckets.lock().unwrap() = buckets.iter().map(|bucket| ((*bucket).to_owned(), BTreeMap::new())).collect();
        let mut builder = S3ServiceBuilder::new(MapS3(store.clone()));
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        Self { store, server: Server::start("embedded-s3", builder.build()) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// The real SDK, pointed here.
    pub fn client(&self) -> aws_sdk_s3::Client {
        client_for(&self.endpoint())
    }

    pub fn put(&self, bucket: &str, key: &str, body: impl Into<Bytes>) {
        let body = body.into();
        let object = Object {
            e_tag: e_tag(&body),
            body,
            content_type: None,
            content_disposition: None,
            metadata: BTreeMap::new(),
            last_modified: SystemTime::now(),
        };
        self.store.buckets.lock().unwrap().get_mut(bucket).unwrap().insert(key.to_owned(), object);
    }

    pub fn object(&self, bucket: &str, key: &str) -> Option<Object> {
        self.store.buckets.lock().unwrap().get(bucket)?.get(key).cloned()
    }

    pub fn keys(&self, bucket: &str) -> Vec<String> {
        self.store.buckets.lock().unwrap()[bucket].keys().cloned().collect()
    }

    pub fn clear(&self, bucket: &str) {
        self.store.buckets.lock().unwrap().get_mut(bucket).unwrap().clear();
    }

    pub fn remove(&self, bucket: &str, key: &str) -> Option<Object> {
        self.store.buckets.lock().unwrap().get_mut(bucket)?.remove(key)
    }

    /// Answers the next requests with these faults, one each.
    pub fn answer_next_with(&self, faults: impl IntoIterator<Item = Fault>) {
        self.answer_next("", faults);
    }

    /// Answers the next requests that contain this, as `PUT bucket/key`, with these faults.
    pub fn answer_next(&self, request: &str, faults: impl IntoIterator<Item = Fault>) {
        self.store.faults.answer_next(request, faults);
    }

    /// Answers every request with this fault from now on; with `None` as it should again.
    pub fn answer_all_with(&self, fault: Option<Fault>) {
        self.answer_all("", fault);
    }

    /// The same for every request that contains this, as `PUT bucket/key`.
    pub fn answer_all(&self, request: &str, fault: Option<Fault>) {
        self.store.faults.answer_all(request, fault);
    }

    /// Answers one in so many requests with an error, by a chance that is the same each time.
    pub fn stumble_one_in(&self, requests: u64) {
        *self.store.stumbles_one_in.lock().unwrap() = Some(requests);
    }

    /// The requests since this was asked last, as `PUT bucket/key`.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.store.requests.lock().unwrap())
    }
}

/// The real SDK, pointed at an endpoint.
pub fn client_for(endpoint: &str) -> aws_sdk_s3::Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("eu-central-1"))
        .credentials_provider(Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "embedded"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .http_client(pressrun::aws::http_client())
        // Clients in one partition share a budget of retries, which the faults of other tests use up.
        .retry_partition(RetryPartition::new(endpoint.to_owned()))
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

struct MapS3(Arc<Store>);

impl MapS3 {
    /// Does what a test has asked for. Gives back what is to be done when a PUT is served.
    async fn stumble(&self, method: &str, bucket: &str, key: &str) -> S3Result<Option<Fault>> {
        let request = format!("{method} {bucket}/{key}");
        let fault = self.0.faults.of(&request).or_else(|| self.chance_fault());
        self.0.requests.lock().unwrap().push(request);
        match fault {
            Some(Fault::InternalError) => Err(s3_error!(InternalError, "asked for by the test")),
            Some(Fault::SlowDown) => Err(s3_error!(SlowDown, "asked for by the test")),
            Some(Fault::AccessDenied) => Err(s3_error!(AccessDenied, "asked for by the test")),
            Some(Fault::NoSuchBucket) => Err(s3_error!(NoSuchBucket, "asked for by the test")),
            Some(Fault::Conflict) => Err(s3_error!(ConditionalRequestConflict, "asked for by the test")),
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(None)
            }
            fault => Ok(fault),
        }
    }

    fn chance_fault(&self) -> Option<Fault> {
        let one_in = (*self.0.stumbles_one_in.lock().unwrap())?;
        let mut hasher = DefaultHasher::new();
        self.0.requests.lock().unwrap().len().hash(&mut hasher);
        let chance = hasher.finish();
        let faults = [Fault::InternalError, Fault::SlowDown, Fault::ErrorOnceServed, Fault::AccessDenied];
        chance.is_multiple_of(one_in).then(|| faults[usize::try_from(chance / one_in % 4).unwrap()])
    }

    fn object(&self, bucket: &str, key: &str) -> S3Result<Object> {
        let buckets = self.0.buckets.lock().unwrap();
        let bucket = buckets.get(bucket).ok_or_else(|| s3_error!(NoSuchBucket))?;
        bucket.get(key).cloned().ok_or_else(|| s3_error!(NoSuchKey))
    }
}

#[async_trait::async_trait]
impl S3 for MapS3 {
    async fn put_object(&self, mut request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let mut body = collect(input.body).await?;
        // After the body has been read, so that the connection stays in order.
        let fault = self.stumble("PUT", &input.bucket, &input.key).await?;
        if matches!(fault, Some(Fault::Altered)) {
            body = body.iter().map(|byte| byte ^ 1).collect();
        }
        let mut hasher = ChecksumHasher { crc32: Some(Crc32::new()), ..ChecksumHasher::default() };
        hasher.update(&body);
        let computed = hasher.finalize().checksum_crc32;
        let trailing = request
            .trailing_headers
            .take()
            .and_then(|trailers| trailers.take())
            .and_then(|headers| headers.get("x-amz-checksum-crc32")?.to_str().ok().map(str::to_owned));
        let announced = input.checksum_crc32.or(trailing);
        if announced.is_none() {
            return Err(s3_error!(InvalidRequest, "a CRC32 is expected, as every SDK of today sends it"));
        }
        if announced != computed {
            return Err(s3_error!(BadDigest, "the checksum does not match what was received"));
        }
        let object = Object {
            e_tag: e_tag(&body),
            body,
            content_type: input.content_type,
            content_disposition: input.content_disposition,
            metadata: input.metadata.unwrap_or_default().into_iter().collect(),
            last_modified: SystemTime::now(),
        };
        let mut buckets = self.0.buckets.lock().unwrap();
        let bucket = buckets.get_mut(&input.bucket).ok_or_else(|| s3_error!(NoSuchBucket))?;
        if input.if_none_match.is_some() && bucket.contains_key(&input.key) {
            return Err(s3_error!(PreconditionFailed));
        }
        let e_tag = Some(ETag::Strong(object.e_tag.clone()));
        bucket.insert(input.key, object);
        if matches!(fault, Some(Fault::ErrorOnceServed)) {
            return Err(s3_error!(InternalError, "asked for by the test"));
        }
        Ok(S3Response::new(PutObjectOutput { e_tag, checksum_crc32: computed, ..PutObjectOutput::default() }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.stumble("GET", &request.input.bucket, &request.input.key).await?;
        let object = self.object(&request.input.bucket, &request.input.key)?;
        Ok(S3Response::new(GetObjectOutput {
            content_length: i64::try_from(object.body.len()).ok(),
            body: Some(StreamingBlob::wrap(futures_util::stream::once(
                async move { Ok::<_, std::io::Error>(object.body) },
            ))),
            content_type: object.content_type,
            content_disposition: object.content_disposition,
            metadata: Some(object.metadata.into_iter().collect()),
            e_tag: Some(ETag::Strong(object.e_tag)),
            last_modified: Some(Timestamp::from(object.last_modified)),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.stumble("HEAD", &request.input.bucket, &request.input.key).await?;
        let object = self.object(&request.input.bucket, &request.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: i64::try_from(object.body.len()).ok(),
            content_type: object.content_type,
            content_disposition: object.content_disposition,
            metadata: Some(object.metadata.into_iter().collect()),
            e_tag: Some(ETag::Strong(object.e_tag)),
            last_modified: Some(Timestamp::from(object.last_modified)),
            ..HeadObjectOutput::default()
        }))
    }
}

async fn collect(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(body) = body else { return Ok(Bytes::new()) };
    let collected: Result<BytesMut, _> = body
        .try_fold(BytesMut::new(), |mut all, chunk| async move {
            all.extend_from_slice(&chunk);
            Ok(all)
        })
        .await;
    collected.map(BytesMut::freeze).map_err(|error| s3_error!(IncompleteBody, "{}", error))
}

fn e_tag(body: &[u8]) -> String {
    let mut md5 = Md5::new();
    md5.update(body);
    let mut hex = String::new();
    for byte in &md5.finalize()[..] {
        write!(hex, "{byte:02x}").unwrap();
    }
    hex
}
