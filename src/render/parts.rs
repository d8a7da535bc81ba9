//! How a document's data are divided, and what each part is told.
//!
//! A part's data are bytes of the message's: everything but the array that is divided, and of that array a slice.
//! Nothing is written anew, so that a part reads what the message says.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

/// The most parts of a document: their ranges have to fit into one frame.
pub const MAX_PARTS: usize = 1000;

/// So many elements are taken to fill a page as long as it is not known how many do. It only decides how many
/// digits page numbers have while a document is laid out for the first time.
const ESTIMATED_ELEMENTS_OF_A_PAGE: usize = 32;

/// What a manifest says of parts: `parts = { of = "/doc/lines", size = 2000 }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// The JSON pointer of an array in the data.
    pub of: String,
    /// How many of its elements a part has at most.
    pub size: usize,
}

/// How a document's data are divided, as ranges of their bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Division {
    /// How many elements the array has.
    pub total: usize,
    /// How many of them a part has at most.
    pub size: usize,
    /// What stands between the array's brackets.
    pub array: Range<usize>,
    /// What stands there for each part: from the first byte of its first element to the last of its last.
    pub slices: Vec<Range<usize>>,
}

/// One part of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its place among the parts, from 0.
    pub index: usize,
    pub count: usize,
    /// The index of its first element in the whole array.
    pub first: usize,
    /// How many elements the whole array has.
    pub total: usize,
    /// Once it is known how many pages each part has.
    pub pages: Option<PageNumbers>,
}

/// Where a part's pages stand in the whole document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageNumbers {
    /// How many pages come before those of the part.
    pub before: usize,
    /// How many pages all parts have together.
    pub total: usize,
}

/// A document of more than [`MAX_PARTS`] parts.
pub(super) struct TooManyParts {
    total: usize,
}

/// Which elements of an array a part's data have, so that a place in them is told as that in the whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Offset {
    pointer: String,
    first: usize,
}

impl Parts {
    /// Divides data into parts. `None` if one part is enough, or the array is not there.
    pub fn divide(&self, data: &[u8]) -> Result<Option<Division>, TooManyParts> {
        let Some((array, elements)) = find_array(data, &self.of) else { return Ok(None) };
        let total = elements.len();
        if total <= self.size {
            return Ok(None);
        }
        if total.div_ceil(self.size) > MAX_PARTS {
            return Err(TooManyParts { total });
        }
        let slices = elements.chunks(self.size).map(|part| {
            let (first, last) = (range_in(data, part[0]), range_in(data, part[part.len() - 1]));
            first.start..last.end
        });
        let array = range_in(data, array);
        let array = array.start + 1..array.end - 1;
        Ok(Some(Division { total, size: self.size, array, slices: slices.collect() }))
    }

    /// The same with parts of another size.
    pub fn with_size(&self, size: usize) -> Self {
        Self { size, ..self.clone() }
    }

    /// How many elements the array in these data has.
    pub fn count(&self, data: &[u8]) -> usize {
        find_array(data, &self.of).map_or(0, |(_, elements)| elements.len())
    }

    /// Says why a document of too many parts is not rendered.
    pub fn too_many(&self, TooManyParts { total }: &TooManyParts) -> String {
        let Self { of, size } = self;
        format!(
            "{of}: an array of length {total} makes more than {MAX_PARTS} parts of {size} elements, which is the most \
             that a document may have; raise size under parts in the template's typst.toml"
        )
    }

    /// Which elements a part has.
    pub fn offset(&self, part: Part) -> Offset {
        Offset { pointer: self.of.clone(), first: part.first }
    }
}

impl Division {
    /// Whether data of so many bytes can be divided so. What a run says of them has to be checked.
    #[must_use]
    pub fn is_of(&self, bytes: usize) -> bool {
        let Self { total, size, array, slices } = self;
        let mut end = array.start;
        let are_in_order = slices.iter().all(|slice| {
            let is_after = end <= slice.start && slice.start <= slice.end;
            end = slice.end;
            is_after
        });
        let is_count_right = *size > 0 && slices.len() == total.div_ceil(*size) && slices.len() <= MAX_PARTS;
        is_count_right && are_in_order && end <= array.end && array.end <= bytes
    }

    /// The parts, in their order.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        let (count, size, total) = (self.slices.len(), self.size, self.total);
        (0..count).map(move |index| Part { index, count, first: index * size, total, pages: None })
    }

    /// A part's data, in three pieces that are not copied.
    #[must_use]
    pub fn data_of(&self, part: Part, data: &Bytes) -> [Bytes; 3] {
        let slice = self.slices[part.index].clone();
        [data.slice(..self.array.start), data.slice(slice), data.slice(self.array.end..)]
    }
}

impl Part {
    /// A document that is not divided.
    pub(super) fn whole(total: usize) -> Self {
        Self { index: 0, count: 1, first: 0, total, pages: None }
    }

    /// The file that `sys.inputs.part` names.
    pub(super) fn file(&self) -> Bytes {
        let Self { index, count, first, total, .. } = self;
        json!({"index": index, "count": count, "first": first, "total": total}).to_string().into()
    }

    /// The file that `sys.inputs.pages` names. The total of a document that is not divided is for Typst to find.
    pub(super) fn pages_file(&self) -> Bytes {
        let is_whole = self.count == 1;
        let PageNumbers { before, total } = self.pages.unwrap_or_else(|| self.estimated_pages());
        json!({"before": before, "total": (!is_whole).then_some(total)}).to_string().into()
    }

    fn estimated_pages(&self) -> PageNumbers {
        let pages = |elements: usize| elements / ESTIMATED_ELEMENTS_OF_A_PAGE;
        PageNumbers { before: pages(self.first), total: pages(self.total).max(self.count) }
    }
}

impl Offset {
    /// The index in the whole document of an element of the array at `pointer`.
    pub fn index_in_whole(&self, pointer: &str, index: usize) -> usize {
        if self.first > 0 && pointer == self.pointer { self.first + index } else { index }
    }

    /// Where the part's data have what is at `pointer` in the whole document. `None` if another part has it.
    pub fn pointer_in_part<'a>(&self, pointer: &'a str) -> Option<Cow<'a, str>> {
        let element = pointer.strip_prefix(&self.pointer).and_then(|rest| rest.strip_prefix('/'));
        let Some(element) = element.filter(|_| self.first > 0) else { return Some(pointer.into()) };
        let (index, rest) = element.split_at(element.find('/').unwrap_or(element.len()));
        let index = index.parse::<usize>().ok()?.checked_sub(self.first)?;
        Some(format!("{}/{index}{rest}", self.pointer).into())
    }
}

/// Finds an array in JSON by its pointer, and its elements.
fn find_array<'a>(json: &'a [u8], pointer: &str) -> Option<(&'a RawValue, Vec<&'a RawValue>)> {
    let whole: &RawValue = serde_json::from_slice(json).ok()?;
    let found = pointer.split('/').skip(1).try_fold(whole, |value, name| member(value, name))?;
    Some((found, serde_json::from_str(found.get()).ok()?))
}

/// Finds what stands under a name in an object, or under an index in an array.
fn member<'a>(value: &'a RawValue, escaped: &str) -> Option<&'a RawValue> {
    let name = escaped.replace("~1", "/").replace("~0", "~");
    if value.get().starts_with('[') {
        return serde_json::from_str::<Vec<&RawValue>>(value.get()).ok()?.get(name.parse::<usize>().ok()?).copied();
    }
    serde_json::from_str::<HashMap<String, &RawValue>>(value.get()).ok()?.get(&name).copied()
}

/// Where a value stands in the JSON that it was borrowed from.
fn range_in(json: &[u8], value: &RawValue) -> Range<usize> {
    let start = value.get().as_ptr().addr() - json.as_ptr().addr();
    start..start + value.get().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(of: &str, size: usize) -> Parts {
        Parts { of: of.to_owned(), size }
    }

    fn data_of_parts(parts: &Parts, data: &'static str) -> Vec<String> {
        let bytes = Bytes::from_static(data.as_bytes());
        let Ok(division) = parts.divide(&bytes) else { panic!("too many parts") };
        let Some(division) = division else { return Vec::new() };
        assert!(division.is_of(data.len()));
        let data_of = |part| String::from_utf8(division.data_of(part, &bytes).concat()).unwrap();
        division.parts().map(data_of).collect()
    }

    #[test]
    fn a_part_has_its_slice_of_the_array_and_the_rest_as_it_is() {
        let data = r#" {"a": [9, 9, 9], "doc" : {"li/n~es":[ {"x": "],["} , [2,[ ]],  3.50,"ü",null ] }, "z": 1.0 }"#;
        assert_eq!(
            data_of_parts(&parts("/doc/li~1n~0es", 2), data),
            [
                r#" {"a": [9, 9, 9], "doc" : {"li/n~es":[{"x": "],["} , [2,[ ]]]}, "z": 1.0 }"#,
                r#" {"a": [9, 9, 9], "doc" : {"li/n~es":[3.50,"ü"]}, "z": 1.0 }"#,
                r#" {"a": [9, 9, 9], "doc" : {"li/n~es":[null]}, "z": 1.0 }"#,
            ]
            .map(|part| part.replace("]}, \"z\"", "] }, \"z\""))
        );
        assert_eq!(data_of_parts(&parts("", 1), "[1, 2]"), ["[1]", "[2]"]);
        assert_eq!(
            data_of_parts(&parts("/1/a", 1), r#"[0, {"a": [1,2]}]"#),
            [r#"[0, {"a": [1]}]"#, r#"[0, {"a": [2]}]"#]
        );
    }

    #[test]
    fn what_one_part_holds_or_has_no_array_is_not_divided() {
        for data in [r#"{"lines": [1, 2, 3]}"#, r#"{"lines": []}"#, r#"{"lines": 4}"#, "{}", "[]", "4", "not JSON"] {
            assert!(data_of_parts(&parts("/lines", 3), data).is_empty(), "{data}");
        }
        assert_eq!(parts("/lines", 3).count(br#"{"lines": [1, 2, 3, [4]]}"#), 4);
        assert_eq!(parts("/lines", 3).count(b"{}"), 0);
    }

    #[test]
    fn parts_follow_each_other_and_know_the_whole() {
        let data = format!("[{}]", ["1"; 7].join(","));
        let division = parts("", 3).divide(data.as_bytes()).ok().unwrap().unwrap();
        let told: Vec<Bytes> = division.parts().map(|part| part.file()).collect();
        assert_eq!(told[2], r#"{"count":3,"first":6,"index":2,"total":7}"#);
        assert_eq!(told.len(), 3);
        let mut part = division.parts().nth(1).unwrap();
        assert_eq!(part.pages_file(), r#"{"before":0,"total":3}"#);
        part.pages = Some(PageNumbers { before: 4, total: 9 });
        assert_eq!(part.pages_file(), r#"{"before":4,"total":9}"#);
        assert_eq!(Part::whole(7).pages_file(), r#"{"before":0,"total":null}"#);
    }

    #[test]
    fn too_many_parts_are_an_error_that_says_what_to_do() {
        let data = format!("[{}1]", "1,".repeat(2000));
        assert!(parts("", 3).divide(data.as_bytes()).is_ok());
        let few = parts("", 2);
        let problem = few.too_many(&few.divide(data.as_bytes()).err().unwrap());
        assert!(problem.contains("length 2001") && problem.contains("raise size"), "{problem}");
    }

    #[test]
    fn a_division_that_cannot_be_is_found_out() {
        let good = Division { total: 3, size: 2, array: 1..8, slices: vec![1..4, 5..8] };
        assert!(good.is_of(9) && good.is_of(8) && !good.is_of(7));
        for bad in [
            Division { size: 0, ..good.clone() },
            Division { total: 5, ..good.clone() },
            Division { array: 2..8, ..good.clone() },
            Division { array: 1..7, ..good.clone() },
            Division { slices: vec![1..4, 3..8], ..good.clone() },
            Division { slices: vec![1..4, Range { start: 8, end: 5 }], ..good.clone() },
        ] {
            assert!(!bad.is_of(9), "{bad:?}");
        }
    }

    #[test]
    fn a_place_in_a_part_is_told_as_that_in_the_whole() {
        let part = Part { index: 1, count: 2, first: 6000, total: 6018, pages: None };
        let offset = parts("/doc/lines", 6000).offset(part);
        assert_eq!(offset.index_in_whole("/doc/lines", 17), 6017);
        assert_eq!(offset.index_in_whole("/doc/lines/3/taxes", 17), 17);
        assert_eq!(Offset::default().index_in_whole("", 17), 17);
        assert_eq!(offset.pointer_in_part("/doc/lines/6017/taxes/3").as_deref(), Some("/doc/lines/17/taxes/3"));
        assert_eq!(offset.pointer_in_part("/doc/lines/6000").as_deref(), Some("/doc/lines/0"));
        for same in ["/doc/lines", "/doc/linesmen/3", "/doc", ""] {
            assert_eq!(offset.pointer_in_part(same).as_deref(), Some(same));
        }
        for elsewhere in ["/doc/lines/5999", "/doc/lines/-1", "/doc/lines/x"] {
            assert_eq!(offset.pointer_in_part(elsewhere), None);
        }
        assert_eq!(Offset::default().pointer_in_part("/17").as_deref(), Some("/17"));
    }
}
