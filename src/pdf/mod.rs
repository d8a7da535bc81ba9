//! What is done to a PDF after Typst has written it: it is made an e-invoice, and half as large.
//!
//! This module knows PDF's objects, and nothing of templates, processes or S3; it imports nothing of this crate. It
//! reads files of the one shape that Typst writes and answers any other with an error: it must never panic, whatever
//! the bytes are, nor take more memory than a few times what it is given. Compaction may fail and the PDF is still
//! good; an e-invoice that cannot be finished is none.
//!
//! `finish` is the way in. `file` takes a PDF apart and writes it, `value` reads what is in an object; `e_invoice`
//! reads an invoice's XML, `attachment` checks that it is in the PDF, `metadata` says so in the XMP; `compact` packs,
//! and `unpack` is the way back. `join` is the way in for a document that was rendered in parts.

mod attachment;
mod compact;
mod e_invoice;
mod file;
mod join;
mod metadata;
mod unpack;
mod value;

pub use attachment::AttachmentError;
pub use compact::CompactError;
pub use e_invoice::{EInvoice, FileName, InvoiceXmlError, Level};
pub use file::ReadError;
pub use join::{JoinError, join};
pub use metadata::MetadataError;

use file::PdfFile;

/// A PDF that cannot be made an e-invoice.
#[derive(Debug, thiserror::Error)]
#[error("not an e-invoice: {0}")]
pub enum EInvoiceError {
    /// The file cannot be taken apart.
    Read(#[from] ReadError),
    /// The XML is not in it as it should be.
    Attachment(#[from] AttachmentError),
    /// Its metadata cannot say that it is one.
    Metadata(#[from] MetadataError),
}

/// A PDF that is ready to be stored.
#[derive(Debug)]
pub struct FinishedPdf {
    /// The file, with a newline after `%%EOF`.
    pub bytes: Vec<u8>,
    /// Why it was not compacted though it should be. The PDF is good all the same.
    pub not_compacted: Option<CompactError>,
}

/// Does to a PDF of Typst's what is left to do: makes it the e-invoice that `invoice` belongs to, and compacts it.
///
/// PDF 1.4, and so PDF/A-1, cannot be compacted and is left as it is. The same input gives the same bytes.
///
/// # Errors
///
/// When the invoice's XML is not attached as it should be, or the PDF is not of the shape that Typst 0.15 writes.
pub fn finish(pdf: Vec<u8>, invoice: Option<&EInvoice>, compact: bool) -> Result<FinishedPdf, EInvoiceError> {
    match invoice {
        Some(invoice) => finish_e_invoice(&pdf, invoice, compact),
        None if compact => Ok(finish_plain(pdf)),
        None => Ok(FinishedPdf { bytes: with_final_newline(pdf), not_compacted: None }),
    }
}

fn finish_e_invoice(pdf: &[u8], invoice: &EInvoice, compact: bool) -> Result<FinishedPdf, EInvoiceError> {
    let mut file = PdfFile::read(pdf)?;
    // In this order, because only a PDF/A-3 lists its attachments.
    metadata::describe(&mut file, invoice)?;
    attachment::check(&file, invoice)?;
    let (compacted, not_compacted) = split(if compact { compact_if_possible(&file) } else { Ok(None) });
    Ok(FinishedPdf { bytes: compacted.unwrap_or_else(|| file.write()), not_compacted })
}

fn finish_plain(pdf: Vec<u8>) -> FinishedPdf {
    let compacted = PdfFile::read(&pdf).map_err(CompactError::from).and_then(|file| compact_if_possible(&file));
    let (compacted, not_compacted) = split(compacted);
    FinishedPdf { bytes: compacted.unwrap_or_else(|| with_final_newline(pdf)), not_compacted }
}

/// The compacted file, or none if its version does not allow that.
fn compact_if_possible(file: &PdfFile) -> Result<Option<Vec<u8>>, CompactError> {
    compact::has_object_streams(file).then(|| compact::compact(file)).transpose()
}

fn split(compacted: Result<Option<Vec<u8>>, CompactError>) -> (Option<Vec<u8>>, Option<CompactError>) {
    compacted.map_or_else(|error| (None, Some(error)), |compacted| (compacted, None))
}

/// Typst ends a file without a newline, and some validators want one before a signature is appended.
fn with_final_newline(mut pdf: Vec<u8>) -> Vec<u8> {
    if !pdf.ends_with(b"\n") {
        pdf.push(b'\n');
    }
    pdf
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::file::tests::{TYPST_PDF, edited};
    use super::*;

    const XML: &[u8] = include_bytes!("fixtures/factur-x.xml");

    fn invoice() -> EInvoice {
        EInvoice::parse(FileName::FacturX, XML.into()).unwrap()
    }

    fn xmp(pdf: &[u8]) -> String {
        let text = String::from_utf8_lossy(pdf);
        let start = text.find("<?xpacket begin").unwrap();
        let end = text.find("<?xpacket end").unwrap();
        text[start..end].to_owned()
    }

    fn error_of(pdf: &[u8]) -> String {
        finish(pdf.to_vec(), Some(&invoice()), true).unwrap_err().to_string()
    }

    #[test]
    fn an_e_invoice_says_so_in_its_metadata_compacted_or_not() {
        for compact in [true, false] {
            let finished = finish(TYPST_PDF.to_vec(), Some(&invoice()), compact).unwrap();
            assert!(finished.not_compacted.is_none());
            let xmp = xmp(&finished.bytes);
            assert!(roxmltree::Document::parse(&xmp).is_ok());
            assert_eq!(xmp.matches("<pdfaSchema:prefix>fx</pdfaSchema:prefix>").count(), 1);
            for property in [
                "<fx:DocumentType>INVOICE</fx:DocumentType>",
                "<fx:DocumentFileName>factur-x.xml</fx:DocumentFileName>",
                "<fx:Version>1.0</fx:Version>",
                "<fx:ConformanceLevel>EN 16931</fx:ConformanceLevel>",
            ] {
                assert_eq!(xmp.matches(property).count(), 1, "{property}");
            }
        }
    }

    #[test]
    fn an_uncompacted_e_invoice_is_still_a_file_as_typst_writes_it() {
        let finished = finish(TYPST_PDF.to_vec(), Some(&invoice()), false).unwrap();
        let (before, after) = (PdfFile::read(TYPST_PDF).unwrap(), PdfFile::read(&finished.bytes).unwrap());
        let changed = before.objects().zip(after.objects()).filter(|(before, after)| before != after).count();
        assert_eq!(changed, 1, "the metadata alone");
    }

    #[test]
    fn a_file_ends_with_a_newline_compacted_or_not() {
        assert!(!TYPST_PDF.ends_with(b"\n"));
        for compact in [true, false] {
            let bytes = finish(TYPST_PDF.to_vec(), None, compact).unwrap().bytes;
            assert!(bytes.ends_with(b"\n%%EOF\n"));
            assert_eq!(bytes.len() < TYPST_PDF.len(), compact);
        }
        let twice = finish(finish(TYPST_PDF.to_vec(), None, false).unwrap().bytes, None, false).unwrap();
        assert_eq!(twice.bytes, [TYPST_PDF, b"\n"].concat());
    }

    #[test]
    fn a_file_that_cannot_be_compacted_goes_out_as_it_is_and_says_why() {
        let finished = finish(b"%PDF-9".to_vec(), None, true).unwrap();
        assert_eq!(finished.bytes, b"%PDF-9\n");
        assert!(matches!(finished.not_compacted, Some(CompactError::Read(_))));
    }

    #[test]
    fn a_version_without_object_streams_is_left_alone_without_complaint() {
        let mut pdf = TYPST_PDF.to_vec();
        pdf[7] = b'4';
        let finished = finish(pdf.clone(), None, true).unwrap();
        assert!(finished.not_compacted.is_none());
        assert_eq!(finished.bytes, [&pdf[..], b"\n"].concat());
    }

    #[test]
    fn an_e_invoice_that_cannot_be_read_is_an_error() {
        assert!(error_of(b"%PDF-9").starts_with("not an e-invoice: the PDF is not as Typst 0.15 writes it"));
    }

    #[test]
    fn the_xml_must_be_attached_under_its_name() {
        let error = "not an e-invoice: factur-x.xml is not attached to the PDF: the template should call \
                     pdf.attach(\"factur-x.xml\", ..)";
        assert_eq!(error_of(&edited(TYPST_PDF, "(factur-x.xml)", "(invoice.xml)")), error);
        assert_eq!(error_of(&edited(TYPST_PDF, "(factur-x.xml)", "(xrechnung.xml)")), error);
        assert_eq!(error_of(&edited(TYPST_PDF, "/AF[9 0 R]", "")), error);
    }

    #[test]
    fn there_must_be_one_invoice_alone() {
        let error = error_of(&edited(TYPST_PDF, "/AF[9 0 R]", "/AF[9 0 R 9 0 R]"));
        assert!(error.contains("more than one e-invoice"), "{error}");
    }

    #[test]
    fn the_relationship_must_be_one_of_the_level() {
        let source = edited(TYPST_PDF, "/Alternative", "/Source");
        assert!(finish(source, Some(&invoice()), true).is_ok());
        for relationship in ["/Data", "/Unspecified", "/Supplement"] {
            let error = error_of(&edited(TYPST_PDF, "/Alternative", relationship));
            assert!(
                error.ends_with("EN 16931: pdf.attach should have relationship: \"alternative\" or \"source\""),
                "{error}"
            );
        }
    }

    #[test]
    fn the_media_type_must_be_xml() {
        let error = error_of(&edited(TYPST_PDF, "/Subtype/text#2Fxml", "/Subtype/application#2Fxml"));
        assert!(error.ends_with("mime-type: \"text/xml\""), "{error}");
    }

    #[test]
    fn the_attached_bytes_must_be_the_messages() {
        let longer = EInvoice::parse(FileName::FacturX, [XML, b"\n"].concat().into()).unwrap();
        let shorter = EInvoice::parse(FileName::FacturX, XML.trim_ascii_end().to_vec().into()).unwrap();
        for other in [longer, shorter] {
            let error = finish(TYPST_PDF.to_vec(), Some(&other), true).unwrap_err().to_string();
            assert!(error.contains("attached with other content"), "{error}");
        }
    }

    #[test]
    fn a_file_of_another_standard_is_no_e_invoice() {
        let error = error_of(&edited(TYPST_PDF, "<pdfaid:part>3</pdfaid:part>", "<pdfaid:part>2</pdfaid:part>"));
        assert!(error.contains("not a PDF/A-3"), "{error}");
    }

    #[test]
    fn metadata_without_the_places_to_add_to_is_an_error() {
        for marker in ["</rdf:RDF>", "</rdf:Bag></pdfaExtension:schemas>"] {
            assert!(error_of(&with_marker(marker, 0)).ends_with(&format!("expected {marker} once")));
            assert!(error_of(&with_marker(marker, 2)).ends_with(&format!("expected {marker} once")));
        }
    }

    /// The file with the marker that many times in its metadata, whose length stays the same.
    fn with_marker(marker: &str, times: usize) -> Vec<u8> {
        let creator = "<xmp:CreatorTool>Typst 0.15.1</xmp:CreatorTool>";
        let room = "x".repeat(marker.len());
        let pdf = TYPST_PDF.to_vec();
        match times {
            0 => edited(&pdf, marker, &room),
            _ => edited(&pdf, creator, &format!("{marker}{}", "x".repeat(creator.len() - marker.len()))),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn no_file_makes_it_panic(changes in proptest::collection::vec((0..TYPST_PDF.len(), any::<u8>()), 1..12)) {
            let mut pdf = TYPST_PDF.to_vec();
            for (at, byte) in changes {
                pdf[at] = byte;
            }
            let _ = finish(pdf.clone(), Some(&invoice()), true);
            let finished = finish(pdf, None, true).unwrap();
            prop_assert!(finished.bytes.ends_with(b"\n"));
        }
    }
}
