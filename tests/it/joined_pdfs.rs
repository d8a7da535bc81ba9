//! PDFs of a template, joined: in every standard that it may ask for, with tags and without.

use crate::support::beside_others;
use crate::support::templates::Templates;
use pressrun::pdf;
use pressrun::render::{Renderer, pool};

const BODY: &str = "#set document(title: \"A note\", date: datetime(year: 2026, month: 1, day: 1))\n= A note <a>\n\
                    #link(<a>)[here] #table(columns: 2, table.header[a][b], [c], [d]) #pagebreak() b";

/// The sample's PDF, as it leaves Typst.
fn pdf(section: &str) -> Vec<u8> {
    let templates = Templates::with(BODY).and_section(section);
    let renderer = Renderer::load(&templates.path("")).unwrap();
    let sample = renderer.sample("note").unwrap();
    pool::on_fixed_pool(1, || renderer.render(sample)).unwrap().unwrap().bytes
}

fn count(pdf: &[u8], text: &str) -> usize {
    pdf.windows(text.len()).filter(|window| *window == text.as_bytes()).count()
}

#[test]
fn parts_are_joined_in_every_standard_with_tags_and_without() {
    let _beside = beside_others();
    let tagged = ["1.4", "1.7", "2.0", "a-1b", "a-1a", "a-2b", "a-2u", "a-2a", "a-3b", "a-3a", "a-4", "a-4f", "ua-1"];
    let untagged = ["1.4", "1.7", "2.0", "a-1b", "a-2b", "a-3b", "a-4"];
    let sections =
        tagged.map(|standard| (standard, true)).into_iter().chain(untagged.map(|standard| (standard, false)));
    for (standard, has_tags) in sections {
        let part = pdf(&format!("standards = [\"{standard}\"]\ntagged = {has_tags}"));
        let joined = pdf::join([&part, &part, &part], None, false).unwrap();
        assert_eq!(count(&joined, "/Type/Page/"), 6, "{standard}");
        assert_eq!(count(&joined, "<xmpTPg:NPages>6</xmpTPg:NPages>"), 1, "{standard}");
        assert_eq!(count(&joined, "/Type/StructTreeRoot"), usize::from(has_tags), "{standard}");
        let compacted = pdf::join([&part, &part, &part], None, true).unwrap();
        assert_eq!(compacted, pdf::join([&part, &part, &part], None, true).unwrap(), "{standard}");
        assert_eq!(compacted.len() < joined.len(), !["1.4", "a-1b", "a-1a"].contains(&standard), "{standard}");
    }
}
