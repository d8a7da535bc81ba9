//! Reads the files that `compact` writes: the way back to their objects.
//!
//! Of other compressed files this reads few. What bounds the memory: every byte of the file belongs to one object, every
//! object in an object stream is taken once, and no stream may unpack to more than [`MAX_EXPANSION`] times the file.

use std::borrow::Cow;
use std::io::Read as _;

use flate2::read::ZlibDecoder;

use super::compact::Place;
use super::file::{
    END_OF_STREAM, PdfFile, ReadError, Stream, TRAILER_KEYS, TrailerEntries, is_stream, read_header, unexpected,
};
use super::value::{self, Dictionary, array, number, reference};

/// How many times as large as the file all that is unpacked may be, together. Structure elements of a long table, which
/// are packed best, come to some ten times.
const MAX_EXPANSION: usize = 100;

/// What may be unpacked of the smallest file.
const MIN_BUDGET: usize = 1024 * 1024;

/// Entries of a cross-reference stream that are none of the trailer's.
const XREF_STREAM_KEYS: [&[u8]; 6] = [b"/Length", b"/Filter", b"/Type", b"/Size", b"/W", b"/DecodeParms"];

/// Takes a compacted file apart, which comes without what follows its last object.
pub(super) fn unpack(body: &[u8], xref_offset: usize) -> Result<PdfFile<'_>, ReadError> {
    let mut budget = body.len().saturating_mul(MAX_EXPANSION).max(MIN_BUDGET);
    let xref = Xref::read(body, xref_offset, &mut budget)?;
    let (trailer, root) = xref.trailer().ok_or(ReadError::Trailer)?;
    let mut objects = vec![None; xref.places.len()];
    let first_object = read_objects(body, &xref.places, &mut objects)?;
    let header = read_header(body, first_object)?;
    // It is found by its offset, and is none of the document's.
    if let Some(itself) = objects.get_mut(xref.number.wrapping_sub(1)) {
        *itself = None;
    }
    unpack_objects(&xref.places, &mut objects, &mut budget)?;
    // The last numbers are those of the streams that the objects were in, and of the cross-reference stream.
    while objects.last().is_some_and(Option::is_none) {
        objects.pop();
    }
    Ok(PdfFile::new(header, objects, trailer, root))
}

/// A cross-reference stream.
struct Xref<'a> {
    number: usize,
    dictionary: Dictionary<'a>,
    /// The place of object 1 comes first.
    places: Vec<Place>,
}

impl<'a> Xref<'a> {
    fn read(body: &'a [u8], offset: usize, budget: &mut usize) -> Result<Self, ReadError> {
        let (number, content) = object_at(body, offset, body.len())?;
        Self::parse(number, content, budget).ok_or_else(|| unexpected("a cross-reference stream", offset))
    }

    fn parse(number: usize, content: &'a [u8], budget: &mut usize) -> Option<Self> {
        let stream = Stream::parse_compacted(content)?;
        let dictionary = Dictionary::parse(stream.dictionary)?;
        dictionary.get("/Type").filter(|kind| *kind == b"/XRef")?;
        let widths: Vec<usize> = array(dictionary.get("/W")?)?.into_iter().map(value::number).collect::<Option<_>>()?;
        let [1, place_width @ 1..=8, index_width @ 1..=8] = widths[..] else { return None };
        let columns = 1 + place_width + index_width;
        let parameters = format!("<</Predictor 12/Columns {columns}>>");
        dictionary.get("/DecodeParms").filter(|value| *value == parameters.as_bytes())?;
        let rows = inflate(stream.data, budget)?;
        let size = dictionary.get("/Size").and_then(value::number)?;
        if size == 0 || rows.len() != size.checked_mul(columns + 1)? {
            return None;
        }
        let places = read_places(&rows, columns, place_width)?;
        Some(Self { number, dictionary, places })
    }

    /// The trailer's entries, which stand in the dictionary, and the number of the catalog.
    fn trailer(&self) -> Option<(TrailerEntries<'a>, usize)> {
        let is_known = |key: &[u8]| TRAILER_KEYS.contains(&key) || XREF_STREAM_KEYS.contains(&key);
        self.dictionary.entries().all(|(key, _)| is_known(key)).then_some(())?;
        let root = reference(self.dictionary.get("/Root")?)?;
        Some((self.dictionary.entries().filter(|(key, _)| TRAILER_KEYS.contains(key)).collect(), root))
    }
}

/// Reads rows that each stand as the difference from the one above (the PNG predictor Up). That of object 0 is left out.
fn read_places(rows: &[u8], columns: usize, place_width: usize) -> Option<Vec<Place>> {
    let mut above = vec![0; columns];
    let mut places = Vec::with_capacity(rows.len() / (columns + 1));
    for row in rows.chunks_exact(columns + 1) {
        let (2, row) = row.split_first()? else { return None };
        above.iter_mut().zip(row).for_each(|(above, byte): (&mut u8, &u8)| *above = above.wrapping_add(*byte));
        let (place, index) = above[1..].split_at(place_width);
        places.push(match above[0] {
            0 => Place::Free,
            1 => Place::At(big_endian(place)?),
            2 => Place::In(big_endian(place)?.try_into().ok()?, big_endian(index)?.try_into().ok()?),
            _ => return None,
        });
    }
    places.remove(0);
    Some(places)
}

fn big_endian(bytes: &[u8]) -> Option<usize> {
    bytes.iter().try_fold(0_usize, |sum, byte| sum.checked_mul(256)?.checked_add(usize::from(*byte)))
}

/// Inflates all, if it is not more than the budget, and takes it from that.
fn inflate(data: &[u8], budget: &mut usize) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    let most = u64::try_from(*budget).ok()?;
    ZlibDecoder::new(data).take(most.saturating_add(1)).read_to_end(&mut plain).ok()?;
    *budget = budget.checked_sub(plain.len())?;
    Some(plain)
}

/// Puts the objects that are not in streams to their numbers, and says where the first one begins.
fn read_objects<'a>(
    body: &'a [u8],
    places: &[Place],
    objects: &mut [Option<Cow<'a, [u8]>>],
) -> Result<usize, ReadError> {
    let at = |(number, place): (usize, &Place)| match place {
        Place::At(offset) => Some((*offset, number)),
        _ => None,
    };
    let mut starts: Vec<(usize, usize)> = (1..).zip(places).filter_map(at).collect();
    starts.sort_unstable();
    let ends = starts.iter().skip(1).map(|(offset, _)| *offset).chain([body.len()]);
    for ((start, number), end) in starts.iter().zip(ends) {
        let (found, content) = object_at(body, *start, end)?;
        if found != *number {
            return Err(unexpected("the object of its number", *start));
        }
        let content = with_plain_line_end(content);
        objects[number - 1] =
            Some(content.ok_or_else(|| unexpected("a stream with its length as the first entry", *start))?);
    }
    Ok(starts.first().map_or(0, |(offset, _)| *offset))
}

/// The number and the content of an object that ends where the next one begins, or the file.
fn object_at(body: &[u8], start: usize, end: usize) -> Result<(usize, &[u8]), ReadError> {
    let object = body.get(start..end).ok_or_else(|| unexpected("an object", start))?;
    let object = object.strip_suffix(b"\n").unwrap_or(object);
    let digits = object.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let content = object[digits..].strip_prefix(b" 0 obj\n");
    let (number, content) =
        number(&object[..digits]).zip(content).ok_or_else(|| unexpected("the beginning of an object", start))?;
    let content = content.strip_suffix(b"\nendobj");
    Ok((number, content.ok_or_else(|| unexpected("an object that ends with endobj", end))?))
}

/// The object with the line end before `endstream` that Typst writes, if it is a stream.
fn with_plain_line_end(content: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !is_stream(content) || Stream::parse(content).is_some() {
        return Some(Cow::Borrowed(content));
    }
    Stream::parse_compacted(content)?;
    Some(Cow::Owned([content.strip_suffix(b"\r\nendstream")?, END_OF_STREAM].concat()))
}

/// Takes the objects out of the streams that they are in, and the streams away.
fn unpack_objects(
    places: &[Place],
    objects: &mut [Option<Cow<'_, [u8]>>],
    budget: &mut usize,
) -> Result<(), ReadError> {
    let mut streams: Vec<u32> = places.iter().filter_map(|place| in_stream(*place)).collect();
    let packed = streams.len();
    streams.dedup();
    streams.sort_unstable();
    streams.dedup();
    let mut unpacked = 0;
    for stream in streams {
        unpacked += unpack_stream(stream, places, objects, budget)
            .ok_or_else(|| unexpected("an object stream with the objects of its places", stream as usize))?;
    }
    // Each was found at most once, as each place is one alone.
    if unpacked == packed { Ok(()) } else { Err(unexpected("an object at every place", packed)) }
}

fn in_stream(place: Place) -> Option<u32> {
    if let Place::In(stream, _) = place { Some(stream) } else { None }
}

/// Unpacks one stream, and says how many objects were in it.
fn unpack_stream(
    stream_number: u32,
    places: &[Place],
    objects: &mut [Option<Cow<'_, [u8]>>],
    budget: &mut usize,
) -> Option<usize> {
    let object = objects.get_mut((stream_number as usize).checked_sub(1)?)?.take()?;
    let stream = Stream::parse(&object)?;
    let dictionary = Dictionary::parse(stream.dictionary)?;
    dictionary.get("/Type").filter(|kind| *kind == b"/ObjStm")?;
    let plain = inflate(stream.data, budget)?;
    let (head, bodies) = plain.split_at_checked(dictionary.get("/First").and_then(number)?)?;
    let head: Vec<usize> =
        head.split(|byte| *byte == b' ').filter(|text| !text.is_empty()).map(number).collect::<Option<_>>()?;
    let (pairs, _) = head.as_chunks::<2>();
    let ends = pairs.iter().skip(1).map(|[_, offset]| *offset).chain([bodies.len()]);
    for (index, ([number, start], end)) in (0..).zip(pairs.iter().zip(ends)) {
        let content = bodies.get(*start..end)?.strip_suffix(b"\n")?;
        let at = number.checked_sub(1)?;
        if *places.get(at)? != Place::In(stream_number, index) || is_stream(content) {
            return None;
        }
        objects[at] = Some(Cow::Owned(content.to_vec()));
    }
    Some(pairs.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::compact::compact;
    use super::super::file::tests::{TYPST_PDF, pdf_of};
    use super::*;

    const HEADER: &[u8] = b"%PDF-1.7\n%\x80\x80\x80\x80\n\n";

    fn contents(file: &PdfFile) -> Vec<Option<Vec<u8>>> {
        file.objects().map(|object| object.map(<[u8]>::to_vec)).collect()
    }

    fn compacted(pdf: &[u8]) -> Vec<u8> {
        compact(&PdfFile::read(pdf).unwrap()).unwrap()
    }

    #[test]
    fn a_compacted_file_has_the_objects_that_it_was_made_of() {
        let stream = |data: &str| format!("<</Length {}>>\nstream\n{data}\nendstream", data.len()).into_bytes();
        let mut objects: Vec<_> = (0..400).map(|n| (n % 50 != 7).then(|| "text ".repeat(n).into_bytes())).collect();
        objects.extend(["", "x\r", "\r\n", "endobj"].map(|data| Some(stream(data))));
        for pdf in [TYPST_PDF.to_vec(), pdf_of(HEADER, objects)] {
            let (plain, packed) = (PdfFile::read(&pdf).unwrap(), compacted(&pdf));
            let unpacked = PdfFile::read(&packed).unwrap();
            assert_eq!(contents(&unpacked), contents(&plain));
            assert!(unpacked.trailer().eq(plain.trailer()));
            assert_eq!((unpacked.header(), unpacked.root()), (plain.header(), plain.root()));
            assert_eq!(compact(&unpacked).unwrap(), packed);
        }
    }

    #[test]
    fn a_file_that_unpacks_to_far_more_than_it_should_is_an_error() {
        let much = vec![b' '; 200 * 1024 * 1024 / 100];
        let packed = compacted(&pdf_of(HEADER, vec![Some(b"<<>>".to_vec()), Some(much)]));
        let error = PdfFile::read(&packed).err().unwrap().to_string();
        assert!(error.contains("expected an object stream with the objects of its places"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn mangled_files_give_errors_and_never_panic(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8)) {
            let mut pdf = compacted(TYPST_PDF);
            for (at, byte) in changes {
                let at = at % pdf.len();
                pdf[at] = byte;
            }
            if let Ok(file) = PdfFile::read(&pdf) {
                prop_assert!(PdfFile::read(&file.write()).is_ok());
            }
        }
    }
}
