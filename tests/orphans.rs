//! When the function is killed, whatever it is doing, its press and the runs end by themselves;
//! when it is told to end, it ends them and waits for them.
//! The real program, with a runtime API on loopback that hands it one event.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::processes::{children, is_alive, signal, threads};
use support::{record, test_templates};

const REGISTER: &str = "POST /2020-01-01/extension/register ";
const NEXT_EVENT: &str = "GET /2018-06-01/runtime/invocation/next ";
const NEXT_EVENT_OF_EXTENSION: &str = "GET /2020-01-01/extension/event/next ";

/// What the function's extension is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extensions {
    Registered,
    /// As by a runtime API that has none.
    Unknown,
}

/// A function, and the runtime API that it asks for events.
struct Stage {
    function: Child,
    listener: TcpListener,
    /// The connection on which it asked for its first event.
    connection: TcpStream,
    /// What else it has said.
    others: Vec<TcpStream>,
}

impl Stage {
    /// Starts a function and waits until it asks for its first event.
    fn start(extensions: Extensions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let function = start_function(&listener);
        let (connection, others) = hear_until_first_event_is_wanted(&listener, extensions);
        Self { function, listener, connection, others }
    }

    /// Gives both runs a document that never ends, and waits until they work.
    fn work(&mut self) {
        let endless = |id| record(id, "endless", json!({"endless": true}));
        answer_with(&mut self.connection, &json!({"Records": [endless("a"), endless("b")]}));
        let at_work = || {
            let runs = runs(self.function.id());
            runs.len() == 2 && runs.iter().all(|run| threads(*run).len() > 1)
        };
        wait_until("both runs work", at_work);
        // Their warming also takes a second thread, but is over soon.
        std::thread::sleep(Duration::from_millis(200));
        assert!(at_work());
    }

    fn kill_and_expect_nothing_left(mut self, with: Signal) {
        let family = press_and_runs(self.function.id());
        signal(self.function.id(), with);
        self.function.wait().unwrap();
        wait_until("press and runs are gone", || !family.iter().any(|process| is_alive(*process)));
    }

    /// Ends the function as Lambda does. When it has exited there is nothing left to be ended or
    /// reaped, and it has said so in one line.
    fn terminate(mut self, doing: &str) {
        let family = press_and_runs(self.function.id());
        signal(self.function.id(), Signal::SIGTERM);
        let status = self.function.wait().unwrap();
        let left: Vec<u32> = family.into_iter().filter(|process| is_alive(*process)).collect();
        assert_eq!(left, Vec::<u32>::new(), "neither processes nor zombies");
        assert_eq!(status.code(), Some(0), "{status}");
        self.expect_no_answer();

        let mut log = String::new();
        self.function.stdout.take().unwrap().read_to_string(&mut log).unwrap();
        let last_words: Vec<&str> = log.lines().skip_while(|line| !line.contains("SIGTERM while")).collect();
        assert_eq!(last_words.len(), 1, "{log}");
        assert!(last_words[0].contains(&format!("SIGTERM while {doing}")), "{log}");
    }

    /// That the function has said nothing of its event, on the connection where it got it or on
    /// another.
    fn expect_no_answer(&mut self) {
        self.listener.set_nonblocking(true).unwrap();
        while let Ok((connection, _)) = self.listener.accept() {
            connection.set_nonblocking(false).unwrap();
            self.others.push(connection);
        }
        let mut said = String::new();
        self.connection.read_to_string(&mut said).unwrap();
        assert_eq!(said, "");
        for connection in &mut self.others {
            let mut said = String::new();
            connection.read_to_string(&mut said).unwrap();
            assert!(said.is_empty() || said.starts_with(NEXT_EVENT_OF_EXTENSION), "{said}");
        }
    }
}

fn start_function(listener: &TcpListener) -> Child {
    Command::new(env!("CARGO_BIN_EXE_pressrun"))
        .env("AWS_LAMBDA_RUNTIME_API", listener.local_addr().unwrap().to_string())
        .env("AWS_LAMBDA_FUNCTION_NAME", "pressrun")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "3538")
        .env("AWS_REGION", "eu-central-1")
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("OUTPUT_BUCKET", "output")
        .env("WORKERS", "2")
        .env("TEMPLATES_DIR", test_templates())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Gives the connection on which the first event is asked for, and those before it.
fn hear_until_first_event_is_wanted(listener: &TcpListener, extensions: Extensions) -> (TcpStream, Vec<TcpStream>) {
    let mut others = Vec::new();
    loop {
        let (mut connection, _) = listener.accept().unwrap();
        let request = read_request(&mut connection);
        if request.starts_with(NEXT_EVENT) {
            return (connection, others);
        }
        if request.starts_with(REGISTER) {
            connection.write_all(extensions.answer_to_registration().as_bytes()).unwrap();
        } else {
            assert!(request.starts_with(NEXT_EVENT_OF_EXTENSION), "{request}");
        }
        others.push(connection);
    }
}

impl Extensions {
    fn answer_to_registration(self) -> String {
        let (head, body) = match self {
            Self::Registered => (
                "200 OK\r\nLambda-Extension-Identifier: e-1",
                r#"{"functionName": "pressrun", "functionVersion": "$LATEST", "handler": "bootstrap"}"#,
            ),
            Self::Unknown => ("404 Not Found", "not found"),
        };
        format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }
}

/// A request's head, and its body where that is as long as it says.
fn read_request(connection: &mut TcpStream) -> String {
    let mut request = Vec::new();
    loop {
        let mut chunk = [0; 1024];
        let length = connection.read(&mut chunk).unwrap();
        assert!(length > 0, "a request that ends early: {}", String::from_utf8_lossy(&request));
        request.extend_from_slice(&chunk[..length]);
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let wanted =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= wanted.unwrap_or(0) {
            return text.into_owned();
        }
    }
}

fn answer_with(connection: &mut TcpStream, event: &Value) {
    let body = event.to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nlambda-runtime-aws-request-id: r-1\r\n\
         lambda-runtime-deadline-ms: 4102444800000\r\n\
         lambda-runtime-invoked-function-arn: arn:aws:lambda:eu-central-1:123456789012:function:pressrun\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).unwrap();
    connection.write_all(body.as_bytes()).unwrap();
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < patience, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The press and its two runs, as soon as these are all: one that is replaced may still be there, and the second is
/// forked while the function asks for its first event.
fn press_and_runs(function: u32) -> Vec<u32> {
    let family = || [children(function), runs(function)].concat();
    wait_until("there are a press and two runs", || family().len() == 3);
    family()
}

fn runs(function: u32) -> Vec<u32> {
    children(function).into_iter().flat_map(children).collect()
}

#[test]
fn an_idle_function_leaves_no_orphans() {
    for with in [Signal::SIGKILL, Signal::SIGABRT] {
        Stage::start(Extensions::Registered).kill_and_expect_nothing_left(with);
    }
}

#[test]
fn a_working_function_leaves_no_orphans() {
    let mut stage = Stage::start(Extensions::Registered);
    stage.work();
    stage.kill_and_expect_nothing_left(Signal::SIGKILL);
}

#[test]
fn sigterm_ends_and_reaps_all_that_an_idle_function_has_started() {
    Stage::start(Extensions::Registered).terminate("idle");
}

#[test]
fn sigterm_ends_and_reaps_all_that_a_working_function_has_started() {
    let mut stage = Stage::start(Extensions::Registered);
    stage.work();
    stage.terminate("working");
}

#[test]
fn a_runtime_api_without_extensions_will_do() {
    let mut stage = Stage::start(Extensions::Unknown);
    stage.work();
    stage.terminate("working");
}

#[test]
fn the_runs_of_a_dead_press_end_with_it() {
    let Stage { mut function, connection: _connection, .. } = Stage::start(Extensions::Registered);
    let family = press_and_runs(function.id());
    let (press, runs) = family.split_first().unwrap();
    signal(*press, Signal::SIGKILL);
    let is_dead = |run: &u32| !is_alive(*run) || crate::support::processes::is_zombie(*run);
    wait_until("the runs are dead", || runs.iter().all(is_dead));
    function.kill().unwrap();
    function.wait().unwrap();
}
