//! Typst: fonts, templates, compile and export, diagnostics, and the pool of one document.
//!
//! Knows nothing of processes, pipes, queues or S3, and imports nothing of ours. Must never be
//! true: that a thread started here outlives the call that started it, or that a message's data
//! is served to another document.

pub mod diagnostics;
mod digest;
mod files;
mod fonts;
pub mod pool;
mod template_error;
mod templates;
mod world;

use std::collections::BTreeMap;
use std::path::Path;

use typst::foundations::{Bytes, Smart};
use typst_kit::files::FileStore;
use typst_kit::fonts::FontStore;
use typst_layout::PagedDocument;
use typst_pdf::{PdfOptions, Timestamp};

use diagnostics::Diagnostic;
use files::Files;
use templates::Template;
use world::DocumentWorld;

pub use template_error::TemplateError;

/// The message timestamp that samples are set with: 1 January 2026, in milliseconds.
const SAMPLE_TIMESTAMP_MS: i64 = 1_767_225_600_000;

/// Everything that documents have in common, loaded once: the fonts and the templates.
pub struct Typesetter {
    fonts: FontStore,
    packages: FileStore<Files>,
    templates: BTreeMap<String, Template>,
    /// Of the templates, by their names.
    digests: BTreeMap<String, String>,
}

/// What one message asks for.
#[derive(Clone, Debug)]
pub struct Document {
    pub template: String,
    /// The JSON that the template finds as a file, whole.
    pub data: Vec<u8>,
    /// Identifies the document for ever: the PDF's document id is made from it.
    pub ident: String,
    /// Milliseconds since 1970, UTC: the only clock that a template sees.
    pub timestamp_ms: Option<i64>,
}

/// A document that came out.
#[derive(Debug)]
pub struct Pdf {
    pub bytes: Vec<u8>,
    pub pages: usize,
    pub warnings: Vec<Diagnostic>,
}

/// A document that did not come out.
#[derive(Debug)]
pub enum SetError {
    UnknownTemplate,
    /// What Typst had to say: at least one error, and the warnings.
    Typst(Vec<Diagnostic>),
}

impl Typesetter {
    /// Loads the fonts (embedded, and `fonts/`), the packages and every template below
    /// `templates_dir`. No file is opened afterwards.
    ///
    /// # Errors
    /// When the folder, a manifest or a sample cannot be read or is not what it should be.
    pub fn load(templates_dir: &Path) -> Result<Self, TemplateError> {
        let templates = templates::load(templates_dir)?;
        let common = digest::of_common(templates_dir)?;
        let digest = |name: &String| Ok((name.clone(), digest::of_template(&templates_dir.join(name), common)?));
        Ok(Self {
            digests: templates.keys().map(digest).collect::<Result<_, _>>()?,
            fonts: fonts::load(&templates_dir.join("fonts"))?,
            packages: files::load_packages(&templates_dir.join("packages"))?,
            templates,
        })
    }

    /// The names of the templates and the versions in their manifests.
    pub fn templates(&self) -> impl Iterator<Item = (&str, String)> {
        self.templates.iter().map(|(name, template)| (name.as_str(), template.version.to_string()))
    }

    /// The digest of all that a template's documents are made from beside their data.
    #[must_use]
    pub fn digest(&self, template: &str) -> &str {
        &self.digests[template]
    }

    /// The document that a template's `sample.json` asks for.
    #[must_use]
    pub fn sample(&self, template: &str) -> Option<Document> {
        let data = self.templates.get(template)?.sample.clone();
        Some(Document {
            template: template.to_owned(),
            data,
            ident: "sample".to_owned(),
            timestamp_ms: Some(SAMPLE_TIMESTAMP_MS),
        })
    }

    /// Compiles and exports a document.
    ///
    /// Has to be called on a pool of [`pool`]: Typst puts work on the pool that the calling
    /// thread belongs to, and else on rayon's global one, whose threads never end.
    ///
    /// # Errors
    /// When there is no such template, or Typst finds an error in it with these data.
    ///
    /// # Panics
    /// When Typst does, as it may on unforeseen input.
    pub fn set(&self, document: Document) -> Result<Pdf, SetError> {
        let template = self.templates.get(&document.template).ok_or(SetError::UnknownTemplate)?;
        let options = PdfOptions {
            ident: Smart::Custom(document.ident),
            timestamp: document.timestamp_ms.and_then(world::utc).map(Timestamp::new_utc),
            standards: template.standards.clone(),
            tagged: template.tagged,
            ..PdfOptions::default()
        };
        let world = DocumentWorld::new(self, template, Bytes::new(document.data), document.timestamp_ms);
        let compiled = typst::compile::<PagedDocument>(&world);
        let exported = compiled.output.and_then(|paged| Ok((typst_pdf::pdf(&paged, &options)?, paged.pages().len())));
        match exported {
            Ok((bytes, pages)) => Ok(Pdf { bytes, pages, warnings: diagnostics::describe(&world, &compiled.warnings) }),
            Err(errors) => {
                let all = errors.iter().chain(&compiled.warnings);
                Err(SetError::Typst(diagnostics::describe(&world, all)))
            }
        }
    }
}

/// Forgets what was memoized before the latest document. What a template makes the same each
/// time stays: that is worth a third of an invoice's time, and a few megabytes.
pub fn forget_older_documents() {
    typst::comemo::evict(1);
}

/// Forgets all that was memoized.
pub fn forget_all_documents() {
    typst::comemo::evict(0);
}
