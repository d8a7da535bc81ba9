//! What a part's catalog leads to.

use std::collections::HashSet;

use super::super::file::PdfFile;
use super::super::value::{Dictionary, Kind, array, number, reference, tokens};
use super::{Expect, Expected};

/// Keys of a catalog that the joined file has as the first part has them.
const FIRST_PARTS_KEYS: [&[u8]; 7] =
    [b"/Type", b"/Lang", b"/MarkInfo", b"/ViewerPreferences", b"/PageLayout", b"/OutputIntents", b"/AF"];

/// Keys of a catalog that are made anew.
const JOINED_KEYS: [&[u8]; 6] = [b"/Pages", b"/Metadata", b"/PageLabels", b"/StructTreeRoot", b"/Outlines", b"/Names"];

/// A part of a document.
pub(super) struct Part<'a> {
    pub file: &'a PdfFile<'a>,
    pub catalog: Dictionary<'a>,
    pub pages: Pages<'a>,
    pub destinations: Vec<(&'a [u8], usize)>,
    pub embedded_files: Option<&'a [u8]>,
    pub outline: Option<Outline>,
    pub page_labels: Option<Dictionary<'a>>,
}

/// The page tree.
pub(super) struct Pages<'a> {
    pub root: usize,
    pub count: usize,
    /// The resources of the pages, each of which is a dictionary or a reference to one.
    pub resources: Vec<&'a [u8]>,
}

/// The bookmarks. There may be none of them.
pub(super) struct Outline {
    pub root: usize,
    /// The first and the last bookmark of the highest level.
    pub ends: Option<(usize, usize)>,
    /// How many are shown.
    pub count: usize,
}

impl<'a> Part<'a> {
    pub fn read(file: &'a PdfFile<'a>) -> Expect<Self> {
        let catalog = file.catalog().ok_or(Expected("a document catalog"))?;
        let is_known = |key: &[u8]| FIRST_PARTS_KEYS.contains(&key) || JOINED_KEYS.contains(&key);
        if !catalog.entries().all(|(key, _)| is_known(key)) {
            return Err(Expected("a catalog with no other entries than Typst writes"));
        }
        let names = Dictionary::parse(catalog.get("/Names").unwrap_or(b"<<>>")).ok_or(Expected("a name dictionary"))?;
        if !names.entries().all(|(key, _)| [&b"/Dests"[..], b"/EmbeddedFiles"].contains(&key)) {
            return Err(Expected("names of destinations and attachments alone"));
        }
        Ok(Self {
            file,
            pages: Pages::read(file, &catalog)?,
            destinations: names.get("/Dests").map_or(Ok(Vec::new()), read_name_tree)?,
            embedded_files: names.get("/EmbeddedFiles"),
            outline: catalog.get("/Outlines").map(|root| Outline::read(file, root)).transpose()?,
            page_labels: catalog
                .get("/PageLabels")
                .map(|tree| file.dictionary(tree).ok_or(Expected("a tree of page labels")))
                .transpose()?,
            catalog,
        })
    }

    /// The catalog's entries that the joined file has as the first part has them.
    pub fn first_parts_entries(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + '_ {
        self.catalog.entries().filter(|(key, _)| FIRST_PARTS_KEYS.contains(key))
    }

    /// The numbers of the objects that the attachments consist of.
    pub fn attachments(&self) -> Expect<Vec<usize>> {
        let mut numbers = Vec::new();
        for (_, specification) in self.embedded_files.map_or(Ok(Vec::new()), read_name_tree)? {
            numbers.push(specification);
            let files = self.object(specification).and_then(|content| Dictionary::parse(content)?.get("/EF"));
            numbers.extend(references(files.ok_or(Expected("a file specification"))?));
        }
        Ok(numbers)
    }

    /// The number of the information dictionary.
    pub fn info(&self) -> Option<usize> {
        self.file.trailer().find_map(|(key, value)| (key == b"/Info").then(|| reference(value))?)
    }

    pub fn object(&self, number: usize) -> Option<&'a [u8]> {
        self.file.object(number)
    }
}

impl<'a> Pages<'a> {
    fn read(file: &'a PdfFile, catalog: &Dictionary) -> Expect<Self> {
        let root = catalog.get("/Pages").and_then(reference).ok_or(Expected("a page tree"))?;
        let mut pages = Self { root, count: 0, resources: Vec::new() };
        let mut waiting = vec![root];
        let mut seen = HashSet::new();
        while let Some(number) = waiting.pop() {
            let node = file.object(number).filter(|_| seen.insert(number)).and_then(Dictionary::parse);
            let node = node.ok_or(Expected("each page once in the page tree"))?;
            pages.resources.extend(node.get("/Resources"));
            if node.get("/Type") == Some(b"/Page") {
                pages.count += 1;
            } else {
                let kids = node.get("/Kids").and_then(array).ok_or(Expected("pages in the page tree"))?;
                waiting.extend(kids.into_iter().rev().filter_map(reference));
            }
        }
        let count = file.object(root).and_then(|root| number(Dictionary::parse(root)?.get("/Count")?));
        if count == Some(pages.count) { Ok(pages) } else { Err(Expected("as many pages as the page tree says")) }
    }
}

impl Outline {
    fn read(file: &PdfFile, root: &[u8]) -> Expect<Self> {
        let read = || {
            let dictionary = file.dictionary(root)?;
            let ends = dictionary.get("/First").and_then(reference).zip(dictionary.get("/Last").and_then(reference));
            let count = dictionary.get("/Count").map_or(Some(0), number)?;
            Some(Self { root: reference(root)?, ends, count })
        };
        read().ok_or(Expected("an outline"))
    }
}

/// The names, as they are written, and the numbers of the objects in a name tree of one node.
pub(super) fn read_name_tree(tree: &[u8]) -> Expect<Vec<(&[u8], usize)>> {
    let read = || {
        let names = array(Dictionary::parse(tree)?.get("/Names")?)?;
        let (pairs, []) = names.as_chunks::<2>() else { return None };
        pairs.iter().map(|[name, value]| Some((*name, reference(value)?))).collect()
    };
    read().ok_or(Expected("a name tree of one node"))
}

/// The numbers of the objects that a value refers to.
pub(super) fn references(value: &[u8]) -> impl Iterator<Item = usize> {
    tokens(value).filter_map(|token| if let Kind::Reference(number) = token.kind { Some(number) } else { None })
}
