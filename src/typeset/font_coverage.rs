//! Whether the fonts had what a document's text needed.
//!
//! Typst says nothing of a character that no font has: it prints a box. And it takes any font that
//! has a character, however unlike the one that was asked for. Text inside SVG pictures is not seen.

use std::collections::BTreeSet;

use serde_json::Value;
use typst::diag::{SourceDiagnostic, error, warning};
use typst::ecow::eco_format;
use typst::layout::{Frame, FrameItem};
use typst::syntax::Span;
use typst::text::{FontBook, FontFlags, FontInfo, TextItem};
use typst_layout::PagedDocument;

use super::manifest::Manifest;

/// More places than these are not reported, and of a place no more characters.
const MOST_PLACES: usize = 5;
const MOST_CHARACTERS: usize = 10;

/// What Typst sets text and equations in where a template names no font.
const DEFAULT_TEXT_FAMILY: &str = "libertinus serif";
const DEFAULT_MATH_FAMILY: &str = "new computer modern math";

/// The fonts that a template names somewhere, or else Typst's defaults: whatever else its text
/// is set in was not asked for.
pub(super) struct NamedFonts {
    infos: Vec<FontInfo>,
    /// What a font has to be like: serif or not, monospaced or not.
    kind: FontFlags,
}

impl NamedFonts {
    /// Looks for the families of `book` between quotes in a template's files, as in
    /// `font: "Inter"`.
    pub fn find<'a>(book: &FontBook, texts: impl IntoIterator<Item = &'a str>) -> Self {
        let texts: Vec<String> = texts.into_iter().map(str::to_lowercase).collect();
        let is_named = |family: &str| texts.iter().any(|text| text.contains(&format!("\"{family}\"")));
        let mut families: Vec<String> =
            book.families().map(|(family, _)| family.to_lowercase()).filter(|family| is_named(family)).collect();
        if families.is_empty() {
            families.push(DEFAULT_TEXT_FAMILY.to_owned());
        }
        let kind = first_info(book, &families[0]).map_or(FontFlags::SERIF, kind_of);
        families.push(DEFAULT_MATH_FAMILY.to_owned());
        let indices = families.iter().flat_map(|family| book.select_family(family));
        Self { infos: indices.filter_map(|index| book.info(index).cloned()).collect(), kind }
    }

    /// Whether it is unlike all that the template names, and set for want of anything better.
    fn is_unlike(&self, font: &FontInfo) -> bool {
        kind_of(font) != self.kind && !self.infos.iter().any(|named| named.family == font.family)
    }

    fn have(&self, character: char) -> bool {
        self.infos.iter().any(|font| font.coverage.contains(character.into()))
    }
}

fn first_info<'a>(book: &'a FontBook, family: &str) -> Option<&'a FontInfo> {
    book.info(book.select_family(family).next()?)
}

fn kind_of(font: &FontInfo) -> FontFlags {
    font.flags & (FontFlags::SERIF | FontFlags::MONOSPACE)
}

/// What the text of a document wanted and did not get: errors for characters that no font has
/// (warnings where boxes are allowed), warnings for those in a font unlike the template's own.
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
    /// The one that is being searched, from 1.
    page: usize,
    places: Vec<Place>,
}

/// Characters that come from one place in the template.
struct Place {
    span: Span,
    /// The first page with it.
    page: usize,
    /// The unlike font that they are set in; none if there is no font for them at all.
    family: Option<String>,
    characters: BTreeSet<char>,
}

impl Found<'_> {
    fn search(&mut self, frame: &Frame) {
        for (_, item) in frame.items() {
            match item {
                FrameItem::Group(group) => self.search(&group.frame),
                FrameItem::Text(text) => self.look_at(text),
                _ => {}
            }
        }
    }

    fn look_at(&mut self, text: &TextItem) {
        let font = text.font.font().info();
        let is_unlike = self.named.is_unlike(font);
        for glyph in &text.glyphs {
            let characters = text.text.get(glyph.range()).unwrap_or_default().chars();
            if glyph.id == 0 {
                self.note(glyph.span.0, None, characters.collect());
            } else if is_unlike {
                // Symbols look much the same everywhere.
                let strange = |character: &char| character.is_alphabetic() && !self.named.have(*character);
                self.note(glyph.span.0, Some(&font.family), characters.filter(strange).collect());
            }
        }
    }

    fn note(&mut self, span: Span, family: Option<&str>, characters: BTreeSet<char>) {
        let is_known = |place: &Place| place.span == span && place.family.as_deref() == family;
        if let Some(place) = self.places.iter_mut().find(|place| is_known(place)) {
            place.characters.extend(characters);
        } else if !characters.is_empty() && self.places.len() < MOST_PLACES {
            self.places.push(Place { span, page: self.page, family: family.map(str::to_owned), characters });
        }
    }
}

impl Place {
    fn describe(&self, data: &[u8], manifest: &Manifest) -> SourceDiagnostic {
        let mut characters = in_words(&self.characters);
        // Typst does not know where all text comes from.
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
                self.span, "set in {family}, which is unlike the template's fonts, since none of them has {characters}";
                hint: "{to_do}"
            ),
            None if manifest.allow_missing_fonts => {
                warning!(self.span, "printed as boxes, since no font has {characters}")
            }
            None if manifest.forbids_boxes => error!(self.span, "no font has {characters}"; hint: "{to_do}"),
            None => error!(
                self.span, "no font has {characters}";
                hint: "{to_do}";
                hint: "with [tool.pressrun] allow-missing-fonts = true they are printed as boxes"
            ),
        }
    }
}

/// The first JSON pointers to strings with one of these characters.
fn places_in_data(data: &[u8], characters: &BTreeSet<char>) -> Vec<String> {
    let mut places = Vec::new();
    if let Ok(data) = serde_json::from_slice(data) {
        search_data(&data, "", characters, &mut places);
    }
    places
}

fn search_data(value: &Value, pointer: &str, characters: &BTreeSet<char>, places: &mut Vec<String>) {
    if places.len() == MOST_PLACES {
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

/// As in `"日" (U+65E5), "本" (U+672C) and 3 more`.
fn in_words(characters: &BTreeSet<char>) -> String {
    let mut named: Vec<String> = characters.iter().take(MOST_CHARACTERS).map(|character| name_of(*character)).collect();
    if characters.len() > MOST_CHARACTERS {
        named.push(format!("{} more", characters.len() - MOST_CHARACTERS));
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
