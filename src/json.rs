//! JSON that reads otherwise than its author meant: a byte order mark before it, a name that stands twice in
//! an object, a whole number that Typst's integers do not hold, nesting that no reader follows.
//!
//! Imports [`crate::text`].

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Write;

use crate::text;

/// UTF-8's byte order mark, which editors and tools of Windows write before a text.
const BYTE_ORDER_MARK: char = '\u{feff}';
/// The deepest nesting that `serde_json` reads, and so the schema and Typst.
const MAX_DEPTH: usize = 127;
/// Up to so many names of an object are compared one by one, which is quicker than to hash them.
const MAX_COMPARED_NAMES: usize = 16;
/// The most digits of a number that every 64-bit integer holds.
const MAX_SAFE_DIGITS: usize = 18;
/// The longest JSON pointer that is told, in bytes.
const MAX_PLACE_BYTES: usize = 300;

/// A place in JSON that would be read otherwise than it is written.
#[derive(Debug, PartialEq, Eq)]
pub struct Misreading {
    /// The JSON pointer, shortened if it is very long.
    pub place: String,
    pub kind: MisreadingKind,
}

/// How JSON would be misread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MisreadingKind {
    #[error("the name stands twice in its object, and only one of the two would be read")]
    DuplicateName,
    #[error(
        "is a whole number beyond what 64 bits hold (-2^63 to 2^63-1), which would lose its last digits; \
         a number with so many digits has to be a string"
    )]
    WholeNumberTooLarge,
    #[error("is nested deeper than {MAX_DEPTH} levels, which no reader of JSON follows")]
    TooDeep,
}

/// Returns a text without the byte order mark that it may begin with.
#[must_use]
pub fn without_byte_order_mark(text: &str) -> &str {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

/// Returns the bytes of a text without the byte order mark that it may begin with.
#[must_use]
pub fn bytes_without_byte_order_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// Finds the first place that would be misread in a text that is valid JSON. It takes one pass over the text
/// and no memory for its values.
#[must_use]
pub fn find_misreading(json: &str) -> Option<Misreading> {
    let mut scanner = Scanner { json, position: 0, levels: Vec::new(), names: Vec::new() };
    let kind = scanner.scan()?;
    Some(Misreading { place: scanner.place(), kind })
}

/// An object or array that the scanner is in.
struct Level<'a> {
    /// The index of the element, in an array.
    index: Option<usize>,
    /// Where the object's names begin among all names.
    first_name: usize,
    /// Whether the next string is a name.
    expects_name: bool,
    /// The object's names, once they are many.
    hashed: HashSet<Cow<'a, str>>,
}

struct Scanner<'a> {
    json: &'a str,
    position: usize,
    levels: Vec<Level<'a>>,
    /// The names of all objects that the scanner is in.
    names: Vec<Cow<'a, str>>,
}

impl<'a> Scanner<'a> {
    fn scan(&mut self) -> Option<MisreadingKind> {
        while let Some(byte) = self.json.as_bytes().get(self.position) {
            match byte {
                b'"' => {
                    let text = self.string();
                    if self.levels.last().is_some_and(|level| level.expects_name) && !self.push_name(text) {
                        return Some(MisreadingKind::DuplicateName);
                    }
                    continue;
                }
                b'-' | b'0'..=b'9' => {
                    if !is_exact(self.number()) {
                        return Some(MisreadingKind::WholeNumberTooLarge);
                    }
                    continue;
                }
                b'{' | b'[' => {
                    let is_array = *byte == b'[';
                    self.levels.push(Level {
                        index: is_array.then_some(0),
                        first_name: self.names.len(),
                        expects_name: !is_array,
                        hashed: HashSet::new(),
                    });
                    if self.levels.len() > MAX_DEPTH {
                        return Some(MisreadingKind::TooDeep);
                    }
                }
                b'}' | b']' => {
                    if let Some(level) = self.levels.pop() {
                        self.names.truncate(level.first_name);
                    }
                }
                b',' => {
                    if let Some(level) = self.levels.last_mut() {
                        level.expects_name = level.index.is_none();
                        level.index = level.index.map(|index| index + 1);
                    }
                }
                _ => {}
            }
            self.position += 1;
        }
        None
    }

    /// Moves behind the string that begins here, and returns it with its quotes.
    fn string(&mut self) -> &'a str {
        let start = self.position;
        let bytes = self.json.as_bytes();
        let mut end = start + 1;
        while let Some(byte) = bytes.get(end) {
            match byte {
                b'"' => break,
                b'\\' => end += 2,
                _ => end += 1,
            }
        }
        self.position = (end + 1).min(bytes.len());
        self.json.get(start..self.position).unwrap_or_default()
    }

    /// Moves behind the number that begins here, and returns it.
    fn number(&mut self) -> &'a str {
        let rest = &self.json[self.position..];
        let is_part = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
        let length = rest.bytes().position(|byte| !is_part(byte)).unwrap_or(rest.len());
        self.position += length;
        &rest[..length]
    }

    /// Notes the name of a member. Returns `false` if its object has it already.
    fn push_name(&mut self, quoted: &'a str) -> bool {
        let raw = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
        let name = match raw.contains('\\').then(|| serde_json::from_str::<String>(quoted)) {
            Some(Ok(name)) => Cow::Owned(name),
            _ => Cow::Borrowed(raw),
        };
        let Some(level) = self.levels.last_mut() else { return true };
        level.expects_name = false;
        let names = &self.names[level.first_name..];
        let is_new = if names.len() < MAX_COMPARED_NAMES {
            !names.contains(&name)
        } else {
            if level.hashed.is_empty() {
                level.hashed.extend(names.iter().cloned());
            }
            level.hashed.insert(name.clone())
        };
        self.names.push(name);
        is_new
    }

    /// Returns the JSON pointer of the place where the scanner is.
    fn place(&self) -> String {
        let ends = self.levels.iter().skip(1).map(|level| level.first_name).chain([self.names.len()]);
        let mut place = String::new();
        for (level, end) in self.levels.iter().zip(ends) {
            match level.index {
                Some(index) => write!(place, "/{index}").expect("a string can be written to"),
                None => {
                    if let Some(name) = self.names[level.first_name..end].last() {
                        place.push('/');
                        place.push_str(&text::shortened(name, MAX_PLACE_BYTES).replace('~', "~0").replace('/', "~1"));
                    }
                }
            }
        }
        text::shortened(&place, MAX_PLACE_BYTES).into_owned()
    }
}

/// Whether a number is read as it is written, as far as its author can expect: one with a fraction or an
/// exponent is a floating-point number by its own choice.
fn is_exact(number: &str) -> bool {
    number.len() <= MAX_SAFE_DIGITS
        || number.bytes().any(|byte| b".eE".contains(&byte))
        || number.parse::<i64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str) -> Option<(String, MisreadingKind)> {
        serde_json::from_str::<serde::de::IgnoredAny>(json).unwrap();
        find_misreading(json).map(|Misreading { place, kind }| (place, kind))
    }

    #[test]
    fn a_name_that_stands_twice_is_found_with_its_place() {
        let at = |place: &str| Some((place.to_owned(), MisreadingKind::DuplicateName));
        assert_eq!(found(r#"{"a": 1, "a": 1}"#), at("/a"));
        assert_eq!(found(r#"{"a": [0, {"b": {}, "c/~": [], "c\/~": 2}]}"#), at("/a/1/c~1~0"));
        assert_eq!(found(r#"{"a": {"x": 1}, "b": {"x": 1}, "x": [{"x": 1}, {"x": 1}]}"#), None);
        assert_eq!(found(r#"{"a": "a", "b": "{\"a\": 1, \"a\": 1}", "\\": 1, "\"": 2}"#), None);
        let many = (0..1000).map(|number| format!("\"n{number}\": {{\"n\": 1}}, ")).collect::<Vec<_>>().concat();
        assert_eq!(found(&format!("[{{{many}\"last\": 1}}]")), None);
        assert_eq!(found(&format!("[{{{many}\"n7\": 1}}]")), at("/0/n7"));
        assert_eq!(found(&format!("[{{{many}\"n999\": 1}}]")), at("/0/n999"));
    }

    #[test]
    fn a_whole_number_is_found_if_64_bits_do_not_hold_it() {
        for good in ["0", "-0", "9223372036854775807", "-9223372036854775808", "1e400", "12345678901234567890.0", "1E3"]
        {
            assert_eq!(found(&format!("{{\"a\": [{good}, {good}]}}")), None, "{good}");
        }
        for bad in ["9223372036854775808", "-9223372036854775809", &"1".repeat(1000)] {
            let expected = Some(("/a/1".to_owned(), MisreadingKind::WholeNumberTooLarge));
            assert_eq!(found(&format!("{{\"a\": [\"{bad}\", {bad}]}}")), expected, "{bad}");
        }
        assert_eq!(found(&"9".repeat(20)), Some((String::new(), MisreadingKind::WholeNumberTooLarge)));
    }

    #[test]
    fn nesting_is_found_where_no_reader_would_follow() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for depth in [1, MAX_DEPTH, MAX_DEPTH + 1, 1_000_000] {
            let is_read = serde_json::from_str::<serde_json::Value>(&nested(depth)).is_ok();
            assert_eq!(find_misreading(&nested(depth)).is_none(), is_read, "{depth}");
        }
    }

    #[test]
    fn a_place_is_told_however_long_its_names_are() {
        let name = "ä".repeat(100_000);
        let json = format!(r#"{{"{name}": {{"{name}": 1, "{name}": 2}}}}"#);
        assert!(find_misreading(&json).unwrap().place.len() < 2 * MAX_PLACE_BYTES);
    }
}
