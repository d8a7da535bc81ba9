//! Init: from the start of the process until it asks for its first event, press and runs warm, against
//! a hello world on `lambda_runtime`. The runtime API is a listener in this process, which takes
//! the time of the first request for an event.

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{Series, cores, templates};

const ROUNDS: usize = 20;
const HELLO: &str = "hello-world";

/// What an extension is answered.
const REGISTERED: &str = "HTTP/1.1 200 OK\r\nLambda-Extension-Identifier: e-1\r\ncontent-length: 61\r\n\r\n\
                          {\"functionName\": \"f\", \"functionVersion\": \"1\", \"handler\": \"h\"}";

fn main() -> std::process::ExitCode {
    if std::env::args().nth(1).as_deref() == Some(HELLO) {
        hello_world();
    }
    support::main(benchmark)
}

fn hello_world() {
    use lambda_runtime::{Error, LambdaEvent, run, service_fn};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let hello = service_fn(async |_: LambdaEvent<serde_json::Value>| Ok::<_, Error>("hello"));
    runtime.block_on(run(hello)).unwrap();
}

async fn benchmark() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let this = std::env::current_exe().unwrap();
    let variants: [(String, Command); 3] = [
        ("hello world".to_owned(), {
            let mut command = Command::new(&this);
            command.arg(HELLO);
            command
        }),
        ("pressrun, one worker".to_owned(), {
            let mut command = Command::new(env!("CARGO_BIN_EXE_pressrun"));
            command.env("WORKERS", "1");
            command
        }),
        (format!("pressrun, {} workers", cores()), Command::new(env!("CARGO_BIN_EXE_pressrun"))),
    ];
    let mut variants = variants.map(|(name, command)| (name, command, Series::default()));
    for _ in 0..ROUNDS {
        for (_, command, series) in &mut variants {
            series.add(until_first_request(command, &listener), 1);
        }
    }
    println!("| from start to asking for the first event | ms | middle half |");
    println!("| --- | --- | --- |");
    for (name, _, series) in &variants {
        println!("| {name} | {:.1} | {} |", series.median(), series.spread());
    }
}

fn until_first_request(command: &mut Command, listener: &TcpListener) -> Duration {
    command
        .env("AWS_LAMBDA_RUNTIME_API", listener.local_addr().unwrap().to_string())
        .env("AWS_LAMBDA_FUNCTION_NAME", "function")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", (1769 * cores()).to_string())
        .env("AWS_REGION", "eu-central-1")
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("OUTPUT_BUCKET", "output")
        .env("TEMPLATES_DIR", templates())
        .stdout(Stdio::null());
    let began = Instant::now();
    let mut process = command.spawn().unwrap();
    // Whoever asks for an event of an extension waits until the end.
    let mut connections = Vec::new();
    let took = loop {
        let (mut connection, _) = listener.accept().unwrap();
        let took = began.elapsed();
        let mut request = [0; 1024];
        let length = connection.read(&mut request).unwrap();
        let request = &request[..length];
        if request.starts_with(b"POST /2020-01-01/extension/register ") {
            connection.write_all(REGISTERED.as_bytes()).unwrap();
        }
        let is_ready = request.starts_with(b"GET /2018-06-01/runtime/invocation/next ");
        // Open until the process is killed: it would complain of one that is closed.
        connections.push(connection);
        if is_ready {
            break took;
        }
    };
    process.kill().unwrap();
    process.wait().unwrap();
    took
}
