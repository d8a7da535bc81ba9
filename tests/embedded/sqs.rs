//! A stand-in for SQS on a free loopback port, in this process: queues that take messages, and
//! visibilities that are changed. Refuses what SQS refuses: messages that are too large, have too
//! many or empty attributes or forbidden characters, and a FIFO queue's without their ids.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_sqs::config::retry::RetryPartition;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use serde_json::{Value, json};

use super::faults::Faults;
use super::server::Server;

const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// A message as it was sent.
#[derive(Clone, Debug)]
pub struct Message {
    pub body: String,
    /// Name, and value as text; a binary one in base64.
    pub attributes: BTreeMap<String, String>,
    pub data_types: BTreeMap<String, String>,
    pub group: Option<String>,
    pub deduplication_id: Option<String>,
}

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    InternalFailure,
    AccessDenied,
    /// Served, but that much later.
    Delay(Duration),
}

#[derive(Default)]
struct Store {
    queues: Mutex<BTreeMap<String, Vec<Message>>>,
    /// Receipt handle and seconds.
    visibilities: Mutex<Vec<(String, u64)>>,
    /// By queue.
    faults: Faults<Fault>,
    /// One in so many requests fails.
    stumbles_one_in: Mutex<Option<usize>>,
    requests: Mutex<Vec<String>>,
}

/// A running server. Ends, with its thread, when it is dropped.
pub struct EmbeddedSqs {
    store: Arc<Store>,
    server: Server,
}

impl EmbeddedSqs {
    pub fn start(queues: &[&str]) -> Self {
        let store = Arc::new(Store::default());
        *store.queues.lock().unwrap() = queues.iter().map(|queue| ((*queue).to_owned(), Vec::new())).collect();
        let served = store.clone();
        let service = service_fn(move |request| answer(served.clone(), request));
        Self { store, server: Server::start("embedded-sqs", service) }
    }

    pub fn url(&self, queue: &str) -> String {
        format!("http://{}/123456789012/{queue}", self.server.address)
    }

    /// The real SDK, pointed here.
    pub fn client(&self) -> aws_sdk_sqs::Client {
        client_for(&self.endpoint())
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// What has been sent to a queue.
    pub fn messages(&self, queue: &str) -> Vec<Message> {
        self.store.queues.lock().unwrap()[queue].clone()
    }

    /// The receipt handles whose visibility was changed, and to how many seconds.
    pub fn visibilities(&self) -> Vec<(String, u64)> {
        std::mem::take(&mut self.store.visibilities.lock().unwrap())
    }

    /// The requests since this was asked last, as `SendMessage queue`.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.store.requests.lock().unwrap())
    }

    /// Answers one in so many requests with an error.
    pub fn stumble_one_in(&self, requests: usize) {
        *self.store.stumbles_one_in.lock().unwrap() = Some(requests);
    }

    /// Answers the next requests for a queue with these faults.
    pub fn answer_next(&self, queue: &str, faults: impl IntoIterator<Item = Fault>) {
        self.store.faults.answer_next(&whole(queue), faults);
    }

    /// Answers every request for a queue with this fault, or as it should again.
    pub fn answer_all(&self, queue: &str, fault: Option<Fault>) {
        self.store.faults.answer_all(&whole(queue), fault);
    }
}

/// The real SDK, pointed at an endpoint.
pub fn client_for(endpoint: &str) -> aws_sdk_sqs::Client {
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("eu-central-1"))
        .credentials_provider(Credentials::new("key", "secret", None, None, "embedded"))
        .endpoint_url(endpoint)
        .http_client(pressrun::aws::http_client())
        // Clients in one partition share a budget of retries, which the faults of other tests use up.
        .retry_partition(RetryPartition::new(format!("sqs {endpoint}")))
        .build();
    aws_sdk_sqs::Client::from_conf(config)
}

/// So that `failed` is not found in `failed.fifo`.
fn whole(queue: &str) -> String {
    format!("{queue} ")
}

async fn answer(store: Arc<Store>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let target = request.headers()["x-amz-target"].to_str().unwrap().trim_start_matches("AmazonSQS.").to_owned();
    let Ok(body) = request.into_body().collect().await else { return Ok(refused("InvalidContent", 400)) };
    let input: Value = serde_json::from_slice(&body.to_bytes()).unwrap();
    let queue = input["QueueUrl"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    store.requests.lock().unwrap().push(format!("{target} {queue}"));
    let requests = store.requests.lock().unwrap().len();
    let stumbles = store.stumbles_one_in.lock().unwrap().is_some_and(|one_in| requests.is_multiple_of(one_in));
    match store.faults.of(&whole(&queue)).or(stumbles.then_some(Fault::InternalFailure)) {
        Some(Fault::InternalFailure) => return Ok(refused("InternalFailure", 500)),
        Some(Fault::AccessDenied) => return Ok(refused("AccessDenied", 403)),
        Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
        None => {}
    }
    let answered = match target.as_str() {
        "SendMessage" => send_message(&store, &queue, &input),
        "ChangeMessageVisibilityBatch" => Ok(change_visibilities(&store, &input)),
        _ => Err("UnsupportedOperation"),
    };
    Ok(match answered {
        Ok(answer) => response(200, &answer),
        Err(code) => refused(code, 400),
    })
}

fn send_message(store: &Store, queue: &str, input: &Value) -> Result<Value, &'static str> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let given = input["MessageAttributes"].as_object().cloned().unwrap_or_default();
    let value_of =
        |value: &Value| text(&value["StringValue"]).or_else(|| text(&value["BinaryValue"])).unwrap_or_default();
    let message = Message {
        body: text(&input["MessageBody"]).unwrap_or_default(),
        attributes: given.iter().map(|(name, value)| (name.clone(), value_of(value))).collect(),
        data_types: given.iter().map(|(name, value)| (name.clone(), text(&value["DataType"]).unwrap())).collect(),
        group: text(&input["MessageGroupId"]),
        deduplication_id: text(&input["MessageDeduplicationId"]),
    };
    let texts = || std::iter::once(&message.body).chain(message.attributes.values());
    let names = message.attributes.keys().chain(message.data_types.values()).map(String::len).sum::<usize>();
    let mut queues = store.queues.lock().unwrap();
    let messages = queues.get_mut(queue).ok_or("AWS.SimpleQueueService.NonExistentQueue")?;
    let is_allowed =
        |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    let is_too_large = texts().map(String::len).sum::<usize>() + names > MAX_MESSAGE_BYTES;
    let is_fifo = queue.strip_suffix(".fifo").is_some();
    if texts().any(String::is_empty) || message.attributes.len() > 10 || is_too_large {
        Err("InvalidParameterValue")
    } else if !texts().all(|text| text.chars().all(is_allowed)) {
        Err("InvalidMessageContents")
    } else if is_fifo != (message.group.is_some() && message.deduplication_id.is_some()) {
        Err("MissingParameter")
    } else {
        messages.push(message);
        Ok(json!({"MessageId": messages.len().to_string()}))
    }
}

fn change_visibilities(store: &Store, input: &Value) -> Value {
    let entries = input["Entries"].as_array().unwrap();
    for entry in entries {
        let handle = entry["ReceiptHandle"].as_str().unwrap().to_owned();
        store.visibilities.lock().unwrap().push((handle, entry["VisibilityTimeout"].as_u64().unwrap()));
    }
    let ids: Vec<Value> = entries.iter().map(|entry| json!({"Id": entry["Id"]})).collect();
    json!({"Successful": ids, "Failed": []})
}

fn refused(code: &str, status: u16) -> Response<Full<Bytes>> {
    response(status, &json!({"__type": format!("com.amazonaws.sqs#{code}"), "message": "asked for by the test"}))
}

fn response(status: u16, body: &Value) -> Response<Full<Bytes>> {
    let builder = Response::builder().status(status).header("content-type", "application/x-amz-json-1.0");
    builder.body(Full::new(Bytes::from(body.to_string()))).unwrap()
}
