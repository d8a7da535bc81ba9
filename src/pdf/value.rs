//! PDF values as Typst writes them: enough of the syntax to find the entries of a dictionary.
//!
//! Values are slices of the file. Nothing is decoded, so a name or a string is compared as it is written.

/// How deep arrays and dictionaries may be nested. Typst's own go to some ten.
const MAX_DEPTH: usize = 64;

/// A dictionary's keys, with their slash, and values, in the order of the file.
pub(super) struct Dictionary<'a>(Vec<(&'a [u8], &'a [u8])>);

impl<'a> Dictionary<'a> {
    /// Reads `bytes` as exactly one dictionary.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(b"<<")?.strip_suffix(b">>")?;
        let mut entries = Vec::new();
        while !rest.trim_ascii_start().is_empty() {
            let (key, after_key) = split_value(rest)?;
            let (value, after_value) = split_value(after_key)?;
            if !key.starts_with(b"/") {
                return None;
            }
            entries.push((key, value));
            rest = after_value;
        }
        Some(Self(entries))
    }

    /// The value of `key`, which is written with its slash.
    pub fn get(&self, key: &str) -> Option<&'a [u8]> {
        self.entries().find_map(|(name, value)| (name == key.as_bytes()).then_some(value))
    }

    /// All keys and values.
    pub fn entries(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + '_ {
        self.0.iter().copied()
    }
}

/// Reads `bytes` as exactly one array.
pub(super) fn array(bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut rest = bytes.strip_prefix(b"[")?.strip_suffix(b"]")?;
    let mut items = Vec::new();
    while !rest.trim_ascii_start().is_empty() {
        let (item, after) = split_value(rest)?;
        items.push(item);
        rest = after;
    }
    Some(items)
}

/// A piece of a value, with where it stands in the bytes.
#[derive(Clone, Copy)]
pub(super) struct Token<'a> {
    pub kind: Kind,
    pub text: &'a [u8],
    pub start: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Name,
    String,
    Reference(usize),
    /// A number, a keyword, or the beginning or end of an array or a dictionary.
    Other,
}

/// Splits a value into its tokens. What cannot be read is one token, up to the end.
pub(super) fn tokens(bytes: &[u8]) -> impl Iterator<Item = Token<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(at..)?;
        let start = at + rest.iter().position(|byte| !byte.is_ascii_whitespace())?;
        let (kind, len) = first_token(&bytes[start..]);
        at = start + len;
        Some(Token { kind, text: &bytes[start..at], start })
    })
}

fn first_token(bytes: &[u8]) -> (Kind, usize) {
    let token = match bytes[0] {
        b'<' if bytes.starts_with(b"<<") => Some((Kind::Other, 2)),
        b'>' if bytes.starts_with(b">>") => Some((Kind::Other, 2)),
        b'(' | b'<' => scalar_len(bytes).map(|len| (Kind::String, len)),
        b'/' => scalar_len(bytes).map(|len| (Kind::Name, len)),
        byte if is_delimiter(byte) => Some((Kind::Other, 1)),
        _ => match reference_len(bytes) {
            Some(len) => reference(&bytes[..len]).map(|number| (Kind::Reference(number), len)),
            None => Some((Kind::Other, regular_len(bytes))),
        },
    };
    token.unwrap_or((Kind::Other, bytes.len()))
}

/// The object number of a reference such as `12 0 R`; an object of another generation is none of Typst's.
pub(super) fn reference(value: &[u8]) -> Option<usize> {
    number(value.strip_suffix(b" 0 R")?)
}

/// A number of decimal digits and nothing else.
pub(super) fn number(digits: &[u8]) -> Option<usize> {
    let is_number = digits.iter().all(u8::is_ascii_digit) && !digits.is_empty();
    std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()
}

/// Splits the first value from what follows it.
fn split_value(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let bytes = bytes.trim_ascii_start();
    let end = match reference_len(bytes) {
        Some(len) => len,
        None => value_len(bytes)?,
    };
    Some(bytes.split_at(end))
}

/// The length of a reference that `bytes` begins with.
fn reference_len(bytes: &[u8]) -> Option<usize> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (digits > 0 && bytes[digits..].starts_with(b" 0 R")).then_some(digits + b" 0 R".len())
}

/// The length of the value, other than a reference, that `bytes` begins with.
fn value_len(bytes: &[u8]) -> Option<usize> {
    let mut open: Vec<&[u8]> = Vec::new();
    let mut at = 0;
    loop {
        at += bytes[at..].len() - bytes[at..].trim_ascii_start().len();
        let rest = &bytes[at..];
        if let Some(closer) = open.last().filter(|closer| rest.starts_with(closer)) {
            at += closer.len();
            open.pop();
        } else if rest.starts_with(b"<<") || rest.starts_with(b"[") {
            open.push(if rest[0] == b'[' { b"]" } else { b">>" });
            at += open.last()?.len();
        } else {
            at += scalar_len(rest)?;
        }
        if open.is_empty() {
            return Some(at);
        }
        if open.len() > MAX_DEPTH {
            return None;
        }
    }
}

/// The length of the string, name, number or keyword that `bytes` begins with.
fn scalar_len(bytes: &[u8]) -> Option<usize> {
    match bytes.first()? {
        b'(' => literal_string_len(bytes),
        b'<' => Some(bytes.iter().position(|byte| *byte == b'>')? + 1),
        b'/' => Some(1 + regular_len(&bytes[1..])),
        _ => Some(regular_len(bytes)).filter(|len| *len > 0),
    }
}

fn regular_len(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| !byte.is_ascii_whitespace() && !is_delimiter(**byte)).count()
}

fn is_delimiter(byte: u8) -> bool {
    matches!(byte, b'(' | b')' | b'<' | b'>' | b'[' | b']' | b'{' | b'}' | b'/' | b'%')
}

fn literal_string_len(bytes: &[u8]) -> Option<usize> {
    let mut depth = 0;
    let mut at = 0;
    loop {
        match bytes.get(at)? {
            b'\\' => at += 1,
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_dictionary_gives_its_values_as_they_are_written() {
        let text = b"<</Type/Catalog/Pages 1 0 R/ID[(a\\)b(c))<00FF>]/Names<</Nums[0 8 0 R]/Deep[[<<>>]]>> /Marked true/X -1.5>>";
        let dictionary = Dictionary::parse(text).unwrap();
        assert_eq!(dictionary.get("/Type"), Some(&b"/Catalog"[..]));
        assert_eq!(dictionary.get("/Pages").and_then(reference), Some(1));
        assert_eq!(array(dictionary.get("/ID").unwrap()).unwrap(), [&b"(a\\)b(c))"[..], b"<00FF>"]);
        let names = Dictionary::parse(dictionary.get("/Names").unwrap()).unwrap();
        assert_eq!(array(names.get("/Nums").unwrap()).unwrap(), [&b"0"[..], b"8 0 R"]);
        assert_eq!(names.get("/Deep"), Some(&b"[[<<>>]]"[..]));
        assert_eq!(dictionary.get("/Marked"), Some(&b"true"[..]));
        assert_eq!(dictionary.get("/X"), Some(&b"-1.5"[..]));
        assert_eq!(dictionary.get("/Absent"), None);
    }

    #[test]
    fn what_is_no_dictionary_is_none() {
        let deep = [b"<</A".to_vec(), b"[".repeat(100_000), b">>".to_vec()].concat();
        for text in [&b""[..], b"<<", b"<<>", b"<</A>>", b"<<A 1>>", b"<</A(>>", b"<</A[>>", b"<</A]>>", &deep] {
            assert!(Dictionary::parse(text).is_none(), "{:?}", text.escape_ascii().to_string());
        }
        assert_eq!(reference(b"12 1 R"), None);
        assert_eq!(number(b"99999999999999999999"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in proptest::collection::vec(proptest::sample::select(&b"<>[]()/\\ 01R\nA"[..]), 0..64)) {
            let _ = Dictionary::parse(&[b"<<", &text[..], b">>"].concat());
            let _ = array(&[b"[", &text[..], b"]"].concat());
        }
    }
}
