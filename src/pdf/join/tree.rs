//! Name trees and number trees of two levels (ISO 32000-1, 7.9.6 and 7.9.7): a node for each part, and the root.

use super::super::value::{Dictionary, array, number};
use super::output::Output;
use super::rewrite::Rewrite;
use super::{Expect, Expected, PartError, push_text};

/// The nodes below the root, in their order.
#[derive(Default)]
pub(super) struct Tree(Vec<u32>);

impl Tree {
    /// Adds a node, which says its limits.
    pub fn add(&mut self, leaf: &[u8], output: &mut Output) -> Result<(), PartError> {
        if !leaf.is_empty() {
            self.0.push(output.add(leaf)?);
        }
        Ok(())
    }

    /// Writes the root and appends an entry with a reference to it, unless the tree is empty.
    pub fn push_entry(&self, out: &mut Vec<u8>, key: &str, output: &mut Output) -> Result<(), PartError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut root = b"<</Kids[".to_vec();
        push_references(&mut root, &self.0);
        root.extend_from_slice(b"]>>");
        push_text(out, format_args!("{key} {} 0 R", output.add(&root)?));
        Ok(())
    }
}

/// Appends references to the objects.
pub(super) fn push_references(out: &mut Vec<u8>, numbers: &[u32]) {
    for (index, number) in numbers.iter().enumerate() {
        push_text(out, format_args!("{}{number} 0 R", if index == 0 { "" } else { " " }));
    }
}

/// A node of what a part has in a number tree of one node, whose keys are below `end`, with `shift` added to each key.
/// It is empty if there is nothing in it.
pub(super) fn number_leaf(tree: &Dictionary, shift: usize, end: usize, rewrite: &Rewrite) -> Expect<Vec<u8>> {
    let items = tree.get("/Nums").and_then(array).ok_or(Expected("a number tree of one node"))?;
    let (pairs, []) = items.as_chunks::<2>() else { return Err(Expected("pairs in a number tree")) };
    let keys = pairs.iter().map(|[key, _]| number(key).filter(|key| *key < end)?.checked_add(shift));
    let keys: Vec<usize> = keys.collect::<Option<_>>().ok_or(Expected("keys in their range in a number tree"))?;
    let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return Ok(Vec::new()) };
    if !keys.is_sorted() {
        return Err(Expected("sorted keys in a number tree"));
    }
    let mut leaf = Vec::new();
    push_text(&mut leaf, format_args!("<</Limits[{first} {last}]/Nums["));
    for (key, [_, value]) in keys.iter().zip(pairs) {
        push_text(&mut leaf, format_args!("{}{key} ", if key == first { "" } else { " " }));
        rewrite.value(value, &mut leaf)?;
    }
    leaf.extend_from_slice(b"]>>");
    Ok(leaf)
}
