//! Removes a message's values from errors: these go to the log, and Typst quotes values in some of them, as any
//! template may with `panic` and `assert`.
//!
//! What stands between quotes, or after words like `panicked with`, is a quotation: of it stays only what the
//! template's own files say, and JSON pointers of places in the data, which say no more than where. Everything else
//! is in Typst's words and stays whole, except for words that Typst does not know and the message does.

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashSet};
use std::ops::Range;

use serde_json::Value;

use super::parts::Offset;

/// The shortest text or number that is looked for within others. Shorter ones occur everywhere by chance.
const MIN_CHARACTERS: usize = 4;
/// As much of a text is looked at, and more of it is not kept.
const MAX_TEXT_BYTES: usize = 2000;

/// The words that diagnostics are made of. `scripts/typst_words.py` writes them.
const TYPST_WORDS: &str = include_str!("typst_words.txt");

/// After these, a message is a quotation to its end.
const QUOTE_AFTER: [&str; 14] = [
    "panicked with: ",
    "assertion failed: ",
    "equality assertion failed: ",
    "inequality assertion failed: ",
    "plugin errored with: ",
    "plugin panicked: ",
    "unknown font family: ",
    "unknown style: ",
    "duplicate bibliography keys: ",
    "invalid float: ",
    "invalid decimal: ",
    "invalid variant value: ",
    "duplicate variant: ",
    "invalid symbol modifier: ",
];

/// What Typst says itself within such a quotation.
const TYPST_PHRASES: &str = "value \nwas not equal to\nwas equal to\n";

/// What a message brings, parsed once to be removed from any number of texts.
pub struct Redaction {
    data: Value,
    /// Which elements of a divided array they have.
    offset: Offset,
    /// The message's texts in lower case: the names and values of its data, and its files.
    texts: Vec<String>,
    /// What the template says itself, in lower case: Typst says families of fonts so.
    own: String,
    typst_words: OnceCell<HashSet<&'static str>>,
}

impl Redaction {
    /// Parses a message's data and its files. Data that are not JSON have no values.
    #[must_use]
    pub fn new<'a>(data: &[u8], files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let data: Value = serde_json::from_slice(data).unwrap_or_default();
        let mut texts = vec![String::new()];
        gather(&data, &mut texts[0]);
        let mut own = TYPST_PHRASES.to_owned();
        for (name, content) in files {
            // Their names are no secret: errors list them.
            own.push('\n');
            own.push_str(&name.to_lowercase());
            // Only texts can be quoted outside of quotes.
            texts.extend(str::from_utf8(content).ok().map(str::to_lowercase));
        }
        Self { data, offset: Offset::default(), texts, own, typst_words: OnceCell::new() }
    }

    /// With the places of a part's data told as those of the whole.
    #[must_use]
    pub(super) fn with_offset(self, offset: Offset) -> Self {
        Self { offset, ..self }
    }

    /// With the sources of a template, whose own words are kept.
    #[must_use]
    pub(super) fn knowing<'a>(mut self, sources: impl IntoIterator<Item = &'a str>) -> Self {
        for source in sources {
            self.own.push('\n');
            self.own.push_str(&source.to_lowercase());
        }
        self
    }

    /// Removes the message's values from a diagnostic of Typst's. A value is replaced by its JSON pointer if it
    /// stands there as in the data.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        let text = shortened(text);
        let quotes = quotes(text);
        let mut marks = BTreeSet::new();
        let mut start = 0;
        for quote in quotes {
            self.mark_said(text, start..quote.start, &mut marks);
            self.mark_quoted(text, quote.clone(), &mut marks);
            start = quote.end;
        }
        self.mark_said(text, start..text.len(), &mut marks);
        let pointers = self.pointers(text);
        marks.retain(|mark| !pointers.iter().any(|pointer| pointer.start <= mark.start && mark.end <= pointer.end));
        replace(text, marks)
    }

    /// Removes the message's values from the message of a panic of Rust's, which quotes code as well.
    #[must_use]
    pub fn redact_panic(&self, text: &str) -> String {
        let text = shortened(text);
        let mut marks = BTreeSet::new();
        self.mark_values(text, &(0..text.len()), &mut marks, |_| true);
        let quotes = quotes(text);
        for word in words(text, 0..text.len()) {
            let is_quoted = quotes.iter().any(|quote| quote.contains(&word.start));
            let said = &text[word.clone()];
            if (is_quoted || !self.is_typst_word(said)) && !is_short_number(said) && self.is_in_message(said) {
                marks.insert(Mark::of(word, None));
            }
        }
        replace(text, marks)
    }

    /// Marks what is the message's in a part of a text that is in Typst's words.
    fn mark_said(&self, text: &str, part: Range<usize>, marks: &mut BTreeSet<Mark>) {
        let is_foreign = |word: &Range<usize>| {
            let word = &text[word.clone()];
            !is_short_number(word) && !self.is_typst_word(word) && !has_words(&self.own, word)
        };
        self.mark_values(text, &part, marks, |found| words(text, found).iter().any(is_foreign));
        for word in words(text, part) {
            if is_foreign(&word) && self.is_in_message(&text[word.clone()]) {
                marks.insert(Mark::of(word, None));
            }
        }
    }

    /// Marks everything in a quotation that the template does not say itself.
    fn mark_quoted(&self, text: &str, quote: Range<usize>, marks: &mut BTreeSet<Mark>) {
        let words = words(text, quote.clone());
        let runs = self.runs_of_template(text, &words);
        let is_within_run = |found: &Range<usize>| {
            runs.iter().any(|run| {
                let run = words[run.start].start..words[run.end - 1].end;
                run.start <= found.start && found.end <= run.end && run != *found
            })
        };
        self.mark_values(text, &quote, marks, |found| !is_within_run(&found));
        for (index, word) in words.iter().enumerate() {
            let run = runs.iter().find(|run| run.contains(&index));
            let is_kept = run.is_some_and(|run| {
                // One word may be there by chance, unless it is all that is quoted.
                let said = &text[words[run.start].start..words[run.end - 1].end];
                let is_all = run.len() == words.len() && !text[quote.clone()].contains('"');
                let is_number = said.bytes().all(|byte| byte.is_ascii_digit());
                run.len() > 1 || (!is_number && (is_all || !self.is_in_message(said)))
            });
            if !is_kept {
                marks.insert(Mark::of(word.clone(), None));
            }
        }
    }

    /// Finds which words, by their indices, stand one after the other in the template's files as they do here.
    fn runs_of_template(&self, text: &str, words: &[Range<usize>]) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut start = 0;
        while start < words.len() {
            let is_run = |end: &usize| has_words(&self.own, &text[words[start].start..words[*end].end]);
            let run = (start..words.len()).take_while(is_run).count();
            if run > 0 {
                runs.push(start..start + run);
            }
            start += run.max(1);
        }
        runs
    }

    /// Marks values of the data that stand in a part of a text as they are, where `is_value` agrees.
    fn mark_values(
        &self,
        text: &str,
        part: &Range<usize>,
        marks: &mut BTreeSet<Mark>,
        is_value: impl Fn(Range<usize>) -> bool,
    ) {
        let mut values = Values { text: &text[part.clone()], offset: &self.offset, found: Vec::new() };
        values.search(&self.data, "");
        // A long value may contain a short one.
        values.found.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
        for (value, pointer) in values.found {
            for (at, _) in text[part.clone()].match_indices(&value) {
                let found = part.start + at..part.start + at + value.len();
                let is_marked = marks.iter().any(|mark| mark.start < found.end && found.start < mark.end);
                if is_whole(text, &found) && !is_marked && is_value(found.clone()) {
                    marks.insert(Mark::of(found, Some(pointer.clone())));
                }
            }
        }
    }

    /// Finds the JSON pointers in a text that lead to something in the data.
    fn pointers(&self, text: &str) -> Vec<Range<usize>> {
        let starts = text.match_indices('/').map(|(start, _)| start);
        let mut pointers: Vec<Range<usize>> = Vec::new();
        for start in starts.filter(|start| !text[..*start].ends_with(is_of_pointer)) {
            let rest = &text[start..];
            let longest = rest[..rest.find(|character| !is_of_pointer(character)).unwrap_or(rest.len())].len();
            // A full stop or a colon may end a pointer, or stand after it.
            let without_mark = rest[..longest].trim_end_matches(['.', ':', ',', ';']).len();
            let found = [longest, without_mark].into_iter().find(|length| self.leads_somewhere(&rest[..*length]));
            pointers.extend(found.map(|length| start..start + length));
        }
        pointers
    }

    fn leads_somewhere(&self, pointer: &str) -> bool {
        self.offset.pointer_in_part(pointer).is_some_and(|pointer| self.data.pointer(&pointer).is_some())
    }

    fn is_typst_word(&self, word: &str) -> bool {
        let words = self.typst_words.get_or_init(|| TYPST_WORDS.lines().collect());
        words.contains(word.to_lowercase().as_str())
    }

    fn is_in_message(&self, word: &str) -> bool {
        let word = word.to_lowercase();
        self.texts.iter().any(|text| text.contains(&word))
    }
}

/// A part of a text that is replaced: by the pointer of a value, or by nothing that says more.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Mark {
    start: usize,
    end: usize,
    pointer: Option<String>,
}

impl Mark {
    fn of(Range { start, end }: Range<usize>, pointer: Option<String>) -> Self {
        Self { start, end, pointer }
    }
}

/// Replaces marked parts. What stands between two without a pointer goes with them, if it is no word.
fn replace(text: &str, marks: BTreeSet<Mark>) -> String {
    let values: Vec<(usize, usize)> =
        marks.iter().filter(|mark| mark.pointer.is_some()).map(|mark| (mark.start, mark.end)).collect();
    let is_covered = |mark: &Mark| {
        mark.pointer.is_none() && values.iter().any(|(start, end)| *start < mark.end && mark.start < *end)
    };
    let mut parts: Vec<Mark> = Vec::new();
    for mark in marks.into_iter().filter(|mark| !is_covered(mark)) {
        match parts.last_mut() {
            Some(last)
                if last.pointer.is_none()
                    && mark.pointer.is_none()
                    && words(text, last.end..mark.start).is_empty()
                    && !text[last.end..mark.start].contains(['"', '`']) =>
            {
                last.end = mark.end;
            }
            _ => parts.push(mark),
        }
    }
    let mut replaced = String::new();
    let mut end = 0;
    for part in parts {
        replaced.push_str(&text[end..part.start]);
        match &part.pointer {
            Some(pointer) => replaced.extend(["<value of ", pointer, ">"]),
            None => replaced.push_str("<redacted>"),
        }
        end = part.end;
    }
    replaced.push_str(&text[end..]);
    replaced
}

fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

/// Finds the quotations in a text, in its order.
fn quotes(text: &str) -> Vec<Range<usize>> {
    let mut quotes = Vec::new();
    if let Some(beginning) = QUOTE_AFTER.iter().find(|beginning| text.starts_with(**beginning)) {
        quotes.push(beginning.len()..text.len());
        return quotes;
    }
    let mut rest = 0;
    while let Some((start, mark)) = opening(text, rest) {
        let end = closing(text, start, mark).unwrap_or(text.len());
        quotes.push(start..end);
        rest = (end + 1).min(text.len());
        if rest < end + 1 {
            break;
        }
    }
    quotes
}

/// Returns where the next quotation begins, after its mark.
fn opening(text: &str, from: usize) -> Option<(usize, char)> {
    text[from..].char_indices().map(|(at, mark)| (from + at, mark)).find_map(|(at, mark)| {
        let is_apostrophe = mark == '\'' && text[..at].chars().next_back().is_some_and(is_of_word);
        (matches!(mark, '"' | '`' | '\'') && !is_apostrophe).then_some((at + 1, mark))
    })
}

/// Returns where the quotation ends that has begun at `start`.
fn closing(text: &str, start: usize, mark: char) -> Option<usize> {
    let mut is_escaped = false;
    for (at, character) in text[start..].char_indices() {
        let end = start + at;
        // An apostrophe within a word closes nothing.
        let is_within_word = mark == '\'' && text[end + character.len_utf8()..].starts_with(is_of_word);
        if character == mark && !is_escaped && !is_within_word {
            return Some(end);
        }
        is_escaped = mark == '"' && character == '\\' && !is_escaped;
    }
    None
}

/// Finds the words in a part of a text.
fn words(text: &str, part: Range<usize>) -> Vec<Range<usize>> {
    let mut words: Vec<Range<usize>> = Vec::new();
    for (at, character) in text[part.clone()].char_indices().filter(|(_, character)| is_of_word(*character)) {
        let (start, end) = (part.start + at, part.start + at + character.len_utf8());
        match words.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => words.push(start..end),
        }
    }
    words
}

/// Whether this is a number such as Typst counts with.
fn is_short_number(word: &str) -> bool {
    word.len() < MIN_CHARACTERS && word.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a JSON pointer in a text goes on with this character. Names with others are not recognized.
fn is_of_pointer(character: char) -> bool {
    !character.is_whitespace() && !matches!(character, '"' | '\'' | '`' | '\\' | '(' | ')' | '<' | '>')
}

fn is_of_word(character: char) -> bool {
    let is_punctuation =
        character.is_ascii() || matches!(character, '\u{a0}' | '«' | '»' | '·' | '\u{2010}'..='\u{206f}' | '→' | '←');
    character.is_alphanumeric() || character == '_' || !is_punctuation
}

/// Whether a part of a text begins and ends where words do.
fn is_whole(text: &str, part: &Range<usize>) -> bool {
    let joins = |left: Option<char>, right: Option<char>| left.is_some_and(is_of_word) && right.is_some_and(is_of_word);
    !joins(text[..part.start].chars().next_back(), text[part.start..].chars().next())
        && !joins(text[..part.end].chars().next_back(), text[part.end..].chars().next())
}

/// Whether a text in lower case has these words, whole and next to each other.
fn has_words(text: &str, words: &str) -> bool {
    let words = words.to_lowercase();
    text.match_indices(&words).any(|(at, _)| is_whole(text, &(at..at + words.len())))
}

/// Writes the names and values of data in lower case.
fn gather(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                text.push_str(&name.to_lowercase());
                text.push('\n');
                gather(value, text);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| gather(item, text)),
        Value::String(string) => text.push_str(&string.to_lowercase()),
        Value::Number(number) => text.push_str(&number.to_string()),
        Value::Bool(_) | Value::Null => {}
    }
    text.push('\n');
}

struct Values<'a> {
    text: &'a str,
    offset: &'a Offset,
    /// The values that occur in the text, with their pointers.
    found: Vec<(String, String)>,
}

impl Values<'_> {
    fn search(&mut self, value: &Value, pointer: &str) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let name = name.replace('~', "~0").replace('/', "~1");
                    self.search(value, &format!("{pointer}/{name}"));
                }
            }
            Value::Array(items) => {
                for (index, value) in items.iter().enumerate() {
                    let index = self.offset.index_in_whole(pointer, index);
                    self.search(value, &format!("{pointer}/{index}"));
                }
            }
            Value::String(string) => {
                self.note(string, pointer);
                // Typst escapes a string in quotes as JSON does.
                let quoted = value.to_string();
                self.note(&quoted[1..quoted.len() - 1], pointer);
            }
            Value::Number(number) => self.note(&number.to_string(), pointer),
            Value::Bool(_) | Value::Null => {}
        }
    }

    fn note(&mut self, value: &str, pointer: &str) {
        let is_known = |(known, _): &(String, String)| known == value;
        // A short value is known by being all that is quoted.
        let is_long = value.chars().count() >= MIN_CHARACTERS;
        let is_there = if is_long { self.text.contains(value) } else { self.text.trim_matches('"') == value };
        if !value.is_empty() && is_there && !self.found.iter().any(is_known) {
            self.found.push((value.to_owned(), if pointer.is_empty() { "/" } else { pointer }.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::parts::{Part, Parts};

    const DATA: &[u8] = br#"{"name": "Ada \"A\" Byron", "lines": [{"a/b": "Ada"}, {"price": 1234.5}],
        "of": "name", "type": "file", "kind": "key", "from": "expected string", "code": "EUR"}"#;

    fn redacted(text: &str) -> String {
        let files: [(&str, &[u8]); 1] = [("list.csv", b"Grace Hopper;12\nfailed;found")];
        let sources = ["#let greet(name) = panic(\"no price for \" + name)", "#data.key #let weight = 3"];
        Redaction::new(DATA, files).knowing(sources).redact(text)
    }

    #[test]
    fn a_value_is_replaced_by_its_place() {
        for (text, expected) in [
            (r#"panicked with: "Ada \"A\" Byron""#, r#"panicked with: "<value of /name>""#),
            (r#"panicked with: "no price for Ada \"A\" Byron""#, r#"panicked with: "no price for <value of /name>""#),
            (
                "equality assertion failed: value 1234.5 was not equal to 7",
                "equality assertion failed: value <value of /lines/1/price> was not equal to <redacted>",
            ),
            (r#"panicked with: "EUR""#, r#"panicked with: "<value of /code>""#),
            (
                "path `\"Ada\"` would escape the project root",
                "path `\"<value of /lines/0/a~1b>\"` would escape the project root",
            ),
        ] {
            assert_eq!(redacted(text), expected);
        }
        assert_eq!(Redaction::new(br#""secret""#, []).redact("\"secret\""), "\"<value of />\"");
        assert_eq!(Redaction::new(b"not JSON", []).redact("anything"), "anything");
    }

    #[test]
    fn of_a_quotation_stays_only_what_the_template_says() {
        for (text, expected) in [
            (r#"panicked with: "no price for ADA BYRON!""#, r#"panicked with: "no price for <redacted>!""#),
            (
                r#"panicked with: "no price for BYRON", (104, 105)"#,
                r#"panicked with: "no price for <redacted>", (<redacted>)"#,
            ),
            ("panicked with: \"Grace Hopper;12\"", "panicked with: \"<redacted>\""),
            ("assertion failed: Hopp", "assertion failed: <redacted>"),
            (
                "failed to parse XML (found closing tag 'Grace' instead of 'x')",
                "failed to parse XML (found closing tag '<redacted>' instead of '<redacted>')",
            ),
            ("unknown variable: grace", "unknown variable: <redacted>"),
            ("panicked with: \"3\"", "panicked with: \"<redacted>\""),
        ] {
            assert_eq!(redacted(text), expected);
        }
    }

    #[test]
    fn a_pointer_to_a_place_in_the_data_stays() {
        for (text, expected) in [
            ("panicked with: /lines/1/price has none", "panicked with: /lines/1/price <redacted>"),
            ("panicked with: \"no price for /lines/0/a~1b.\"", "panicked with: \"no price for /lines/0/a~1b.\""),
            ("assertion failed: /name: BYRON", "assertion failed: /name: <redacted>"),
            ("panicked with: \"/lines/2/price\"", "panicked with: \"/<redacted>\""),
            ("panicked with: \"x/lines/1/price, /lines/1/Ada\"", "panicked with: \"<redacted>\""),
        ] {
            assert_eq!(redacted(text), expected);
        }
        let data = br#"{"lines": [{"price": "4711"}, {"price": "lines"}]}"#;
        let part = Part { index: 1, count: 2, first: 4710, total: 4712, pages: None };
        let offset = Parts { of: "/lines".to_owned(), size: 4710 }.offset(part);
        let redaction = Redaction::new(data, []).with_offset(offset);
        assert_eq!(redaction.redact("panicked with: /lines/4711/price"), "panicked with: /lines/4711/price");
        assert_eq!(
            redaction.redact("panicked with: /lines/1/price 4711"),
            "panicked with: /<value of /lines/4711/price>/<redacted> <value of /lines/4710/price>"
        );
    }

    #[test]
    fn the_words_of_typst_and_of_the_template_stay_whole() {
        for text in [
            "file not found (searched at note/data.csv)",
            "failed to load file (the message's files have no \"list.csv\"; there are: list.csv)",
            "dictionary does not contain key \"weight\"",
            "expected string, found integer",
            "array index out of bounds (index: 3, len: 3)",
            "failed to parse CSV (found 3 instead of 2 fields in line 12)",
            "unknown variable: greet",
        ] {
            assert_eq!(redacted(text), text);
        }
        assert_eq!(
            redacted("dictionary does not contain key \"key\""),
            "dictionary does not contain key \"<value of /kind>\""
        );
    }

    #[test]
    fn a_panic_of_rust_keeps_its_words_and_no_value() {
        let redaction = Redaction::new(DATA, [("list.csv", b"Grace Hopper" as &[u8])]);
        assert_eq!(
            redaction.redact_panic("byte index 3 is not a char boundary; it is inside 'é' of `Ada \"A\" Byron, GRACE`"),
            "byte index 3 is not a char boundary; it is inside 'é' of `<value of /name>, <redacted>`"
        );
        let unwrap = "called `Option::unwrap()` on a `None` value";
        assert_eq!(redaction.redact_panic(unwrap), unwrap);
    }
}
