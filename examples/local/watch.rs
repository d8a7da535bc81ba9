//! `watch`: renders a template again whenever it, its data, the fonts or the packages change.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use notify::{EventKind, RecursiveMode, Watcher};
use pressrun::config::Config;
use pressrun::render::diagnostics::Diagnostic;
use pressrun::render::{Document, Renderer};

use super::check::{self, Checked};
use super::{MAX_RENDER_TIME, OUTPUT_FOLDER, arguments, output};

/// How long it has to be quiet after a change: editors write a file in several steps.
const QUIET: Duration = Duration::from_millis(50);

/// Renders a template with this data, or its sample, until the program is ended.
pub fn watch(config: &Config, template: &str, data: Option<&Path>) -> Result<(), Box<dyn Error>> {
    let changes = Changes::of(&config.templates_dir, template, data)?;
    let stem = data.and_then(Path::file_stem).map_or("sample".into(), |stem| stem.to_string_lossy());
    let pdf = Path::new(OUTPUT_FOLDER).join(template).join(format!("{stem}.pdf"));
    loop {
        let began = Instant::now();
        match render(config, template, data) {
            Ok(Ok((document, took))) => {
                output::write_whole(&pdf, &document.bytes).map_err(|error| format!("{}: {error}", pdf.display()))?;
                let pages = if document.pages == 1 { "page" } else { "pages" };
                let milliseconds = took.as_secs_f64() * 1000.0;
                println!("ok      {} {pages}, {milliseconds:.1} ms  {}", document.pages, pdf.display());
                print_all(&document.warnings);
            }
            Ok(Err(diagnostics)) => {
                println!("error   after {} ms; {} is as it was", began.elapsed().as_millis(), pdf.display());
                print_all(&diagnostics);
            }
            Err(problem) => println!("error   {} is as it was\n{problem}", pdf.display()),
        }
        changes.wait()?;
    }
}

/// Renders everything anew from the files as they are now.
fn render(config: &Config, template: &str, data: Option<&Path>) -> Result<Checked, String> {
    let only = [template.to_owned()];
    let renderer = Renderer::load_only(&config.templates_dir, &only).map_err(|error| error.to_string())?;
    let mut document = renderer.sample(template).ok_or("every template has a sample")?;
    if let Some(file) = data {
        document = Document {
            data: arguments::read(file)?.into(),
            timestamp_ms: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .ok()
                .and_then(|now| now.as_millis().try_into().ok()),
            // What is wrong is said as the log would say it.
            is_sample: false,
            ..document
        };
    }
    let time_limit = config.max_render_time.unwrap_or(MAX_RENDER_TIME);
    check::render_in_time(&Arc::new(renderer), document, config.cores, time_limit, 1)
}

fn print_all(diagnostics: &[Diagnostic]) {
    for diagnostic in diagnostics {
        println!("{}", diagnostic.text);
    }
}

/// What happens to the files that a document is made of.
struct Changes {
    events: Receiver<notify::Result<notify::Event>>,
    _watcher: notify::RecommendedWatcher,
    /// The data file's folder is watched for the data file alone, since editors put a new file in its place.
    data: Option<(PathBuf, PathBuf)>,
}

impl Changes {
    fn of(templates_dir: &Path, template: &str, data: Option<&Path>) -> Result<Self, Box<dyn Error>> {
        let (sender, events) = mpsc::channel();
        let mut watcher = notify::recommended_watcher(sender)?;
        let folder = templates_dir.join(template);
        watcher.watch(&folder, RecursiveMode::Recursive).map_err(|error| format!("{}: {error}", folder.display()))?;
        for shared in ["fonts", "packages"].map(|name| templates_dir.join(name)) {
            if shared.is_dir() {
                watcher.watch(&shared, RecursiveMode::Recursive)?;
            }
        }
        let data = data.map(Path::canonicalize).transpose().map_err(|error| format!("the data file: {error}"))?;
        let data = data.and_then(|file| Some((file.parent()?.to_owned(), file)));
        if let Some((parent, _)) = &data {
            watcher.watch(parent, RecursiveMode::NonRecursive)?;
        }
        Ok(Self { events, _watcher: watcher, data })
    }

    /// Waits for a change, and until it is quiet.
    fn wait(&self) -> Result<(), Box<dyn Error>> {
        while !self.is_change(&self.events.recv()??) {}
        while self.events.recv_timeout(QUIET).is_ok() {}
        Ok(())
    }

    fn is_change(&self, event: &notify::Event) -> bool {
        // To read a file is an event, too.
        let is_written = !matches!(event.kind, EventKind::Access(_));
        let is_beside_data = |path: &PathBuf| {
            self.data.as_ref().is_some_and(|(parent, file)| path.parent() == Some(parent) && path != file)
        };
        is_written && !event.paths.iter().all(is_beside_data)
    }
}
