//! Loads the fonts that documents may use: those embedded in the binary, the files of a folder, and those in a
//! template's own folder. The system's are never used, so that a document looks the same everywhere.

use std::fs;
use std::path::{Path, PathBuf};

use typst::foundations::Bytes;
use typst::text::Font;
use typst_kit::fonts::FontStore;

use super::files::Files;
use super::template_error::TemplateError;

/// The extensions of fonts that Typst does not read, with their kinds and what to do.
const NOT_READ: [(&str, &str, &str); 7] = [
    ("woff", "WOFF", TO_TTF),
    ("woff2", "WOFF2", TO_TTF),
    ("eot", "Embedded OpenType", "take the .ttf or .otf that it was made of"),
    ("pfa", "Type 1", "take the family's OpenType fonts"),
    ("pfb", "Type 1", "take the family's OpenType fonts"),
    ("dfont", "macOS data fork", "convert it to .ttc"),
    ("bdf", "bitmap", "take a TrueType or OpenType font"),
];
const TO_TTF: &str = "convert it to .ttf, as with `fonttools ttLib FONT -o FONT.ttf`";

/// The fonts that Typst embeds.
pub(super) fn embedded() -> impl Iterator<Item = Font> {
    typst_kit::fonts::embedded().map(|(font, _)| font)
}

/// Loads every `.ttf`, `.otf`, `.ttc` and `.otc` file below `dir`, if it exists.
pub(super) fn load(dir: &Path) -> Result<Vec<Font>, TemplateError> {
    let mut fonts = Vec::new();
    if dir.is_dir() {
        for file in font_files(dir)? {
            let data = fs::read(&file).map_err(|error| TemplateError::read(&file, error))?;
            fonts.extend(fonts_in(Bytes::new(data)).ok_or_else(|| not_a_font(&file))?);
        }
    }
    Ok(fonts)
}

/// Loads the fonts among a template's own files.
pub(super) fn of_template(dir: &Path, files: &Files) -> Result<Vec<Font>, TemplateError> {
    let mut fonts = Vec::new();
    for (path, data) in files.iter().filter(|(path, _)| is_font(Path::new(path))) {
        fonts.extend(fonts_in(data.clone()).ok_or_else(|| not_a_font(&dir.join(path)))?);
    }
    Ok(fonts)
}

/// Puts fonts into the store that Typst asks for them.
pub(super) fn store<'a>(fonts: impl IntoIterator<Item = &'a Font>) -> FontStore {
    let mut store = FontStore::new();
    store.extend(fonts.into_iter().map(|font| (font.clone(), font.info().clone())));
    store
}

/// Says why a file is not read, if it is a font of a kind that Typst does not know.
pub(super) fn why_not_read(file: &Path) -> Option<String> {
    let extension = file.extension()?.to_str()?.to_ascii_lowercase();
    let (_, kind, to_do) = NOT_READ.into_iter().find(|(known, ..)| *known == extension)?;
    Some(format!("{}: not read, since Typst does not know fonts of the kind {kind}; {to_do}", file.display()))
}

/// Says the same of all files below `dir`.
pub(super) fn not_read(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
        .iter()
        .flat_map(|path| if path.is_dir() { not_read(path) } else { why_not_read(path).into_iter().collect() })
        .collect()
}

fn fonts_in(data: Bytes) -> Option<Vec<Font>> {
    let fonts: Vec<Font> = Font::iter(data).collect();
    (!fonts.is_empty()).then_some(fonts)
}

fn not_a_font(file: &Path) -> TemplateError {
    TemplateError::new(file, "is not a font that Typst can read; TrueType and OpenType fonts are expected")
}

/// Lists font files in the order of their paths, so that which font wins does not depend on the file system.
fn font_files(dir: &Path) -> Result<Vec<PathBuf>, TemplateError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| TemplateError::read(dir, error))? {
        let path = entry.map_err(|error| TemplateError::read(dir, error))?.path();
        if path.is_dir() {
            files.extend(font_files(&path)?);
        } else if is_font(&path) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn is_font(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| ["ttf", "otf", "ttc", "otc"].iter().any(|known| extension.eq_ignore_ascii_case(known)))
}
