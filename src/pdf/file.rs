//! A PDF file of the shape that Typst writes, as a list of objects, and back.
//!
//! The shape, of krilla 0.8 and pdf-writer 0.15: a header, objects of generation 0 in the order of their numbers with
//! nothing between them, one classic cross-reference table, a trailer. A stream's length is the first entry of its
//! dictionary. Because the objects must fill the file without a gap, what is inside a stream can never be taken for
//! an object.

use std::borrow::Cow;
use std::io::Write as _;

use super::unpack::unpack;
use super::value::{Dictionary, number, reference};

/// The longest header: the version, and a comment that says that the file is binary.
const MAX_HEADER_LEN: usize = 32;

/// One line of a cross-reference table, in bytes (ISO 32000-1, 7.5.4).
const XREF_ENTRY_LEN: usize = 20;

/// What follows a stream's data.
pub(super) const END_OF_STREAM: &[u8] = b"\nendstream";

/// The keys of a trailer besides `/Size`.
pub(super) const TRAILER_KEYS: [&[u8]; 3] = [b"/Root", b"/Info", b"/ID"];

/// The file is not of the shape that Typst writes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReadError {
    /// Something that always stands in such a file is not where it belongs.
    #[error("the PDF is not as Typst 0.15 writes it: expected {expected} at byte {offset}")]
    Unexpected {
        /// What should stand there.
        expected: &'static str,
        /// Where, counted in bytes from the beginning of the file.
        offset: usize,
    },
    /// The trailer has a key that Typst does not write, such as that of an encrypted or an updated file.
    #[error(
        "the PDF is not as Typst 0.15 writes it: its trailer may have Size, Root, Info and ID alone \
         (an encrypted PDF, or one that was changed afterwards, has more)"
    )]
    Trailer,
}

/// A file, as the list of its objects.
pub(super) struct PdfFile<'a> {
    /// The first lines, up to the first object.
    header: &'a [u8],
    /// Object 1 comes first; a number that is not used has none.
    objects: Vec<Option<Cow<'a, [u8]>>>,
    /// The trailer's entries but for `/Size`, as they are written.
    trailer: Vec<(&'a [u8], &'a [u8])>,
    root: usize,
}

/// A stream object's parts.
pub(super) struct Stream<'a> {
    pub dictionary: &'a [u8],
    pub data: &'a [u8],
}

impl<'a> PdfFile<'a> {
    /// A file of these objects, the first of which has the number 1. The trailer comes without `/Size`.
    pub fn new(
        header: &'a [u8],
        objects: Vec<Option<Cow<'a, [u8]>>>,
        trailer: Vec<(&'a [u8], &'a [u8])>,
        root: usize,
    ) -> Self {
        Self { header, objects, trailer, root }
    }

    /// Takes a file apart that Typst or this module has written. Its bytes stay where they are, but for those that are
    /// unpacked from a compacted file.
    pub fn read(file: &'a [u8]) -> Result<Self, ReadError> {
        let (body, xref_offset) = find_xref(file)?;
        if body[xref_offset..].starts_with(b"xref") { Self::read_plain(file) } else { unpack(body, xref_offset) }
    }

    /// Takes a file apart that Typst has written. The list of objects takes less memory than the file does.
    fn read_plain(file: &'a [u8]) -> Result<Self, ReadError> {
        let xref = Xref::find(file)?;
        let header = read_header(file, xref.first_object())?;
        let mut objects = Vec::with_capacity(xref.entries.len() - 1);
        let mut offset = header.len();
        for (number, entry) in xref.entries.iter().enumerate().skip(1) {
            let object = match read_entry(entry) {
                Some(Entry::Free) => None,
                Some(Entry::At(start)) if start == offset => {
                    let end = xref.end_of_object(number);
                    offset = end;
                    Some(Cow::Borrowed(read_object(file, start, end, number)?))
                }
                _ => return Err(unexpected("a cross-reference entry of the next object", xref.offset)),
            };
            objects.push(object);
        }
        if offset != xref.offset {
            return Err(unexpected("the cross-reference table after the last object", offset));
        }
        let (trailer, root) = read_trailer(xref.trailer, xref.entries.len())?;
        Ok(Self { header, objects, trailer, root })
    }

    /// The version in the header, such as (1, 7).
    pub fn version(&self) -> (u8, u8) {
        (self.header[5] - b'0', self.header[7] - b'0')
    }

    /// The header, up to the first object.
    pub fn header(&self) -> &[u8] {
        self.header
    }

    /// All objects; the first has the number 1. A number that is not used has none.
    pub fn objects(&self) -> impl ExactSizeIterator<Item = Option<&[u8]>> + Clone {
        self.objects.iter().map(Option::as_deref)
    }

    /// The trailer's entries but for `/Size`.
    pub fn trailer(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.trailer.iter().copied()
    }

    /// The document catalog, by its reference.
    pub fn catalog(&self) -> Option<Dictionary<'_>> {
        Dictionary::parse(self.object(self.root)?)
    }

    /// The dictionary that `value` refers to.
    pub fn dictionary(&self, value: &[u8]) -> Option<Dictionary<'_>> {
        Dictionary::parse(self.object_of(value)?)
    }

    /// The stream that `value` refers to.
    pub fn stream(&self, value: &[u8]) -> Option<Stream<'_>> {
        Stream::parse(self.object_of(value)?)
    }

    /// Puts `content` in the place of the object that `value` refers to.
    pub fn replace(&mut self, value: &[u8], content: Vec<u8>) -> Option<()> {
        let object = self.objects.get_mut(reference(value)?.checked_sub(1)?)?;
        *object = Some(Cow::Owned(content));
        Some(())
    }

    /// The number of the document catalog.
    pub fn root(&self) -> usize {
        self.root
    }

    /// The object that `value` refers to.
    pub fn object_of(&self, value: &[u8]) -> Option<&[u8]> {
        self.object(reference(value)?)
    }

    /// The object of a number.
    pub fn object(&self, number: usize) -> Option<&[u8]> {
        self.objects.get(number.checked_sub(1)?)?.as_deref()
    }

    /// Writes the file as Typst would, with a newline after `%%EOF`.
    pub fn write(&self) -> Vec<u8> {
        let content: usize = self.objects().flatten().map(<[u8]>::len).sum();
        let mut out = Vec::with_capacity(content + self.objects.len() * (XREF_ENTRY_LEN + 32) + 1024);
        out.extend_from_slice(self.header);
        let offsets: Vec<Option<usize>> = (1..)
            .zip(self.objects())
            .map(|(number, object)| {
                object.map(|content| {
                    let offset = out.len();
                    write_object(&mut out, number, content);
                    offset
                })
            })
            .collect();
        self.write_xref_table(&mut out, &offsets);
        out
    }

    fn write_xref_table(&self, out: &mut Vec<u8>, offsets: &[Option<usize>]) {
        let xref_offset = out.len();
        let size = offsets.len() + 1;
        push_text(out, format_args!("xref\n0 {size}\n0000000000 65535 f\r\n"));
        for offset in offsets {
            match offset {
                Some(offset) => push_text(out, format_args!("{offset:010} 00000 n\r\n")),
                None => push_text(out, format_args!("0000000000 65535 f\r\n")),
            }
        }
        push_text(out, format_args!("trailer\n<</Size {size}"));
        for (key, value) in &self.trailer {
            push_entry(out, key, value);
        }
        push_text(out, format_args!(">>\nstartxref\n{xref_offset}\n%%EOF\n"));
    }
}

impl<'a> Stream<'a> {
    /// Reads an object as a stream.
    pub fn parse(object: &'a [u8]) -> Option<Self> {
        Self::parse_content(object, object.strip_suffix(END_OF_STREAM)?)
    }

    /// Reads an object as a stream, whose line end may be the longer one of a compacted file.
    pub fn parse_compacted(object: &'a [u8]) -> Option<Self> {
        Self::parse(object).or_else(|| Self::parse_content(object, object.strip_suffix(b"\r\nendstream")?))
    }

    fn parse_content(object: &'a [u8], content: &'a [u8]) -> Option<Self> {
        let after_key = object.strip_prefix(b"<</Length ")?;
        let digits = after_key.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (head, data) = content.split_at_checked(content.len().checked_sub(number(&after_key[..digits])?)?)?;
        let dictionary = head.strip_suffix(b"\nstream\n").filter(|dictionary| dictionary.ends_with(b">>"))?;
        Some(Self { dictionary, data })
    }

    /// Writes a stream object like this one with other data.
    pub fn with_data(&self, data: &[u8]) -> Option<Vec<u8>> {
        let length = format!("<</Length {}", self.data.len());
        let rest = self.dictionary.strip_prefix(length.as_bytes())?;
        let mut object = Vec::with_capacity(rest.len() + data.len() + 64);
        push_text(&mut object, format_args!("<</Length {}", data.len()));
        for part in [rest, b"\nstream\n", data, END_OF_STREAM] {
            object.extend_from_slice(part);
        }
        Some(object)
    }
}

/// Whether an object is a stream: no other object can end with this keyword.
pub(super) fn is_stream(object: &[u8]) -> bool {
    object.ends_with(END_OF_STREAM)
}

/// Writes an object with its number around it.
fn write_object(out: &mut Vec<u8>, number: usize, content: &[u8]) {
    push_text(out, format_args!("{number} 0 obj\n"));
    out.extend_from_slice(content);
    out.extend_from_slice(b"\nendobj\n");
}

/// Appends formatted text.
pub(super) fn push_text(out: &mut Vec<u8>, text: std::fmt::Arguments) {
    out.write_fmt(text).expect("a vector takes everything");
}

/// Appends a dictionary's entry, apart from its neighbours even where the value is a number.
pub(super) fn push_entry(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    out.extend_from_slice(key);
    out.push(b' ');
    out.extend_from_slice(value);
}

/// What stands before `startxref` and its line end, and where in that the cross-reference table or stream begins.
fn find_xref(file: &[u8]) -> Result<(&[u8], usize), ReadError> {
    let end = file.strip_suffix(b"\n").unwrap_or(file);
    let end = end.strip_suffix(b"\n%%EOF").ok_or_else(|| unexpected("%%EOF", file.len()))?;
    let digits = end.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let (before, digits) = end.split_at(end.len() - digits);
    let body = before.strip_suffix(b"\nstartxref\n").ok_or_else(|| unexpected("startxref", before.len()))?;
    let offset = number(digits).filter(|offset| *offset < body.len());
    let offset = offset.ok_or_else(|| unexpected("the offset of a cross-reference table", body.len()))?;
    Ok((body, offset))
}

/// A classic cross-reference table and what follows it.
struct Xref<'a> {
    /// Where the table begins.
    offset: usize,
    /// The entry of object 0 comes first: it is not an object. There is at least this one.
    entries: &'a [[u8; XREF_ENTRY_LEN]],
    trailer: &'a [u8],
}

enum Entry {
    Free,
    At(usize),
}

impl<'a> Xref<'a> {
    fn find(file: &'a [u8]) -> Result<Self, ReadError> {
        let (body, offset) = find_xref(file)?;
        Self::read(&body[offset..], offset).ok_or_else(|| unexpected("a cross-reference table", offset))
    }

    fn read(table: &'a [u8], offset: usize) -> Option<Self> {
        let table = table.strip_prefix(b"xref\n0 ")?;
        let end = table.iter().position(|byte| *byte == b'\n')?;
        let (size, table) = (number(&table[..end])?, &table[end + 1..]);
        let (entries, rest) = table.split_at_checked(size.checked_mul(XREF_ENTRY_LEN)?)?;
        let (entries, _) = entries.as_chunks();
        entries.first().filter(|first| *first == b"0000000000 65535 f\r\n")?;
        Some(Self { offset, entries, trailer: rest.strip_prefix(b"trailer\n")? })
    }

    fn first_object(&self) -> usize {
        self.next_object(1)
    }

    /// Where the object ends: where the next one begins, or the table.
    fn end_of_object(&self, number: usize) -> usize {
        self.next_object(number + 1)
    }

    fn next_object(&self, number: usize) -> usize {
        let mut entries = self.entries[number.min(self.entries.len())..].iter();
        entries
            .find_map(|entry| match read_entry(entry)? {
                Entry::At(offset) => Some(offset),
                Entry::Free => None,
            })
            .unwrap_or(self.offset)
    }
}

fn read_entry(entry: &[u8; XREF_ENTRY_LEN]) -> Option<Entry> {
    let (digits, kind) = entry.split_at(10);
    match kind {
        b" 00000 n\r\n" => number(digits).map(Entry::At),
        [b' ', .., b' ', b'f', b'\r', b'\n'] => Some(Entry::Free),
        _ => None,
    }
}

pub(super) fn read_header(file: &[u8], end: usize) -> Result<&[u8], ReadError> {
    let header = file.get(..end.min(MAX_HEADER_LEN)).unwrap_or_default();
    match header {
        [b'%', b'P', b'D', b'F', b'-', b'1'..=b'2', b'.', b'0'..=b'9', b'\n', b'%', .., b'\n', b'\n']
            if header.len() == end =>
        {
            Ok(header)
        }
        _ => Err(unexpected("a header and then the first object", 0)),
    }
}

/// The content of an object, without its number and the keywords around it.
fn read_object(file: &[u8], start: usize, end: usize, number: usize) -> Result<&[u8], ReadError> {
    let object = file.get(start..end).ok_or_else(|| unexpected("an object", start))?;
    let digits = object.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let content = object[digits..]
        .strip_prefix(b" 0 obj\n")
        .filter(|_| self::number(&object[..digits]) == Some(number))
        .ok_or_else(|| unexpected("the beginning of an object", start))?
        .strip_suffix(b"\nendobj\n")
        .ok_or_else(|| unexpected("an object that ends with endobj", end))?;
    if is_stream(content) && Stream::parse(content).is_none() {
        return Err(unexpected("a stream with its length as the first entry", start));
    }
    Ok(content)
}

/// A trailer's keys and values.
pub(super) type TrailerEntries<'a> = Vec<(&'a [u8], &'a [u8])>;

fn read_trailer(trailer: &[u8], size: usize) -> Result<(TrailerEntries<'_>, usize), ReadError> {
    let dictionary = Dictionary::parse(trailer).ok_or(ReadError::Trailer)?;
    let entries: Vec<_> = dictionary.entries().filter(|(key, _)| *key != b"/Size").collect();
    let is_known = entries.iter().all(|(key, _)| TRAILER_KEYS.contains(key));
    let has_size = dictionary.get("/Size").and_then(number) == Some(size);
    let root = dictionary.get("/Root").and_then(reference).filter(|_| is_known && has_size);
    Ok((entries, root.ok_or(ReadError::Trailer)?))
}

pub(super) fn unexpected(expected: &'static str, offset: usize) -> ReadError {
    ReadError::Unexpected { expected, offset }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A PDF/A-3 with an attached invoice, as Typst wrote it.
    pub const TYPST_PDF: &[u8] = include_bytes!("fixtures/e-invoice.pdf");

    /// A file of these objects, the first of which is the catalog.
    pub fn pdf_of(header: &'static [u8], objects: Vec<Option<Vec<u8>>>) -> Vec<u8> {
        let objects = objects.into_iter().map(|object| object.map(Cow::Owned)).collect();
        PdfFile::new(header, objects, vec![(b"/Root", b"1 0 R")], 1).write()
    }

    /// The file with `to` instead of `from` in every object.
    pub fn edited(pdf: &[u8], from: &str, to: &str) -> Vec<u8> {
        let mut file = PdfFile::read(pdf).unwrap();
        let mut found = 0;
        for object in file.objects.iter_mut().flatten() {
            while let Some(at) = object.windows(from.len()).position(|window| window == from.as_bytes()) {
                object.to_mut().splice(at..at + from.len(), to.bytes());
                found += 1;
                assert!(found < 100, "{to} has {from} in it");
            }
        }
        assert!(found > 0, "{from} is not in the file");
        file.write()
    }

    fn expected_at(pdf: &[u8]) -> Option<&'static str> {
        match PdfFile::read(pdf).err()? {
            ReadError::Unexpected { expected, .. } => Some(expected),
            ReadError::Trailer => Some("trailer"),
        }
    }

    fn with(from: &str, to: &str) -> Vec<u8> {
        assert_eq!(from.len(), to.len());
        let mut pdf = TYPST_PDF.to_vec();
        let at = pdf.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        pdf[at..at + from.len()].copy_from_slice(to.as_bytes());
        pdf
    }

    #[test]
    fn a_file_of_typst_is_written_as_it_was_read() {
        let file = PdfFile::read(TYPST_PDF).unwrap();
        assert_eq!(file.version(), (1, 7));
        assert_eq!(file.objects().count(), 16);
        assert_eq!(file.catalog().unwrap().get("/Type"), Some(&b"/Catalog"[..]));
        let written = file.write();
        assert_eq!(PdfFile::read(&written).unwrap().objects, file.objects);
        // But for a space between a trailer's key and its value, and the last newline.
        let text = |pdf: &[u8]| pdf.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<u8>>();
        assert_eq!(text(&written), text(TYPST_PDF));
        assert!(written.ends_with(b"\n%%EOF\n"));
    }

    #[test]
    fn a_number_may_be_unused() {
        let pdf = pdf_of(
            b"%PDF-2.0\n%\x80\x80\x80\x80\n\n",
            vec![Some(b"<</Type/Catalog>>".into()), None, Some(b"3".into()), None],
        );
        let file = PdfFile::read(&pdf).unwrap();
        assert_eq!(file.objects().map(|object| object.is_some()).collect::<Vec<_>>(), [true, false, true, false]);
        assert_eq!(file.write(), pdf);
    }

    #[test]
    fn a_stream_is_found_by_its_length_even_if_it_contains_keywords() {
        let data = b"\nendstream\nendobj\n2 0 obj\n<<>>\nstream\n";
        let dictionary = format!("<</Length {}/A(\nstream\n)>>", data.len());
        let object = [dictionary.as_bytes(), b"\nstream\n", data, b"\nendstream"].concat();
        let stream = Stream::parse(&object).unwrap();
        assert_eq!((stream.dictionary, stream.data), (dictionary.as_bytes(), &data[..]));
        assert_eq!(stream.with_data(b"x").unwrap(), b"<</Length 1/A(\nstream\n)>>\nstream\nx\nendstream");
    }

    #[test]
    fn a_file_of_another_shape_is_an_error_that_says_what_was_expected() {
        assert_eq!(expected_at(b""), Some("%%EOF"));
        assert_eq!(expected_at(&TYPST_PDF[..5000]), Some("%%EOF"));
        assert_eq!(expected_at(b"\n%%EOF"), Some("startxref"));
        assert_eq!(expected_at(b"\nstartxref\n99\n%%EOF"), Some("the offset of a cross-reference table"));
        assert_eq!(expected_at(&with("xref\n0 17", "xref\n9 17")), Some("a cross-reference table"));
        assert_eq!(expected_at(&with("xref\n0 17", "xref\n0 99")), Some("a cross-reference table"));
        assert_eq!(expected_at(&with("%PDF-1.7", "%PDF-x.7")), Some("a header and then the first object"));
        assert_eq!(expected_at(&with("\n2 0 obj", "\n2 1 obj")), Some("the beginning of an object"));
        assert_eq!(expected_at(&with("\n2 0 obj", "\n3 0 obj")), Some("the beginning of an object"));
        assert_eq!(expected_at(&with("endobj\n2", "endobJ\n2")), Some("an object that ends with endobj"));
        assert_eq!(
            expected_at(&with("<</Length 129", "<</Length 128")),
            Some("a stream with its length as the first entry")
        );
        assert_eq!(expected_at(&with(" 00000 n", " 00001 n")), Some("a header and then the first object"));
        assert_eq!(expected_at(&with("/Info 14 0 R", "/Prev 14 0 R")), Some("trailer"));
        assert_eq!(expected_at(&with("/Info 14 0 R", "/Encrypt<<>>")), Some("trailer"));
        assert_eq!(expected_at(&with("/Size 17", "/Size 18")), Some("trailer"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn mangled_files_give_errors_and_never_panic(
            cut in 0..=TYPST_PDF.len(),
            changes in proptest::collection::vec((0..TYPST_PDF.len(), any::<u8>()), 0..8),
        ) {
            let mut pdf = TYPST_PDF.to_vec();
            for (at, byte) in changes {
                pdf[at] = byte;
            }
            let _ = PdfFile::read(&pdf);
            let _ = PdfFile::read(&pdf[cut..]);
            prop_assert!(cut == pdf.len() || PdfFile::read(&pdf[..cut]).is_err());
        }

        #[test]
        fn mangled_tables_give_errors_and_never_panic(
            changes in proptest::collection::vec((0..600_usize, proptest::sample::select(&b"0123456789 nf\r\n<>[]()/"[..])), 1..6),
        ) {
            let mut pdf = TYPST_PDF.to_vec();
            for (from_end, byte) in changes {
                let at = pdf.len() - 1 - from_end;
                pdf[at] = byte;
            }
            if let Ok(file) = PdfFile::read(&pdf) {
                prop_assert!(PdfFile::read(&file.write()).is_ok());
            }
        }
    }
}
