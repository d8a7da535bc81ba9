//! Renders documents with Typst: loads templates and fonts, compiles, exports, finishes the PDF, and
//! describes what went wrong.
//!
//! Knows nothing of processes, pipes, queues or S3, and imports nothing of ours but [`crate::pdf`].
//! Two things must never be true: that a thread started here outlives the call that started it, and
//! that a message's data are served to another document.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use bytes::Bytes;
//! use pressrun::render::{Document, Renderer, pool};
//!
//! let renderer = Renderer::load(Path::new("templates"))?;
//! let document = Document {
//!     template: "invoice".to_owned(),
//!     data: Bytes::from_static(br#"{"doc": {}}"#),
//!     ..Document::default()
//! };
//! // Typst lays pages out in parallel on the pool, whose threads are joined before this returns.
//! match pool::on_fixed_pool(2, || renderer.render(document))? {
//!     Ok(pdf) => println!("{} pages", pdf.pages),
//!     Err(error) => println!("{error:?}"),
//! }
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

pub mod diagnostics;
mod digest;
mod files;
mod finishing;
mod font_coverage;
mod font_lists;
mod fonts;
mod manifest;
pub mod parts;
pub mod pool;
pub mod redaction;
mod schema;
mod spaces;
mod template_error;
mod templates;
pub mod text;
pub mod timings;
mod world;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use typst::diag::{Severity, SourceDiagnostic, Warned, error, warning};
use typst::ecow::EcoVec;
use typst::foundations::Smart;
use typst::syntax::Span;
use typst_kit::files::FileStore;
use typst_layout::PagedDocument;
use typst_pdf::{PdfOptions, Timestamp};

use diagnostics::Diagnostic;
use files::Files;
use parts::{Division, Part};
use redaction::Redaction;
use templates::{CommonFonts, Template};
use text::Text;
use world::DocumentWorld;

use crate::pdf::{EInvoice, Level};

pub use template_error::{TemplateError, TemplateErrors};

/// The message timestamp that samples are rendered with: 1 January 2026, in milliseconds since 1970.
const SAMPLE_TIMESTAMP_MS: i64 = 1_767_225_600_000;

/// The beginnings of those warnings of Typst's that are errors here: nobody reads the warnings of a
/// queue worker, and the PDF is not what the template asks for.
const UNKNOWN_FONT: &str = "unknown font family";
const UNDRAWN_SVG: &str = "image contains foreign object";
const NO_CONVERGENCE: &str = "document did not converge";

/// All templates with their fonts and packages, loaded once. Renders documents from them.
pub struct Renderer {
    packages: FileStore<Files>,
    templates: BTreeMap<String, Template>,
    /// What is beside the templates and is not used, with the reason.
    unused: Vec<String>,
    /// Whether a warning has been given that a PDF could not be compacted.
    has_warned_of_compaction: AtomicBool,
}

/// Identifies a template exactly: by the version that its author gave it, and by its content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateVersion {
    /// The version in its manifest.
    pub version: String,
    /// The digest of everything that its documents are made from beside their data.
    pub digest: String,
    /// How many elements of its array a part has at most, if long documents are divided.
    #[serde(default)]
    pub part_size: Option<usize>,
}

/// The versions of all templates, by the template's name.
pub type TemplateVersions = BTreeMap<String, TemplateVersion>;

/// A document to be rendered: a template and what to fill it with.
#[derive(Clone, Debug, Default)]
pub struct Document {
    pub template: String,
    /// The JSON that the template reads from the file `sys.inputs.data`.
    pub data: Bytes,
    /// The files that the template finds in its folder `files`, by name.
    pub files: BTreeMap<String, Bytes>,
    /// A unique, stable identifier: the PDF's document id is made from it.
    pub ident: String,
    /// Milliseconds since 1970, UTC: the only clock that a template sees.
    pub timestamp_ms: Option<i64>,
    /// Whether this is the template's own sample, which may be quoted in diagnostics.
    pub is_sample: bool,
    /// Which part of a divided document this is, if it is one. The data are its own then, and have been checked as
    /// those of the whole.
    pub part: Option<Part>,
}

/// A rendered document.
#[derive(Debug)]
pub struct RenderedPdf {
    pub bytes: Vec<u8>,
    pub pages: usize,
    /// The level of the e-invoice, if it is one.
    pub e_invoice: Option<Level>,
    pub warnings: Vec<Diagnostic>,
    /// Whether the template has read where a part's pages stand in the whole document.
    pub reads_pages: bool,
}

/// Why a document was not rendered.
#[derive(Debug)]
pub enum RenderError {
    /// There is no template of that name.
    UnknownTemplate,
    /// The data violate the template's schema, or the XML of an e-invoice cannot be used.
    Data(Vec<Diagnostic>),
    /// At least one error of Typst's, and its warnings; or the reason why the PDF is not an e-invoice, or why its parts
    /// cannot be joined.
    Typst(Vec<Diagnostic>),
}

impl Renderer {
    /// Loads the fonts (embedded, and `fonts/`), the packages and every template below
    /// `templates_dir`. No file is opened afterwards.
    ///
    /// # Errors
    /// When the folder, a manifest, a schema or a sample cannot be read or is not valid. All errors are
    /// returned, not only the first.
    pub fn load(templates_dir: &Path) -> Result<Self, TemplateErrors> {
        Self::load_only(templates_dir, &[])
    }

    /// Loads like [`Renderer::load`], but only the templates that are named, if any are: what is wrong with others
    /// does not matter then.
    ///
    /// # Errors
    /// As [`Renderer::load`], and when there is no template of a name.
    pub fn load_only(templates_dir: &Path, only: &[String]) -> Result<Self, TemplateErrors> {
        let (renderer, broken) = Self::load_valid(templates_dir, only).map_err(|error| TemplateErrors(vec![error]))?;
        if broken.is_empty() { Ok(renderer) } else { Err(TemplateErrors(broken.into_values().collect())) }
    }

    /// Loads like [`Renderer::load_only`], but leaves out templates that are broken and returns what is
    /// wrong with each of them, by its name.
    ///
    /// # Errors
    /// When the fonts or the packages that all templates share cannot be loaded.
    pub fn load_valid(
        templates_dir: &Path,
        only: &[String],
    ) -> Result<(Self, BTreeMap<String, TemplateError>), TemplateError> {
        let own_fonts = fonts::load(&templates_dir.join("fonts"))?;
        let packages = files::load_packages(&templates_dir.join("packages"))?;
        let common = digest::of_common(&own_fonts, &packages);
        let fonts = CommonFonts::new(fonts::embedded().chain(own_fonts).collect());
        let mut templates = BTreeMap::new();
        let mut broken = BTreeMap::new();
        let found = templates::find(templates_dir)?;
        let is_asked_for = |name: &String| only.is_empty() || only.contains(name);
        if let Some(unknown) = only.iter().find(|name| !found.templates.contains_key(*name)) {
            let there_are: Vec<&str> = found.templates.keys().map(String::as_str).collect();
            let problem = format!("there is no template {unknown:?}; there are: {}", there_are.join(", "));
            return Err(TemplateError::new(templates_dir, problem));
        }
        for (name, dir) in found.templates.into_iter().filter(|(name, _)| is_asked_for(name)) {
            match templates::load(&name, &dir, &fonts, common) {
                Ok(template) => drop(templates.insert(name, template)),
                Err(error) => drop(broken.insert(name, error)),
            }
        }
        let packages = FileStore::new(packages);
        let mut unused = found.skipped;
        unused.extend(fonts::not_read(&templates_dir.join("fonts")));
        unused.extend(templates.values().flat_map(|template: &Template| template.unread_fonts.iter().cloned()));
        Ok((Self { packages, templates, unused, has_warned_of_compaction: AtomicBool::default() }, broken))
    }

    /// Says what is beside the templates and is not used, and why: folders that are no templates, and fonts that
    /// Typst does not read.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// Returns the templates' names and versions, sorted by name.
    pub fn templates(&self) -> impl Iterator<Item = (&str, TemplateVersion)> {
        let version = |template: &Template| TemplateVersion {
            version: template.manifest.version.to_string(),
            digest: template.digest.clone(),
            part_size: template.manifest.parts.as_ref().map(|parts| parts.size),
        };
        self.templates.iter().map(move |(name, template)| (name.as_str(), version(template)))
    }

    /// Returns the PDF standards that a template's documents conform to, as its manifest spells them.
    pub fn standards(&self, template: &str) -> &[String] {
        self.templates.get(template).map_or(&[], |template| &template.manifest.standard_names)
    }

    /// Returns the document that a template's `sample.json` describes.
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
            part: None,
        })
    }

    /// Returns a template's sample in three parts or a few more, if its documents are divided; none if its array has
    /// too few elements for that.
    #[must_use]
    pub fn sample_in_parts(&self, template: &str) -> Option<Vec<Document>> {
        let sample = self.sample(template)?;
        let parts = self.templates.get(template)?.manifest.parts.as_ref()?;
        let size = parts.count(&sample.data) / 3;
        let division = (size > 0).then(|| parts.with_size(size).divide(&sample.data).ok().flatten()).flatten();
        let documents = division.iter().flat_map(|division| {
            division.parts().map(|part| Document {
                data: division.data_of(part, &sample.data).concat().into(),
                part: Some(part),
                ..sample.clone()
            })
        });
        Some(documents.collect())
    }

    /// Compiles a document as [`Renderer::render`] does, and returns its text alone.
    ///
    /// # Errors
    /// As [`Renderer::render`] when the document cannot be compiled.
    pub fn text(&self, document: Document) -> Result<Text, RenderError> {
        let template = self.templates.get(&document.template).ok_or(RenderError::UnknownTemplate)?;
        let world = DocumentWorld::new(self, template, document);
        let (compiled, mut found) = compile(&world, template);
        compiled.map(|paged| text::extract(&paged)).map_err(|errors| {
            found.extend(errors);
            RenderError::Typst(diagnostics::describe(&world, found))
        })
    }

    /// Says how a document is divided, if its template has parts and its data are too long for one. Its data are
    /// checked as a whole then.
    ///
    /// # Errors
    /// As [`Renderer::render`] for what can be known before anything is compiled; and when there would be too many
    /// parts.
    pub fn divide(&self, document: &Document) -> Result<Option<Division>, RenderError> {
        let template = self.templates.get(&document.template).ok_or(RenderError::UnknownTemplate)?;
        let Some(parts) = &template.manifest.parts else { return Ok(None) };
        let too_many = |error| RenderError::Data(vec![Diagnostic::in_data(&parts.too_many(&error), None)]);
        let Some(division) = parts.divide(&document.data).map_err(too_many)? else { return Ok(None) };
        check_data(template, document)?;
        finishing::read_invoice(template, document)?;
        Ok(Some(division))
    }

    /// Validates a document's data, compiles and exports it, and finishes its PDF. A part of a divided document is
    /// neither validated nor made an e-invoice: that is for the whole.
    ///
    /// Has to be called on a pool of [`pool`]: Typst puts work on the pool that the calling thread
    /// belongs to, and otherwise on rayon's global pool, whose threads never end.
    ///
    /// # Errors
    /// When there is no such template, the data violate its schema, Typst reports an error, or the data
    /// make no e-invoice although the template makes e-invoices. Some of Typst's warnings are errors
    /// here: a list of fonts none of which is there, text in a picture that is not drawn, a layout that does
    /// not converge. So are characters that no font has.
    ///
    /// # Panics
    /// When Typst does, as it may on unforeseen input.
    pub fn render(&self, document: Document) -> Result<RenderedPdf, RenderError> {
        let template = self.templates.get(&document.template).ok_or(RenderError::UnknownTemplate)?;
        let invoice = if document.part.is_none() {
            check_data(template, &document)?;
            finishing::read_invoice(template, &document)?
        } else {
            None
        };
        let options = pdf_options(template, &document);
        let is_sample = document.is_sample;
        let world = DocumentWorld::new(self, template, document);
        let (compiled, mut found) = compile(&world, template);
        let exported = compiled.and_then(|paged| {
            let pdf = typst_pdf::pdf(&paged, &options).map_err(|errors| redacted(&world, errors))?;
            Ok((pdf, paged.pages().len()))
        });
        // The laid-out document is gone by now, and with it more memory than the PDF needs to be finished.
        let finished = exported.and_then(|(pdf, pages)| {
            let (bytes, warning) = finishing::finish(pdf, invoice.as_ref(), template.manifest.compact)?;
            found.extend(warning.filter(|_| is_sample || self.warns_of_compaction()));
            Ok((bytes, pages))
        });
        match finished {
            Ok((bytes, pages)) => Ok(RenderedPdf {
                bytes,
                pages,
                e_invoice: invoice.as_ref().map(EInvoice::level),
                warnings: diagnostics::describe(&world, found),
                reads_pages: world.has_read_pages(),
            }),
            Err(errors) => {
                found.extend(errors.into_iter().map(finishing::with_hint));
                Err(RenderError::Typst(diagnostics::describe(&world, found)))
            }
        }
    }

    /// Joins the PDFs of a document's parts, which have so many pages together, and finishes the whole. Each part is
    /// dropped before the next is taken. The document's data are not needed any more.
    ///
    /// # Errors
    /// When there is no such template, the PDFs cannot be joined, or the whole cannot be made the e-invoice that it is
    /// to be.
    pub fn join(
        &self,
        document: &Document,
        parts: impl IntoIterator<Item = Bytes>,
        pages: usize,
    ) -> Result<RenderedPdf, RenderError> {
        let template = self.templates.get(&document.template).ok_or(RenderError::UnknownTemplate)?;
        let invoice = finishing::read_invoice(template, document)?;
        let joined = finishing::join(parts, invoice.as_ref(), template.manifest.compact);
        let bytes = joined.map_err(|error| RenderError::Typst(vec![Diagnostic::plain(&error)]))?;
        let e_invoice = invoice.as_ref().map(EInvoice::level);
        Ok(RenderedPdf { bytes, pages, e_invoice, warnings: Vec::new(), reads_pages: false })
    }

    /// Removes a document's values from the message of a panic of Rust's.
    #[must_use]
    pub fn redact_panic(&self, document: &Document, message: &str) -> String {
        let files = document.files.iter().map(|(name, content)| (name.as_str(), &content[..]));
        let parts = self.templates.get(&document.template).and_then(|template| template.manifest.parts.as_ref());
        let offset = parts.zip(document.part).map(|(parts, part)| parts.offset(part)).unwrap_or_default();
        Redaction::new(&document.data, files).with_offset(offset).redact_panic(message)
    }

    /// The texts of all packages' Typst files.
    fn package_sources(&self) -> impl Iterator<Item = &str> {
        self.packages.loader().sources()
    }

    /// Whether to warn that a PDF was not compacted: only for the first of the process, since the reason
    /// is a new version of Typst's export and concerns every PDF.
    fn warns_of_compaction(&self) -> bool {
        !self.has_warned_of_compaction.swap(true, Ordering::Relaxed)
    }
}

/// Checks a document's data against the schema of its template, if that has one.
fn check_data(template: &Template, document: &Document) -> Result<(), RenderError> {
    let Some(schema) = &template.schema else { return Ok(()) };
    let violations = schema.violations(&document.data);
    if violations.is_empty() {
        return Ok(());
    }
    let file = document.is_sample.then(|| template.sample_name());
    let in_data = |violation: &String| Diagnostic::in_data(violation, file.as_deref());
    Err(RenderError::Data(violations.iter().map(in_data).collect()))
}

/// Compiles a document, and returns it with what is to be said of it: all warnings, and errors of our own. If there is
/// any such error, there is no document.
fn compile(
    world: &DocumentWorld,
    template: &Template,
) -> (Result<PagedDocument, EcoVec<SourceDiagnostic>>, Vec<SourceDiagnostic>) {
    let is_sample = world.is_sample();
    let Warned { output, warnings } = typst::compile::<PagedDocument>(world);
    let mut warnings = font_lists::without_alternatives(world, warnings, is_sample);
    diagnostics::redact(world, &mut warnings);
    let output = output.map_err(|errors| redacted(world, errors));
    let mut found: Vec<SourceDiagnostic> =
        warnings.into_iter().map(|warning| promote_warning(warning, template)).collect();
    if is_sample && output.is_ok() {
        found.extend((!world.has_read_data()).then(unread_data));
        found.extend(world.ignores_part().then(unread_part));
    }
    let compiled = output.and_then(|paged| {
        let is_told = |character| is_sample || template.sources().any(|source| source.contains(character));
        let (named, manifest) = (&template.named_fonts, &template.manifest);
        found.extend(font_coverage::diagnose(&paged, world.data(), world.offset(), named, manifest, &is_told));
        // The export would only find the same again.
        if found.iter().any(is_error) { Err(EcoVec::new()) } else { Ok(paged) }
    });
    (compiled, found)
}

fn redacted(world: &DocumentWorld, mut errors: EcoVec<SourceDiagnostic>) -> EcoVec<SourceDiagnostic> {
    diagnostics::redact(world, &mut errors);
    errors
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

/// The warning that a template prints the same for every message.
fn unread_data() -> SourceDiagnostic {
    warning!(
        Span::detached(), "the template does not read the data: every message would get the same document";
        hint: "read them with json(sys.inputs.at(\"data\", default: \"/sample.json\"))"
    )
}

/// The error that the parts of a document would not know that they are parts.
fn unread_part() -> SourceDiagnostic {
    error!(
        Span::detached(),
        "the template has parts, and does not read sys.inputs.part: it would take each part of a long document for the \
         whole, and sum up only what that part has";
        hint: "read it with json(sys.inputs.part), and print what stands at the beginning only where index is 0, and \
               totals only where index + 1 is count";
        hint: "or leave parts out of [tool.pressrun]: documents are rendered whole then"
    )
}

/// Makes an error of a warning that says that the PDF is not what the template asks for.
fn promote_warning(mut warning: SourceDiagnostic, template: &Template) -> SourceDiagnostic {
    let is_missing_font = warning.message.starts_with(UNKNOWN_FONT)
        && warning.severity == Severity::Warning
        && !font_lists::is_alternative(&warning)
        && !template.manifest.allow_missing_fonts;
    let is_undrawn = warning.message.starts_with(UNDRAWN_SVG);
    if is_missing_font || is_undrawn || warning.message.starts_with(NO_CONVERGENCE) {
        warning.severity = Severity::Error;
    }
    if is_missing_font {
        warning.hint("add the font to templates/fonts or to the template's folder; the system's are not used");
        warning.hint(
            "or name another after it in the list; with [tool.pressrun] allow-missing-fonts = true any font is taken",
        );
    }
    if is_undrawn {
        warning.hint(
            "the text of <foreignObject> would be missing: have it written as <text>, in draw.io by an export \
             without formatted text, in Mermaid by htmlLabels: false",
        );
    }
    warning
}

fn is_error(diagnostic: &SourceDiagnostic) -> bool {
    diagnostic.severity == Severity::Error
}

/// Evicts from Typst's memo cache what the last `max_age` documents did not use. With 1, what a
/// template computes the same way each time stays, which is worth a third of an invoice's time and
/// takes a few megabytes.
pub fn evict_cache(max_age: usize) {
    typst::comemo::evict(max_age);
}
