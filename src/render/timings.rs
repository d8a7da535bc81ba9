//! Typst's own timings of a document (`--timings` of its command line), as JSON that Perfetto and Chrome
//! open.
//!
//! The recording is bounded by the memory of the document's run, as everything there is: 56 bytes for each
//! beginning and end of a span. A document that does not fit with it is rendered again without.

use std::io::{self, BufWriter, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use typst::syntax::Span;
use typst::{World, WorldExt};
use typst_kit::diagnostics::DiagnosticWorld;

use super::world::DocumentWorld;
use super::{Document, Renderer};

/// The bytes that are compressed at once: events are written in small pieces.
const BUFFER_BYTES: usize = 64 * 1024;

/// A recording of Typst's timings of one document, until it is dropped. It is the whole process's: there must
/// not be two at the same time.
pub struct Recording(());

impl Recording {
    /// Starts to record.
    #[must_use]
    pub fn begin() -> Self {
        free();
        typst_timing::enable();
        Self(())
    }

    /// Stops the recording and writes it, gzipped, with the places in the template's files that the events
    /// belong to. No value of the document's data is in it: Typst's names of events are constants, and
    /// places are a file and a line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn export(self, renderer: &Renderer, template: &str, writer: impl Write) -> io::Result<()> {
        typst_timing::disable();
        let template = renderer.templates.get(template).ok_or_else(|| io::Error::other("there is no template"))?;
        let world = DocumentWorld::new(renderer, template, Document::default());
        let mut json = BufWriter::with_capacity(BUFFER_BYTES, GzEncoder::new(writer, Compression::fast()));
        typst_timing::export_json(&mut json, |span| {
            // Typst's own command line says the same of a place that it does not know.
            place(&world, Span::from_raw(span)).unwrap_or_else(|| ("unknown".to_owned(), 0))
        })
        .map_err(io::Error::other)?;
        json.into_inner().map_err(io::IntoInnerError::into_error)?.finish()?;
        Ok(())
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        typst_timing::disable();
        free();
    }
}

/// Returns the file as diagnostics name it, and the line, counted from 1.
fn place(world: &DocumentWorld, span: Span) -> Option<(String, u32)> {
    let id = span.id()?;
    let start = world.range(span)?.start;
    let line = world.source(id).ok()?.lines().byte_to_line(start)?;
    Some((world.name(id), u32::try_from(line).ok()? + 1))
}

/// Frees what has been recorded. `typst_timing::clear` would keep its memory; an export takes the list out,
/// and ends at once if it can write nothing.
fn free() {
    let no_room: &mut [u8] = &mut [];
    let _ = typst_timing::export_json(no_room, |_| (String::new(), 0));
}
