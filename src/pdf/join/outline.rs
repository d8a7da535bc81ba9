//! The outline: the bookmarks of all parts as one list.

use super::output::Output;
use super::{Expect, Expected, PartError, insert_reference, push_text};

/// The outline of the joined file.
pub(super) struct JoinedOutline {
    pub root: u32,
    first: Option<u32>,
    /// The last bookmark so far, which waits for the one after it.
    last: Option<(u32, Vec<u8>)>,
    count: usize,
}

impl JoinedOutline {
    pub fn new(root: u32) -> Self {
        Self { root, first: None, last: None, count: 0 }
    }

    /// Puts a part's first bookmark behind the last one so far.
    pub fn begin_part(&mut self, number: u32, bookmark: &mut Vec<u8>, output: &mut Output) -> Result<(), PartError> {
        if let Some((last_number, mut last)) = self.last.take() {
            insert_reference(bookmark, "/Prev", last_number)?;
            insert_reference(&mut last, "/Next", number)?;
            output.put(last_number, &last)?;
        }
        self.first.get_or_insert(number);
        Ok(())
    }

    /// Takes up a part's last bookmark, if it has one, and how many are shown.
    pub fn end_part(&mut self, last: Option<(u32, Vec<u8>)>, count: usize) -> Expect<()> {
        if last.is_some() {
            if self.last.is_some() {
                return Err(Expected("the first of the bookmarks in the outline"));
            }
            self.last = last;
        }
        self.count = self.count.saturating_add(count);
        Ok(())
    }

    /// Writes what waits, and the root.
    pub fn finish(self, output: &mut Output) -> Result<(), PartError> {
        let mut root = b"<</Type/Outlines".to_vec();
        if let (Some(first), Some((last, _))) = (self.first, &self.last) {
            push_text(&mut root, format_args!("/First {first} 0 R/Last {last} 0 R/Count {}", self.count));
        }
        root.extend_from_slice(b">>");
        output.put(self.root, &root)?;
        if let Some((number, bookmark)) = &self.last {
            output.put(*number, bookmark)?;
        }
        Ok(())
    }
}
