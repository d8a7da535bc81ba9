//! When the function is killed, whatever it is doing, its presses and their runs end by themselves.
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

/// A function that asks for its first event, and the connection on which it asks.
fn start(listener: &TcpListener) -> (Child, TcpStream) {
    let function = Command::new(env!("CARGO_BIN_EXE_pressrun"))
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
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (mut connection, _) = listener.accept().unwrap();
    let mut request = [0; 1024];
    let length = connection.read(&mut request).unwrap();
    assert!(request[..length].starts_with(b"GET /2018-06-01/runtime/invocation/next "));
    (function, connection)
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

fn descendants(function: u32) -> Vec<u32> {
    let presses = children(function);
    let runs: Vec<u32> = presses.iter().flat_map(|press| children(*press)).collect();
    [presses, runs].concat()
}

fn kill_and_expect_nothing_left(mut function: Child, with: Signal) {
    let family = descendants(function.id());
    assert_eq!(family.len(), 4, "two presses and their runs");
    signal(function.id(), with);
    function.wait().unwrap();
    wait_until("presses and runs are gone", || !family.iter().any(|process| is_alive(*process)));
}

#[test]
fn an_idle_function_leaves_no_orphans() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for with in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGABRT] {
        let (function, _connection) = start(&listener);
        kill_and_expect_nothing_left(function, with);
    }
}

#[test]
fn a_working_function_leaves_no_orphans() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for with in [Signal::SIGKILL, Signal::SIGTERM] {
        let (function, mut connection) = start(&listener);
        let endless = |id| record(id, "endless", json!({"endless": true}));
        answer_with(&mut connection, &json!({"Records": [endless("a"), endless("b")]}));
        let at_work = |press: &u32| children(*press).iter().any(|run| threads(*run).len() > 1);
        wait_until("both presses work", || children(function.id()).iter().all(at_work));
        // Their warming also takes a second thread, but is over soon.
        std::thread::sleep(Duration::from_millis(200));
        assert!(children(function.id()).iter().all(at_work));
        kill_and_expect_nothing_left(function, with);
    }
}

#[test]
fn a_dead_presss_run_ends_with_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut function, _connection) = start(&listener);
    let presses = children(function.id());
    let runs: Vec<u32> = presses.iter().flat_map(|press| children(*press)).collect();
    for press in presses {
        signal(press, Signal::SIGKILL);
    }
    wait_until("the runs are gone", || !runs.iter().any(|run| is_alive(*run)));
    function.kill().unwrap();
    function.wait().unwrap();
}
