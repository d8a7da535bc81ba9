//! Digests that identify the version of a template: of everything that its documents are made from beside
//! their data.

use typst::text::Font;
use typst::utils::{hash128, version};

use super::files::Files;

/// Returns the digest of what all templates share: Typst with its fonts, pressrun, the other fonts and the
/// packages.
pub(super) fn of_common(fonts: &[Font], packages: &Files) -> u128 {
    let fonts: Vec<_> = fonts.iter().map(|font| (font.data(), font.index())).collect();
    hash128(&(version().raw(), env!("CARGO_PKG_VERSION"), fonts, packages.digest()))
}

/// Returns the digest of a template together with what all templates share, in hexadecimal.
pub(super) fn of_template(files: &Files, common: u128) -> String {
    format!("{:032x}", hash128(&(common, files.digest())))
}
