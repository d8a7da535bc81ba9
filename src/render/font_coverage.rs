//! Checks that fonts have the characters of a document's text.
//!
//! Typst does not report a character that no font has: it prints the glyph `.notdef`, a box. And where the
//! fonts that a template names lack a character, it falls back to any other that has it. Text inside SVG
//! images is not checked.

use std::collections::BTreeSet;

use serde_json::Value;
use typst::diag::{SourceDiagnostic, error, warning};
use typst::ecow::eco_format;
use typst::layout::{Frame, FrameItem};
use typst::syntax::Span;
use typst::text::{FontBook, FontInfo, TextItem};
use typst_layout::PagedDocument;

use super::manifest::Manifest;

/// The most places that are reported.
const MAX_PLACES: usize = 5;
/// The most characters that are reported of a place.
const MAX_CHARACTERS: usize = 10;

/// The fonts that Typst uses for text and equations if a template names none.
const DEFAULT_TEXT_FAMILY: &str = "libertinus serif";
const DEFAULT_MATH_FAMILY: &str = "new computer modern math";

/// The fonts that a template names anywhere, or else Typst's defaults. Every other font is a fallback.
pub(super) struct NamedFonts(Vec<FontInfo>);

impl NamedFonts {
    /// Searches a template's files for the families of `book` between quotes, as in `font: "Inter"`.
    pub fn find<'a>(book: &FontBook, texts: impl IntoIterator<Item = &'a str>) -> Self {
        let texts: Vec<String> = texts.into_iter().map(str::to_lowercase).collect();
        let is_named = |family: &str| texts.iter().any(|text| text.contains(&format!("\"{family}\"")));
        let mut families: Vec<String> =
            book.families().map(|(family, _)| family.to_lowercase()).filter(|family| is_named(family)).collect();
        if families.is_empty() {
            families.push(DEFAULT_TEXT_FAMILY.to_owned());
        }
        families.push(DEFAULT_MATH_FAMILY.to_owned());
        let indices = families.iter().flat_map(|family| book.select_family(family));
        Self(indices.filter_map(|index| book.info(index).cloned()).collect())
    }

    fn is_fallback(&self, font: &FontInfo) -> bool {
        !self.0.iter().any(|named| named.family == font.family)
    }

    fn have(&self, character: char) -> bool {
        self.0.iter().any(|font| font.coverage.contains(character.into()))
    }
}

/// Returns an error for characters that no font has (a warning if the manifest allows missing fonts), and a
/// warning for letters that are printed in a fallback font.
pub(super) fn diagnose(
    document: &PagedDocument,
    data: &[u8],
    named: &NamedFonts,
    manifest: &Manifest,
) -> Vec<SourceDiagnostic> {
    let mut found = Found { named, page: 0, places: Vec::new() };
    for page in document.pages() {
        found.page += 1;
        found.search(&page.frame);
    }
    found.places.iter().map(|place| place.describe(data, manifest)).collect()
}

struct Found<'a> {
    named: &'a NamedFonts,
    /// The number of the page that is being searched, from 1.
    page: usize,
    places: Vec<Place>,
}

/// Characters without a glyph, or in a fallback font, that come from one place in the template.
struct Place {
    span: Span,
    /// The number of the first page that has them.
    page: usize,
    /// The fallback font that they are printed in; `None` if no font has them.
    family: Option<String>,
    characters: BTreeSet<char>,
}

impl Found<'_> {
    fn search(&mut self, frame: &Frame) {
        for (_, item) in frame.items() {
            match item {
                FrameItem::Group(group) => self.search(&group.frame),
                FrameItem::Text(text) => self.check(text),
                _ => {}
            }
        }
    }

    fn check(&mut self, text: &TextItem) {
        let font = text.font.font().info();
        let is_fallback = self.named.is_fallback(font);
        for glyph in &text.glyphs {
            let characters = text.text.get(glyph.range()).unwrap_or_default().chars();
            if glyph.id == 0 {
                self.note(glyph.span.0, None, characters.collect());
            } else if is_fallback {
                // Digits and symbols look much the same in every font.
                let is_letter = |character: &char| character.is_alphabetic() && !self.named.have(*character);
                self.note(glyph.span.0, Some(&font.family), characters.filter(is_letter).collect());
            }
        }
    }

    fn note(&mut self, span: Span, family: Option<&str>, characters: BTreeSet<char>) {
        let is_known = |place: &Place| place.span == span && place.family.as_deref() == family;
        if let Some(place) = self.places.iter_mut().find(|place| is_known(place)) {
            place.characters.extend(characters);
        } else if !characters.is_empty() && self.places.len() < MAX_PLACES {
            self.places.push(Place { span, page: self.page, family: family.map(str::to_owned), characters });
        }
    }
}

impl Place {
    fn describe(&self, data: &[u8], manifest: &Manifest) -> SourceDiagnostic {
        let mut characters = in_words(&self.characters);
        // Typst does not know where some text comes from.
        if self.span.is_detached() {
            characters = format!("{characters}, on page {}", self.page);
        }
        let diagnostic = self.problem(&characters, manifest);
        match places_in_data(data, &self.characters).join(", ") {
            places if places.is_empty() => diagnostic,
            places => diagnostic.with_hint(eco_format!("the data have them at {places}")),
        }
    }

    fn problem(&self, characters: &str, manifest: &Manifest) -> SourceDiagnostic {
        let to_do =
            "add a font that has them to templates/fonts or to the template's folder, and name it after the others";
        match &self.family {
            Some(family) => warning!(
                self.span, "printed in {family}, which the template does not name, since none of its fonts has {characters}";
                hint: "{to_do}"
            ),
            None if manifest.allow_missing_fonts => {
                warning!(self.span, "printed as boxes, since no font has {characters}")
            }
            None if manifest.forbids_notdef => error!(self.span, "no font has {characters}"; hint: "{to_do}"),
            None => error!(
                self.span, "no font has {characters}";
                hint: "{to_do}";
                hint: "with [tool.pressrun] allow-missing-fonts = true they are printed as boxes"
            ),
        }
    }
}

/// Returns JSON pointers to the first strings of the data that have one of these characters.
fn places_in_data(data: &[u8], characters: &BTreeSet<char>) -> Vec<String> {
    let mut places = Vec::new();
    if let Ok(data) = serde_json::from_slice(data) {
        search_data(&data, "", characters, &mut places);
    }
    places
}

fn search_data(value: &Value, pointer: &str, characters: &BTreeSet<char>, places: &mut Vec<String>) {
    if places.len() == MAX_PLACES {
        return;
    }
    match value {
        Value::String(text) if text.contains(|character| characters.contains(&character)) => {
            places.push(pointer.to_owned());
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                search_data(item, &format!("{pointer}/{index}"), characters, places);
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                search_data(
                    member,
                    &format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1")),
                    characters,
                    places,
                );
            }
        }
        _ => {}
    }
}

/// Lists characters, as in `"日" (U+65E5), "本" (U+672C) and 3 more`.
fn in_words(characters: &BTreeSet<char>) -> String {
    let mut named: Vec<String> = characters.iter().take(MAX_CHARACTERS).map(|character| name_of(*character)).collect();
    if characters.len() > MAX_CHARACTERS {
        named.push(format!("{} more", characters.len() - MAX_CHARACTERS));
    }
    match named.pop() {
        Some(last) if !named.is_empty() => format!("{} and {last}", named.join(", ")),
        last => last.unwrap_or_default(),
    }
}

fn name_of(character: char) -> String {
    let code = format!("U+{:04X}", u32::from(character));
    if character.is_alphanumeric() { format!("\"{character}\" ({code})") } else { code }
}
