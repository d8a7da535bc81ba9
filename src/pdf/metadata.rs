//! Writes into a PDF's XMP metadata that it is an e-invoice, which Typst cannot (typst/typst#5667).
//!
//! PDF/A allows properties only that it knows, or that an extension schema in the same metadata describes. Typst
//! writes such schemas of its own; one is added to them, and then the four properties.

use super::e_invoice::EInvoice;
use super::file::{PdfFile, Stream};

const NAMESPACE: &str = "urn:factur-x:pdfa:CrossIndustryDocument:invoice:1p0#";

const PDF_A_3: &str = "<pdfaid:part>3</pdfaid:part>";
const END_OF_SCHEMAS: &str = "</rdf:Bag></pdfaExtension:schemas>";
const END_OF_METADATA: &str = "</rdf:RDF>";

/// The properties and what they mean, in the order of the extension schema.
const PROPERTIES: [(&str, &str); 4] = [
    ("DocumentFileName", "The name of the embedded XML document"),
    ("DocumentType", "The type of the hybrid document in capital letters, e.g. INVOICE or ORDER"),
    ("Version", "The actual version of the standard applying to the embedded XML document"),
    ("ConformanceLevel", "The conformance level of the embedded XML document"),
];

/// The PDF's metadata cannot be completed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MetadataError {
    /// An e-invoice is a PDF/A-3.
    #[error("the PDF is not a PDF/A-3: the template's standards should have a-3b, a-3u or a-3a")]
    NotPdfA3,
    /// The catalog has no reference to plain metadata.
    #[error("the PDF's XMP metadata is not as Typst 0.15 writes it: expected a plain stream in UTF-8")]
    NoMetadata,
    /// The place where to add something is not there, or there is more than one.
    #[error("the PDF's XMP metadata is not as Typst 0.15 writes it: expected {0} once")]
    Marker(&'static str),
}

/// Adds the extension schema and the properties of Factur-X to the metadata.
pub(super) fn describe(file: &mut PdfFile, invoice: &EInvoice) -> Result<(), MetadataError> {
    let (reference, stream) = find(file).ok_or(MetadataError::NoMetadata)?;
    let text = std::str::from_utf8(stream.data).map_err(|_| MetadataError::NoMetadata)?;
    if !text.contains(PDF_A_3) {
        return Err(MetadataError::NotPdfA3);
    }
    let text = insert_before(text, END_OF_SCHEMAS, &extension_schema())?;
    let text = insert_before(&text, END_OF_METADATA, &properties(invoice))?;
    let content = stream.with_data(text.as_bytes()).ok_or(MetadataError::NoMetadata)?;
    let reference = reference.to_vec();
    file.replace(&reference, content).ok_or(MetadataError::NoMetadata)
}

/// The metadata and the reference to it. It is not compressed: readers look for it without understanding PDF.
fn find<'a>(file: &'a PdfFile) -> Option<(&'a [u8], Stream<'a>)> {
    let reference = file.catalog()?.get("/Metadata")?;
    Some((reference, file.stream(reference)?))
}

fn insert_before(text: &str, marker: &'static str, addition: &str) -> Result<String, MetadataError> {
    let (before, after) = text.split_once(marker).ok_or(MetadataError::Marker(marker))?;
    if after.contains(marker) {
        return Err(MetadataError::Marker(marker));
    }
    Ok([before, addition, marker, after].concat())
}

fn extension_schema() -> String {
    let property = |(name, description)| {
        format!(
            "<rdf:li rdf:parseType=\"Resource\"><pdfaProperty:name>{name}</pdfaProperty:name>\
             <pdfaProperty:valueType>Text</pdfaProperty:valueType>\
             <pdfaProperty:category>external</pdfaProperty:category>\
             <pdfaProperty:description>{description}</pdfaProperty:description></rdf:li>"
        )
    };
    let properties: String = PROPERTIES.into_iter().map(property).collect();
    format!(
        "<rdf:li rdf:parseType=\"Resource\"><pdfaSchema:schema>Factur-X PDFA Extension Schema</pdfaSchema:schema>\
         <pdfaSchema:namespaceURI>{NAMESPACE}</pdfaSchema:namespaceURI><pdfaSchema:prefix>fx</pdfaSchema:prefix>\
         <pdfaSchema:property><rdf:Seq>{properties}</rdf:Seq></pdfaSchema:property></rdf:li>"
    )
}

/// The values are names of this program and digits, so that nothing in them needs to be escaped.
fn properties(invoice: &EInvoice) -> String {
    let [file_name, kind, version, level] = PROPERTIES.map(|(name, _)| name);
    format!(
        "<rdf:Description rdf:about=\"\" xmlns:fx=\"{NAMESPACE}\"><fx:{kind}>INVOICE</fx:{kind}>\
         <fx:{file_name}>{}</fx:{file_name}><fx:{version}>{}</fx:{version}><fx:{level}>{}</fx:{level}>\
         </rdf:Description>",
        invoice.file_name(),
        invoice.version(),
        invoice.level(),
    )
}
