//! The structure tree: one Document element, and below it what is below those of the parts.

use std::collections::HashSet;

use super::super::file::PdfFile;
use super::super::value::{Dictionary, Kind, array, number, reference, tokens};
use super::output::Output;
use super::part::{read_name_tree, references};
use super::rewrite::Rewrite;
use super::strings::push_prefixed;
use super::tree::{Tree, number_leaf};
use super::{Expect, Expected, PartError, push_entry, push_text};

const ROOT_KEYS: [&[u8]; 7] =
    [b"/Type", b"/RoleMap", b"/Namespaces", b"/K", b"/ParentTree", b"/IDTree", b"/ParentTreeNextKey"];

/// Keys of a Document element that the joined file's has as the first part's has them.
const DOCUMENT_KEYS: [&[u8]; 4] = [b"/Type", b"/S", b"/NS", b"/Lang"];

/// The structure tree of a part.
pub(super) struct PartTags<'a> {
    pub root: usize,
    pub document: usize,
    /// One more than the highest key in the parent tree.
    pub next_key: usize,
    tree: Dictionary<'a>,
    document_element: Dictionary<'a>,
}

impl<'a> PartTags<'a> {
    pub fn read(file: &'a PdfFile, root: &[u8]) -> Expect<Self> {
        let tree = file.dictionary(root).ok_or(Expected("a structure tree"))?;
        if !tree.entries().all(|(key, _)| ROOT_KEYS.contains(&key)) {
            return Err(Expected("a structure tree with no other entries than Typst writes"));
        }
        let kids = tree.get("/K").and_then(array).unwrap_or_default();
        let [document] = kids[..] else { return Err(Expected("one Document element")) };
        let document_element = file
            .dictionary(document)
            .filter(|element| element.get("/S") == Some(b"/Document"))
            .ok_or(Expected("a Document element"))?;
        let next_key = tree.get("/ParentTreeNextKey").map_or(Some(0), number);
        Ok(Self {
            root: reference(root).unwrap_or_default(),
            document: reference(document).unwrap_or_default(),
            next_key: next_key.ok_or(Expected("a number as the parent tree's next key"))?,
            tree,
            document_element,
        })
    }

    /// The elements of the highest level.
    pub fn elements(&self) -> HashSet<usize> {
        references(self.document_element.get("/K").unwrap_or_default()).collect()
    }

    /// Namespaces of PDF 2.0, which are the same in all parts.
    pub fn namespaces(&self) -> &'a [u8] {
        self.tree.get("/Namespaces").unwrap_or_default()
    }
}

/// The structure tree of the joined file.
pub(super) struct Tags {
    pub root: u32,
    pub document: u32,
    /// One more than the highest key in the parent tree so far.
    pub next_key: usize,
    role_map: Vec<(Vec<u8>, Vec<u8>)>,
    namespaces: Vec<u8>,
    document_entries: Vec<u8>,
    kids: Vec<u8>,
    kids_count: usize,
    parent_tree: Tree,
    id_tree: Tree,
}

impl Tags {
    pub fn new(output: &mut Output) -> Result<Self, PartError> {
        Ok(Self {
            root: output.allocate()?,
            document: output.allocate()?,
            next_key: 0,
            role_map: Vec::new(),
            namespaces: Vec::new(),
            document_entries: Vec::new(),
            kids: Vec::new(),
            kids_count: 0,
            parent_tree: Tree::default(),
            id_tree: Tree::default(),
        })
    }

    /// Adds what is not in the part's elements themselves.
    pub fn add(&mut self, part: &PartTags, rewrite: &Rewrite, output: &mut Output) -> Result<(), PartError> {
        self.add_roles(part)?;
        self.add_namespaces(part, rewrite)?;
        self.add_document(part, rewrite)?;
        self.add_parents(part, rewrite, output)?;
        self.add_ids(part, rewrite, output)?;
        self.next_key += part.next_key;
        Ok(())
    }

    /// Parts may have roles that other parts do not use.
    fn add_roles(&mut self, part: &PartTags) -> Expect<()> {
        let roles = Dictionary::parse(part.tree.get("/RoleMap").unwrap_or(b"<<>>"));
        for (name, role) in roles.ok_or(Expected("a role map"))?.entries() {
            match self.role_map.iter().find(|(known, _)| known == name) {
                Some((_, known)) if known != role => return Err(Expected("the roles of the first part")),
                Some(_) => {}
                None => self.role_map.push((name.to_vec(), role.to_vec())),
            }
        }
        Ok(())
    }

    fn add_namespaces(&mut self, part: &PartTags, rewrite: &Rewrite) -> Expect<()> {
        let mut namespaces = Vec::new();
        rewrite.value(part.namespaces(), &mut namespaces)?;
        if self.namespaces.is_empty() {
            self.namespaces = namespaces;
        } else if self.namespaces != namespaces {
            return Err(Expected("the namespaces of the first part"));
        }
        Ok(())
    }

    fn add_document(&mut self, part: &PartTags, rewrite: &Rewrite) -> Expect<()> {
        let element = &part.document_element;
        let is_known = |key: &[u8]| DOCUMENT_KEYS.contains(&key) || [&b"/P"[..], b"/K", b"/Pg"].contains(&key);
        if !element.entries().all(|(key, _)| is_known(key)) {
            return Err(Expected("a Document element with no other entries than Typst writes"));
        }
        if self.document_entries.is_empty() {
            for (key, value) in element.entries().filter(|(key, _)| DOCUMENT_KEYS.contains(key)) {
                push_entry(&mut self.document_entries, key, b"");
                rewrite.value(value, &mut self.document_entries)?;
            }
        }
        let kids = array(element.get("/K").unwrap_or(b"[]")).ok_or(Expected("an array of tags"))?;
        self.kids_count += kids.len();
        for kid in kids {
            self.add_kid(kid, element.get("/Pg"), rewrite)?;
        }
        Ok(())
    }

    /// Adds an element, or content that is in none: that says now which page it is on.
    fn add_kid(&mut self, kid: &[u8], page: Option<&[u8]>, rewrite: &Rewrite) -> Expect<()> {
        if number(kid).is_none() {
            self.kids.push(b' ');
            return rewrite.value(kid, &mut self.kids);
        }
        self.kids.extend_from_slice(b"<</Type/MCR/Pg ");
        rewrite.value(page.ok_or(Expected("the page of marked content"))?, &mut self.kids)?;
        push_entry(&mut self.kids, b"/MCID", kid);
        self.kids.extend_from_slice(b">>");
        Ok(())
    }

    fn add_parents(&mut self, part: &PartTags, rewrite: &Rewrite, output: &mut Output) -> Result<(), PartError> {
        let Some(tree) = part.tree.get("/ParentTree") else { return Ok(()) };
        let tree = Dictionary::parse(tree).ok_or(Expected("a parent tree"))?;
        let leaf = number_leaf(&tree, self.next_key, part.next_key, rewrite)?;
        self.parent_tree.add(&leaf, output)
    }

    /// The part's number is put before each identifier, so their order stays what it was.
    fn add_ids(&mut self, part: &PartTags, rewrite: &Rewrite, output: &mut Output) -> Result<(), PartError> {
        let Some(tree) = part.tree.get("/IDTree") else { return Ok(()) };
        let ids = read_name_tree(tree)?;
        let (Some((first, _)), Some((last, _))) = (ids.first(), ids.last()) else { return Ok(()) };
        let is_string = |id: &[u8]| tokens(id).all(|token| token.kind == Kind::String);
        if !ids.iter().all(|(id, _)| is_string(id)) {
            return Err(Expected("strings as identifiers of tags").into());
        }
        let mut leaf = b"<</Limits[".to_vec();
        push_prefixed(&mut leaf, first, rewrite.id_prefix);
        push_prefixed(&mut leaf, last, rewrite.id_prefix);
        leaf.extend_from_slice(b"]/Names[");
        for (id, element) in &ids {
            push_prefixed(&mut leaf, id, rewrite.id_prefix);
            push_text(&mut leaf, format_args!("{} 0 R", rewrite.number(*element)?));
        }
        leaf.extend_from_slice(b"]>>");
        self.id_tree.add(&leaf, output)
    }

    /// How many kids the Document element has.
    pub fn kids_count(&self) -> usize {
        self.kids_count
    }

    /// Writes the root and the Document element.
    pub fn finish(self, output: &mut Output) -> Result<(), PartError> {
        let mut document = [b"<<", &self.document_entries[..]].concat();
        push_text(&mut document, format_args!("/P {} 0 R/K[", self.root));
        document.extend_from_slice(self.kids.trim_ascii_start());
        document.extend_from_slice(b"]>>");
        output.put(self.document, &document)?;

        let mut root = b"<</Type/StructTreeRoot".to_vec();
        if !self.role_map.is_empty() {
            root.extend_from_slice(b"/RoleMap<<");
            self.role_map.iter().for_each(|(name, role)| push_entry(&mut root, name, role));
            root.extend_from_slice(b">>");
        }
        if !self.namespaces.is_empty() {
            push_entry(&mut root, b"/Namespaces", &self.namespaces);
        }
        push_text(&mut root, format_args!("/K[{} 0 R]", self.document));
        self.parent_tree.push_entry(&mut root, "/ParentTree", output)?;
        self.id_tree.push_entry(&mut root, "/IDTree", output)?;
        if self.next_key > 0 {
            push_text(&mut root, format_args!("/ParentTreeNextKey {}", self.next_key));
        }
        root.extend_from_slice(b">>");
        output.put(self.root, &root)?;
        Ok(())
    }
}
