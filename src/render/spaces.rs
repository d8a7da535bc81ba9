//! Characters that mean a space, and that Typst prints nothing for.
//!
//! A tab between two words is a space to whoever has typed it, and so are Hangul's fillers. Fonts have no
//! glyph for them, or one without a width, and the words would run together.

use typst::Library;
use typst::foundations::{Recipe, Regex, Selector, Transformation};
use typst::syntax::Span;
use typst::text::SpaceElem;

use super::Document;

/// A tab, Hangul's filler and its halfwidth form, as a regular expression.
const SPACES: &str = r"[\t\u{3164}\u{FFA0}]";

/// The same in UTF-8, and as JSON may write them. Between the values of JSON a tab is no text.
const IN_JSON: [&str; 7] = ["\\t", "\\u0009", "\u{3164}", "\\u3164", "\u{ffa0}", "\\uffa0", "\\uFFA0"];
const IN_TEXT: [&str; 3] = ["\t", "\u{3164}", "\u{ffa0}"];

/// Whether a document brings such characters. A template's own text has none: in markup a tab is a space.
pub(super) fn are_in(document: &Document) -> bool {
    let is_text = |file: &&bytes::Bytes| str::from_utf8(file).is_ok();
    has_any(&document.data, &IN_JSON) || document.files.values().filter(is_text).any(|file| has_any(file, &IN_TEXT))
}

fn has_any(mut bytes: &[u8], texts: &[&str]) -> bool {
    let may_begin = |byte: &u8| texts.iter().any(|text| text.as_bytes()[0] == *byte);
    while let Some(at) = bytes.iter().position(may_begin) {
        if texts.iter().any(|text| bytes[at..].starts_with(text.as_bytes())) {
            return true;
        }
        bytes = &bytes[at + 1..];
    }
    false
}

/// Adds a show rule to a library that prints them as spaces. It is not free, and part of the key of what Typst
/// memoizes: only documents that need it have it.
pub(super) fn with_spaces(mut library: Library) -> Library {
    let regex = Regex::new(SPACES).expect("a valid regular expression");
    let space = Transformation::Content(SpaceElem::shared().clone());
    let recipe = Recipe::new(Some(Selector::Regex(regex)), space, Span::detached());
    library.styles.apply_one(recipe.into());
    library
}
