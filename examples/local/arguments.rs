//! What the command line asks to be rendered.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use pressrun::function::event::{self, Event, Record};
use serde::de::IgnoredAny;
use serde_json::json;

use super::{BATCH_SIZE, UNREADABLE, USAGE, input, template_of};

/// The word for standard input.
const STANDARD_INPUT: &str = "-";

/// What is to be rendered, and how.
#[derive(Default)]
pub struct Arguments {
    pub template: Option<String>,
    pub timings: Option<OsString>,
    pub is_opened: bool,
    files: Vec<OsString>,
}

/// Records in batches as SQS would deliver them, and what is wrong with inputs that became none.
pub struct Batches {
    pub batches: Vec<Vec<Record>>,
    pub problems: Vec<String>,
}

impl Arguments {
    pub fn parse(arguments: &[OsString]) -> Result<Self, Box<dyn Error>> {
        let mut parsed = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = |what: &str| {
                arguments.next().cloned().ok_or_else(|| format!("{} takes {what}\n\n{USAGE}", argument.display()))
            };
            match argument.to_str() {
                Some("--template") => {
                    let name = value("a template's name and at least one data file")?;
                    parsed.template = Some(name.into_string().map_err(|_| "a template's name is UTF-8")?);
                }
                Some("--timings") => parsed.timings = Some(value("a folder")?),
                Some("--open") => parsed.is_opened = true,
                Some(option) if option.starts_with('-') && option != STANDARD_INPUT => {
                    return Err(format!("there is no option {option}\n\n{USAGE}").into());
                }
                _ => parsed.files.push(argument.clone()),
            }
        }
        match (&parsed.files[..], &parsed.template) {
            ([], None) => Err(USAGE.into()),
            ([], Some(_)) => {
                Err(format!("--template takes a template's name and at least one data file\n\n{USAGE}").into())
            }
            ([word, ..], None) if word != STANDARD_INPUT && !Path::new(word).exists() => {
                let words = "check, new and watch";
                Err(format!("{} is neither an event file nor one of the words {words}\n\n{USAGE}", word.display())
                    .into())
            }
            _ => Ok(parsed),
        }
    }

    /// Reads the files. One that cannot be used does not stop the others.
    pub fn batches(&self, templates_dir: &Path) -> Batches {
        let Some(template) = &self.template else {
            let events = self.files.iter().map(|file| event_file(Path::new(file)).map_err(|error| error.to_string()));
            let (batches, problems) = divided(events);
            return Batches { batches, problems };
        };
        let brought = input::files_of_template(templates_dir, template);
        let mut names = BTreeSet::new();
        let records = self.files.iter().flat_map(|file| data_files(Path::new(file))).map(|file| {
            let record = data_file(template, &brought, &file?, &mut names);
            record.map_err(|error| error.to_string())
        });
        let (records, problems) = divided(records);
        Batches { batches: records.chunks(BATCH_SIZE).map(<[Record]>::to_vec).collect(), problems }
    }

    /// The templates that are asked for and are there. A template that is half done does not matter to others.
    pub fn templates(&self, batches: &[Vec<Record>], templates_dir: &Path) -> Vec<String> {
        if let Some(template) = &self.template {
            return vec![template.clone()];
        }
        let named: BTreeSet<String> = batches.iter().flatten().map(template_of).collect();
        let is_plain = |name: &String| !name.is_empty() && !name.contains('/') && !name.starts_with('.');
        let (known, unknown): (Vec<_>, Vec<_>) =
            named.into_iter().filter(is_plain).partition(|name| templates_dir.join(name).is_dir());
        // The error of an unknown template lists all that there are.
        if unknown.iter().all(|name| name == UNREADABLE) { known } else { Vec::new() }
    }
}

fn divided<T>(results: impl Iterator<Item = Result<T, String>>) -> (Vec<T>, Vec<String>) {
    let mut done = Vec::new();
    let mut problems = Vec::new();
    for result in results {
        match result {
            Ok(value) => done.push(value),
            Err(problem) => problems.push(problem),
        }
    }
    (done, problems)
}

/// A file, or all JSON files of a folder in the order of their names.
fn data_files(file: &Path) -> Vec<Result<PathBuf, String>> {
    if !file.is_dir() {
        return vec![Ok(file.to_owned())];
    }
    let entries = match fs::read_dir(file) {
        Ok(entries) => entries,
        Err(error) => return vec![Err(format!("{}: {error}", file.display()))],
    };
    let is_json = |path: &PathBuf| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_json).collect();
    files.sort();
    if files.is_empty() {
        return vec![Err(format!("{}: the folder has no .json file", file.display()))];
    }
    files.into_iter().map(Ok).collect()
}

fn event_file(file: &Path) -> Result<Vec<Record>, Box<dyn Error>> {
    let name = file.display().to_string();
    match event::parse_any(&read(file)?, Some(&name)).map_err(|error| format!("{name}: {error}"))? {
        Event::Batch(records) => Ok(records),
        Event::Direct(record) => Ok(vec![*record]),
    }
}

/// Returns the record of a message that asks for a document with the data in this file. `names` are those that
/// other documents have.
fn data_file(
    template: &str,
    files: &BTreeMap<String, String>,
    file: &Path,
    names: &mut BTreeSet<String>,
) -> Result<Record, Box<dyn Error>> {
    let data = read(file)?;
    serde_json::from_str::<IgnoredAny>(&data).map_err(|error| format!("{} is not JSON: {error}", file.display()))?;
    let is_typed = file == Path::new(STANDARD_INPUT);
    let stem = if is_typed { "stdin".into() } else { file.file_stem().unwrap_or_default().to_string_lossy() };
    let numbered = (2..).map(|number| format!("{stem}-{number}"));
    let name = std::iter::once(stem.to_string()).chain(numbered).find(|name| !names.contains(name));
    let name = name.ok_or("there are endlessly many names")?;
    let key = serde_json::to_string(&format!("{template}/{name}.pdf"))?;
    names.insert(name);
    let (template, files) = (json!(template), json!(files));
    let body = format!(r#"{{"template": {template}, "key": {key}, "files": {files}, "data": {data}}}"#);
    Ok(Record {
        sent_timestamp_ms: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|now| now.as_millis().try_into().ok()),
        ..Record::new(file.display().to_string(), body)
    })
}

/// Reads a text, without the mark that some editors put before it.
pub fn read(file: &Path) -> Result<String, String> {
    let text = if file == Path::new(STANDARD_INPUT) {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(file)
    };
    let text = text.map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(pressrun::json::without_byte_order_mark(&text).to_owned())
}
