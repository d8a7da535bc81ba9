//! Checks that a PDF carries an invoice's XML as Factur-X and ZUGFeRD want it to be attached.

use std::io::Read as _;

use flate2::read::ZlibDecoder;

use super::e_invoice::{EInvoice, FileName, Level};
use super::file::{PdfFile, Stream};
use super::value::{Dictionary, array};

/// Names by which readers take an attached file for the invoice. There must be one such file, whatever its name.
const INVOICE_NAMES: [&str; 5] =
    ["factur-x.xml", "xrechnung.xml", "zugferd-invoice.xml", "ZUGFeRD-invoice.xml", "order-x.xml"];

/// The file type, as a name in the PDF.
const MEDIA_TYPE: &[u8] = b"/text#2Fxml";

/// The PDF does not carry the invoice's XML as it should.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AttachmentError {
    /// No file of that name is attached.
    #[error("{0} is not attached to the PDF: the template should call pdf.attach(\"{0}\", ..)")]
    NotAttached(FileName),
    /// There is another file that readers would take for the invoice.
    #[error("more than one e-invoice is attached to the PDF: the template should attach {0} alone")]
    Several(FileName),
    /// The file has other bytes than the invoice.
    #[error(
        "{0} is attached with other content than the message's file: the template should read it with encoding: none"
    )]
    OtherContent(FileName),
    /// The file is not marked as XML.
    #[error("{0} is attached without its media type: pdf.attach should have mime-type: \"text/xml\"")]
    MediaType(FileName),
    /// The file is related to the page in a way that its level does not have.
    #[error(
        "{file_name} is attached with a relationship that is not for its level, {level}: pdf.attach should have \
         relationship: \"{}\"", level.relationships().join("\" or \"")
    )]
    Relationship {
        /// The attached file.
        file_name: FileName,
        /// Which relationship is right depends on it.
        level: Level,
    },
    /// The attached files cannot be listed.
    #[error("the PDF's attachments are not as Typst 0.15 writes them: expected {0}")]
    Unreadable(&'static str),
}

/// Checks that exactly this XML is attached to the PDF, with a relationship that its level allows.
pub(super) fn check(file: &PdfFile, invoice: &EInvoice) -> Result<(), AttachmentError> {
    let file_name = invoice.file_name();
    let specification = find_specification(file, file_name)?;
    let relationship = specification.get("/AFRelationship").unwrap_or_default();
    if !invoice.level().relationships().iter().any(|allowed| is_name(relationship, allowed)) {
        return Err(AttachmentError::Relationship { file_name, level: invoice.level() });
    }
    let (dictionary, stream) = embedded_file(file, &specification).ok_or(AttachmentError::Unreadable("a file"))?;
    if dictionary.get("/Subtype") != Some(MEDIA_TYPE) {
        return Err(AttachmentError::MediaType(file_name));
    }
    let is_equal = match dictionary.get("/Filter") {
        None => stream.data == invoice.xml(),
        Some(b"/FlateDecode") => inflates_to(stream.data, invoice.xml()),
        Some(_) => return Err(AttachmentError::Unreadable("a file that is deflated or plain")),
    };
    if is_equal { Ok(()) } else { Err(AttachmentError::OtherContent(file_name)) }
}

/// The file specification of the one attached file that readers would take for the invoice.
fn find_specification<'a>(file: &'a PdfFile, file_name: FileName) -> Result<Dictionary<'a>, AttachmentError> {
    let catalog = file.catalog().ok_or(AttachmentError::Unreadable("a document catalog"))?;
    let attached =
        array(catalog.get("/AF").unwrap_or(b"[]")).ok_or(AttachmentError::Unreadable("an array of files"))?;
    let mut found = None;
    for reference in attached {
        let specification = file.dictionary(reference).ok_or(AttachmentError::Unreadable("a file specification"))?;
        let name = specification.get("/UF").unwrap_or_default();
        if INVOICE_NAMES.iter().any(|invoice_name| is_string(name, invoice_name))
            && found.replace(specification).is_some()
        {
            return Err(AttachmentError::Several(file_name));
        }
    }
    found
        .filter(|specification| ["/F", "/UF"].iter().all(|key| is_file_name(specification.get(key), file_name)))
        .ok_or(AttachmentError::NotAttached(file_name))
}

fn embedded_file<'a>(file: &'a PdfFile, specification: &Dictionary) -> Option<(Dictionary<'a>, Stream<'a>)> {
    let stream = file.stream(Dictionary::parse(specification.get("/EF")?)?.get("/F")?)?;
    Some((Dictionary::parse(stream.dictionary)?, stream))
}

fn is_file_name(string: Option<&[u8]>, file_name: FileName) -> bool {
    string.is_some_and(|string| is_string(string, file_name.as_str()))
}

/// Whether a literal string of the PDF is `text`, which has nothing in it that would be escaped.
fn is_string(string: &[u8], text: &str) -> bool {
    string.strip_prefix(b"(").and_then(|string| string.strip_suffix(b")")) == Some(text.as_bytes())
}

/// Whether a name of the PDF is `word`, in Typst's lower case.
fn is_name(name: &[u8], word: &str) -> bool {
    name.strip_prefix(b"/").is_some_and(|name| name.eq_ignore_ascii_case(word.as_bytes()))
}

/// Whether the data is `expected` when it is unpacked, which is never all in memory.
fn inflates_to(data: &[u8], mut expected: &[u8]) -> bool {
    let mut decoder = ZlibDecoder::new(data);
    let mut buffer = [0; 4096];
    while let Ok(len) = decoder.read(&mut buffer) {
        if len == 0 {
            return expected.is_empty();
        }
        let Some(rest) = expected.strip_prefix(&buffer[..len]) else { return false };
        expected = rest;
    }
    false
}
