//! A function in a process of its own, and Lambda's runtime API for it, so far as a benchmark needs that.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{cores, templates};

/// What an extension is answered.
const REGISTERED: &str = "HTTP/1.1 200 OK\r\nLambda-Extension-Identifier: e-1\r\ncontent-length: 61\r\n\r\n\
                          {\"functionName\": \"f\", \"functionVersion\": \"1\", \"handler\": \"h\"}";
const ACCEPTED: &str = "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n";
const TIMEOUT: Duration = Duration::from_mins(1);

/// A function that waits for an event.
pub struct FunctionProcess {
    process: Child,
    /// From the start of the process until it asked for its first event.
    pub init: Duration,
    requests: Receiver<(Instant, Request)>,
    /// The connection on which it waits for an event.
    waiting: TcpStream,
}

/// What the function asks of the runtime API.
enum Request {
    Next(TcpStream),
    Response(String),
}

/// How long an invocation took, from its event.
#[derive(Clone, Copy)]
pub struct InvocationTimes {
    /// Until the function had answered.
    pub until_answer: Duration,
    /// Until the function asked for the next event.
    pub until_next: Duration,
}

impl FunctionProcess {
    /// Starts the program with these variables beside those that Lambda sets, and waits until it asks for an event.
    pub fn start(command: &mut Command) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        command
            .env("AWS_LAMBDA_RUNTIME_API", listener.local_addr().unwrap().to_string())
            .env("AWS_LAMBDA_FUNCTION_NAME", "function")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", (1769 * cores()).to_string())
            .env("AWS_REGION", "eu-central-1")
            .env("OUTPUT_BUCKET", "output")
            .env("TEMPLATES_DIR", templates());
        let (sender, requests) = mpsc::channel();
        let began = Instant::now();
        let mut process = command.spawn().unwrap();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let sender = sender.clone();
                std::thread::spawn(move || serve(connection.unwrap(), &sender));
            }
        });
        let (ready_at, Request::Next(waiting)) = requests.recv_timeout(TIMEOUT).unwrap() else {
            panic!("an answer without an event: {:?}", process.wait());
        };
        Self { process, init: ready_at - began, requests, waiting }
    }

    /// What the process writes to standard output, if that is a pipe.
    pub fn take_stdout(&mut self) -> ChildStdout {
        self.process.stdout.take().unwrap()
    }

    /// Has the function handle an event; returns its answer, too.
    pub fn invoke(&mut self, event: &str) -> (InvocationTimes, String) {
        let deadline = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + TIMEOUT;
        let head = format!(
            "HTTP/1.1 200 OK\r\nLambda-Runtime-Aws-Request-Id: id\r\nLambda-Runtime-Deadline-Ms: {}\r\n\
             Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:eu-central-1:123456789012:function:function\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            deadline.as_millis(),
            event.len()
        );
        let began = Instant::now();
        self.waiting.write_all(&[head.as_bytes(), event.as_bytes()].concat()).unwrap();
        let (answered_at, Request::Response(answer)) = self.requests.recv_timeout(TIMEOUT).unwrap() else {
            panic!("the function asked for another event without an answer");
        };
        let (asked_at, Request::Next(waiting)) = self.requests.recv_timeout(TIMEOUT).unwrap() else {
            panic!("the function answered twice");
        };
        self.waiting = waiting;
        (InvocationTimes { until_answer: answered_at - began, until_next: asked_at - began }, answer)
    }
}

impl Drop for FunctionProcess {
    fn drop(&mut self) {
        // Its press and runs end with it.
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Answers the requests of one connection until it is closed. Whoever asks for an event of an extension waits until
/// the end.
fn serve(connection: TcpStream, requests: &Sender<(Instant, Request)>) {
    connection.set_nodelay(true).unwrap();
    let mut writer = connection.try_clone().unwrap();
    let mut reader = BufReader::new(connection);
    while let Ok(Some((line, body))) = read_request(&mut reader) {
        let now = Instant::now();
        if line.starts_with("POST /2020-01-01/extension/register ") {
            writer.write_all(REGISTERED.as_bytes()).unwrap();
        } else if line.starts_with("GET /2018-06-01/runtime/invocation/next ") {
            let _ = requests.send((now, Request::Next(writer.try_clone().unwrap())));
        } else if line.starts_with("POST /2018-06-01/runtime/invocation/") {
            let _ = requests.send((now, Request::Response(body)));
            writer.write_all(ACCEPTED.as_bytes()).unwrap();
        }
    }
}

/// Reads a request's first line and its body. `None` when the connection is closed.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<(String, String)>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some((line, String::from_utf8(body).unwrap())))
}
