//! What tells one edition of a template from another: a digest of all that its documents are made
//! from beside their data.

use std::fs;
use std::path::Path;

use typst::utils::{hash128, version};

use super::template_error::TemplateError;

/// The digest of what all templates have in common: Typst, pressrun, the fonts and the packages.
pub(super) fn of_common(templates_dir: &Path) -> Result<u128, TemplateError> {
    let folders = [templates_dir.join("fonts"), templates_dir.join("packages")];
    let folders = folders.iter().map(|folder| of_folder(folder)).collect::<Result<Vec<_>, _>>()?;
    Ok(hash128(&(version().raw(), env!("CARGO_PKG_VERSION"), folders)))
}

/// The digest of a template in its surroundings, as text.
pub(super) fn of_template(dir: &Path, common: u128) -> Result<String, TemplateError> {
    Ok(format!("{:032x}", hash128(&(common, of_folder(dir)?))))
}

/// The digest of the names and contents of all files below a folder, if there is one.
fn of_folder(dir: &Path) -> Result<u128, TemplateError> {
    if !dir.is_dir() {
        return Ok(0);
    }
    let mut digests = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| TemplateError::read(dir, error))? {
        let path = entry.map_err(|error| TemplateError::read(dir, error))?.path();
        let digest = if path.is_dir() {
            of_folder(&path)?
        } else {
            hash128(&fs::read(&path).map_err(|error| TemplateError::read(&path, error))?[..])
        };
        digests.push((path.file_name().map(|name| name.to_string_lossy().into_owned()), digest));
    }
    digests.sort();
    Ok(hash128(&digests))
}
