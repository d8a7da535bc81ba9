//! What one document sees of the world: its template's files, its own data, the fonts, and the
//! time its message was sent.

use time::OffsetDateTime;
use typst::diag::{FileError, FileResult};
use typst::foundations::{Bytes, Datetime, Duration};
use typst::syntax::{FileId, Source, VirtualRoot};
use typst::text::{Font, FontBook};
use typst::utils::LazyHash;
use typst::{Library, World};
use typst_kit::diagnostics::DiagnosticWorld;
use typst_kit::files::FileStore;

use super::Typesetter;
use super::files::Files;
use super::templates::Template;

/// The world of one document.
pub(super) struct DocumentWorld<'a> {
    common: &'a Typesetter,
    template: &'a Template,
    /// Served beside the template's file store, which would keep it for the next document.
    data: Bytes,
    timestamp_ms: Option<i64>,
}

impl<'a> DocumentWorld<'a> {
    pub fn new(common: &'a Typesetter, template: &'a Template, data: Bytes, timestamp_ms: Option<i64>) -> Self {
        Self { common, template, data, timestamp_ms }
    }

    fn store(&self, id: FileId) -> &'a FileStore<Files> {
        match id.root() {
            VirtualRoot::Project => &self.template.files,
            VirtualRoot::Package(_) => &self.common.packages,
        }
    }

    /// Whether this file holds the message's data.
    pub fn is_data(&self, id: FileId) -> bool {
        id == self.template.data
    }
}

impl World for DocumentWorld<'_> {
    fn library(&self) -> &LazyHash<Library> {
        &self.template.library
    }

    fn book(&self) -> &LazyHash<FontBook> {
        self.common.fonts.book()
    }

    fn main(&self) -> FileId {
        self.template.main
    }

    fn source(&self, id: FileId) -> FileResult<Source> {
        // Data can be read, never run.
        if self.is_data(id) { Err(FileError::NotSource) } else { self.store(id).source(id) }
    }

    fn file(&self, id: FileId) -> FileResult<Bytes> {
        if self.is_data(id) { Ok(self.data.clone()) } else { self.store(id).file(id) }
    }

    fn font(&self, index: usize) -> Option<Font> {
        self.common.fonts.font(index)
    }

    fn today(&self, offset: Option<Duration>) -> Option<Datetime> {
        let sent = date_time(self.timestamp_ms?)?;
        let there = sent.checked_add(offset.map_or(time::Duration::ZERO, Into::into))?;
        Some(Datetime::Date(there.date()))
    }
}

impl DiagnosticWorld for DocumentWorld<'_> {
    fn name(&self, id: FileId) -> String {
        self.template.file_name(id)
    }
}

/// A moment in milliseconds since 1970 as Typst's date and time in UTC, if it has one.
pub(super) fn utc(timestamp_ms: i64) -> Option<Datetime> {
    let moment = date_time(timestamp_ms)?;
    Some(Datetime::Datetime(time::PrimitiveDateTime::new(moment.date(), moment.time())))
}

fn date_time(timestamp_ms: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(timestamp_ms.div_euclid(1000)).ok()
}
