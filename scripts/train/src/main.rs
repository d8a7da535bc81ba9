//! Renders documents in one process that ends by itself, so that it leaves a profile for `scripts/build-optimized`.
//! Runs leave none, since they are killed.
//!
//! `train` renders new invoices, statements and reports of the shipped templates. `train TEMPLATES_DIR` renders the
//! samples of that folder as well.

use std::path::Path;

use bytes::Bytes;
use pressrun::render::{self, Document, RenderError, Renderer, pool};
use serde_json::Value;

#[path = "../../../benches/support/documents.rs"]
mod documents;

const INVOICES: usize = 120;
const STATEMENTS: usize = 15;
const REPORTS: usize = 5;
/// How often each sample of the user's own templates is rendered.
const TIMES: usize = 20;

fn main() {
    let shipped = Renderer::load(&documents::templates()).expect("the shipped templates are valid");
    for number in 0..INVOICES {
        render(&shipped, document("invoice", number, &documents::invoice(number)));
    }
    for number in 0..STATEMENTS {
        render(&shipped, document("statement", number, &documents::statement(100 + number * 20)));
    }
    for number in 0..REPORTS {
        render(&shipped, document("report", number, &documents::report(1 + number)));
    }
    let Some(templates_dir) = std::env::args_os().nth(1) else { return };
    let own = Renderer::load(Path::new(&templates_dir)).unwrap_or_else(|errors| panic!("{errors}"));
    for (template, _) in own.templates() {
        for _ in 0..TIMES {
            // Otherwise the second time would only be looked up.
            render::evict_cache(0);
            render(&own, own.sample(template).expect("a template has a sample"));
        }
    }
}

fn document(template: &str, number: usize, data: &Value) -> Document {
    Document {
        template: template.to_owned(),
        data: Bytes::from(data.to_string()),
        ident: number.to_string(),
        timestamp_ms: Some(1_782_988_200_000),
        ..Document::default()
    }
}

/// Renders a document as a run does, on one thread.
fn render(renderer: &Renderer, document: Document) {
    let template = document.template.clone();
    let result = pool::on_fixed_pool(1, || renderer.render(document)).expect("a thread can be started");
    if let Err(RenderError::Typst(diagnostics) | RenderError::Data(diagnostics)) = result {
        panic!("{template}: {diagnostics:?}");
    }
    render::evict_cache(1);
}
