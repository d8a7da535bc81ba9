//! A long document's way, from its division into parts to its one PDF.
//!
//! A run has checked the data as a whole and said where each part's slice is ([`Division`]). Every part is then
//! rendered on whichever worker is free, in one round; if the template prints page numbers of the whole, in further
//! rounds until they are those that the parts were told. In the end one run joins the parts' PDFs. The first part that
//! fails fails the document, and the others are given up.
//!
//! Which bytes come of it depends on the message, the template and the size of parts alone: nothing here asks how many
//! workers there are, or who was first.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;

use super::Batch;
use super::inputs::Document;
use super::queue::WorkQueue;
use super::render::{DocumentTask, PendingPdf, RenderFailure, Sharing};
use crate::function::outcome::{ErrorCode, Failure};
use crate::press::protocol::Task;
use crate::render::diagnostics::Diagnostic;
use crate::render::parts::{Division, PageNumbers, Part};

/// The most times that all parts are rendered: to count their pages, with those numbers, and once more if these have
/// changed how many pages there are.
const MAX_ROUNDS: usize = 3;

/// The most warnings of a document that are kept: each part may have the same.
const MAX_WARNINGS: usize = 10;

/// What the parts of a document took so far, all rounds together.
#[derive(Default)]
struct Spent {
    render_time: Duration,
    cache_evictions: u32,
}

impl<'a> Batch<'a> {
    /// Renders a document in parts. Its inputs are let go of when they are not needed any more.
    pub(super) async fn render_in_parts(
        &self,
        document: &mut Document<'a>,
        division: &Division,
        queue: WorkQueue<'a>,
        sharing: Sharing,
    ) -> Result<PendingPdf, RenderFailure> {
        tracing::debug!(parts = division.slices.len(), elements = division.total, "rendered in parts");
        // Typst's timings are of one document; nobody asks for those of a thousand.
        document.timings_slower_than = None;
        let mut spent = Spent::default();
        let mut told: Option<Vec<PageNumbers>> = None;
        for _ in 0..MAX_ROUNDS {
            let parts = self.render_round(document, division, told.as_deref(), &queue, sharing).await?;
            for part in &parts {
                spent.add(part);
            }
            let counted = page_numbers(&parts);
            if told.as_ref() == Some(&counted) || !parts.iter().any(|part| part.reads_pages) {
                return self.join(document, parts, spent, queue, sharing).await;
            }
            told = Some(counted);
        }
        Err(page_numbers_never_settle().into())
    }

    /// Renders every part once, with the page numbers that are known.
    async fn render_round(
        &self,
        document: &Document<'a>,
        division: &Division,
        pages: Option<&[PageNumbers]>,
        queue: &WorkQueue<'a>,
        sharing: Sharing,
    ) -> Result<Vec<PendingPdf>, RenderFailure> {
        let parts = division.parts().map(|part| {
            let part = Part { pages: pages.map(|pages| pages[part.index]), ..part };
            let data = division.data_of(part, &document.request.data);
            let task = DocumentTask {
                record: document.record,
                header: self.header(document, Task::RenderPart(part)),
                content: data.into_iter().chain(document.files.iter().cloned()).collect(),
                sharing,
            };
            render_part(task, part, queue)
        });
        // The first that fails has the others dropped, and so given up.
        try_join_all(parts).await
    }

    /// Joins the parts' PDFs, in a run as any other.
    async fn join(
        &self,
        document: &mut Document<'a>,
        parts: Vec<PendingPdf>,
        mut spent: Spent,
        queue: WorkQueue<'a>,
        sharing: Sharing,
    ) -> Result<PendingPdf, RenderFailure> {
        let pages = parts.iter().map(|part| part.pages).sum();
        let task = Task::Join { parts: parts.iter().map(|part| part.pdf.len()).collect(), pages };
        let header = self.header(document, task);
        let pdfs = parts.iter().map(|part| part.pdf.clone());
        let content: Vec<Bytes> = pdfs.chain(document.files.iter().cloned()).collect();
        document.drop_inputs();
        tracing::debug!(parts = parts.len(), pages, "joining the parts");
        let task = DocumentTask { record: document.record, header, content, sharing };
        let joined = queue.send(task, None).await.expect("a worker responds for every task")?;
        let joined = joined.into_pdf()?;
        spent.add(&joined);
        Ok(PendingPdf {
            pages,
            warnings: merged_warnings(&parts),
            render_time: spent.render_time,
            cache_evictions: spent.cache_evictions,
            parts: Some(parts.len()),
            ..joined
        })
    }
}

/// Sends a part to a worker and waits for its PDF, which is counted in the function's memory until all are there.
async fn render_part<'a>(
    task: DocumentTask<'a>,
    part: Part,
    queue: &WorkQueue<'a>,
) -> Result<PendingPdf, RenderFailure> {
    let rendered = queue.send(task, None).await.expect("a worker responds for every task");
    let mut pdf = rendered.map_err(|failure| in_part(part, failure))?.into_pdf()?;
    pdf.reservation.give_up_place();
    Ok(pdf)
}

/// Says in which part a document has failed.
fn in_part(part: Part, failure: RenderFailure) -> RenderFailure {
    match failure {
        RenderFailure::Failed(failure) => {
            let message = format!("in part {} of {}: {}", part.index + 1, part.count, failure.message);
            RenderFailure::Failed(Failure { message, ..failure })
        }
        RenderFailure::NeedsAllMemory => RenderFailure::NeedsAllMemory,
    }
}

/// Where each part's pages stand in the whole document.
fn page_numbers(parts: &[PendingPdf]) -> Vec<PageNumbers> {
    let total = parts.iter().map(|part| part.pages).sum();
    let mut before = 0;
    let numbers = parts.iter().map(|part| {
        let numbers = PageNumbers { before, total };
        before += part.pages;
        numbers
    });
    numbers.collect()
}

/// The different warnings of all parts, in their order.
fn merged_warnings(parts: &[PendingPdf]) -> Vec<Diagnostic> {
    let mut merged: Vec<Diagnostic> = Vec::new();
    for warning in parts.iter().flat_map(|part| &part.warnings) {
        if merged.len() < MAX_WARNINGS && !merged.contains(warning) {
            merged.push(warning.clone());
        }
    }
    merged
}

fn page_numbers_never_settle() -> Failure {
    let message = format!(
        "the document's parts had other page counts in each of {MAX_ROUNDS} rounds: the page numbers that \
         sys.inputs.pages names change how many pages there are; have the template print them in a place of fixed width"
    );
    Failure::new(ErrorCode::TypstError, message)
}

impl Spent {
    fn add(&mut self, pdf: &PendingPdf) {
        // A run may say anything.
        self.render_time = self.render_time.saturating_add(pdf.render_time);
        self.cache_evictions += pdf.cache_evictions;
    }
}
