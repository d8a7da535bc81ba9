//! Joins the PDFs of a document's parts into one.
//!
//! Parts come one after the other, and of each that is written nothing stays but the bytes of the joined file and the
//! number of every object in it. Fonts, images and colour profiles that earlier parts have as well are written once.
//! What a document has one of (its catalog, the roots of its trees, metadata) is written in the end.

mod identity;
mod outline;
mod output;
mod part;
mod rewrite;
mod strings;
mod tags;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use sha2::{Digest as _, Sha256};

use self::identity::Identity;
use self::outline::JoinedOutline;
use self::output::Output;
use self::part::{Part, references};
use self::rewrite::Rewrite;
use self::strings::decode;
use self::tags::{PartTags, Tags};
use self::tree::{Tree, number_leaf, push_references};
use super::file::{PdfFile, push_entry, push_text};
use super::value::{Dictionary, reference};
use super::{CompactError, EInvoice, EInvoiceError, ReadError, attachment, compact, metadata};

/// The most elements of an array in PDF 1.4, and so the most kids of a node in a tree (ISO 19005-1, 6.1.12).
const MAX_ARRAY_LEN: usize = 8191;

/// How many names a node of the tree of destinations has.
const NAMES_PER_NODE: usize = 256;

/// How deep fonts, patterns and images may be nested. Typst's own go to some ten.
const MAX_DEPTH: usize = 64;

/// Why parts cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// There is nothing to join.
    #[error("there are no parts to join: a document has at least one")]
    NoParts,
    /// More than a page tree of two levels can have.
    #[error("a document may have {MAX_ARRAY_LEN} parts: make them larger")]
    TooManyParts,
    /// A part cannot be taken apart.
    #[error("part {part}: {source}")]
    Read {
        /// Counted from 1.
        part: usize,
        /// What is wrong with it.
        source: ReadError,
    },
    /// Something in a part is not as it should be.
    #[error("part {part} is not as Typst 0.15 writes it, or differs from the first part: expected {expected}")]
    Unexpected {
        /// Counted from 1.
        part: usize,
        /// What there should be.
        expected: &'static str,
    },
    /// The document would have more tags of the highest level than PDF 1.4 can have.
    #[error(
        "the document has {found} paragraphs, tables and other elements at its highest level, and PDF 1.4 may have \
         {MAX_ARRAY_LEN}: use another standard than a-1a, or several shorter documents"
    )]
    TooManyElements {
        /// How many there are.
        found: usize,
    },
    /// The parts are not of an e-invoice.
    #[error(transparent)]
    EInvoice(#[from] EInvoiceError),
    /// The joined file cannot be written.
    #[error(transparent)]
    Write(#[from] CompactError),
}

/// What should be in a part and is not.
#[derive(Debug)]
struct Expected(&'static str);

type Expect<T> = Result<T, Expected>;

/// What can go wrong with a part that is a PDF.
enum PartError {
    Expected(Expected),
    Write(CompactError),
}

impl From<Expected> for PartError {
    fn from(expected: Expected) -> Self {
        Self::Expected(expected)
    }
}

impl From<CompactError> for PartError {
    fn from(error: CompactError) -> Self {
        Self::Write(error)
    }
}

impl PartError {
    fn of_part(self, part: usize) -> JoinError {
        match self {
            Self::Expected(Expected(expected)) => JoinError::Unexpected { part, expected },
            Self::Write(error) => JoinError::Write(error),
        }
    }
}

/// Joins the PDFs of a document's parts, in their order, into one, and finishes it: it is made the e-invoice that
/// `invoice` belongs to, and compacted if `compact` is true and its version allows that.
///
/// Each part may be as Typst or as [`finish`](super::finish) writes it, and is dropped before the next one is taken.
/// Pages, tags, bookmarks, page labels and destinations are in the joined file in the order of the parts. Of destinations
/// with one name the first part's keeps it, and links within a part stay in that part. Language, metadata, output intent
/// and attachments are those of the first part. The same parts give the same bytes.
///
/// # Errors
///
/// When a part is not of the shape that Typst 0.15 writes, differs from the first part in its version or in whether it
/// has tags, or the first part is no e-invoice though it should be.
pub fn join<P: AsRef<[u8]>>(
    parts: impl IntoIterator<Item = P>,
    invoice: Option<&EInvoice>,
    compact: bool,
) -> Result<Vec<u8>, JoinError> {
    let mut joined = None;
    let mut count = 0;
    for part in parts {
        count += 1;
        if count > MAX_ARRAY_LEN {
            return Err(JoinError::TooManyParts);
        }
        let mut file = PdfFile::read(part.as_ref()).map_err(|source| JoinError::Read { part: count, source })?;
        let joined = match &mut joined {
            Some(joined) => joined,
            None => joined.insert(begin(&mut file, invoice, compact)?),
        };
        joined.add(&file).map_err(|error| error.of_part(count))?;
    }
    joined.ok_or(JoinError::NoParts)?.finish()
}

/// Begins a file that is like the first part.
fn begin(first: &mut PdfFile, invoice: Option<&EInvoice>, compact: bool) -> Result<Joined, JoinError> {
    if let Some(invoice) = invoice {
        metadata::describe(first, invoice).map_err(EInvoiceError::from)?;
        attachment::check(first, invoice).map_err(EInvoiceError::from)?;
    }
    Joined::new(first, compact).map_err(|error| error.of_part(1))
}

/// What there is of the joined file.
struct Joined {
    header: Vec<u8>,
    output: Output,
    parts: usize,
    pages: usize,
    page_tree: u32,
    /// The root of each part's page tree.
    page_nodes: Vec<u32>,
    page_labels: Vec<PageLabels>,
    /// Objects that parts may have in common, by their digest.
    shared: HashMap<[u8; 32], u32>,
    tags: Option<Tags>,
    outline: Option<JoinedOutline>,
    /// Each destination by what its name says, with its name as it is written and its number.
    destinations: BTreeMap<Vec<u8>, (Vec<u8>, u32)>,
    identity: Identity,
    /// Entries of the catalog that are the first part's.
    catalog: Vec<u8>,
    language: Vec<u8>,
    embedded_files: Vec<u8>,
    info: Option<u32>,
}

/// The page labels of a part.
struct PageLabels {
    first_page: usize,
    /// A node of the number tree, or nothing if its pages have no labels.
    leaf: Option<Vec<u8>>,
}

/// The language of a part that is not the first part's.
struct OtherLanguage<'a> {
    language: &'a [u8],
    /// The part's tags of the highest level.
    elements: HashSet<usize>,
}

impl OtherLanguage<'_> {
    /// Adds the language to an object that is such a tag, unless it has one.
    fn say_in(&self, number: usize, object: &mut Vec<u8>) -> Expect<()> {
        if !self.elements.contains(&number) {
            return Ok(());
        }
        let element = Dictionary::parse(object).ok_or(Expected("tags"))?;
        if element.get("/Lang").is_none() {
            let len = object.len() - b">>".len();
            object.truncate(len);
            push_entry(object, b"/Lang", self.language);
            object.extend_from_slice(b">>");
        }
        Ok(())
    }
}

/// What becomes of a part's objects.
struct Numbers {
    /// Their numbers in the joined file, or 0.
    new: Vec<u32>,
    /// Whether the object is written, or replaced, or left out.
    done: Vec<bool>,
}

impl Numbers {
    fn settle(&mut self, old: usize, new: u32) {
        if let (Some(number), Some(done)) = (self.new.get_mut(old), self.done.get_mut(old)) {
            *number = new;
            *done = true;
        }
    }

    fn is_done(&self, old: usize) -> bool {
        self.done.get(old).is_none_or(|done| *done)
    }
}

impl Joined {
    fn new(first: &PdfFile, compact: bool) -> Result<Self, PartError> {
        let part = Part::read(first)?;
        let mut output = Output::new(first.header(), compact && compact::has_object_streams(first));
        Ok(Self {
            header: first.header().to_vec(),
            parts: 0,
            pages: 0,
            page_tree: output.allocate()?,
            page_nodes: Vec::new(),
            page_labels: Vec::new(),
            shared: HashMap::new(),
            tags: part.catalog.get("/StructTreeRoot").map(|_| Tags::new(&mut output)).transpose()?,
            outline: None,
            destinations: BTreeMap::new(),
            identity: Identity::new(first, &part.catalog)?,
            language: part.catalog.get("/Lang").unwrap_or_default().to_vec(),
            catalog: Vec::new(),
            embedded_files: Vec::new(),
            info: None,
            output,
        })
    }

    fn add(&mut self, file: &PdfFile) -> Result<(), PartError> {
        if file.header() != self.header {
            return Err(Expected("the version of the first part").into());
        }
        let part = Part::read(file)?;
        let tags = part.catalog.get("/StructTreeRoot").map(|root| PartTags::read(file, root)).transpose()?;
        if tags.is_some() != self.tags.is_some() {
            return Err(Expected("tags in all parts or in none").into());
        }
        let mut numbers = self.numbers(&part, tags.as_ref())?;
        self.share(&part, tags.as_ref(), &mut numbers)?;
        for (old, object) in (1..).zip(file.objects()) {
            if object.is_some() && !numbers.is_done(old) {
                numbers.new[old] = self.output.allocate()?;
            }
        }
        let taken_names = self.add_destinations(&part, &numbers)?;
        let rewrite = Rewrite {
            numbers: &numbers.new,
            first_key: self.tags.as_ref().map_or(0, |tags| tags.next_key),
            id_prefix: &format!("{:04}.", self.parts + 1),
            taken_names: &taken_names,
        };
        if self.parts == 0 {
            self.add_catalog(&part, &rewrite)?;
        }
        if let (Some(tags), Some(part_tags)) = (&mut self.tags, &tags) {
            tags.add(part_tags, &rewrite, &mut self.output)?;
        }
        self.add_page_labels(&part, &rewrite)?;
        let other_language = self.other_language(&part, tags.as_ref());
        self.write_objects(&part, &numbers, &rewrite, other_language.as_ref())?;
        self.identity.add(file)?;
        self.parts += 1;
        self.pages += part.pages.count;
        Ok(())
    }

    /// Settles what becomes of the objects that a document has one of.
    fn numbers(&mut self, part: &Part, tags: Option<&PartTags>) -> Result<Numbers, PartError> {
        let len = part.file.objects().len() + 1;
        let mut numbers = Numbers { new: vec![0; len], done: vec![false; len] };
        numbers.settle(part.file.root(), 0);
        for key in ["/Metadata", "/PageLabels"] {
            numbers.settle(part.catalog.get(key).and_then(reference).unwrap_or(0), 0);
        }
        if self.parts > 0 {
            numbers.settle(part.info().unwrap_or(0), 0);
            part.attachments()?.into_iter().for_each(|number| numbers.settle(number, 0));
        }
        if let (Some(whole), Some(tags)) = (&self.tags, tags) {
            numbers.settle(tags.root, whole.root);
            numbers.settle(tags.document, whole.document);
        }
        if let Some(outline) = &part.outline {
            if self.outline.is_none() {
                self.outline = Some(JoinedOutline::new(self.output.allocate()?));
            }
            numbers.settle(outline.root, self.outline.as_ref().map_or(0, |whole| whole.root));
        }
        Ok(numbers)
    }

    /// Writes what parts may have in common, unless an earlier part has it.
    fn share(&mut self, part: &Part, tags: Option<&PartTags>, numbers: &mut Numbers) -> Result<(), PartError> {
        let output_intents = part.catalog.get("/OutputIntents").unwrap_or_default();
        let namespaces = tags.map(PartTags::namespaces).unwrap_or_default();
        for value in part.pages.resources.iter().copied().chain([output_intents, namespaces]) {
            for old in references(value) {
                self.share_object(part, old, numbers, 0)?;
            }
        }
        Ok(())
    }

    /// Writes an object after those that it refers to, unless an earlier part has it. An object that is the same in
    /// another part refers to the same objects, so it is the same bytes.
    fn share_object(&mut self, part: &Part, old: usize, numbers: &mut Numbers, depth: usize) -> Result<(), PartError> {
        if numbers.is_done(old) {
            return Ok(());
        }
        let content = part.object(old).filter(|_| depth < MAX_DEPTH && old != part.pages.root);
        let content = content.ok_or(Expected("fonts, images and other resources of pages"))?;
        numbers.settle(old, 0);
        for child in references(dictionary_of(content)) {
            self.share_object(part, child, numbers, depth + 1)?;
        }
        let mut copy = Vec::with_capacity(content.len());
        let nothing = HashMap::new();
        Rewrite { numbers: &numbers.new, first_key: 0, id_prefix: "", taken_names: &nothing }
            .object(content, &mut copy)?;
        let digest = Sha256::digest(&copy).into();
        let new = match self.shared.get(&digest) {
            Some(new) => *new,
            None => self.output.add(&copy)?,
        };
        self.shared.insert(digest, new);
        numbers.settle(old, new);
        Ok(())
    }

    /// Takes the part's destinations up, but for those whose names are taken: these it returns, with their numbers in
    /// the part.
    fn add_destinations<'a>(&mut self, part: &Part<'a>, numbers: &Numbers) -> Expect<HashMap<&'a [u8], usize>> {
        let mut taken = HashMap::new();
        for (name, old) in &part.destinations {
            let decoded = decode(name).ok_or(Expected("a string as the name of a destination"))?;
            let new = numbers.new.get(*old).copied().filter(|new| *new > 0).ok_or(Expected("a destination"))?;
            match self.destinations.entry(decoded) {
                Entry::Vacant(entry) => _ = entry.insert((name.to_vec(), new)),
                Entry::Occupied(_) => _ = taken.insert(*name, *old),
            }
        }
        Ok(taken)
    }

    /// Takes up what is the first part's alone.
    fn add_catalog(&mut self, part: &Part, rewrite: &Rewrite) -> Expect<()> {
        for (key, value) in part.first_parts_entries() {
            push_entry(&mut self.catalog, key, b"");
            rewrite.value(value, &mut self.catalog)?;
        }
        if let Some(files) = part.embedded_files {
            rewrite.value(files, &mut self.embedded_files)?;
        }
        self.info = part.info().map(|info| rewrite.number(info)).transpose()?;
        Ok(())
    }

    fn add_page_labels(&mut self, part: &Part, rewrite: &Rewrite) -> Expect<()> {
        let leaf = part.page_labels.as_ref().map(|tree| number_leaf(tree, self.pages, part.pages.count, rewrite));
        self.page_labels.push(PageLabels { first_page: self.pages, leaf: leaf.transpose()? });
        Ok(())
    }

    /// The language of the part, if it is not the catalog's, and the tags that have to say so.
    fn other_language<'a>(&self, part: &Part<'a>, tags: Option<&PartTags>) -> Option<OtherLanguage<'a>> {
        let language = part.catalog.get("/Lang").filter(|language| *language != self.language)?;
        Some(OtherLanguage { language, elements: tags?.elements() })
    }

    /// Writes what is not written yet.
    fn write_objects(
        &mut self,
        part: &Part,
        numbers: &Numbers,
        rewrite: &Rewrite,
        other_language: Option<&OtherLanguage>,
    ) -> Result<(), PartError> {
        let ends = part.outline.as_ref().and_then(|outline| outline.ends);
        let mut last_bookmark = None;
        let mut copy = Vec::new();
        for (old, content) in (1..).zip(part.file.objects()) {
            let Some(content) = content.filter(|_| !numbers.is_done(old)) else { continue };
            let new = numbers.new[old];
            copy.clear();
            rewrite.object(content, &mut copy)?;
            if old == part.pages.root {
                insert_reference(&mut copy, "/Parent", self.page_tree)?;
                self.page_nodes.push(new);
            }
            if let Some(other) = other_language {
                other.say_in(old, &mut copy)?;
            }
            let Some((first, last)) = ends.filter(|(first, last)| [*first, *last].contains(&old)) else {
                self.output.put(new, &copy)?;
                continue;
            };
            let outline = self.outline.as_mut().ok_or(Expected("an outline"))?;
            if old == first {
                outline.begin_part(new, &mut copy, &mut self.output)?;
            }
            if old == last {
                last_bookmark = Some((new, copy.clone()));
            } else {
                self.output.put(new, &copy)?;
            }
        }
        match (&mut self.outline, &part.outline) {
            (Some(whole), Some(outline)) => Ok(whole.end_part(last_bookmark, outline.count)?),
            _ => Ok(()),
        }
    }

    /// Writes what a document has one of.
    fn finish(self) -> Result<Vec<u8>, JoinError> {
        let is_pdf_14 = self.header.starts_with(b"%PDF-1.4");
        let elements = self.tags.as_ref().map_or(0, Tags::kids_count);
        if is_pdf_14 && elements > MAX_ARRAY_LEN {
            return Err(JoinError::TooManyElements { found: elements });
        }
        self.write_rest().map_err(|error| error.of_part(1))
    }

    fn write_rest(mut self) -> Result<Vec<u8>, PartError> {
        let mut page_tree = Vec::new();
        push_text(&mut page_tree, format_args!("<</Type/Pages/Count {}/Kids[", self.pages));
        push_references(&mut page_tree, &self.page_nodes);
        page_tree.extend_from_slice(b"]>>");
        self.output.put(self.page_tree, &page_tree)?;

        let (ids, metadata) = self.identity.finish(self.pages)?;
        let mut catalog = [b"<<", &self.catalog[..]].concat();
        push_text(&mut catalog, format_args!("/Pages {} 0 R", self.page_tree));
        if let Some(metadata) = metadata {
            push_text(&mut catalog, format_args!("/Metadata {} 0 R", self.output.add(&metadata)?));
        }
        push_page_labels(&mut catalog, self.page_labels, &mut self.output)?;
        if let Some(tags) = self.tags {
            push_text(&mut catalog, format_args!("/StructTreeRoot {} 0 R", tags.root));
            tags.finish(&mut self.output)?;
        }
        if let Some(outline) = self.outline {
            push_text(&mut catalog, format_args!("/Outlines {} 0 R", outline.root));
            outline.finish(&mut self.output)?;
        }
        push_names(&mut catalog, &self.destinations, &self.embedded_files, &mut self.output)?;
        catalog.extend_from_slice(b">>");
        let root = self.output.add(&catalog)?;

        let mut trailer: Vec<(&[u8], Vec<u8>)> = vec![(b"/Root", format!("{root} 0 R").into_bytes())];
        trailer.extend(self.info.map(|info| (&b"/Info"[..], format!("{info} 0 R").into_bytes())));
        trailer.push((b"/ID", ids));
        Ok(self.output.finish(&self.header, &trailer, root)?)
    }
}

/// An object without a stream's data.
fn dictionary_of(content: &[u8]) -> &[u8] {
    super::file::Stream::parse(content).map_or(content, |stream| stream.dictionary)
}

/// Adds a reference to the end of a dictionary.
fn insert_reference(dictionary: &mut Vec<u8>, key: &str, number: u32) -> Expect<()> {
    let len = dictionary.strip_suffix(b">>").ok_or(Expected("a dictionary"))?.len();
    dictionary.truncate(len);
    push_text(dictionary, format_args!("{key} {number} 0 R>>"));
    Ok(())
}

/// Appends the entry of page labels, if there are any. Pages of a part that has none are without.
fn push_page_labels(out: &mut Vec<u8>, parts: Vec<PageLabels>, output: &mut Output) -> Result<(), PartError> {
    if parts.iter().all(|part| part.leaf.is_none()) {
        return Ok(());
    }
    let mut tree = Tree::default();
    for PageLabels { first_page, leaf } in parts {
        let unlabelled = || format!("<</Limits[{first_page} {first_page}]/Nums[{first_page}<<>>]>>").into_bytes();
        tree.add(&leaf.unwrap_or_else(unlabelled), output)?;
    }
    tree.push_entry(out, "/PageLabels", output)
}

/// Appends the entry of names, if there are any.
fn push_names(
    out: &mut Vec<u8>,
    destinations: &BTreeMap<Vec<u8>, (Vec<u8>, u32)>,
    embedded_files: &[u8],
    output: &mut Output,
) -> Result<(), PartError> {
    if destinations.is_empty() && embedded_files.is_empty() {
        return Ok(());
    }
    out.extend_from_slice(b"/Names<<");
    let destinations: Vec<&(Vec<u8>, u32)> = destinations.values().collect();
    let mut tree = Tree::default();
    for names in destinations.chunks(NAMES_PER_NODE) {
        tree.add(&name_leaf(names), output)?;
    }
    tree.push_entry(out, "/Dests", output)?;
    if !embedded_files.is_empty() {
        push_entry(out, b"/EmbeddedFiles", embedded_files);
    }
    out.extend_from_slice(b">>");
    Ok(())
}

/// A node of the names, of which there is at least one.
fn name_leaf(names: &[&(Vec<u8>, u32)]) -> Vec<u8> {
    let [(first, _), (last, _)] = [names[0], names[names.len() - 1]];
    let mut leaf = [b"<</Limits[", &first[..], last, b"]/Names["].concat();
    for (name, number) in names {
        leaf.extend_from_slice(name);
        push_text(&mut leaf, format_args!("{number} 0 R"));
    }
    leaf.extend_from_slice(b"]>>");
    leaf
}
