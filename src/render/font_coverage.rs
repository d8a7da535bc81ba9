//! Checks that fonts have the characters of a document's text.
//!
//! Typst does not report a character that no font has: it prints the glyph `.notdef`, a box. And where the
//! fonts that a template names lack a character, it falls back to any other that has it. One of these is made
//! for equations and has letters of scripts that it cannot shape: it counts within equations only. Some
//! characters have neither a width nor anything to see, and vanish.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use typst::diag::{SourceDiagnostic, error, warning};
use typst::ecow::eco_format;
use typst::introspection::{Location, Tag};
use typst::layout::{Frame, FrameItem};
use typst::math::EquationElem;
use typst::syntax::Span;
use typst::text::{FontBook, FontFlags, FontInfo, TextItem};
use typst::visualize::{Image, ImageKind};
use typst_layout::PagedDocument;
use unicode_script::{Script, UnicodeScript};

use super::manifest::Manifest;
use super::parts::Offset;

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
    offset: &Offset,
    named: &NamedFonts,
    manifest: &Manifest,
    is_told: &dyn Fn(char) -> bool,
) -> Vec<SourceDiagnostic> {
    let mut found = Found { named, page: 0, equations: Vec::new(), places: Vec::new() };
    for page in document.pages() {
        found.page += 1;
        found.search(&page.frame);
    }
    if found.places.is_empty() {
        return Vec::new();
    }
    // Data that are not JSON have no places.
    let data = MessageData { data: serde_json::from_slice(data).unwrap_or_default(), offset };
    found.places.iter().map(|place| place.describe(&data, manifest, is_told)).collect()
}

/// A message's data, in which characters are looked for.
struct MessageData<'a> {
    data: Value,
    /// Which elements of a divided array they have.
    offset: &'a Offset,
}

struct Found<'a> {
    named: &'a NamedFonts,
    /// The number of the page that is being searched, from 1.
    page: usize,
    /// The equations that have begun and not ended.
    equations: Vec<Location>,
    places: Vec<Place>,
}

/// Characters with the same fault that come from one place in the template.
struct Place {
    span: Span,
    /// The number of the first page that has them.
    page: usize,
    fault: Fault,
    characters: BTreeSet<char>,
}

/// What is wrong with how characters are printed.
#[derive(Clone, PartialEq, Eq)]
enum Fault {
    /// No font has them.
    NoFont,
    /// Only a font for equations has them, this one.
    MathFont(String),
    /// They are printed in this font, which the template does not name.
    Fallback(String),
    /// Nothing is printed.
    Vanish,
    /// No font has them, in an SVG picture.
    NoFontInPicture,
}

impl Found<'_> {
    fn search(&mut self, frame: &Frame) {
        for (_, item) in frame.items() {
            match item {
                FrameItem::Group(group) => self.search(&group.frame),
                FrameItem::Text(text) => self.check(text),
                FrameItem::Image(image, _, span) => self.check_image(image, *span),
                FrameItem::Tag(Tag::Start(element, _)) if element.is::<EquationElem>() => {
                    self.equations.extend(element.location());
                }
                FrameItem::Tag(Tag::End(location, ..)) => self.equations.retain(|open| open != location),
                _ => {}
            }
        }
    }

    fn check(&mut self, text: &TextItem) {
        let font = text.font.font().info();
        let is_fallback = self.named.is_fallback(font);
        let is_out_of_place = self.equations.is_empty() && font.flags.contains(FontFlags::MATH);
        for glyph in &text.glyphs {
            let characters = text.text.get(glyph.range()).unwrap_or_default().chars();
            if glyph.id == 0 {
                self.note(glyph.span.0, &Fault::NoFont, characters.collect());
            } else if is_out_of_place {
                let family = Fault::MathFont(font.family.clone());
                self.note(glyph.span.0, &family, characters.filter(|character| has_script(*character)).collect());
            } else if is_fallback {
                // Digits and symbols look much the same in every font.
                let is_letter = |character: &char| character.is_alphabetic() && !self.named.have(*character);
                let family = Fault::Fallback(font.family.clone());
                self.note(glyph.span.0, &family, characters.filter(is_letter).collect());
            }
        }
        // Their glyphs may have been left out.
        let span = text.glyphs.first().map_or(Span::detached(), |glyph| glyph.span.0);
        self.note(span, &Fault::Vanish, text.text.chars().filter(|character| vanishes(*character)).collect());
    }

    /// Checks the text of an SVG picture. Typst has laid it out with the fonts that there are.
    fn check_image(&mut self, image: &Image, span: Span) {
        if let ImageKind::Svg(svg) = image.kind() {
            let mut characters = BTreeSet::new();
            search_svg(svg.tree().root(), &mut characters);
            self.note(span, &Fault::NoFontInPicture, characters);
        }
    }

    fn note(&mut self, span: Span, fault: &Fault, characters: BTreeSet<char>) {
        if characters.is_empty() {
            return;
        }
        if let Some(place) = self.places.iter_mut().find(|place| place.span == span && place.fault == *fault) {
            place.characters.extend(characters);
        } else if self.places.len() < MAX_PLACES {
            self.places.push(Place { span, page: self.page, fault: fault.clone(), characters });
        }
    }
}

/// Finds the characters of an SVG picture that no font has.
fn search_svg(group: &usvg::Group, missing: &mut BTreeSet<char>) {
    for node in group.children() {
        match node {
            usvg::Node::Group(group) => search_svg(group, missing),
            usvg::Node::Text(text) => {
                let glyphs = || text.layouted().iter().flat_map(|span| &span.positioned_glyphs);
                let boxes = glyphs().filter(|glyph| glyph.id.0 == 0);
                missing.extend(boxes.flat_map(|glyph| glyph.text.chars()).filter(|it| !it.is_whitespace()));
                if glyphs().next().is_none() {
                    // Without a font nothing is laid out.
                    let texts = text.chunks().iter().flat_map(|chunk| chunk.text().chars());
                    missing.extend(texts.filter(|character| !character.is_whitespace()));
                }
            }
            usvg::Node::Image(image) => {
                if let usvg::ImageKind::SVG(tree) = image.kind() {
                    search_svg(tree.root(), missing);
                }
            }
            usvg::Node::Path(_) => {}
        }
    }
}

/// Whether a character belongs to a script. Digits, symbols and punctuation belong to all.
fn has_script(character: char) -> bool {
    !matches!(character.script(), Script::Common | Script::Inherited | Script::Unknown)
}

/// Whether nothing is printed for a character that is neither a space, nor a break, nor says how others are
/// to be printed. Tabs have become spaces where they come from a message.
fn vanishes(character: char) -> bool {
    let is_break = matches!(character, '\t' | '\n' | '\u{b}' | '\u{c}' | '\r' | '\u{1c}'..='\u{1f}' | '\u{85}');
    let is_filler = matches!(character, '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}');
    (character.is_control() && !is_break) || is_filler
}

impl Place {
    fn describe(&self, data: &MessageData, manifest: &Manifest, is_told: &dyn Fn(char) -> bool) -> SourceDiagnostic {
        // What comes from a message's file is not told.
        let is_known = |character: char| is_told(character) || !data.places_of(&[character].into()).is_empty();
        let (known, others): (BTreeSet<char>, BTreeSet<char>) =
            self.characters.iter().partition(|character| is_known(**character));
        let mut characters = in_words(&known, &others);
        // Typst does not know where some text comes from.
        if self.span.is_detached() {
            characters = format!("{characters}, on page {}", self.page);
        }
        let diagnostic = self.problem(&characters, manifest);
        match data.places_of(&self.characters).join(", ") {
            places if places.is_empty() => diagnostic,
            places => diagnostic.with_hint(eco_format!("the data have them at {places}")),
        }
    }

    fn problem(&self, characters: &str, manifest: &Manifest) -> SourceDiagnostic {
        let to_do = self.what_to_add();
        match &self.fault {
            Fault::Fallback(family) => warning!(
                self.span, "printed in {family}, which the template does not name, since none of its fonts has {characters}";
                hint: "{to_do}"
            ),
            Fault::NoFont if manifest.allow_missing_glyphs => {
                warning!(self.span, "printed as boxes, since no font has {characters}")
            }
            Fault::MathFont(family) if manifest.allow_missing_glyphs => {
                warning!(self.span, "printed in {family}, a font for equations, since no other has {characters}")
            }
            Fault::NoFontInPicture if manifest.allow_missing_glyphs => {
                warning!(self.span, "missing in a picture, since no font has {characters}")
            }
            Fault::NoFont if manifest.forbids_notdef => error!(self.span, "no font has {characters}"; hint: "{to_do}"),
            Fault::NoFont => error!(
                self.span, "no font has {characters}";
                hint: "{to_do}";
                hint: "with [tool.pressrun] allow-missing-glyphs = true they are printed as boxes"
            ),
            Fault::MathFont(family) => error!(
                self.span, "only {family}, a font for equations, has {characters}";
                hint: "{to_do}"
            ),
            Fault::NoFontInPicture => error!(
                self.span, "no font has {characters}, which a picture has as text";
                hint: "{to_do}"
            ),
            Fault::Vanish => error!(
                self.span, "nothing is printed for {characters}";
                hint: "leave them out of the data, or replace them in the template, as text.replace(\"\\u{{7f}}\", \" \")"
            ),
        }
    }

    /// Says what to add, with the names of fonts where they are known.
    fn what_to_add(&self) -> String {
        let named: BTreeSet<(String, &str)> = self.characters.iter().filter_map(|it| font_for(*it)).collect();
        let fonts: Vec<String> =
            named.iter().map(|(font, package)| format!("{font} (Debian's package {package})")).collect();
        let where_to = "templates/fonts or to the template's folder, and name it after the others";
        match &fonts[..] {
            [] => format!("add a font that has them to {where_to}"),
            fonts => format!("add {} to {where_to}", fonts.join(" and ")),
        }
    }
}

/// Returns a font that has a character, and the package that has the font.
fn font_for(character: char) -> Option<(String, &'static str)> {
    let script = character.script();
    let font = match script {
        Script::Common if is_emoji(character) => {
            return Some(("Noto Color Emoji".to_owned(), "fonts-noto-color-emoji"));
        }
        Script::Common | Script::Unknown | Script::Inherited => return None,
        Script::Han | Script::Bopomofo => return Some(("Noto Sans CJK SC".to_owned(), "fonts-noto-cjk")),
        Script::Hiragana | Script::Katakana => return Some(("Noto Sans CJK JP".to_owned(), "fonts-noto-cjk")),
        Script::Hangul => return Some(("Noto Sans CJK KR".to_owned(), "fonts-noto-cjk")),
        Script::Arabic => "Noto Naskh Arabic".to_owned(),
        Script::Latin | Script::Greek | Script::Cyrillic => "Noto Sans".to_owned(),
        script => format!("Noto Sans {}", script.full_name().replace('_', " ")),
    };
    Some((font, "fonts-noto-core"))
}

/// Whether a character is a picture. These blocks have few that are none.
fn is_emoji(character: char) -> bool {
    matches!(character, '\u{1f300}'..='\u{1faff}' | '\u{1f1e6}'..='\u{1f1ff}' | '\u{2600}'..='\u{27bf}')
}

impl MessageData<'_> {
    /// Returns JSON pointers to the first strings of the data that have one of these characters.
    fn places_of(&self, characters: &BTreeSet<char>) -> Vec<String> {
        let mut places = Vec::new();
        self.search(&self.data, "", characters, &mut places);
        places
    }

    fn search(&self, value: &Value, pointer: &str, characters: &BTreeSet<char>, places: &mut Vec<String>) {
        if places.len() == MAX_PLACES {
            return;
        }
        match value {
            Value::String(text) if text.contains(|character| characters.contains(&character)) => {
                places.push(pointer.to_owned());
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let index = self.offset.index_in_whole(pointer, index);
                    self.search(item, &format!("{pointer}/{index}"), characters, places);
                }
            }
            Value::Object(members) => {
                for (name, member) in members {
                    let name = name.replace('~', "~0").replace('/', "~1");
                    self.search(member, &format!("{pointer}/{name}"), characters, places);
                }
            }
            _ => {}
        }
    }
}

/// Lists characters, as in `"日" (U+65E5), "本" (U+672C) and 3 more`, and counts others, which are not told.
fn in_words(characters: &BTreeSet<char>, others: &BTreeSet<char>) -> String {
    let mut named: Vec<String> = characters.iter().take(MAX_CHARACTERS).map(|character| name_of(*character)).collect();
    if characters.len() > MAX_CHARACTERS {
        named.push(format!("{} more", characters.len() - MAX_CHARACTERS));
    }
    let mut scripts: BTreeMap<&str, usize> = BTreeMap::new();
    for character in others {
        *scripts.entry(character.script().full_name()).or_default() += 1;
    }
    named.extend(scripts.into_iter().map(|(script, count)| match count {
        1 => format!("1 character of the script {script}"),
        count => format!("{count} characters of the script {script}"),
    }));
    match named.pop() {
        Some(last) if !named.is_empty() => format!("{} and {last}", named.join(", ")),
        last => last.unwrap_or_default(),
    }
}

fn name_of(character: char) -> String {
    let code = format!("U+{:04X}", u32::from(character));
    if character.is_alphanumeric() { format!("\"{character}\" ({code})") } else { code }
}
