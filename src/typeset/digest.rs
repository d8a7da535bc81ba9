//! What tells one edition of a template from another: a digest of all that its documents are made
//! from beside their data.

use typst::text::Font;
use typst::utils::{hash128, version};

use super::files::Files;

/// The digest of what all templates have in common: Typst, with its fonts, pressrun, the other
/// fonts and the packages.
pub(super) fn of_common(fonts: &[Font], packages: &Files) -> u128 {
    let fonts: Vec<_> = fonts.iter().map(|font| (font.data(), font.index())).collect();
    hash128(&(version().raw(), env!("CARGO_PKG_VERSION"), fonts, packages.digest()))
}

/// The digest of a template in its surroundings, as text.
pub(super) fn of_template(files: &Files, common: u128) -> String {
    format!("{:032x}", hash128(&(common, files.digest())))
}
