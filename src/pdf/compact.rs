//! Packs objects into object streams with a cross-reference stream (ISO 32000-1, 7.5.7 and 7.5.8).
//!
//! Half of a tagged PDF is text that Typst does not compress: its structure elements, and a line of twenty bytes for
//! each object. Streams are copied as they are, most of them are compressed already and XMP metadata must stay plain.

use std::mem;

use flate2::{Compress, Compression, FlushCompress, Status};

use super::file::{END_OF_STREAM, PdfFile, is_stream, push_entry, push_text};

/// zlib's level: on the shipped samples 5 gives the same size as 6, within 0.2 %, in four fifths of the time.
const COMPRESSION_LEVEL: u32 = 5;

/// After how many bytes of objects an object stream is full: to read one of them, a viewer unpacks all.
const MAX_STREAM_LEN: usize = 64 * 1024;

/// The most indirect objects that a PDF may have (ISO 32000-1, Table C.1; a rule in PDF/A-1 to PDF/A-3).
const MAX_OBJECTS: usize = 8_388_607;

/// The first version with object streams.
const FIRST_VERSION: (u8, u8) = (1, 5);

/// Why a PDF was not compacted.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// The file cannot be taken apart.
    #[error(transparent)]
    Read(#[from] super::ReadError),
    /// With its object streams the file would have more objects than a PDF may have.
    #[error("the PDF would have {objects} objects, and may have {MAX_OBJECTS}: make several shorter documents of it")]
    TooManyObjects {
        /// The objects that there are and the streams that they would be packed into.
        objects: usize,
    },
    /// zlib has failed, which it does not do when writing to memory.
    #[error("zlib cannot compress the PDF's objects: {0}")]
    Deflate(#[from] flate2::CompressError),
}

/// Whether the version of the file has object streams: 1.4 has not, and with it PDF/A-1.
pub(super) fn has_object_streams(file: &PdfFile) -> bool {
    file.version() >= FIRST_VERSION
}

/// Writes the file with its objects packed and a newline after `%%EOF`. The same file gives the same bytes.
pub(super) fn compact(file: &PdfFile) -> Result<Vec<u8>, CompactError> {
    let mut packer = Packer::new(file.header(), expected_len(file));
    // The numbers of the file's objects come first, and then those of the streams that they are packed into.
    for _ in file.objects() {
        packer.allocate();
    }
    for (number, object) in (1..).zip(file.objects()) {
        if let Some(content) = object {
            packer.put(number, content)?;
        }
    }
    packer.finish(file.trailer())
}

/// Where an object is found: an entry of a cross-reference stream (ISO 32000-1, Table 18).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Free,
    /// The offset from the beginning of the file.
    At(usize),
    /// The number of an object stream, and the index in it. Small, because there is a place for every object.
    In(u32, u32),
}

/// Objects that wait to be compressed together.
#[derive(Default)]
struct ObjectStream {
    numbers: Vec<usize>,
    /// Pairs of a number and an offset into the bodies, as text.
    head: Vec<u8>,
    bodies: Vec<u8>,
}

impl ObjectStream {
    fn add(&mut self, number: usize, content: &[u8]) {
        push_text(&mut self.head, format_args!("{number} {} ", self.bodies.len()));
        self.numbers.push(number);
        self.bodies.extend_from_slice(content);
        self.bodies.push(b'\n');
    }

    fn clear(&mut self) {
        self.numbers.clear();
        self.head.clear();
        self.bodies.clear();
    }
}

/// Writes a compacted file, object by object.
pub(super) struct Packer {
    out: Vec<u8>,
    /// The place of object 1 comes first.
    places: Vec<Place>,
    pack: ObjectStream,
    deflate: Compress,
    /// A stream's length stands before its data, so it is compressed to here first.
    compressed: Vec<u8>,
}

impl Packer {
    /// Begins a file that will have about `expected_len` bytes.
    pub fn new(header: &[u8], expected_len: usize) -> Self {
        let mut out = Vec::with_capacity(expected_len);
        out.extend_from_slice(header);
        Self {
            out,
            places: Vec::new(),
            pack: ObjectStream::default(),
            deflate: Compress::new(Compression::new(COMPRESSION_LEVEL), true),
            compressed: Vec::with_capacity(MAX_STREAM_LEN / 4),
        }
    }

    /// A number that no object has yet. If none gets it, it is written as unused.
    pub fn allocate(&mut self) -> usize {
        self.places.push(Place::Free);
        self.places.len()
    }

    /// Writes the object of a number that was allocated.
    pub fn put(&mut self, number: usize, content: &[u8]) -> Result<(), CompactError> {
        match content.strip_suffix(END_OF_STREAM) {
            Some(stream) => self.copy(number, stream),
            None => self.pack.add(number, content),
        }
        if self.pack.bodies.len() >= MAX_STREAM_LEN { self.write_object_stream() } else { Ok(()) }
    }

    /// Copies a stream, which comes without its last keyword.
    fn copy(&mut self, number: usize, stream: &[u8]) {
        self.places[number - 1] = Place::At(self.out.len());
        push_text(&mut self.out, format_args!("{number} 0 obj\n"));
        self.out.extend_from_slice(stream);
        self.end_stream();
    }

    fn write_object_stream(&mut self) -> Result<(), CompactError> {
        let stream_number = self.places.len() + 1;
        check_count(stream_number)?;
        let pack = mem::take(&mut self.pack);
        for (index, number) in (0..).zip(&pack.numbers) {
            self.places[number - 1] = Place::In(small(stream_number), index);
        }
        self.places.push(Place::At(self.out.len()));
        self.compress(&[&pack.head, &pack.bodies])?;
        let head = format!("/Type/ObjStm/N {}/First {}", pack.numbers.len(), pack.head.len());
        self.write_compressed(stream_number, head.as_bytes());
        self.pack = pack;
        self.pack.clear();
        Ok(())
    }

    /// Ends the file, with a trailer of these entries and its size.
    pub fn finish<'a>(mut self, trailer: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<Vec<u8>, CompactError> {
        if !self.pack.numbers.is_empty() {
            self.write_object_stream()?;
        }
        let xref_offset = self.out.len();
        self.places.push(Place::At(xref_offset));
        let objects = self.places.len();
        check_count(objects)?;
        let widths = [1, bytes_of(xref_offset.max(objects)), bytes_of(objects)];
        self.compress(&[&xref_rows(&self.places, widths)])?;
        let mut head = Vec::new();
        let [kind, place, index] = widths;
        push_text(&mut head, format_args!("/Type/XRef/Size {}/W[{kind} {place} {index}]", objects + 1));
        push_text(&mut head, format_args!("/DecodeParms<</Predictor 12/Columns {}>>", kind + place + index));
        for (key, value) in trailer {
            push_entry(&mut head, key, value);
        }
        self.write_compressed(objects, &head);
        push_text(&mut self.out, format_args!("startxref\n{xref_offset}\n%%EOF\n"));
        Ok(self.out)
    }

    /// Compresses the parts, one after the other, to `self.compressed`.
    fn compress(&mut self, parts: &[&[u8]]) -> Result<(), CompactError> {
        self.deflate.reset();
        self.compressed.clear();
        for (index, part) in parts.iter().enumerate() {
            let is_last = index + 1 == parts.len();
            let flush = if is_last { FlushCompress::Finish } else { FlushCompress::None };
            let mut rest = *part;
            loop {
                self.compressed.reserve(rest.len() / 4 + 1024);
                let before = self.deflate.total_in();
                let status = self.deflate.compress_vec(rest, &mut self.compressed, flush)?;
                let taken = usize::try_from(self.deflate.total_in() - before).unwrap_or(rest.len());
                rest = &rest[taken..];
                if status == Status::StreamEnd || (!is_last && rest.is_empty()) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes the compressed bytes as a stream object.
    fn write_compressed(&mut self, number: usize, head: &[u8]) {
        push_text(
            &mut self.out,
            format_args!("{number} 0 obj\n<</Length {}/Filter/FlateDecode", self.compressed.len()),
        );
        self.out.extend_from_slice(head);
        self.out.extend_from_slice(b">>\nstream\n");
        self.out.extend_from_slice(&self.compressed);
        self.end_stream();
    }

    /// Writes the line end before `endstream` that PDF/A wants, which does not count as data: `\r\n` where the data
    /// ends with `\r`, or a validator takes that for a part of the line end.
    fn end_stream(&mut self) {
        if self.out.ends_with(b"\r") {
            self.out.push(b'\r');
        }
        self.out.extend_from_slice(END_OF_STREAM);
        self.out.extend_from_slice(b"\nendobj\n");
    }
}

/// A number that is at most [`MAX_OBJECTS`].
fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

pub(super) fn check_count(objects: usize) -> Result<(), CompactError> {
    if objects > MAX_OBJECTS { Err(CompactError::TooManyObjects { objects }) } else { Ok(()) }
}

/// Streams as they are, and a quarter of everything else: more than it comes to, so that nothing is moved.
fn expected_len(file: &PdfFile) -> usize {
    let len = |object: &[u8]| if is_stream(object) { object.len() + 32 } else { object.len() / 4 + 4 };
    file.objects().flatten().map(len).sum::<usize>() + 4096
}

/// The rows of a cross-reference stream, each as its difference from the one above (the PNG predictor Up).
fn xref_rows(places: &[Place], [_, place_width, index_width]: [usize; 3]) -> Vec<u8> {
    let width = 1 + place_width + index_width;
    let mut rows = Vec::with_capacity((places.len() + 1) * (width + 1));
    let mut above = vec![0; width];
    let mut row = Vec::with_capacity(width);
    for place in std::iter::once(&Place::Free).chain(places) {
        let (kind, first, second) = match *place {
            Place::Free => (0, 0, 0),
            Place::At(offset) => (1, offset, 0),
            Place::In(stream, index) => (2, stream as usize, index as usize),
        };
        row.clear();
        row.push(kind);
        push_big_endian(&mut row, first, place_width);
        push_big_endian(&mut row, second, index_width);
        rows.push(2);
        rows.extend(row.iter().zip(&above).map(|(byte, above): (&u8, &u8)| byte.wrapping_sub(*above)));
        above.copy_from_slice(&row);
    }
    rows
}

/// How many bytes the number takes.
fn bytes_of(number: usize) -> usize {
    (number.ilog2() / 8 + 1) as usize
}

fn push_big_endian(out: &mut Vec<u8>, number: usize, width: usize) {
    let bytes = number.to_be_bytes();
    out.extend_from_slice(&bytes[bytes.len() - width..]);
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::ZlibDecoder;

    use super::super::file::Stream;
    use super::super::file::tests::{TYPST_PDF, pdf_of};
    use super::super::value::{Dictionary, array, number};
    use super::*;

    const HEADER: &[u8] = b"%PDF-1.7\n%\x80\x80\x80\x80\n\n";

    fn compacted(pdf: &[u8]) -> Vec<u8> {
        compact(&PdfFile::read(pdf).unwrap()).unwrap()
    }

    fn contents(pdf: &[u8]) -> Vec<Option<Vec<u8>>> {
        PdfFile::read(pdf).unwrap().objects().map(|object| object.map(<[u8]>::to_vec)).collect()
    }

    fn inflated(data: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        ZlibDecoder::new(data).read_to_end(&mut plain).unwrap();
        plain
    }

    /// An object, a stream's line end as Typst writes it.
    fn object_at(pdf: &[u8], offset: usize) -> Vec<u8> {
        let start = offset + pdf[offset..].windows(5).position(|window| window == b" obj\n").unwrap() + 5;
        let end = start + pdf[start..].windows(8).position(|window| window == b"\nendobj\n").unwrap();
        let object = &pdf[start..end];
        object.strip_suffix(b"\r\nendstream").map_or(object.to_vec(), |stream| [stream, END_OF_STREAM].concat())
    }

    fn int(dictionary: &Dictionary, key: &str) -> usize {
        dictionary.get(key).and_then(number).unwrap()
    }

    /// The objects of a compacted file, found as a viewer finds them: through its cross-reference stream.
    fn unpacked(pdf: &[u8]) -> Vec<Option<Vec<u8>>> {
        let tail = pdf.strip_suffix(b"\n%%EOF\n").unwrap();
        let digits = tail.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        let xref = object_at(pdf, number(&tail[tail.len() - digits..]).unwrap());
        let xref = Stream::parse(&xref).unwrap();
        let dictionary = Dictionary::parse(xref.dictionary).unwrap();
        let widths: Vec<usize> = array(dictionary.get("/W").unwrap()).unwrap().into_iter().filter_map(number).collect();
        let columns: usize = widths.iter().sum();
        let mut above = vec![0; columns];
        let mut rows: Vec<Vec<usize>> = Vec::new();
        for row in inflated(xref.data).chunks(columns + 1) {
            assert_eq!((row[0], row.len()), (2, columns + 1));
            above = row[1..].iter().zip(&above).map(|(byte, above): (&u8, &u8)| byte.wrapping_add(*above)).collect();
            let mut bytes = above.iter();
            let field = |width: &usize| bytes.by_ref().take(*width).fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            rows.push(widths.iter().map(field).collect());
        }
        assert_eq!(rows.len(), int(&dictionary, "/Size"));
        let object = |row: &Vec<usize>| match row[..] {
            [0, ..] => None,
            [1, offset, 0] => Some(object_at(pdf, offset)),
            [2, stream, index] => Some(packed_object(&object_at(pdf, rows[stream][1]), index)),
            _ => panic!("{row:?}"),
        };
        rows.iter().skip(1).map(object).collect()
    }

    fn packed_object(object_stream: &[u8], index: usize) -> Vec<u8> {
        let stream = Stream::parse(object_stream).unwrap();
        let dictionary = Dictionary::parse(stream.dictionary).unwrap();
        assert_eq!(dictionary.get("/Type"), Some(&b"/ObjStm"[..]));
        let plain = inflated(stream.data);
        let (head, bodies) = plain.split_at(int(&dictionary, "/First"));
        let head: Vec<usize> = head.split(|byte| *byte == b' ').filter_map(number).collect();
        assert_eq!(head.len(), 2 * int(&dictionary, "/N"));
        let end = head.get(2 * index + 3).copied().unwrap_or(bodies.len());
        bodies[head[2 * index + 1]..end].trim_ascii_end().to_vec()
    }

    #[test]
    fn every_object_is_found_again_byte_by_byte() {
        let out = compacted(TYPST_PDF);
        let (before, after) = (contents(TYPST_PDF), unpacked(&out));
        assert_eq!(after[..before.len()], before);
        assert_eq!(after.len(), before.len() + 2, "an object stream and the cross-reference stream are new");
        assert!(out.len() < TYPST_PDF.len());
    }

    #[test]
    fn many_objects_are_packed_into_several_streams_and_unused_numbers_stay_unused() {
        let object =
            |index: usize| (index % 100 != 99).then(|| format!("({index}{})", "text ".repeat(100)).into_bytes());
        let pdf = pdf_of(HEADER, (0..400).map(object).collect());
        let after = unpacked(&compacted(&pdf));
        assert!(after[..400] == contents(&pdf)[..]);
        let plain_len: usize = contents(&pdf).iter().flatten().map(|object| object.len() + 1).sum();
        assert_eq!(after.len(), 400 + plain_len.div_ceil(MAX_STREAM_LEN) + 1);
    }

    #[test]
    fn a_file_of_streams_alone_has_no_object_stream() {
        let pdf = pdf_of(HEADER, vec![Some(b"<</Length 1>>\nstream\nx\nendstream".to_vec()), None]);
        assert_eq!(unpacked(&compacted(&pdf))[..2], contents(&pdf));
        assert_eq!(unpacked(&compacted(&pdf)).len(), 3);
    }

    #[test]
    fn what_is_compacted_ends_as_pdf_a_wants_it_and_is_the_same_each_time() {
        let out = compacted(TYPST_PDF);
        assert_eq!(out, compacted(TYPST_PDF));
        assert!(out.ends_with(b"\n%%EOF\n"));
        let streams = out.windows(9).filter(|window| window == b"endstream").count();
        let after_newline = out.windows(10).filter(|window| window == b"\nendstream").count();
        assert_eq!(streams, after_newline);
        assert!(out.windows(9).any(|window| window == b"<?xpacket"), "XMP metadata is plain");
    }

    #[test]
    fn a_stream_that_ends_with_a_carriage_return_gets_a_line_end_of_two_bytes() {
        let pdf = pdf_of(HEADER, vec![Some(b"<</Length 2>>\nstream\nx\r\nendstream".to_vec())]);
        let out = compacted(&pdf);
        assert!(out.windows(16).any(|window| window == b"\nx\r\r\nendstream\ne"));
        assert_eq!(unpacked(&out)[0], contents(&pdf)[0]);
    }

    #[test]
    fn the_fields_of_a_cross_reference_stream_are_as_wide_as_they_must_be() {
        assert_eq!([1, 255, 256, 65_535, 65_536].map(bytes_of), [1, 1, 2, 2, 3]);
    }

    #[test]
    fn too_many_objects_are_an_error_in_words() {
        assert!(check_count(MAX_OBJECTS).is_ok());
        let error = check_count(MAX_OBJECTS + 1).unwrap_err().to_string();
        assert!(error.starts_with("the PDF would have 8388608 objects, and may have 8388607:"), "{error}");
    }
}
