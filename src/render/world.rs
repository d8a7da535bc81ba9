//! What one document can read: its template's files, its own data and files, the fonts, and the time at which
//! its message was sent.
//!
//! The memo cache may be evicted by another thread while this is asked. So nothing here may call a memoized
//! function: a lookup holds a read lock of comemo's while it calls the methods of the [`World`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use time::OffsetDateTime;
use typst::diag::{FileError, FileResult};
use typst::ecow::eco_format;
use typst::foundations::{Bytes, Datetime, Duration};
use typst::syntax::{FileId, Source, VirtualRoot};
use typst::text::{Font, FontBook};
use typst::utils::LazyHash;
use typst::{Library, World};
use typst_kit::diagnostics::DiagnosticWorld;
use typst_kit::files::FileStore;

use super::files::{self, Files};
use super::parts::{Offset, Part};
use super::redaction::Redaction;
use super::spaces;
use super::templates::Template;
use super::{Document, Renderer};

/// The [`World`] of one document.
pub(super) struct DocumentWorld<'a> {
    common: &'a Renderer,
    template: &'a Template,
    /// The data as Typst's bytes, which keep the hash that Typst asks for each time.
    data: Bytes,
    /// What `sys.inputs.part` and `sys.inputs.pages` name, if the template has parts.
    part: Option<PartFiles>,
    offset: Offset,
    files: BTreeMap<String, Bytes>,
    timestamp_ms: Option<i64>,
    is_sample: bool,
    /// Whether it brings characters that are printed as spaces.
    has_spaces: bool,
    has_read_data: AtomicBool,
}

/// What a document says of its part, and what of that has been read so far.
struct PartFiles {
    part: Bytes,
    pages: Bytes,
    has_read_part: AtomicBool,
    has_read_pages: AtomicBool,
}

impl PartFiles {
    fn new(part: Part) -> Self {
        let (has_read_part, has_read_pages) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { part: Bytes::new(part.file()), pages: Bytes::new(part.pages_file()), has_read_part, has_read_pages }
    }
}

impl<'a> DocumentWorld<'a> {
    pub fn new(common: &'a Renderer, template: &'a Template, document: Document) -> Self {
        let has_spaces = spaces::are_in(&document);
        let Document { data, files, timestamp_ms, is_sample, part, .. } = document;
        let parts = template.manifest.parts.as_ref();
        let offset = parts.zip(part).map(|(parts, part)| parts.offset(part)).unwrap_or_default();
        let part = parts.map(|parts| PartFiles::new(part.unwrap_or_else(|| Part::whole(parts.count(&data)))));
        Self {
            common,
            template,
            data: Bytes::new(data),
            part,
            offset,
            files: files.into_iter().map(|(name, file)| (name, Bytes::new(file))).collect(),
            timestamp_ms,
            is_sample,
            has_spaces,
            has_read_data: AtomicBool::new(false),
        }
    }

    fn store(&self, id: FileId) -> &'a FileStore<Files> {
        match id.root() {
            VirtualRoot::Project => &self.template.files,
            VirtualRoot::Package(_) => &self.common.packages,
        }
    }

    /// Whether this is the template's own sample.
    pub fn is_sample(&self) -> bool {
        self.is_sample
    }

    /// The data, as JSON.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Whether this file holds the message's data.
    fn is_data(&self, id: FileId) -> bool {
        id == self.template.data
    }

    /// Whether the data have been read so far.
    pub fn has_read_data(&self) -> bool {
        self.has_read_data.load(Ordering::Relaxed)
    }

    /// Whether the template has parts and has not read which of them this is.
    pub fn ignores_part(&self) -> bool {
        self.part.as_ref().is_some_and(|files| !files.has_read_part.load(Ordering::Relaxed))
    }

    /// Whether the template has read where the part's pages stand.
    pub fn has_read_pages(&self) -> bool {
        self.part.as_ref().is_some_and(|files| files.has_read_pages.load(Ordering::Relaxed))
    }

    /// Which elements of a divided array the data have.
    pub fn offset(&self) -> &Offset {
        &self.offset
    }

    /// Whether there is a font of this family, in lower case.
    pub fn has_family(&self, family: &str) -> bool {
        self.book().contains_family(family)
    }

    /// The sources of the template, without those of packages.
    pub fn template_sources(&self) -> impl Iterator<Item = &str> {
        self.template.sources()
    }

    /// Whether this file holds what a message brings: its data, or one of its files.
    pub fn is_of_message(&self, id: FileId) -> bool {
        !self.is_sample && self.file_of_message(id).is_some()
    }

    /// Returns what takes the message's values out of texts; `None` for a template's own sample, which is not
    /// confidential.
    pub fn redaction(&self) -> Option<Redaction> {
        if self.is_sample {
            return None;
        }
        let files = self.files.iter().map(|(name, content)| (name.as_str(), content.as_slice()));
        let sources = self.template.sources().chain(self.common.package_sources());
        Some(Redaction::new(&self.data, files).with_offset(self.offset.clone()).knowing(sources))
    }

    /// Returns a file of the message, if the id stands for one. These do not go through the template's file
    /// store, which would keep them for the next document.
    fn file_of_message(&self, id: FileId) -> Option<FileResult<Bytes>> {
        if self.is_data(id) {
            return Some(Ok(self.data.clone()));
        }
        if let Some(files) = &self.part {
            if id == self.template.part {
                return Some(Ok(files.part.clone()));
            }
            if id == self.template.pages {
                return Some(Ok(files.pages.clone()));
            }
        }
        let path = id.vpath().get_without_slash();
        let name = files::file_of_message(path).filter(|_| matches!(id.root(), VirtualRoot::Project))?;
        Some(self.files.get(name).cloned().ok_or_else(|| self.no_such_file(name)))
    }

    fn no_such_file(&self, name: &str) -> FileError {
        let whose = if self.is_sample { "the template's folder files has" } else { "the message's files have" };
        let names: Vec<&str> = self.files.keys().map(String::as_str).collect();
        let there_are = if names.is_empty() { "no files".to_owned() } else { names.join(", ") };
        FileError::Other(Some(eco_format!("{whose} no {name:?}; there are: {there_are}")))
    }
}

impl World for DocumentWorld<'_> {
    fn library(&self) -> &LazyHash<Library> {
        if self.has_spaces { &self.template.library_with_spaces } else { &self.template.library }
    }

    fn book(&self) -> &LazyHash<FontBook> {
        self.template.fonts.book()
    }

    fn main(&self) -> FileId {
        self.template.main
    }

    fn source(&self, id: FileId) -> FileResult<Source> {
        match self.file_of_message(id) {
            Some(_) => {
                let problem = "what a message brings is data: it can be read, but not included or imported";
                Err(FileError::Other(Some(problem.into())))
            }
            None => self.store(id).source(id),
        }
    }

    fn file(&self, id: FileId) -> FileResult<Bytes> {
        if self.is_data(id) {
            self.has_read_data.store(true, Ordering::Relaxed);
        }
        if let Some(files) = &self.part {
            files.has_read_part.fetch_or(id == self.template.part, Ordering::Relaxed);
            files.has_read_pages.fetch_or(id == self.template.pages, Ordering::Relaxed);
        }
        self.file_of_message(id).unwrap_or_else(|| self.store(id).file(id))
    }

    fn font(&self, index: usize) -> Option<Font> {
        self.template.fonts.font(index)
    }

    fn today(&self, offset: Option<Duration>) -> Option<Datetime> {
        let sent = date_time(self.timestamp_ms?)?;
        let there = sent.checked_add(offset.map_or(time::Duration::ZERO, Into::into))?;
        Some(Datetime::Date(there.date()))
    }
}

impl DiagnosticWorld for DocumentWorld<'_> {
    fn name(&self, id: FileId) -> String {
        match (self.is_data(id), self.is_sample) {
            (true, true) => self.template.sample_name(),
            (true, false) => "data".to_owned(),
            // A message's files are in no folder of the template's author.
            (false, false) if self.file_of_message(id).is_some() => id.vpath().get_without_slash().to_owned(),
            (false, _) => self.template.file_name(id),
        }
    }
}

/// Converts a moment in milliseconds since 1970 into Typst's date and time in UTC, if that can be.
pub(super) fn utc(timestamp_ms: i64) -> Option<Datetime> {
    let moment = date_time(timestamp_ms)?;
    Some(Datetime::Datetime(time::PrimitiveDateTime::new(moment.date(), moment.time())))
}

fn date_time(timestamp_ms: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(timestamp_ms.div_euclid(1000)).ok()
}
