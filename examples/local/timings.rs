//! `--timings DIR`: leaves every document's timings there, and prints where a template's time went.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use pressrun::message::TIMINGS_SUFFIX;
use serde::Deserialize;

use crate::embedded::s3::EmbeddedS3;

const MAX_PLACES: usize = 5;
const MAX_LINE_CHARACTERS: usize = 50;

/// A folder for the timings of all documents, and what they add up to.
pub struct TimingsFolder {
    dir: PathBuf,
    templates: BTreeMap<String, Costs>,
}

/// The cost of each place in all documents of a template.
type Costs = BTreeMap<Place, Cost>;

/// A line of a file, and what Typst did for it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: String,
    line: usize,
    what: String,
}

#[derive(Default)]
struct Cost {
    times: usize,
    /// The time without that of other places that were called from here.
    microseconds: f64,
}

/// An event as Typst writes it: something begins or ends on a thread.
#[derive(Deserialize)]
struct Event {
    name: String,
    ph: char,
    /// In microseconds.
    ts: f64,
    tid: u64,
    args: Option<Args>,
}

#[derive(Deserialize)]
struct Args {
    file: String,
    line: usize,
}

/// What has begun on a thread and has not ended.
struct Begun {
    at: f64,
    within: f64,
}

impl TimingsFolder {
    pub fn new(dir: &OsStr) -> Self {
        Self { dir: dir.into(), templates: BTreeMap::new() }
    }

    /// Moves the bucket's timings to the folder.
    pub fn take(&mut self, s3: &EmbeddedS3, bucket: &str) -> Result<(), Box<dyn Error>> {
        for key in s3.keys(bucket) {
            let Some(pdf) = key.strip_suffix(TIMINGS_SUFFIX) else { continue };
            let Some(object) = s3.remove(bucket, &key) else { continue };
            let mut json = Vec::new();
            GzDecoder::new(&object.body[..]).read_to_end(&mut json)?;
            let path = self.dir.join(format!("{pdf}.timings.json"));
            fs::create_dir_all(path.parent().unwrap_or(&self.dir))
                .and_then(|()| fs::write(&path, &json))
                .map_err(|error| format!("{}: {error}", path.display()))?;
            let template = object.metadata.get("template").cloned().unwrap_or_default();
            add(serde_json::from_slice(&json)?, self.templates.entry(template).or_default());
        }
        Ok(())
    }

    /// Prints the places of each template that took most of the time.
    pub fn print_slowest_places(self, templates_dir: &Path) {
        for (template, costs) in self.templates {
            println!("\n{template}: milliseconds by place, without what was called from there");
            let mut costs: Vec<(Place, Cost)> = costs.into_iter().collect();
            costs.sort_by(|(_, one), (_, other)| other.microseconds.total_cmp(&one.microseconds));
            for (place, cost) in costs.iter().take(MAX_PLACES) {
                let milliseconds = cost.microseconds / 1000.0;
                let (times, what) = (cost.times, &place.what);
                let file_and_line = format!("{}:{}", place.file, place.line);
                let source = source_line(templates_dir, place);
                println!("{milliseconds:>8.1} {times:>7} times {what:<17} {file_and_line:<32} {source}");
            }
        }
        println!("\nThe timings are in {}: https://ui.perfetto.dev opens them.", self.dir.display());
    }
}

/// Adds the time of each place in a file. Events without a place are Typst's own.
fn add(events: Vec<Event>, costs: &mut Costs) {
    let mut threads: BTreeMap<u64, Vec<Begun>> = BTreeMap::new();
    for event in events {
        let thread = threads.entry(event.tid).or_default();
        if event.ph == 'B' {
            thread.push(Begun { at: event.ts, within: 0.0 });
            continue;
        }
        let Some(Begun { at, within }) = thread.pop() else { continue };
        if let Some(outer) = thread.last_mut() {
            outer.within += event.ts - at;
        }
        let Some(Args { file, line }) = event.args.filter(|args| args.line > 0) else { continue };
        let cost = costs.entry(Place { file, line, what: event.name }).or_default();
        cost.times += 1;
        cost.microseconds += event.ts - at - within;
    }
}

/// Reads the source line at a place, shortened.
fn source_line(templates_dir: &Path, place: &Place) -> String {
    let in_package = place.file.strip_prefix('@').map(|file| format!("packages/{}", file.replacen(':', "/", 1)));
    let source = fs::read_to_string(templates_dir.join(in_package.as_ref().unwrap_or(&place.file)));
    let source = source.unwrap_or_default();
    let line = source.lines().nth(place.line - 1).unwrap_or_default().trim();
    line.chars().take(MAX_LINE_CHARACTERS).collect()
}
