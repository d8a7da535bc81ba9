//! Copies an object of a part with what is different in the joined file.

use std::collections::HashMap;

use super::super::file::{Stream, is_stream};
use super::super::value::{Kind, number, tokens};
use super::strings::push_prefixed;
use super::{Expect, Expected, push_text};

/// What is different in the joined file.
pub(super) struct Rewrite<'a> {
    /// The numbers of the part's objects in the joined file, by their own number; 0 where there is no such object.
    pub numbers: &'a [u32],
    /// What is added to the keys of the part's parent tree.
    pub first_key: usize,
    /// What the identifiers of the part's tags begin with.
    pub id_prefix: &'a str,
    /// Names of destinations that mean a place in an earlier part, and the numbers of the part's own destinations.
    pub taken_names: &'a HashMap<&'a [u8], usize>,
}

impl Rewrite<'_> {
    /// Appends an object.
    pub fn object(&self, content: &[u8], out: &mut Vec<u8>) -> Expect<()> {
        if !is_stream(content) {
            return self.value(content, out);
        }
        let stream = Stream::parse(content).ok_or(Expected("a stream with its length"))?;
        self.value(stream.dictionary, out)?;
        out.extend_from_slice(&content[stream.dictionary.len()..]);
        Ok(())
    }

    /// Appends a value. The keys that are looked for stand in tags, pages and annotations alone.
    pub fn value(&self, bytes: &[u8], out: &mut Vec<u8>) -> Expect<()> {
        let mut copied = 0;
        let mut key: &[u8] = b"";
        let mut in_headers = false;
        let mut edited = Vec::new();
        for token in tokens(bytes) {
            edited.clear();
            match (token.kind, key) {
                (Kind::Reference(old), _) => push_text(&mut edited, format_args!("{} 0 R", self.number(old)?)),
                (Kind::String, b"/ID") => push_prefixed(&mut edited, token.text, self.id_prefix),
                (Kind::String, _) if in_headers => push_prefixed(&mut edited, token.text, self.id_prefix),
                (Kind::String, b"/Dest") => {
                    if let Some(own) = self.taken_names.get(token.text) {
                        push_text(&mut edited, format_args!(" {} 0 R", self.number(*own)?));
                    }
                }
                (Kind::Other, b"/StructParent" | b"/StructParents") => {
                    push_text(&mut edited, format_args!("{}", self.parent_tree_key(token.text)?));
                }
                (Kind::Other, _) if token.text == b"[" => in_headers = key == b"/Headers",
                (Kind::Other, _) if token.text == b"]" => in_headers = false,
                _ => {}
            }
            key = if token.kind == Kind::Name { token.text } else { b"" };
            if !edited.is_empty() {
                out.extend_from_slice(&bytes[copied..token.start]);
                out.extend_from_slice(&edited);
                copied = token.start + token.text.len();
            }
        }
        out.extend_from_slice(&bytes[copied..]);
        Ok(())
    }

    /// The number of a part's object in the joined file.
    pub fn number(&self, old: usize) -> Expect<u32> {
        let new = self.numbers.get(old).copied().filter(|new| *new > 0);
        new.ok_or(Expected("references to objects that have a place in the whole"))
    }

    /// The key in the parent tree of the joined file.
    pub fn parent_tree_key(&self, key: &[u8]) -> Expect<usize> {
        let key = number(key).and_then(|key| key.checked_add(self.first_key));
        key.ok_or(Expected("whole numbers as keys of the parent tree"))
    }
}
