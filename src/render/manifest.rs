//! A template's manifest, `typst.toml`: Typst's own fields and the section `[tool.pressrun]`, checked.

use std::fs;
use std::io::ErrorKind;
use std::iter;
use std::path::Path;

use serde::Deserialize;
use typst::ecow::EcoString;
use typst::syntax::package::{PackageManifest, PackageVersion};
use typst_pdf::{PdfStandard, PdfStandards};

use super::parts::Parts;
use super::template_error::TemplateError;
use crate::pdf::FileName;

pub(super) const MANIFEST_FILE: &str = "typst.toml";
/// The usual name of a schema's file.
pub(super) const SCHEMA_FILE: &str = "schema.json";
/// What a manifest says that leaves it out.
pub(super) const DEFAULT_ENTRYPOINT: &str = "main.typ";
const DEFAULT_VERSION: &str = "0.0.0";

/// The standards that require a tagged PDF. Typst would claim them for an untagged one too.
const TAGGED_STANDARDS: [PdfStandard; 4] = [PdfStandard::A_1a, PdfStandard::A_2a, PdfStandard::A_3a, PdfStandard::Ua_1];

/// The standards that allow characters without a glyph.
const ALLOW_NOTDEF: [PdfStandard; 6] = [
    PdfStandard::V_1_4,
    PdfStandard::V_1_5,
    PdfStandard::V_1_6,
    PdfStandard::V_1_7,
    PdfStandard::V_2_0,
    PdfStandard::A_1b,
];

/// The standards that an e-invoice may have: those that allow attached files of every kind.
const E_INVOICE_STANDARDS: [PdfStandard; 3] = [PdfStandard::A_3a, PdfStandard::A_3b, PdfStandard::A_3u];

/// A manifest whose fields do not contradict each other.
#[expect(clippy::struct_excessive_bools, reason = "each is a line of the manifest, and goes with any other")]
pub(super) struct Manifest {
    pub version: PackageVersion,
    /// The Typst file to compile, a path in the template's folder.
    pub entrypoint: String,
    /// The JSON Schema of the data, a path in the template's folder.
    pub schema: Option<String>,
    pub standards: PdfStandards,
    /// The standards' names as the manifest spells them.
    pub standard_names: Vec<String>,
    /// Whether a standard forbids characters that no font has, whatever the template allows.
    pub forbids_notdef: bool,
    pub tagged: bool,
    /// Whether PDFs are compacted where their version allows it.
    pub compact: bool,
    /// The name of the XML file that makes e-invoices of the documents, if they are to be.
    pub e_invoice: Option<FileName>,
    /// Whether the next best font is taken where no family of a list is there.
    pub allow_missing_fonts: bool,
    /// Whether characters that no font has are printed as boxes.
    pub allow_missing_glyphs: bool,
    /// How long documents are divided, if they are to be.
    pub parts: Option<Parts>,
}

/// The section `[tool.pressrun]`: Typst's manifest reserves `tool` for other tools.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct PressrunSection {
    schema: Option<String>,
    #[serde(default)]
    standards: Vec<PdfStandard>,
    tagged: Option<bool>,
    compact: Option<bool>,
    e_invoice: Option<String>,
    #[serde(default)]
    allow_missing_fonts: bool,
    #[serde(default)]
    allow_missing_glyphs: bool,
    parts: Option<PartsSection>,
}

/// The value of `parts`. Numbers are read as they are written, so that the error for a wrong one can say what to write.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartsSection {
    of: String,
    size: i64,
}

/// Reads the manifest of the template in `dir`. One that is not there says nothing but defaults.
pub(super) fn load(name: &str, dir: &Path) -> Result<Manifest, TemplateError> {
    let path = dir.join(MANIFEST_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let schema = dir.join(SCHEMA_FILE).is_file().then(|| format!("schema = \"{SCHEMA_FILE}\""));
            format!("[tool.pressrun]\n{}", schema.unwrap_or_default())
        }
        Err(error) => return Err(TemplateError::read(&path, error)),
    };
    parse(&text, name).map_err(|problem| TemplateError::new(&path, problem))
}

fn parse(text: &str, name: &str) -> Result<Manifest, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut manifest = package_manifest(text, name)?;
    check_compiler(&manifest)?;
    let section = pressrun_section(&mut manifest).map_err(|error| format!("[tool.pressrun]: {error}"))?;
    let tagged = section.tagged.unwrap_or(true);
    let parts = section.parts.map(parts).transpose();
    let e_invoice = section.e_invoice.as_deref().map(|name| e_invoice(name, &section.standards)).transpose();
    Ok(Manifest {
        version: manifest.package.version,
        entrypoint: manifest.package.entrypoint.into(),
        schema: section.schema,
        standards: standards(&section.standards, tagged).map_err(|error| format!("[tool.pressrun] {error}"))?,
        forbids_notdef: section.standards.iter().any(|standard| !ALLOW_NOTDEF.contains(standard)),
        standard_names: section.standards.into_iter().map(name_of).collect(),
        tagged,
        compact: section.compact.unwrap_or(true),
        e_invoice: e_invoice.map_err(|error| format!("[tool.pressrun] e-invoice: {error}"))?,
        allow_missing_fonts: section.allow_missing_fonts,
        allow_missing_glyphs: section.allow_missing_glyphs,
        parts: parts.map_err(|error| format!("[tool.pressrun] parts: {error}"))?,
    })
}

/// Reads Typst's own fields. Those that Typst wants for a package, and a template can do without, have defaults.
fn package_manifest(text: &str, name: &str) -> Result<PackageManifest, String> {
    let mut table: toml::Table = toml::from_str(text).map_err(|error| error.to_string())?;
    let package = table.entry("package").or_insert_with(|| toml::Table::new().into());
    let package = package.as_table_mut().ok_or("package is a value; expected is the section [package]")?;
    let defaults = [("name", name), ("version", DEFAULT_VERSION), ("entrypoint", DEFAULT_ENTRYPOINT)];
    let missing: Vec<_> = defaults.into_iter().filter(|(key, _)| !package.contains_key(*key)).collect();
    if missing.is_empty() {
        // Errors of the text itself have a line.
        return toml::from_str(text).map_err(|error| error.to_string());
    }
    package.extend(missing.into_iter().map(|(key, value)| (key.to_owned(), value.into())));
    PackageManifest::deserialize(table).map_err(|error| error.message().to_owned())
}

/// Checks that this Typst is as new as the template wants it.
fn check_compiler(manifest: &PackageManifest) -> Result<(), String> {
    match manifest.package.compiler {
        Some(bound) if !PackageVersion::compiler().matches_ge(&bound) => Err(format!(
            "compiler = \"{bound}\": the template is for Typst {bound} or newer, and this is Typst {}; \
             take a newer pressrun, or change the template and then this line",
            PackageVersion::compiler()
        )),
        _ => Ok(()),
    }
}

fn pressrun_section(manifest: &mut PackageManifest) -> Result<PressrunSection, String> {
    let Some(section) = manifest.tool.sections.remove("pressrun") else { return Ok(PressrunSection::default()) };
    PressrunSection::deserialize(section).map_err(|error| error.message().to_owned())
}

fn standards(asked: &[PdfStandard], tagged: bool) -> Result<PdfStandards, String> {
    if let Some(standard) = asked.iter().find(|standard| !tagged && TAGGED_STANDARDS.contains(standard)) {
        let name = name_of(*standard);
        return Err(format!("tagged = false: {name} is for tagged PDFs; leave tagged out or ask for another standard"));
    }
    PdfStandards::new(asked).map_err(|error| {
        let said: Vec<&str> = iter::once(error.message()).chain(error.hints()).map(EcoString::as_str).collect();
        format!("standards: {}", said.join("; "))
    })
}

/// Returns the name of an e-invoice's XML file, if these standards allow e-invoices.
fn e_invoice(name: &str, standards: &[PdfStandard]) -> Result<FileName, String> {
    let names = FileName::ALL.map(FileName::as_str);
    let file_name = FileName::parse(name)
        .ok_or_else(|| format!("{name:?} is no e-invoice's file; expected {}", names.join(" or ")))?;
    if standards.iter().any(|standard| E_INVOICE_STANDARDS.contains(standard)) {
        return Ok(file_name);
    }
    let expected = E_INVOICE_STANDARDS.map(name_of).join(", ");
    Err(format!("an e-invoice is a PDF/A-3, so standards has to have one of {expected}, as standards = [\"a-3b\"]"))
}

/// Checks how documents are divided.
fn parts(PartsSection { of, size }: PartsSection) -> Result<Parts, String> {
    let is_pointer = of.is_empty() || of.starts_with('/');
    if !is_pointer || of.split('~').skip(1).any(|escaped| !escaped.starts_with(['0', '1'])) {
        return Err(format!(
            "of = {of:?} is no JSON pointer; expected is that of an array in the data, as \"/doc/lines\", with ~1 for a \
             slash in a name and ~0 for a tilde"
        ));
    }
    match usize::try_from(size) {
        Ok(size @ 1..) => Ok(Parts { of, size }),
        _ => Err(format!("size = {size}: expected is how many elements a part has at most, which is 1 or more")),
    }
}

/// Returns a standard's name as the manifest spells it.
fn name_of(standard: PdfStandard) -> String {
    serde_json::to_value(standard).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(section: &str) -> Result<Manifest, String> {
        let package = "[package]\nname = \"letter\"\nversion = \"1.0.0\"\nentrypoint = \"main.typ\"\n";
        parse(&format!("{package}[tool.pressrun]\n{section}"), "letter")
    }

    #[test]
    fn a_section_may_be_empty_or_say_all() {
        let manifest = with("").unwrap();
        assert!(manifest.tagged && !manifest.allow_missing_fonts && manifest.schema.is_none());
        assert!(manifest.compact && manifest.e_invoice.is_none() && manifest.parts.is_none());
        let manifest = with(
            "schema = \"schema.json\"\nstandards = [\"a-2b\", \"ua-1\", \"1.7\"]\ntagged = true\n\
             allow-missing-fonts = true\nparts = { of = \"/doc/lines\", size = 2000 }",
        )
        .unwrap();
        assert_eq!(manifest.standard_names, ["a-2b", "ua-1", "1.7"]);
        assert!(manifest.allow_missing_fonts && !manifest.allow_missing_glyphs);
        assert_eq!(manifest.parts, Some(Parts { of: "/doc/lines".to_owned(), size: 2000 }));
    }

    #[test]
    fn what_a_manifest_leaves_out_has_a_default() {
        for text in ["", "[package]\n", "[package]\nname = \"other\"", "\u{feff}[tool.pressrun]\ntagged = true"] {
            let manifest = parse(text, "letter").unwrap();
            assert_eq!((manifest.entrypoint.as_str(), manifest.version.to_string().as_str()), ("main.typ", "0.0.0"));
        }
        let manifest = parse("[package]\nentrypoint = \"src/main.typ\"", "letter").unwrap();
        assert_eq!(manifest.entrypoint, "src/main.typ");
        assert!(parse("package = 1", "letter").err().unwrap().contains("expected is the section [package]"));
        assert!(parse("[package]\nversion = \"one\"", "letter").err().unwrap().contains("version"));
    }

    #[test]
    fn a_template_for_a_newer_typst_is_refused() {
        let of = |compiler: &str| parse(&format!("[package]\ncompiler = \"{compiler}\""), "letter");
        let problem = of("0.99.0").err().unwrap();
        assert!(problem.contains("for Typst 0.99.0 or newer, and this is Typst 0.15"), "{problem}");
        assert!(of("0.12.0").is_ok() && of(&PackageVersion::compiler().to_string()).is_ok());
    }

    #[test]
    fn an_e_invoice_is_of_any_pdf_a_3() {
        for standards in ["\"a-3a\", \"ua-1\"", "\"a-3b\"", "\"a-3u\", \"1.7\""] {
            let manifest = with(&format!("standards = [{standards}]\ne-invoice = \"xrechnung.xml\"\ncompact = false"));
            let manifest = manifest.unwrap();
            assert_eq!(manifest.e_invoice, Some(FileName::XRechnung));
            assert!(!manifest.compact);
        }
    }

    #[test]
    fn what_cannot_be_says_the_key_and_what_it_takes() {
        for (section, expected) in [
            (
                "shema = \"a\"",
                "unknown field `shema`, expected one of `schema`, `standards`, `tagged`, `compact`, `e-invoice`, `allow-missing-fonts`, `allow-missing-glyphs`, `parts`",
            ),
            ("parts = 2000", "invalid type: integer `2000`"),
            ("parts = { of = \"/lines\" }", "missing field `size`"),
            ("parts = { of = \"/lines\", sizes = 3 }", "unknown field `sizes`, expected `of` or `size`"),
            ("parts = { of = \"lines\", size = 3 }", "parts: of = \"lines\" is no JSON pointer; expected is that of"),
            ("parts = { of = \"/a~2\", size = 3 }", "parts: of = \"/a~2\" is no JSON pointer"),
            ("parts = { of = \"/lines\", size = 0 }", "parts: size = 0: expected is how many elements"),
            ("parts = { of = \"/lines\", size = -1 }", "parts: size = -1: expected is how many elements"),
            ("standards = [\"a-9z\"]", "unknown variant `a-9z`, expected one of `1.4`, "),
            ("standards = \"a-2b\"", "invalid type: string \"a-2b\", expected a sequence"),
            ("standards = [\"a-2b\", \"a-3b\"]", "standards: choose at most one PDF/A standard"),
            ("standards = [\"a-2b\", \"1.4\", \"1.7\"]", "standards: PDF cannot conform to"),
            (
                "standards = [\"a-2b\", \"2.0\"]",
                "standards: PDF 2.0 is not compatible with PDF/A-2b; PDF/A-2b requires",
            ),
            ("standards = [\"a-4\", \"ua-1\"]", "standards: PDF/A-4 and PDF/UA-1 are mutually incompatible"),
            ("tagged = \"yes\"", "invalid type: string \"yes\", expected a boolean"),
            ("compact = 1", "invalid type: integer `1`, expected a boolean"),
            (
                "standards = [\"a-3b\"]\ne-invoice = \"zugferd.xml\"",
                "e-invoice: \"zugferd.xml\" is no e-invoice's file; expected factur-x.xml or xrechnung.xml",
            ),
            (
                "e-invoice = \"factur-x.xml\"",
                "e-invoice: an e-invoice is a PDF/A-3, so standards has to have one of a-3a, a-3b, a-3u",
            ),
            ("standards = [\"a-2b\"]\ne-invoice = \"factur-x.xml\"", "an e-invoice is a PDF/A-3"),
            ("standards = [\"a-4f\"]\ne-invoice = \"factur-x.xml\"", "an e-invoice is a PDF/A-3"),
        ] {
            let problem = with(section).err().unwrap();
            assert!(problem.starts_with("[tool.pressrun]") && problem.contains(expected), "{section}: {problem}");
        }
        for standard in ["a-1a", "a-2a", "a-3a", "ua-1"] {
            let problem = with(&format!("standards = [\"{standard}\"]\ntagged = false")).err().unwrap();
            assert!(problem.starts_with(&format!("[tool.pressrun] tagged = false: {standard} is ")), "{problem}");
        }
        assert!(with("standards = [\"a-2b\"]\ntagged = false").is_ok());
    }
}
