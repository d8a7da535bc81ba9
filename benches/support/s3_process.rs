//! An S3 server in a process of its own, so that neither its memory nor its threads are counted
//! as the function's.

use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};

use pressrun::config::Config;
use pressrun::function::Function;

use crate::embedded::s3::{self, EmbeddedS3};
use crate::support::{templates, with_press_program};

/// The first argument of this program as the S3 server.
const S3_ROLE: &str = "s3";

/// Serves the buckets `input` and `output` until whoever started this closes its end, if this process was
/// started for that.
pub fn play_s3_role() -> Option<ExitCode> {
    if std::env::args().nth(1).as_deref() != Some(S3_ROLE) {
        return None;
    }
    let s3 = EmbeddedS3::start(&["input", "output"]);
    println!("{}", s3.endpoint());
    io::copy(&mut io::stdin(), &mut io::sink()).unwrap();
    Some(ExitCode::SUCCESS)
}

pub struct S3Process {
    process: Child,
    endpoint: String,
}

impl S3Process {
    pub fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut process = command.arg(S3_ROLE).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut endpoint = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut endpoint).unwrap();
        Self { process, endpoint: endpoint.trim_end().to_owned() }
    }

    /// A function with the templates that pressrun comes with, over this server.
    pub async fn function(&self) -> Function {
        self.function_with(|name| (name == "TEMPLATES_DIR").then(|| templates().display().to_string())).await
    }

    /// One with these environment variables, over this server.
    pub async fn function_with(&self, variables: impl Fn(&str) -> Option<String>) -> Function {
        let variables = |name: &str| match name {
            "OUTPUT_BUCKET" => Some("output".to_owned()),
            _ => variables(name),
        };
        let config = with_press_program(Config::from_variables(variables).unwrap());
        Function::start(config, self.client()).await.unwrap()
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn client(&self) -> aws_sdk_s3::Client {
        s3::client_for(&self.endpoint)
    }
}

impl Drop for S3Process {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}
