//! Typst: fonts, templates, compile and export, diagnostics, and the pool of one document.
//!
//! Knows nothing of processes, pipes, queues or S3, and imports nothing of ours but
//! [`crate::pdf`]. Must never be true: that a thread started here outlives the call that started it,
//! or that a message's data is served to another document.

pub mod diagnostics;
mod digest;
mod files;
mod finishing;
mod font_coverage;
mod fonts;
mod manifest;
pub mod pool;
pub mod redaction;
mod schema;
mod template_error;
mod templates;
pub mod trace;
mod world;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use typst::diag::{Severity, SourceDiagnostic, Warned};
use typst::ecow::EcoVec;
use typst::foundations::Smart;
use typst_kit::files::FileStore;
use typst_layout::PagedDocument;
use typst_pdf::{PdfOptions, Timestamp};

use diagnostics::Diagnostic;
use files::Files;
use templates::{CommonFonts, Template};
use world::DocumentWorld;

use crate::pdf::{EInvoice, Level};

pub use template_error::{TemplateError, TemplateErrors};

/// The message timestamp that samples are set with: 1 January 2026, in milliseconds.
const SAMPLE_TIMESTAMP_MS: i64 = 1_767_225_600_000;

/// How Typst's warnings begin that are errors here: nobody reads warnings of a queue worker, and
/// what came out is not what the template asks for.
const UNKNOWN_FONT: &str = "unknown font family";
const NO_CONVERGENCE: &str = "document did not converge";

/// Everything that documents have in common, loaded once: the templates and their packages.
pub struct Typesetter {
    packages: FileStore<Files>,
    templates: BTreeMap<String, Template>,
    /// Whether it has been said that a PDF could not be compacted.
    has_warned_of_compaction: AtomicBool,
}

/// Which template exactly: what its author calls it, and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateVersion {
    /// The version in its manifest.
    pub version: String,
    /// The digest of all that its documents are made from beside their data.
    pub digest: String,
}

/// The versions of the templates that there are, by their names.
pub type TemplateVersions = BTreeMap<String, TemplateVersion>;

/// What one message asks for.
#[derive(Clone, Debug, Default)]
pub struct Document {
    pub template: String,
    /// The JSON that the template finds as a file, whole.
    pub data: Bytes,
    /// What the template finds in its folder `files`, by name.
    pub files: BTreeMap<String, Bytes>,
    /// Identifies the document for ever: the PDF's document id is made from it.
    pub ident: String,
    /// Milliseconds since 1970, UTC: the only clock that a template sees.
    pub timestamp_ms: Option<i64>,
    /// Whether it is a template's own sample.
    pub is_sample: bool,
}

/// A document that came out.
#[derive(Debug)]
pub struct Pdf {
    pub bytes: Vec<u8>,
    pub pages: usize,
    /// If it is an e-invoice, of which level.
    pub e_invoice: Option<Level>,
    pub warnings: Vec<Diagnostic>,
}

/// A document that did not come out.
#[derive(Debug)]
pub enum SetError {
    UnknownTemplate,
    /// Where the data are not what the template's schema says, or what is wrong with an e-invoice's XML.
    Data(Vec<Diagnostic>),
    /// What Typst had to say: at least one error, and the warnings. Or why its PDF is no e-invoice.
    Typst(Vec<Diagnostic>),
}

impl Typesetter {
    /// Loads the fonts (embedded, and `fonts/`), the packages and every template below
    /// `templates_dir`. No file is opened afterwards.
    ///
    /// # Errors
    /// When the folder, a manifest, a schema or a sample cannot be read or is not what it should
    /// be: with all that is wrong.
    pub fn load(templates_dir: &Path) -> Result<Self, TemplateErrors> {
        let (typesetter, broken) =
            Self::load_what_can_be(templates_dir).map_err(|error| TemplateErrors(vec![error]))?;
        if broken.is_empty() { Ok(typesetter) } else { Err(TemplateErrors(broken.into_values().collect())) }
    }

    /// The same, but leaves out templates that are broken, and gives their names and what is
    /// wrong with them.
    ///
    /// # Errors
    /// When what they have in common is broken.
    pub fn load_what_can_be(templates_dir: &Path) -> Result<(Self, BTreeMap<String, TemplateError>), TemplateError> {
        let own_fonts = fonts::load(&templates_dir.join("fonts"))?;
        let packages = files::load_packages(&templates_dir.join("packages"))?;
        let common = digest::of_common(&own_fonts, &packages);
        let fonts = CommonFonts::new(fonts::embedded().chain(own_fonts).collect());
        let mut templates = BTreeMap::new();
        let mut broken = BTreeMap::new();
        for (name, dir) in templates::find(templates_dir)? {
            match templates::load(&name, &dir, &fonts, common) {
                Ok(template) => drop(templates.insert(name, template)),
                Err(error) => drop(broken.insert(name, error)),
            }
        }
        let packages = FileStore::new(packages);
        Ok((Self { packages, templates, has_warned_of_compaction: AtomicBool::default() }, broken))
    }

    /// The names of the templates and their versions, sorted by name.
    pub fn templates(&self) -> impl Iterator<Item = (&str, TemplateVersion)> {
        let version = |template: &Template| TemplateVersion {
            version: template.manifest.version.to_string(),
            digest: template.digest.clone(),
        };
        self.templates.iter().map(move |(name, template)| (name.as_str(), version(template)))
    }

    /// The PDF standards that a template's documents conform to, as its manifest has them.
    pub fn standards(&self, template: &str) -> &[String] {
        self.templates.get(template).map_or(&[], |template| &template.manifest.standard_names)
    }

    /// The document that a template's `sample.json` asks for.
    #[must_use]
    pub fn sample(&self, template: &str) -> Option<Document> {
        let Template { sample, sample_files, .. } = self.templates.get(template)?;
        Some(Document {
            template: template.to_owned(),
            data: sample.clone(),
            files: sample_files.clone(),
            ident: "sample".to_owned(),
            timestamp_ms: Some(SAMPLE_TIMESTAMP_MS),
            is_sample: true,
        })
    }

    /// Checks a document's data, compiles and exports it, and finishes its PDF.
    ///
    /// Has to be called on a pool of [`pool`]: Typst puts work on the pool that the calling
    /// thread belongs to, and else on rayon's global one, whose threads never end.
    ///
    /// # Errors
    /// When there is no such template, the data are not what its schema says, Typst finds an error in
    /// it with these data, or they make no e-invoice where the template makes one. What would only be
    /// a warning in Typst can be an error here: a font that is not there, characters that no font has,
    /// a layout that does not converge.
    ///
    /// # Panics
    /// When Typst does, as it may on unforeseen input.
    pub fn set(&self, document: Document) -> Result<Pdf, SetError> {
        let template = self.templates.get(&document.template).ok_or(SetError::UnknownTemplate)?;
        if let Some(schema) = &template.schema {
            let violations = schema.violations(&document.data);
            if !violations.is_empty() {
                let file = document.is_sample.then(|| template.sample_name());
                let of_data = |violation: &String| Diagnostic::of_data(violation, file.as_deref());
                return Err(SetError::Data(violations.iter().map(of_data).collect()));
            }
        }
        let invoice = finishing::read_invoice(template, &document)?;
        let options = pdf_options(template, &document);
        let data = document.data.clone();
        let is_sample = document.is_sample;
        let world = DocumentWorld::new(self, template, document);
        let Warned { output, warnings } = typst::compile::<PagedDocument>(&world);
        let mut found: Vec<SourceDiagnostic> = warnings.into_iter().map(|warning| judged(warning, template)).collect();
        let compiled = output.and_then(|paged| {
            found.extend(font_coverage::diagnose(&paged, &data, &template.named_fonts, &template.manifest));
            // The export would only find the same again.
            if found.iter().any(is_error) { Err(EcoVec::new()) } else { Ok(paged) }
        });
        let exported = compiled.and_then(|paged| Ok((typst_pdf::pdf(&paged, &options)?, paged.pages().len())));
        // The laid-out document is gone by now, and with it more memory than the PDF needs to be finished.
        let finished = exported.and_then(|(pdf, pages)| {
            let (bytes, warning) = finishing::finish(pdf, invoice.as_ref(), template.manifest.compact)?;
            found.extend(warning.filter(|_| is_sample || self.warns_of_compaction()));
            Ok((bytes, pages))
        });
        match finished {
            Ok((bytes, pages)) => {
                let e_invoice = invoice.as_ref().map(EInvoice::level);
                Ok(Pdf { bytes, pages, e_invoice, warnings: diagnostics::describe(&world, found) })
            }
            Err(errors) => {
                found.extend(errors.into_iter().map(finishing::with_hint));
                Err(SetError::Typst(diagnostics::describe(&world, found)))
            }
        }
    }

    /// Whether this is the first PDF of the process that cannot be compacted: the others cannot either.
    fn warns_of_compaction(&self) -> bool {
        !self.has_warned_of_compaction.swap(true, Ordering::Relaxed)
    }
}

fn pdf_options(template: &Template, document: &Document) -> PdfOptions {
    PdfOptions {
        ident: Smart::Custom(document.ident.clone()),
        timestamp: document.timestamp_ms.and_then(world::utc).map(Timestamp::new_utc),
        standards: template.manifest.standards.clone(),
        tagged: template.manifest.tagged,
        ..PdfOptions::default()
    }
}

/// A warning of Typst's as it counts here.
fn judged(mut warning: SourceDiagnostic, template: &Template) -> SourceDiagnostic {
    let is_missing_font = warning.message.starts_with(UNKNOWN_FONT) && !template.manifest.allow_missing_fonts;
    if is_missing_font || warning.message.starts_with(NO_CONVERGENCE) {
        warning.severity = Severity::Error;
    }
    if is_missing_font {
        warning.hint("add the font to templates/fonts or to the template's folder; the system's are not used");
        warning.hint("with [tool.pressrun] allow-missing-fonts = true the next font in the list is taken");
    }
    warning
}

fn is_error(diagnostic: &SourceDiagnostic) -> bool {
    diagnostic.severity == Severity::Error
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
