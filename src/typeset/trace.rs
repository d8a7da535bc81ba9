//! Where a document's time goes: Typst's own timings, recorded while it is set, as a trace that
//! Perfetto and Chrome open.

use std::io::{self, BufWriter, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use typst::syntax::Span;
use typst::{World, WorldExt};
use typst_kit::diagnostics::DiagnosticWorld;

use super::world::DocumentWorld;
use super::{Document, Typesetter};

/// Events are written in small pieces, and compressed in large ones.
const BUFFER_BYTES: usize = 64 * 1024;

/// Typst's timings of one document, while this lives. They are the whole process's: there is never
/// to be a second one at the same time.
pub struct Recording(());

impl Recording {
    /// Records from now on.
    #[must_use]
    pub fn begin() -> Self {
        forget();
        typst_timing::enable();
        Self(())
    }

    /// Ends the recording and writes it, gzipped, with the places in the template's files that the
    /// events belong to. It has no value of the document's data: Typst's names of events are
    /// constants, and places are a file and a line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn export(self, typesetter: &Typesetter, template: &str, writer: impl Write) -> io::Result<()> {
        typst_timing::disable();
        let template = typesetter.templates.get(template).ok_or_else(|| io::Error::other("there is no template"))?;
        let world = DocumentWorld::new(typesetter, template, Document::default());
        let mut json = BufWriter::with_capacity(BUFFER_BYTES, GzEncoder::new(writer, Compression::fast()));
        typst_timing::export_json(&mut json, |span| {
            // As Typst's own command line calls a place that it does not know.
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
        forget();
    }
}

/// The file as diagnostics name it, and the line from 1.
fn place(world: &DocumentWorld, span: Span) -> Option<(String, u32)> {
    let id = span.id()?;
    let start = world.range(span)?.start;
    let line = world.source(id).ok()?.lines().byte_to_line(start)?;
    Some((world.name(id), u32::try_from(line).ok()? + 1))
}

/// Frees what has been recorded. `typst_timing::clear` would keep the memory for it; an export
/// takes the list out, and one to where there is no room ends at once.
fn forget() {
    let no_room: &mut [u8] = &mut [];
    let _ = typst_timing::export_json(no_room, |_| (String::new(), 0));
}
