//! The fonts that documents may use: those embedded in the binary, and the files of a folder.
//! Never the system's, so that a document looks the same everywhere.

use std::fs;
use std::path::{Path, PathBuf};

use typst::foundations::Bytes;
use typst::text::Font;
use typst_kit::fonts::FontStore;

use super::template_error::TemplateError;

/// Loads the embedded fonts and every `.ttf`, `.otf`, `.ttc` and `.otc` file below `dir`, if it exists.
pub(super) fn load(dir: &Path) -> Result<FontStore, TemplateError> {
    let mut fonts = FontStore::new();
    fonts.extend(typst_kit::fonts::embedded());
    if dir.is_dir() {
        for file in font_files(dir)? {
            let data = fs::read(&file).map_err(|error| TemplateError::read(&file, error))?;
            fonts.extend(Font::iter(Bytes::new(data)).map(|font| {
                let info = font.info().clone();
                (font, info)
            }));
        }
    }
    Ok(fonts)
}

/// In the order of their paths: which font wins must not depend on the file system.
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
