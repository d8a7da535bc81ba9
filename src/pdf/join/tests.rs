use proptest::prelude::*;

use super::super::file::Stream;
use super::super::file::tests::{TYPST_PDF, edited};
use super::super::value::{Dictionary, array, number};
use super::super::{FileName, finish};
use super::*;

const PART_1: &[u8] = include_bytes!("../fixtures/part-1.pdf");
const PART_2: &[u8] = include_bytes!("../fixtures/part-2.pdf");
const XML: &[u8] = include_bytes!("../fixtures/factur-x.xml");

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    join(parts, None, true).unwrap()
}

fn compacted(pdf: &[u8]) -> Vec<u8> {
    let finished = finish(pdf.to_vec(), None, true).unwrap();
    assert!(finished.not_compacted.is_none());
    finished.bytes
}

fn error_of(parts: &[&[u8]]) -> String {
    join(parts, None, true).unwrap_err().to_string()
}

/// A joined file as those see it that read it.
struct Seen<'a> {
    file: PdfFile<'a>,
}

/// The value that a dictionary has to have.
fn get(dictionary: &Dictionary, key: &str) -> Vec<u8> {
    dictionary.get(key).unwrap_or_else(|| panic!("no {key}")).to_vec()
}

impl Seen<'_> {
    fn dictionary(&self, value: &[u8]) -> Dictionary<'_> {
        self.file.dictionary(value).unwrap_or_else(|| panic!("{}", value.escape_ascii()))
    }

    /// A value that may be a reference.
    fn array<'a>(&'a self, value: &'a [u8]) -> Vec<&'a [u8]> {
        array(self.file.object_of(value).unwrap_or(value)).unwrap()
    }

    /// The catalog's tree of this key, as keys and values in their order.
    fn tree(&self, root: &[u8], entries: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let root = self.dictionary(root);
        let mut found = Vec::new();
        for kid in array(root.get("/Kids").unwrap()).unwrap() {
            let leaf = self.dictionary(kid);
            let items = array(leaf.get(entries).unwrap()).unwrap();
            let pairs: Vec<_> = items.chunks(2).map(|pair| (pair[0].to_vec(), pair[1].to_vec())).collect();
            let limits = [&pairs.first().unwrap().0[..], &pairs.last().unwrap().0];
            assert_eq!(array(leaf.get("/Limits").unwrap()).unwrap(), limits);
            found.extend(pairs);
        }
        found
    }

    fn pages(&self) -> Vec<Vec<u8>> {
        let catalog = self.file.catalog().unwrap();
        let root = get(&catalog, "/Pages");
        let mut pages = Vec::new();
        for node in array(self.dictionary(&root).get("/Kids").unwrap()).unwrap() {
            let dictionary = self.dictionary(node);
            assert_eq!(dictionary.get("/Parent"), Some(&root[..]));
            for page in array(dictionary.get("/Kids").unwrap()).unwrap() {
                assert_eq!(self.dictionary(page).get("/Parent"), Some(node));
                pages.push(page.to_vec());
            }
        }
        assert_eq!(self.dictionary(&root).get("/Count").and_then(number), Some(pages.len()));
        pages
    }

    fn annotations(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let of_page = |page: Vec<u8>| {
            let annotations = array(self.dictionary(&page).get("/Annots").unwrap_or(b"[]")).unwrap();
            annotations.into_iter().map(|annotation| (page.clone(), annotation.to_vec())).collect::<Vec<_>>()
        };
        self.pages().into_iter().flat_map(of_page).collect()
    }

    fn structure_tree(&self) -> Dictionary<'_> {
        self.dictionary(&get(&self.file.catalog().unwrap(), "/StructTreeRoot"))
    }

    fn parent_tree(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.tree(&get(&self.structure_tree(), "/ParentTree"), "/Nums")
    }

    /// Which pages the destination of an annotation is on: an index.
    fn page_of_link(&self, destination: &[u8]) -> usize {
        let names = Dictionary::parse(self.file.catalog().unwrap().get("/Names").unwrap()).unwrap();
        let names = self.tree(names.get("/Dests").unwrap(), "/Names");
        let by_name = names.iter().find(|(name, _)| name == destination).map(|(_, value)| &value[..]);
        let destination = self.array(by_name.unwrap_or(destination))[0].to_vec();
        self.pages().iter().position(|page| *page == destination).unwrap()
    }
}

fn seen(pdf: &[u8]) -> Seen<'_> {
    let file = PdfFile::read(pdf).unwrap();
    for object in file.objects().flatten() {
        for number in references(dictionary_of(object)) {
            assert!(file.object(number).is_some(), "{}", object[..object.len().min(300)].escape_ascii());
        }
    }
    Seen { file }
}

#[test]
fn all_pages_are_there_in_the_order_of_the_parts() {
    let pdf = joined(&[PART_1, PART_2, PART_1]);
    let seen = seen(&pdf);
    let labels = seen.tree(&get(&seen.file.catalog().unwrap(), "/PageLabels"), "/Nums");
    let keys: Vec<usize> = labels.iter().map(|(key, _)| number(key).unwrap()).collect();
    let numbers: Vec<_> = labels.iter().map(|(_, label)| get(&seen.dictionary(label), "/St")).collect();
    assert_eq!(seen.pages().len(), 6);
    assert_eq!(keys, [0, 1, 2, 3, 4, 5]);
    assert_eq!(numbers, [b"1", b"2", b"3", b"4", b"1", b"2"]);
}

#[test]
fn parts_compacted_or_not_give_the_same_file() {
    for compact in [true, false] {
        let plain = join([PART_1, PART_2], None, compact).unwrap();
        assert_eq!(plain, join([compacted(PART_1), compacted(PART_2)], None, compact).unwrap());
        assert_eq!(plain, join([PART_1, PART_2], None, compact).unwrap());
        assert_eq!(seen(&plain).pages().len(), 4);
        assert!(plain.ends_with(b"\n%%EOF\n"));
    }
}

#[test]
fn a_joined_file_can_be_finished_like_any_other() {
    let plain = join([PART_1, PART_2], None, false).unwrap();
    let finished = compacted(&plain);
    assert!(finished.len() < plain.len() * 7 / 10);
    assert_eq!(seen(&finished).pages().len(), 4);
    assert_eq!(compacted(&finished), finished);
}

#[test]
fn content_and_its_tags_find_each_other() {
    let pdf = joined(&[PART_1, PART_2, PART_2]);
    let seen = seen(&pdf);
    let parents = seen.parent_tree();
    let keys: Vec<usize> = parents.iter().map(|(key, _)| number(key).unwrap()).collect();
    assert_eq!(keys, (0..keys.len()).collect::<Vec<_>>());
    assert_eq!(number(seen.structure_tree().get("/ParentTreeNextKey").unwrap()), Some(keys.len()));
    let of_key = |dictionary: &Dictionary, key: &str| {
        let key = number(dictionary.get(key).unwrap()).unwrap();
        parents[key].1.clone()
    };
    for page in seen.pages() {
        let elements = of_key(&seen.dictionary(&page), "/StructParents");
        let elements = seen.array(&elements);
        assert!(!elements.is_empty());
        for element in elements {
            assert_eq!(seen.dictionary(element).get("/Pg"), Some(&page[..]));
        }
    }
    let annotations = seen.annotations();
    // Three links, and one to the footnote and one back.
    assert_eq!(annotations.len(), 3 * 5);
    for (page, annotation) in annotations {
        let element = of_key(&seen.dictionary(&annotation), "/StructParent");
        let kids = seen.dictionary(&element).get("/K").unwrap();
        let object = [b"<</Type/OBJR/Pg ", &page[..], b"/Obj ", &annotation, b">>"].concat();
        assert!(array(kids).unwrap().contains(&&object[..]), "{}", kids.escape_ascii());
    }
}

#[test]
fn there_is_one_document_element_with_the_tags_of_all_parts() {
    let pdf = joined(&[PART_1, PART_2]);
    let seen = seen(&pdf);
    let is_document =
        |object: &&[u8]| object.starts_with(b"<<") && object.windows(12).any(|text| text == b"/S /Document");
    assert_eq!(seen.file.objects().flatten().filter(is_document).count(), 1);
    let document = seen.array(seen.structure_tree().get("/K").unwrap())[0].to_vec();
    let kids = get(&seen.dictionary(&document), "/K");
    let roles = array(&kids).unwrap().into_iter().map(|kid| {
        let element = seen.dictionary(kid);
        assert_eq!(element.get("/P"), Some(&document[..]));
        String::from_utf8(get(&element, "/S")).unwrap()
    });
    let of_part = ["/H1", "/P", "/H2", "/Table", "/H2"];
    assert_eq!(roles.collect::<Vec<_>>(), [of_part, of_part].concat());
}

#[test]
fn tags_of_a_part_in_another_language_say_so() {
    let language = |pdf: &[u8]| {
        let pdf = joined(&[PART_1, pdf]);
        let seen = seen(&pdf);
        assert_eq!(seen.file.catalog().unwrap().get("/Lang"), Some(&b"(en)"[..]));
        let document = seen.array(seen.structure_tree().get("/K").unwrap())[0].to_vec();
        let kids = get(&seen.dictionary(&document), "/K");
        let languages =
            array(&kids).unwrap().into_iter().map(|kid| seen.dictionary(kid).get("/Lang").map(<[u8]>::to_vec));
        languages.collect::<Vec<_>>()
    };
    assert_eq!(language(PART_2), vec![None; 10]);
    let german = edited(PART_2, "/Lang(en)", "/Lang(de)");
    assert_eq!(language(&german), [vec![None; 5], vec![Some(b"(de)".to_vec()); 5]].concat());
}

#[test]
fn identifiers_of_tags_are_distinct_and_cells_have_headers_of_their_own_part() {
    let pdf = joined(&[PART_1, PART_2, PART_1]);
    let seen = seen(&pdf);
    let ids = seen.tree(&get(&seen.structure_tree(), "/IDTree"), "/Names");
    let names: Vec<String> = ids.iter().map(|(id, _)| String::from_utf8(decode(id).unwrap()).unwrap()).collect();
    let of_part = |part: usize| [format!("{part:04}.Note 1"), format!("{part:04}.U1x0y0")];
    assert_eq!(names, [of_part(1), of_part(2), of_part(3)].concat());
    for (id, element) in &ids {
        assert_eq!(seen.dictionary(element).get("/ID"), Some(&id[..]));
    }
    let headers: Vec<Vec<u8>> = seen
        .file
        .objects()
        .flatten()
        .filter_map(|object| {
            let object = String::from_utf8_lossy(object).into_owned();
            let (_, header) = object.split_once("/Headers[(")?;
            Some(header.split_once(')')?.0.as_bytes().to_vec())
        })
        .collect();
    assert_eq!(headers, [b"0001.U1x0y0", b"0002.U1x0y0", b"0003.U1x0y0"]);
}

#[test]
fn of_one_name_the_first_parts_destination_keeps_it_and_links_stay_in_their_part() {
    let pdf = joined(&[PART_1, PART_2]);
    let seen = seen(&pdf);
    let names = Dictionary::parse(seen.file.catalog().unwrap().get("/Names").unwrap()).unwrap();
    let names = seen.tree(names.get("/Dests").unwrap(), "/Names");
    let pages: Vec<_> = names.iter().map(|(name, value)| (&name[..], seen.page_of_link(value))).collect();
    assert_eq!(pages, [(&b"(a)"[..], 0), (b"(b)", 1), (b"(c1)", 1), (b"(c2)", 3)]);
    let links: Vec<Vec<u8>> = seen.annotations().iter().map(|(_, link)| get(&seen.dictionary(link), "/Dest")).collect();
    let by_name: Vec<bool> = links.iter().map(|link| link.starts_with(b"(")).collect();
    assert_eq!(by_name, [true, true, true, false, false, false, false, true, false, false]);
    let pages: Vec<usize> = links.iter().map(|link| seen.page_of_link(link)).collect();
    assert_eq!(pages, [0, 1, 1, 0, 0, 2, 3, 3, 2, 2]);
}

#[test]
fn many_names_are_in_nodes_of_which_each_says_its_limits() {
    let names: Vec<(Vec<u8>, u32)> = (1..=600_u32).map(|n| (format!("(n{n:03})").into_bytes(), 1)).collect();
    let names = names.into_iter().map(|entry| (decode(&entry.0).unwrap(), entry)).collect();
    let mut output = Output::new(b"%PDF-1.7\n%\x80\x80\x80\x80\n\n", false);
    let mut catalog = Vec::new();
    assert!(push_names(&mut catalog, &names, b"", &mut output).is_ok());
    assert_eq!(catalog, b"/Names<</Dests 4 0 R>>");
    let Output::Plain(objects) = output else { panic!("compacted") };
    assert_eq!(objects[3].as_deref(), Some(&b"<</Kids[1 0 R 2 0 R 3 0 R]>>"[..]));
    assert!(objects[1].as_ref().unwrap().starts_with(b"<</Limits[(n257)(n512)]/Names[(n257)1 0 R(n258)1 0 R"));
}

#[test]
fn the_outline_is_one_list() {
    let pdf = joined(&[PART_1, PART_2, PART_1]);
    let seen = seen(&pdf);
    let root = get(&seen.file.catalog().unwrap(), "/Outlines");
    let outline = seen.dictionary(&root);
    assert_eq!(outline.get("/Count"), Some(&b"3"[..]));
    let (mut previous, mut bookmark, mut pages) = (None, get(&outline, "/First"), Vec::new());
    loop {
        let dictionary = seen.dictionary(&bookmark);
        assert_eq!((dictionary.get("/Parent"), dictionary.get("/Prev")), (Some(&root[..]), previous.as_deref()));
        pages.push(seen.page_of_link(dictionary.get("/Dest").unwrap()));
        let Some(next) = dictionary.get("/Next") else { break };
        previous = Some(std::mem::replace(&mut bookmark, next.to_vec()));
    }
    assert_eq!(outline.get("/Last"), Some(&bookmark[..]));
    assert_eq!(pages, [0, 2, 4]);
}

#[test]
fn fonts_and_profiles_that_parts_have_in_common_are_there_once() {
    let streams =
        |pdf: &[u8]| seen(pdf).file.objects().flatten().filter(|object| object.starts_with(b"<</Length")).count();
    let (once, three_times) = (streams(&joined(&[PART_1])), streams(&joined(&[PART_1; 3])));
    // Two pages' content each.
    assert_eq!(three_times, once + 2 * 2);
}

#[test]
fn any_number_of_parts_can_be_joined() {
    for count in [1, 2, 7, 100] {
        let parts: Vec<&[u8]> = [PART_1, PART_2].into_iter().cycle().take(count).collect();
        let pdf = joined(&parts);
        assert_eq!(seen(&pdf).pages().len(), 2 * count);
    }
}

#[test]
fn identifiers_and_metadata_are_made_from_all_parts() {
    let ids = |parts: &[&[u8]]| {
        let pdf = joined(parts);
        let seen = seen(&pdf);
        let metadata = get(&seen.file.catalog().unwrap(), "/Metadata");
        let metadata = String::from_utf8(seen.file.stream(&metadata).unwrap().data.to_vec()).unwrap();
        let (_, ids) = seen.file.trailer().find(|(key, _)| *key == b"/ID").unwrap();
        let ids: Vec<String> =
            array(ids).unwrap().into_iter().map(|id| String::from_utf8(decode(id).unwrap()).unwrap()).collect();
        assert!(roxmltree::Document::parse(&metadata).is_ok());
        for element in [
            format!("<xmpTPg:NPages>{}</xmpTPg:NPages>", 2 * parts.len()),
            format!("<xmpMM:DocumentID>{}</xmpMM:DocumentID>", ids[0]),
            format!("<xmpMM:InstanceID>{}</xmpMM:InstanceID>", ids[1]),
        ] {
            assert_eq!(metadata.matches(&element).count(), 1, "{element}");
        }
        ids
    };
    let of_one = ids(&[PART_1, PART_1]);
    let of_two = ids(&[PART_1, PART_2]);
    let other_order = ids(&[PART_2, PART_1]);
    assert_eq!(of_one[0], ids(&[PART_1])[0], "all parts are of this document");
    assert!(of_two[0] != of_one[0] && of_two[1] != of_one[1] && of_two[1] != other_order[1]);
}

#[test]
fn attachments_are_the_first_parts_and_an_e_invoice_says_that_it_is_one() {
    let invoice = EInvoice::parse(FileName::FacturX, XML.into()).unwrap();
    for compact in [true, false] {
        let pdf = join([TYPST_PDF, TYPST_PDF], Some(&invoice), compact).unwrap();
        let seen = seen(&pdf);
        attachment::check(&seen.file, &invoice).unwrap();
        assert_eq!(seen.file.objects().flatten().filter(|object| object.starts_with(b"<</Type/Filespec")).count(), 1);
        assert_eq!(String::from_utf8_lossy(&pdf).matches("<fx:ConformanceLevel>EN 16931<").count(), 1);
    }
    let without = edited(TYPST_PDF, "/AF[9 0 R]", "");
    let error = join([&without, TYPST_PDF], Some(&invoice), true).unwrap_err().to_string();
    assert!(error.starts_with("not an e-invoice: factur-x.xml is not attached"), "{error}");
}

#[test]
fn a_document_without_tags_has_none() {
    let [first, second] = [PART_1, PART_2].map(|pdf| edited(pdf, "/StructTreeRoot 7 0 R", ""));
    let pdf = joined(&[&first, &second]);
    let seen = seen(&pdf);
    assert!(seen.file.catalog().unwrap().get("/StructTreeRoot").is_none());
    assert_eq!(seen.pages().len(), 4);
}

#[test]
fn a_version_without_object_streams_is_joined_as_it_is() {
    let [first, second] = [PART_1, PART_2].map(|pdf| [b"%PDF-1.4", &pdf[8..]].concat());
    let pdf = joined(&[&first, &second]);
    assert!(pdf.windows(6).any(|window| window == b"\nxref\n"));
    assert_eq!(seen(&pdf).pages().len(), 4);
}

#[test]
fn pdf_1_4_has_no_longer_arrays_than_it_may() {
    let kids = "10 0 R ".repeat(MAX_ARRAY_LEN / 2);
    let part = [b"%PDF-1.4", &edited(PART_1, "/S/Document/P 7 0 R/K[", &format!("/S/Document /P 7 0 R/K[{kids}"))[8..]]
        .concat();
    assert!(join([&part], None, true).is_ok());
    let error = error_of(&[&part, &part]);
    assert!(error.starts_with("the document has 8200 paragraphs"), "{error}");
}

#[test]
fn what_cannot_be_joined_is_an_error_that_names_the_part() {
    assert_eq!(error_of(&[]), "there are no parts to join: a document has at least one");
    let error = error_of(&[PART_1, b"%PDF"]);
    assert!(error.starts_with("part 2: the PDF is not as Typst 0.15 writes it: expected %%EOF"), "{error}");
    let expected = |second: &[u8]| {
        let error = error_of(&[PART_1, second]);
        error
            .strip_prefix("part 2 is not as Typst 0.15 writes it, or differs from the first part: expected ")
            .unwrap()
            .to_owned()
    };
    assert_eq!(expected(&[b"%PDF-1.6", &PART_2[8..]].concat()), "the version of the first part");
    assert_eq!(expected(&edited(PART_2, "/StructTreeRoot 7 0 R", "")), "tags in all parts or in none");
    assert_eq!(
        expected(&edited(PART_2, "/Lang(en)", "/Other(en)")),
        "a catalog with no other entries than Typst writes"
    );
    assert_eq!(expected(&edited(PART_2, "/Count 2", "/Count 3")), "as many pages as the page tree says");
    assert_eq!(expected(&edited(PART_2, "/Title/P/", "/Title/Span/")), "the roles of the first part");
    assert_eq!(
        expected(&edited(PART_2, "/Subtype/Link", "/X 999 0 R/Subtype /Link")),
        "references to objects that have a place in the whole"
    );
}

#[test]
fn content_outside_of_elements_says_which_page_it_is_on() {
    let page = references(seen(PART_1).file.object(1).unwrap()).next().unwrap();
    let part = edited(PART_1, "/S/Document/P 7 0 R/K[", &format!("/S/Document/Pg {page} 0 R /P 7 0 R/K[7 "));
    let pdf = joined(&[&part]);
    let seen = seen(&pdf);
    let document = seen.array(seen.structure_tree().get("/K").unwrap())[0].to_vec();
    let kids = get(&seen.dictionary(&document), "/K");
    let page = String::from_utf8(seen.pages()[0].clone()).unwrap();
    assert_eq!(array(&kids).unwrap()[0], format!("<</Type/MCR/Pg {page}/MCID 7>>").as_bytes());
}

/// The file with other bytes in its objects, which are still objects.
fn mutated(pdf: &[u8], changes: &[(usize, usize, u8)]) -> Vec<u8> {
    let mut file = PdfFile::read(pdf).unwrap();
    let count = file.objects().len();
    for (object, at, byte) in changes {
        let reference = format!("{} 0 R", object % count + 1);
        let Some(content) = file.object_of(reference.as_bytes()) else { continue };
        let mut content = content.to_vec();
        let at = at % content.len();
        content[at] = *byte;
        if Stream::parse(&content).is_some() || !content.ends_with(b"endstream") {
            file.replace(reference.as_bytes(), content);
        }
    }
    file.write()
}

fn change() -> impl Strategy<Value = (usize, usize, u8)> {
    let byte = prop_oneof![any::<u8>(), proptest::sample::select(&b"0123456789 R<>[]()/"[..])];
    (any::<usize>(), any::<usize>(), byte)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_part_makes_it_panic(
        changes in proptest::collection::vec(change(), 1..8),
        packed in any::<bool>(),
        is_first in any::<bool>(),
    ) {
        let mut part = mutated(PART_2, &changes);
        if packed {
            part = finish(part, None, true).unwrap().bytes;
        }
        let parts = if is_first { [&part[..], PART_1] } else { [PART_1, &part[..]] };
        if let Ok(joined) = join(parts, None, true) {
            prop_assert!(PdfFile::read(&joined).is_ok());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..12)) {
        let mut part = compacted(PART_2);
        for (at, byte) in changes {
            let at = at % part.len();
            part[at] = byte;
        }
        let _ = join([PART_1, &part], None, true);
        let _ = join([&part], None, false);
    }
}
