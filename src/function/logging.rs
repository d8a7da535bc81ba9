//! The log: a line for each event on stdout, as text or as JSON, as Lambda's advanced logging controls
//! say.
//!
//! Source: <https://docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs-logformat.html>.

use std::io;

use json_subscriber::JsonLayer;
use tracing::Subscriber;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use crate::config::{LogFormat, LogSettings};

/// The most verbose level of everything but pressrun. At lower levels the SDK and `lambda_runtime` log
/// whole events and responses, and a message's data must not reach a log.
const MAX_LEVEL_OF_OTHERS: LevelFilter = LevelFilter::WARN;

/// Starts logging to stdout.
pub fn start(settings: LogSettings) {
    subscriber(settings, io::stdout).init();
}

/// Returns a subscriber that writes the log to `writer`. In JSON every field is at the top level, beside
/// `timestamp`, `level` and `message`; so are those of the spans that a line belongs to, such as
/// `requestId`.
pub fn subscriber<W>(settings: LogSettings, writer: W) -> impl Subscriber
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let levels =
        Targets::new().with_default(MAX_LEVEL_OF_OTHERS.min(settings.level)).with_target("pressrun", settings.level);
    let format: Box<dyn Layer<Registry> + Send + Sync> = match settings.format {
        LogFormat::Json => {
            let mut json = JsonLayer::new(writer);
            json.with_timer("timestamp", SystemTime)
                .with_level("level")
                .with_flattened_event()
                .with_top_level_flattened_span_list();
            Box::new(json)
        }
        // Lambda adds the time.
        LogFormat::Text => Box::new(
            tracing_subscriber::fmt::layer().with_target(false).without_time().with_ansi(false).with_writer(writer),
        ),
    };
    tracing_subscriber::registry().with(format.with_filter(levels))
}
