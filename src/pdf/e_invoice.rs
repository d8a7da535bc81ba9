//! An electronic invoice's XML, as Factur-X 1.0 and ZUGFeRD 2.1 and newer want it: Cross Industry Invoice D16B.
//!
//! Only what decides how the hybrid PDF is written is looked at: that it is such an XML, and which level it declares.
//! Whether the invoice keeps the rules of EN 16931 is not checked.

use std::fmt;

use bytes::Bytes;
use roxmltree::{Document, Node, ParsingOptions};
use serde::{Deserialize, Serialize};

/// The root element's namespace, which D16B and the later versions share.
const CII: &str = "urn:un:unece:uncefact:data:standard:CrossIndustryInvoice:100";

/// The namespace of the elements below the root's children.
const CII_ENTITIES: &str = "urn:un:unece:uncefact:data:standard:ReusableAggregateBusinessInformationEntity:100";

const UBL: [&str; 2] = [
    "urn:oasis:names:specification:ubl:schema:xsd:Invoice-2",
    "urn:oasis:names:specification:ubl:schema:xsd:CreditNote-2",
];

const ZUGFERD_1: &str = "urn:ferd:CrossIndustryDocument:invoice:1p0";

/// The guideline identifiers (BT-24) of Factur-X 1.0, which are ZUGFeRD's from 2.1 on.
const GUIDELINES: [(&str, Level); 5] = [
    ("urn:factur-x.eu:1p0:minimum", Level::Minimum),
    ("urn:factur-x.eu:1p0:basicwl", Level::BasicWl),
    ("urn:cen.eu:en16931:2017#compliant#urn:factur-x.eu:1p0:basic", Level::Basic),
    ("urn:cen.eu:en16931:2017", Level::En16931),
    ("urn:cen.eu:en16931:2017#conformant#urn:factur-x.eu:1p0:extended", Level::Extended),
];

/// What stands before the version in the guideline identifier of an XRechnung: from 3.0 on, and until 2.3.
const XRECHNUNG_GUIDELINES: [&str; 2] = [
    "urn:cen.eu:en16931:2017#compliant#urn:xeinkauf.de:kosit:xrechnung_",
    "urn:cen.eu:en16931:2017#compliant#urn:xoev-de:kosit:standard:xrechnung_",
];

/// `fx:Version` of every level that is defined by Factur-X itself.
const FACTUR_X_VERSION: &str = "1.0";

/// Each node of the parsed XML takes several times this many bytes of it; CII's have some thirty.
const BYTES_PER_NODE: usize = 8;

/// The name of the attached file, which readers find the XML by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileName {
    /// `factur-x.xml`, for all levels but XRECHNUNG.
    FacturX,
    /// `xrechnung.xml`, for the level XRECHNUNG.
    XRechnung,
}

impl FileName {
    /// Both names.
    pub const ALL: [Self; 2] = [Self::FacturX, Self::XRechnung];

    /// The file name that `name` is, if it is one.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|file_name| file_name.as_str() == name)
    }

    /// The name as it is written in the PDF.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FacturX => "factur-x.xml",
            Self::XRechnung => "xrechnung.xml",
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How much of an invoice the XML has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// Document totals only.
    Minimum,
    /// Without lines.
    BasicWl,
    /// With lines.
    Basic,
    /// All of EN 16931.
    En16931,
    /// More than EN 16931 has.
    Extended,
    /// EN 16931 with Germany's rules for invoices to public authorities.
    XRechnung,
}

impl Level {
    /// All levels, from the least to the most, and XRechnung's.
    pub const ALL: [Self; 6] =
        [Self::Minimum, Self::BasicWl, Self::Basic, Self::En16931, Self::Extended, Self::XRechnung];

    /// The level that is called `name`, such as `EN 16931`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str() == name)
    }

    /// The level as `fx:ConformanceLevel` has it, such as `EN 16931`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minimum => "MINIMUM",
            Self::BasicWl => "BASIC WL",
            Self::Basic => "BASIC",
            Self::En16931 => "EN 16931",
            Self::Extended => "EXTENDED",
            Self::XRechnung => "XRECHNUNG",
        }
    }

    /// How the file may be related to the page, in Typst's words.
    ///
    /// ZUGFeRD 2.1.1, Technical Supplement, Part A, 2.2.2: the two levels that are no whole invoice are `Data`. The
    /// others are `Alternative`, or `Source` for a recipient outside Germany if the page was made from the XML.
    pub fn relationships(self) -> &'static [&'static str] {
        match self {
            Self::Minimum | Self::BasicWl => &["data"],
            Self::Basic | Self::En16931 | Self::Extended => &["alternative", "source"],
            Self::XRechnung => &["alternative"],
        }
    }

    fn file_name(self) -> FileName {
        if self == Self::XRechnung { FileName::XRechnung } else { FileName::FacturX }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The XML cannot make a PDF an e-invoice. Says nothing of the XML but a place in it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvoiceXmlError {
    /// Not text in UTF-8.
    #[error("the invoice's XML is not UTF-8: byte {offset} is not part of a character")]
    Encoding {
        /// Where, counted in bytes from the beginning.
        offset: usize,
    },
    /// Not well-formed, or without a root element.
    #[error("the invoice's XML is not well-formed: see line {line}, column {column}")]
    Syntax {
        /// Counted from 1.
        line: u32,
        /// Counted from 1.
        column: u32,
    },
    /// It has a document type declaration, with which a small file can become a large one.
    #[error("the invoice's XML has a document type declaration (<!DOCTYPE): remove it, CII has none")]
    Dtd,
    /// More elements than its size would need.
    #[error("the invoice's XML has more elements than an invoice of its size: less than {BYTES_PER_NODE} bytes each")]
    TooManyNodes,
    /// Universal Business Language, the other syntax of EN 16931.
    #[error("the invoice's XML is UBL, and Factur-X and ZUGFeRD are CII (CrossIndustryInvoice): convert it")]
    Ubl,
    /// The first ZUGFeRD, of 2014.
    #[error("the invoice's XML is ZUGFeRD 1.0: convert it to Factur-X 1.0 or ZUGFeRD 2.1 or newer")]
    Zugferd1,
    /// The root is another element.
    #[error("the invoice's XML is not a CrossIndustryInvoice of {CII}")]
    NotCii,
    /// Exactly one is needed to know the level.
    #[error(
        "the invoice's XML has {found} guideline identifiers (BT-24, ExchangedDocumentContext/\
         GuidelineSpecifiedDocumentContextParameter/ID), and should have one"
    )]
    Guidelines {
        /// How many there are.
        found: usize,
    },
    /// None of Factur-X 1.0's, such as one of ZUGFeRD 2.0.
    #[error("the invoice's XML has an unknown guideline identifier (BT-24): accepted are {}", accepted_guidelines())]
    UnknownGuideline,
    /// The level has another file name.
    #[error("the invoice's XML is of the level {level}, which is attached as {}, not as {found}", level.file_name())]
    FileName {
        /// What the XML says it is.
        level: Level,
        /// The name that the template gives it.
        found: FileName,
    },
}

/// The XML of an invoice whose level is known and goes with its file name.
#[derive(Clone, Debug)]
pub struct EInvoice {
    file_name: FileName,
    level: Level,
    version: String,
    xml: Bytes,
}

impl EInvoice {
    /// Reads the XML that is going to be attached as `file_name`.
    ///
    /// # Errors
    ///
    /// When the XML is not a Cross Industry Invoice of a level that is attached under this name.
    pub fn parse(file_name: FileName, xml: Bytes) -> Result<Self, InvoiceXmlError> {
        let (level, version) = read_level(&xml)?;
        if level.file_name() != file_name {
            return Err(InvoiceXmlError::FileName { level, found: file_name });
        }
        Ok(Self { file_name, level, version, xml })
    }

    /// The name that the XML has in the PDF.
    pub fn file_name(&self) -> FileName {
        self.file_name
    }

    /// The level that the XML declares.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The version of the level's definition, `fx:Version`: 1.0, or the XRechnung's.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// The XML, byte by byte.
    pub(super) fn xml(&self) -> &[u8] {
        &self.xml
    }
}

fn read_level(xml: &[u8]) -> Result<(Level, String), InvoiceXmlError> {
    let text = std::str::from_utf8(xml).map_err(|error| InvoiceXmlError::Encoding { offset: error.valid_up_to() })?;
    let nodes_limit = u32::try_from(text.len() / BYTES_PER_NODE + 16).unwrap_or(u32::MAX);
    let options = ParsingOptions { nodes_limit, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|error| syntax_error(&error))?;
    let root = document.root_element();
    if !root.has_tag_name((CII, "CrossIndustryInvoice")) {
        return Err(not_cii(root));
    }
    level_of(guideline(root)?).ok_or(InvoiceXmlError::UnknownGuideline)
}

fn syntax_error(error: &roxmltree::Error) -> InvoiceXmlError {
    match error {
        roxmltree::Error::DtdDetected => InvoiceXmlError::Dtd,
        roxmltree::Error::NodesLimitReached => InvoiceXmlError::TooManyNodes,
        _ => InvoiceXmlError::Syntax { line: error.pos().row, column: error.pos().col },
    }
}

fn not_cii(root: Node) -> InvoiceXmlError {
    match root.tag_name().namespace() {
        Some(namespace) if UBL.contains(&namespace) => InvoiceXmlError::Ubl,
        Some(ZUGFERD_1) => InvoiceXmlError::Zugferd1,
        _ => InvoiceXmlError::NotCii,
    }
}

/// The text of the one guideline identifier.
fn guideline<'a>(root: Node<'a, '_>) -> Result<&'a str, InvoiceXmlError> {
    let identifiers: Vec<Node> = children(root, CII, "ExchangedDocumentContext")
        .flat_map(|context| children(context, CII_ENTITIES, "GuidelineSpecifiedDocumentContextParameter"))
        .flat_map(|guideline| children(guideline, CII_ENTITIES, "ID"))
        .collect();
    match identifiers[..] {
        [identifier] => Ok(identifier.text().unwrap_or_default().trim()),
        _ => Err(InvoiceXmlError::Guidelines { found: identifiers.len() }),
    }
}

fn children<'a, 'input>(
    parent: Node<'a, 'input>,
    namespace: &'static str,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'input>> {
    parent.children().filter(move |child| child.has_tag_name((namespace, name)))
}

/// The level and `fx:Version` that a guideline identifier stands for.
fn level_of(guideline: &str) -> Option<(Level, String)> {
    let by_name = GUIDELINES.iter().find(|(name, _)| *name == guideline);
    if let Some((_, level)) = by_name {
        return Some((*level, FACTUR_X_VERSION.to_owned()));
    }
    let version = XRECHNUNG_GUIDELINES.iter().find_map(|prefix| guideline.strip_prefix(prefix))?;
    is_version(version).then(|| (Level::XRechnung, version.to_owned()))
}

/// Whether the text is two numbers of one digit, such as 3.0.
fn is_version(text: &str) -> bool {
    matches!(text.as_bytes(), [b'0'..=b'9', b'.', b'0'..=b'9'])
}

fn accepted_guidelines() -> String {
    let xrechnung = format!("{}3.0", XRECHNUNG_GUIDELINES[0]);
    let names: Vec<&str> = GUIDELINES.iter().map(|(name, _)| *name).chain([&*xrechnung]).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = include_str!("fixtures/factur-x.xml");
    const EN_16931: &str = "urn:cen.eu:en16931:2017";

    fn parse(xml: &str) -> Result<EInvoice, InvoiceXmlError> {
        EInvoice::parse(FileName::FacturX, xml.to_owned().into())
    }

    fn with_guideline(guideline: &str) -> String {
        XML.replace(EN_16931, guideline)
    }

    #[test]
    fn the_level_follows_from_the_guideline_identifier() {
        for (guideline, level) in GUIDELINES {
            let invoice = parse(&with_guideline(guideline)).unwrap();
            assert_eq!((invoice.level(), invoice.version()), (level, "1.0"));
        }
        for (prefix, version) in XRECHNUNG_GUIDELINES.into_iter().zip(["3.0", "2.3"]) {
            let xml = with_guideline(&format!("{prefix}{version}"));
            let invoice = EInvoice::parse(FileName::XRechnung, xml.into()).unwrap();
            assert_eq!((invoice.level(), invoice.version()), (Level::XRechnung, version));
        }
    }

    #[test]
    fn a_level_is_found_by_its_name() {
        assert!(Level::ALL.into_iter().all(|level| Level::parse(level.as_str()) == Some(level)));
        assert_eq!(Level::parse("en 16931"), None);
    }

    #[test]
    fn spaces_around_the_identifier_and_a_byte_order_mark_do_no_harm() {
        let xml = format!("\u{feff}{}", with_guideline(&format!("\n  {EN_16931}\n")));
        assert_eq!(parse(&xml).unwrap().level(), Level::En16931);
    }

    #[test]
    fn an_unknown_guideline_is_an_error_that_lists_what_is_accepted_and_quotes_nothing() {
        for guideline in [
            "",
            "urn:zugferd.de:2p0:minimum",
            "urn:cen.eu:en16931:2017#compliant#urn:zugferd.de:2p0:basic",
            "urn:cen.eu:en16931:2017#conformant#urn.cpro.gouv.fr:1p0:extended-ctc-fr",
            "urn:cen.eu:en16931:2017#compliant#urn:xeinkauf.de:kosit:xrechnung_3",
            "urn:cen.eu:en16931:2017#compliant#urn:xeinkauf.de:kosit:xrechnung_3.0&lt;",
        ] {
            let error = parse(&with_guideline(guideline)).unwrap_err();
            assert_eq!(error, InvoiceXmlError::UnknownGuideline, "{guideline}");
            let text = error.to_string();
            assert!(text.contains("urn:factur-x.eu:1p0:minimum, ") && text.ends_with("kosit:xrechnung_3.0"), "{text}");
        }
    }

    #[test]
    fn exactly_one_guideline_is_needed() {
        let none = XML.replace("ram:ID", "ram:Id");
        assert_eq!(parse(&none).unwrap_err(), InvoiceXmlError::Guidelines { found: 0 });
        let line = XML.lines().find(|line| line.contains("ram:ID")).unwrap();
        let two = XML.replace(line, &format!("{line}{line}"));
        assert_eq!(parse(&two).unwrap_err(), InvoiceXmlError::Guidelines { found: 2 });
    }

    #[test]
    fn the_file_name_must_be_that_of_the_level() {
        let xrechnung = with_guideline(&format!("{}3.0", XRECHNUNG_GUIDELINES[0]));
        let error = parse(&xrechnung).unwrap_err();
        assert_eq!(error, InvoiceXmlError::FileName { level: Level::XRechnung, found: FileName::FacturX });
        assert_eq!(
            error.to_string(),
            "the invoice's XML is of the level XRECHNUNG, which is attached as xrechnung.xml, not as factur-x.xml"
        );
        assert!(EInvoice::parse(FileName::XRechnung, XML.into()).is_err());
        assert_eq!(FileName::parse("factur-x.xml"), Some(FileName::FacturX));
        assert_eq!(FileName::parse("Factur-X.xml"), None);
    }

    #[test]
    fn what_is_no_cross_industry_invoice_is_told_apart() {
        let root = |name: &str, namespace: &str| parse(&format!("<{name} xmlns=\"{namespace}\"/>")).unwrap_err();
        assert_eq!(root("Invoice", UBL[0]), InvoiceXmlError::Ubl);
        assert_eq!(root("CreditNote", UBL[1]), InvoiceXmlError::Ubl);
        assert_eq!(root("CrossIndustryDocument", ZUGFERD_1), InvoiceXmlError::Zugferd1);
        assert_eq!(root("CrossIndustryInvoice", "urn:example"), InvoiceXmlError::NotCii);
        assert_eq!(root("Other", CII), InvoiceXmlError::NotCii);
    }

    #[test]
    fn what_is_no_xml_is_an_error_with_its_place() {
        assert_eq!(parse("").unwrap_err(), InvoiceXmlError::Syntax { line: 1, column: 1 });
        assert_eq!(parse("<a>\n<secret></b></a>").unwrap_err(), InvoiceXmlError::Syntax { line: 2, column: 9 });
        assert_eq!(parse("<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>").unwrap_err(), InvoiceXmlError::Dtd);
        assert_eq!(
            EInvoice::parse(FileName::FacturX, Bytes::from_static(b"<a>\xff</a>")).unwrap_err(),
            InvoiceXmlError::Encoding { offset: 3 }
        );
        let many = format!("<a>{}</a>", "<b/>".repeat(10_000));
        assert_eq!(parse(&many).unwrap_err(), InvoiceXmlError::TooManyNodes);
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        let deep = format!("{}{}", "<element>".repeat(200_000), "</element>".repeat(200_000));
        assert_eq!(parse(&deep).unwrap_err(), InvoiceXmlError::NotCii);
    }
}
