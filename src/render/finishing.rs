//! What is done to a document before and after Typst: the XML of an e-invoice is read before, and the PDF is
//! finished after.

use bytes::Bytes;
use typst::diag::SourceDiagnostic;
use typst::ecow::{EcoVec, eco_format, eco_vec};
use typst::syntax::Span;

use super::diagnostics::Diagnostic;
use super::templates::Template;
use super::{Document, RenderError};
use crate::pdf::{self, EInvoice, FinishedPdf};

/// The end of Typst's error for a PDF with more objects than PDF/A allows.
const TOO_MANY_OBJECTS: &str = "the PDF has too many indirect objects";

/// The hint for that error. A row of eight cells makes nine objects if the PDF is tagged.
const TOO_MANY_OBJECTS_HINT: &str = "PDF/A allows 8,388,607 objects, which a table of eight columns has with some \
                                     920,000 rows; make several shorter documents of it";

/// Reads the XML that makes an e-invoice of the document, if its template makes e-invoices.
pub(super) fn read_invoice(template: &Template, document: &Document) -> Result<Option<EInvoice>, RenderError> {
    let Some(file_name) = template.manifest.e_invoice else { return Ok(None) };
    let problem = |problem: &str| {
        let file = if document.is_sample { template.sample_file(file_name.as_str()) } else { file_name.to_string() };
        RenderError::Data(vec![Diagnostic::in_data(problem, Some(&file))])
    };
    let xml = document.files.get(file_name.as_str()).ok_or_else(|| {
        problem(if document.is_sample {
            "it is not there: the sample of a template that makes e-invoices has an XML too"
        } else {
            "it is not there: the template makes e-invoices, and the message's \"files\" have to name the XML"
        })
    })?;
    EInvoice::parse(file_name, xml.clone()).map(Some).map_err(|error| problem(&error.to_string()))
}

/// Adds a hint to an error of the export that Typst has none for.
pub(super) fn with_hint(mut error: SourceDiagnostic) -> SourceDiagnostic {
    if error.message.ends_with(TOO_MANY_OBJECTS) {
        error.hint(TOO_MANY_OBJECTS_HINT);
    }
    error
}

/// Joins the PDFs of a document's parts, and finishes the whole.
pub(super) fn join(
    parts: impl IntoIterator<Item = Bytes>,
    invoice: Option<&EInvoice>,
    compact: bool,
) -> Result<Vec<u8>, SourceDiagnostic> {
    let joined = typst_timing::timed!("join pdf", pdf::join(parts, invoice, compact));
    joined.map_err(|error| {
        let message = eco_format!("the PDFs of the document's parts cannot be joined: {error}");
        SourceDiagnostic::error(Span::detached(), message)
    })
}

/// Finishes Typst's PDF, perhaps with a warning.
pub(super) fn finish(
    pdf: Vec<u8>,
    invoice: Option<&EInvoice>,
    compact: bool,
) -> Result<(Vec<u8>, Option<SourceDiagnostic>), EcoVec<SourceDiagnostic>> {
    let FinishedPdf { bytes, not_compacted } =
        typst_timing::timed!("finish pdf", pdf::finish(pdf, invoice, compact))
            .map_err(|error| eco_vec![SourceDiagnostic::error(Span::detached(), eco_format!("{error}"))])?;
    let warning = not_compacted.map(|reason| {
        let message = eco_format!("the PDF is not compacted, and so larger than it need be: {reason}");
        SourceDiagnostic::warning(Span::detached(), message)
    });
    Ok((bytes, warning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_objects_come_with_how_many_rows_that_is() {
        let error = |message: &str| with_hint(SourceDiagnostic::error(Span::detached(), message));
        let hinted = error("PDF/A-2b error: the PDF has too many indirect objects");
        assert_eq!(hinted.hints.len(), 1);
        assert!(hinted.hints[0].v.contains("920,000 rows"));
        assert!(error("PDF/A-2b error: the PDF has too high q nesting").hints.is_empty());
    }

    #[test]
    fn a_pdf_of_an_unknown_shape_is_stored_as_it_is_with_a_warning() {
        let (bytes, warning) = finish(b"%PDF-9.9 of a newer Typst".to_vec(), None, true).unwrap();
        assert_eq!(bytes, b"%PDF-9.9 of a newer Typst\n");
        let warning = warning.unwrap();
        assert!(
            warning.message.starts_with("the PDF is not compacted, and so larger than it need be: the PDF is not as")
        );
        assert!(finish(b"%PDF-9.9".to_vec(), None, false).unwrap().1.is_none());
    }
}
