//! The text of a laid-out document, without what stands on a page because it is a page: headers, footers, and the
//! headers and footers of tables.

use typst::foundations::{Content, Smart, StyleChain};
use typst::introspection::{Location, Tag};
use typst::layout::{Frame, FrameItem};
use typst::model::TableCell;
use typst::pdf::{ArtifactElem, TableCellKind};
use typst_layout::PagedDocument;

/// A document's text.
#[derive(Debug)]
pub struct Text {
    /// Its pieces, in the order in which they are laid out: words in one line and style are one piece.
    pub pieces: Vec<String>,
    pub pages: usize,
}

/// Extracts the text of a document.
pub(super) fn extract(document: &PagedDocument) -> Text {
    let mut extraction = Extraction::default();
    for page in document.pages() {
        extraction.read(&page.frame);
    }
    Text { pieces: extraction.pieces, pages: document.pages().len() }
}

#[derive(Default)]
struct Extraction {
    /// The elements of pages that have begun and not ended.
    of_page: Vec<Location>,
    pieces: Vec<String>,
}

impl Extraction {
    fn read(&mut self, frame: &Frame) {
        for (_, item) in frame.items() {
            match item {
                FrameItem::Group(group) => self.read(&group.frame),
                FrameItem::Text(text) if self.of_page.is_empty() => self.pieces.push(text.text.to_string()),
                FrameItem::Tag(Tag::Start(element, _)) if is_of_page(element) => {
                    self.of_page.extend(element.location());
                }
                FrameItem::Tag(Tag::End(location, ..)) => self.of_page.retain(|open| open != location),
                _ => {}
            }
        }
    }
}

/// Whether an element is repeated from page to page.
fn is_of_page(element: &Content) -> bool {
    let is_of_table = |cell: &TableCell| {
        let kind = cell.kind.get(StyleChain::default());
        matches!(kind, Smart::Custom(TableCellKind::Header(..) | TableCellKind::Footer))
    };
    element.is::<ArtifactElem>() || element.to_packed::<TableCell>().is_some_and(|cell| is_of_table(cell))
}
