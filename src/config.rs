//! Reads and checks the environment variables once, at init. Nothing else reads pressrun's own variables;
//! the AWS SDK and `lambda_runtime` read theirs themselves.
//!
//! Imports [`crate::message`], which knows what a key may be.

use std::cell::RefCell;
use std::env;
use std::path::PathBuf;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use crate::message;

/// The memory size that buys one vCPU, in MB.
/// Source: <https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html>.
const MEMORY_MB_PER_VCPU: u64 = 1769;
/// The most workers. The largest function has six vCPUs.
const MAX_WORKERS: usize = 64;
const DEFAULT_MAX_DATA_BYTES: usize = 16 * 1024 * 1024;
/// Lambda gives init 10 s, and starts it anew within the first invocation if it takes longer.
const MAX_INIT_TIME_IN_LAMBDA: Duration = Duration::from_secs(9);
const DEFAULT_DEADLINE_MARGIN: Duration = Duration::from_secs(1);

/// What the environment variables say, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// `OUTPUT_BUCKET`: the only bucket that is written to.
    pub output_bucket: String,
    /// `OUTPUT_PREFIX`: comes before every key, as it is. Default: empty.
    pub output_prefix: String,
    /// `INPUT_BUCKET`: the only bucket that is read from. Default: none, and pointers are refused.
    pub input_bucket: Option<String>,
    /// `TEMPLATES_DIR`. Default: `templates` in `LAMBDA_TASK_ROOT`, else `/opt/templates`, else
    /// `./templates`, whichever exists.
    pub templates_dir: PathBuf,
    /// The templates that there are to be, of those in the folder. Default: all. No variable sets it, since a
    /// function has all; the local example asks for some.
    pub only_templates: Vec<String>,
    /// The longest that the press may take to become warm. Default: 9 s in Lambda, which waits for 10 s, and
    /// else none.
    pub max_init_time: Option<Duration>,
    /// `WORKERS`: how many runs there are at the same time. Default: the vCPUs that the memory size
    /// buys, at 1,769 MB each, rounded, at least 1, at most the CPUs seen.
    pub workers: usize,
    /// The most threads that one document may have: the vCPUs that the memory size buys, at most the CPUs
    /// seen.
    pub cores: usize,
    /// `MAX_DATA_BYTES`: the most bytes of a message behind a pointer, and of a message's files together.
    /// Default: 16 MiB.
    pub max_data_bytes: usize,
    /// `MAX_RENDER_MS`: the longest that a document may be rendered. One that takes longer fails
    /// permanently. Default: half of the invocation's time.
    pub max_render_time: Option<Duration>,
    /// `TIMINGS_SLOWER_THAN_MS`: Typst's timings of a document that takes longer to render are stored beside
    /// its PDF. Default: none are recorded.
    pub timings_slower_than: Option<Duration>,
    /// `FAILED_QUEUE_URL`: the queue that messages are sent to that have failed permanently. Default: none,
    /// and they stay in their own queue.
    pub failed_queue_url: Option<String>,
    /// `DONE_QUEUE_URL`: the queue that stored documents are announced on. Default: none.
    pub done_queue_url: Option<String>,
    /// `AWS_LAMBDA_FUNCTION_MEMORY_SIZE`, which Lambda sets, else `MEMORY_MB`: the memory that
    /// function, press and runs share, in bytes. Default: none, and no document has a limit.
    pub memory_bytes: Option<u64>,
    /// `DEADLINE_MARGIN_MS`: how long before Lambda's deadline every record that is not done fails
    /// transiently. Default: 1,000 ms.
    pub deadline_margin: Duration,
    /// Whether `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` is set. The SDK reads the values itself.
    pub has_own_s3_endpoint: bool,
    /// The program that is started as a press: this one.
    pub press_program: PathBuf,
    /// `AWS_LAMBDA_FUNCTION_NAME`, which Lambda sets: the dimension of all metrics. Default: `pressrun`.
    pub function_name: String,
}

/// How to log, as Lambda's advanced logging controls say. It is read before anything can be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// `AWS_LAMBDA_LOG_FORMAT`: `JSON`, or else text.
    pub format: LogFormat,
    /// `AWS_LAMBDA_LOG_LEVEL`, else `RUST_LOG`. Default, and whatever is no level: `INFO`.
    pub level: LevelFilter,
    /// The level as Lambda spells it.
    pub level_name: &'static str,
}

/// The form of a line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// The log levels that Lambda knows.
/// Source: <https://docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs-log-level.html>.
const LOG_LEVELS: [(&str, LevelFilter); 6] = [
    ("TRACE", LevelFilter::TRACE),
    ("DEBUG", LevelFilter::DEBUG),
    ("INFO", LevelFilter::INFO),
    ("WARN", LevelFilter::WARN),
    ("ERROR", LevelFilter::ERROR),
    ("FATAL", LevelFilter::ERROR),
];

impl LogSettings {
    /// Reads this process's environment.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_variables(|name| env::var(name).ok())
    }

    /// Reads variables. No value is an error, since nothing could be logged yet.
    #[must_use]
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let is_json = variable("AWS_LAMBDA_LOG_FORMAT").is_some_and(|format| format.eq_ignore_ascii_case("json"));
        let asked = variable("AWS_LAMBDA_LOG_LEVEL").or_else(|| variable("RUST_LOG")).unwrap_or_default();
        let known = LOG_LEVELS.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(&asked));
        let (level_name, level) = known.unwrap_or(("INFO", LevelFilter::INFO));
        Self { format: if is_json { LogFormat::Json } else { LogFormat::Text }, level, level_name }
    }
}

/// A variable that is missing or has a value that it cannot have.
#[derive(Debug, thiserror::Error)]
#[error("{name} {problem}; it takes {takes}")]
pub struct ConfigError {
    name: &'static str,
    problem: String,
    takes: &'static str,
}

/// All variables that are missing or bad.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl Config {
    /// Reads this process's environment.
    ///
    /// # Errors
    /// All variables that are missing or bad.
    pub fn from_env() -> Result<Self, ConfigErrors> {
        Self::from_variables(|name| env::var(name).ok())
    }

    /// Reads variables. An empty one counts as absent.
    ///
    /// # Errors
    /// All variables that are missing or bad.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigErrors> {
        let variable = |name: &'static str| variable(name).filter(|value| !value.is_empty());
        let errors = Errors::default();
        let cores = errors.keep(cores(&variable)).unwrap_or(1);
        let config = Self {
            output_bucket: errors.keep(output_bucket(&variable)).unwrap_or_default(),
            output_prefix: errors.keep(output_prefix(&variable)).unwrap_or_default(),
            input_bucket: variable("INPUT_BUCKET"),
            templates_dir: errors.keep(templates_dir(&variable)).unwrap_or_default(),
            only_templates: Vec::new(),
            max_init_time: variable("AWS_LAMBDA_RUNTIME_API").map(|_| MAX_INIT_TIME_IN_LAMBDA),
            workers: errors.keep(workers(&variable)).flatten().unwrap_or(cores),
            cores,
            max_data_bytes: errors
                .keep(number(&variable, "MAX_DATA_BYTES", "a whole number of bytes from 1 on"))
                .flatten()
                .unwrap_or(DEFAULT_MAX_DATA_BYTES),
            failed_queue_url: errors.keep(queue_url(&variable, "FAILED_QUEUE_URL")).flatten(),
            done_queue_url: errors.keep(queue_url(&variable, "DONE_QUEUE_URL")).flatten(),
            memory_bytes: memory_mb(&variable).ok().flatten().map(|mb| mb * 1024 * 1024),
            max_render_time: errors.keep(milliseconds(&variable, "MAX_RENDER_MS")).flatten(),
            timings_slower_than: errors.keep(milliseconds(&variable, "TIMINGS_SLOWER_THAN_MS")).flatten(),
            deadline_margin: errors
                .keep(milliseconds(&variable, "DEADLINE_MARGIN_MS"))
                .flatten()
                .unwrap_or(DEFAULT_DEADLINE_MARGIN),
            has_own_s3_endpoint: ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
                .into_iter()
                .any(|name| variable(name).is_some()),
            press_program: env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into()),
            function_name: variable("AWS_LAMBDA_FUNCTION_NAME").unwrap_or_else(|| "pressrun".to_owned()),
        };
        let errors = errors.0.into_inner();
        if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
    }
}

/// The errors that have been found so far.
#[derive(Default)]
struct Errors(RefCell<Vec<ConfigError>>);

impl Errors {
    fn keep<T>(&self, result: Result<T, ConfigError>) -> Option<T> {
        result.map_err(|error| self.0.borrow_mut().push(error)).ok()
    }
}

fn output_bucket(variable: &impl Fn(&'static str) -> Option<String>) -> Result<String, ConfigError> {
    variable("OUTPUT_BUCKET").ok_or_else(|| ConfigError {
        name: "OUTPUT_BUCKET",
        problem: "is not set".to_owned(),
        takes: "the name of the S3 bucket that PDFs are stored in",
    })
}

/// Reads a number above zero.
fn number<T: FromStr + PartialOrd + From<u8>>(
    variable: &impl Fn(&'static str) -> Option<String>,
    name: &'static str,
    takes: &'static str,
) -> Result<Option<T>, ConfigError> {
    let Some(value) = variable(name) else { return Ok(None) };
    match value.parse() {
        Ok(number) if number >= T::from(1) => Ok(Some(number)),
        _ => Err(ConfigError { name, problem: format!("is {value:?}"), takes }),
    }
}

fn workers(variable: &impl Fn(&'static str) -> Option<String>) -> Result<Option<usize>, ConfigError> {
    let takes = "a whole number from 1 to 64";
    match number(variable, "WORKERS", takes)? {
        Some(workers) if workers > MAX_WORKERS => {
            Err(ConfigError { name: "WORKERS", problem: format!("is {workers}"), takes })
        }
        workers => Ok(workers),
    }
}

/// Whether this process was started by Lambda or by an emulator of it.
pub fn is_in_lambda() -> bool {
    env::var_os("AWS_LAMBDA_RUNTIME_API").is_some()
}

fn milliseconds(
    variable: &impl Fn(&'static str) -> Option<String>,
    name: &'static str,
) -> Result<Option<Duration>, ConfigError> {
    let milliseconds: Option<u32> = number(variable, name, "a whole number of milliseconds from 1 on")?;
    Ok(milliseconds.map(|milliseconds| Duration::from_millis(milliseconds.into())))
}

fn memory_mb(variable: &impl Fn(&'static str) -> Option<String>) -> Result<Option<u64>, ConfigError> {
    let takes = "a whole number of MB from 1 on";
    match number(variable, "AWS_LAMBDA_FUNCTION_MEMORY_SIZE", takes)? {
        None => number(variable, "MEMORY_MB", takes),
        lambda => Ok(lambda),
    }
}

fn cores(variable: &impl Fn(&'static str) -> Option<String>) -> Result<usize, ConfigError> {
    let seen = thread::available_parallelism().map_or(1, usize::from);
    let bought = memory_mb(variable)?.map(|mb| (mb + MEMORY_MB_PER_VCPU / 2) / MEMORY_MB_PER_VCPU);
    Ok(bought.map_or(seen, |vcpus| usize::try_from(vcpus).unwrap_or(seen).clamp(1, seen)))
}

fn output_prefix(variable: &impl Fn(&'static str) -> Option<String>) -> Result<String, ConfigError> {
    let Some(prefix) = variable("OUTPUT_PREFIX") else { return Ok(String::new()) };
    message::check_key(&prefix).map_err(|problem| ConfigError {
        name: "OUTPUT_PREFIX",
        problem: format!("is {prefix:?}, which {problem}"),
        takes: "the beginning of an S3 key, as \"pdf/\"",
    })?;
    Ok(prefix)
}

fn queue_url(
    variable: &impl Fn(&'static str) -> Option<String>,
    name: &'static str,
) -> Result<Option<String>, ConfigError> {
    let Some(url) = variable(name) else { return Ok(None) };
    let path = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let has_account_and_name = path.is_some_and(|path| path.split('/').filter(|part| !part.is_empty()).count() == 3);
    if has_account_and_name {
        return Ok(Some(url));
    }
    let takes = "the URL of an SQS queue, as https://sqs.eu-central-1.amazonaws.com/123456789012/failed";
    Err(ConfigError { name, problem: format!("is {url:?}"), takes })
}

fn templates_dir(variable: &impl Fn(&'static str) -> Option<String>) -> Result<PathBuf, ConfigError> {
    let given = variable("TEMPLATES_DIR");
    let is_given = given.is_some();
    let dirs: Vec<PathBuf> = given.map_or_else(
        || {
            let beside_function = variable("LAMBDA_TASK_ROOT").map(|root| PathBuf::from(root).join("templates"));
            beside_function.into_iter().chain(["/opt/templates".into(), "templates".into()]).collect()
        },
        |dir| vec![dir.into()],
    );
    dirs.iter().find(|dir| dir.is_dir()).cloned().ok_or_else(|| ConfigError {
        name: "TEMPLATES_DIR",
        problem: {
            let looked_for: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
            let is_set = if is_given { "is set" } else { "is not set" };
            format!("{is_set} and there is no folder {}", looked_for.join(" or "))
        },
        takes: "the folder that holds the templates",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        Config::from_variables(|name| {
            let given = variables.iter().find(|(given, _)| *given == name).map(|(_, value)| (*value).to_owned());
            given.or((name == "TEMPLATES_DIR").then(|| env!("CARGO_MANIFEST_DIR").to_owned() + "/templates"))
        })
    }

    #[test]
    fn a_bucket_is_enough() {
        let config = config(&[("OUTPUT_BUCKET", "pdfs")]).unwrap();
        assert_eq!((config.output_bucket.as_str(), config.output_prefix.as_str()), ("pdfs", ""));
        assert_eq!(config.workers, config.cores);
        assert_eq!(config.max_data_bytes, 16 * 1024 * 1024);
    }

    #[test]
    fn a_bad_value_is_named_with_what_it_held_and_what_it_takes() {
        for (name, value) in [
            ("WORKERS", "0"),
            ("WORKERS", "two"),
            ("WORKERS", "1000"),
            ("MAX_DATA_BYTES", "16MB"),
            ("DEADLINE_MARGIN_MS", "-1"),
            ("MAX_RENDER_MS", "0"),
            ("TIMINGS_SLOWER_THAN_MS", "2s"),
            ("OUTPUT_PREFIX", "/pdf/"),
            ("FAILED_QUEUE_URL", "failed"),
            ("DONE_QUEUE_URL", "arn:aws:sqs:eu-central-1:123456789012:done"),
            ("TEMPLATES_DIR", "/nowhere"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "lots"),
            ("MEMORY_MB", "1 GB"),
        ] {
            let error = config(&[("OUTPUT_BUCKET", "pdfs"), (name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(name) && error.contains(value) && error.contains("; it takes "), "{error}");
            assert_eq!(error.lines().count(), 1);
        }
        let missing = config(&[]).unwrap_err().to_string();
        assert!(missing.starts_with("OUTPUT_BUCKET is not set; it takes "), "{missing}");
    }

    #[test]
    fn all_bad_values_are_told_at_once() {
        let errors = config(&[("WORKERS", "0"), ("MAX_RENDER_MS", "1 s"), ("DONE_QUEUE_URL", "done")]).unwrap_err();
        let names: Vec<_> = errors.0.iter().map(|error| error.name).collect();
        assert_eq!(names, ["OUTPUT_BUCKET", "WORKERS", "DONE_QUEUE_URL", "MAX_RENDER_MS"]);
    }

    #[test]
    fn lambda_says_how_to_log() {
        let settings = |variables: &[(&str, &str)]| {
            LogSettings::from_variables(|name| {
                variables.iter().find(|(given, _)| *given == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let text = LogFormat::Text;
        assert_eq!(settings(&[]), LogSettings { format: text, level: LevelFilter::INFO, level_name: "INFO" });
        let json = settings(&[("AWS_LAMBDA_LOG_FORMAT", "JSON"), ("AWS_LAMBDA_LOG_LEVEL", "FATAL")]);
        assert_eq!(json, LogSettings { format: LogFormat::Json, level: LevelFilter::ERROR, level_name: "FATAL" });
        let both = settings(&[("AWS_LAMBDA_LOG_LEVEL", "WARN"), ("RUST_LOG", "debug")]);
        assert_eq!(both.level, LevelFilter::WARN);
        assert_eq!(settings(&[("RUST_LOG", "debug")]).level, LevelFilter::DEBUG);
        assert_eq!(settings(&[("RUST_LOG", "pressrun=loud")]).level, LevelFilter::INFO);
    }

    #[test]
    fn the_memory_size_buys_workers() {
        let seen = thread::available_parallelism().map_or(1, usize::from);
        for (memory_mb, workers) in [("128", 1), ("1769", 1), ("3008", 2), ("3538", 2), ("10240", 6)] {
            let config = config(&[("OUTPUT_BUCKET", "pdfs"), ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", memory_mb)]).unwrap();
            assert_eq!(config.workers, workers.min(seen), "{memory_mb} MB");
        }
    }
}
