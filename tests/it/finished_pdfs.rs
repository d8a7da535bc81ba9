//! What is done to every PDF after Typst: it is compacted, unless its version or its template forbids
//! that, and ends with a newline.

use std::fs;

use crate::support::templates::{MANIFEST, Templates, note, outcome};
use crate::support::{Stage, config, real_templates, record, run, run_alone};
use bytes::Bytes;
use pressrun::config::Config;
use pressrun::function::outcome::{ErrorCode, Outcome};
use serde_json::json;

/// A heading and a list, which have tags.
const BODY: &str = "#set document(title: \"A note\")\n= A note\n#for row in range(40) [+ #data.text]";

/// The PDF of a note, by a template with these lines under `[tool.pressrun]`.
async fn pdf(section: &str) -> Bytes {
    let mut stage = Templates::with(BODY).and_section(section).stage().await;
    match outcome(&mut stage, record("m-1", "note", note("x"))).await {
        Outcome::Stored(stored) => assert!(stored.warnings.is_empty(), "{section}: {:?}", stored.warnings),
        failure => panic!("{section}: {failure:?}"),
    }
    let pdf = stage.pdf("note", "m-1").unwrap();
    assert!(pdf.ends_with(b"\n%%EOF\n"), "{section}");
    pdf
}

fn is_compacted(pdf: &[u8]) -> bool {
    let has = |text: &[u8]| pdf.windows(text.len()).any(|window| window == text);
    assert_ne!(has(b"/Type/ObjStm"), has(b"\nxref\n"), "either object streams or a table");
    has(b"/Type/ObjStm")
}

#[test]
fn a_pdf_is_compacted_unless_its_template_says_otherwise() {
    run(async {
        for standards in ["", "standards = [\"1.5\"]\n", "standards = [\"a-2a\"]\n", "standards = [\"2.0\"]\n"] {
            let (compacted, plain) = (pdf(standards).await, pdf(&format!("{standards}compact = false")).await);
            assert!(is_compacted(&compacted) && !is_compacted(&plain), "{standards}");
            assert!(
                compacted.len() * 10 < plain.len() * 6,
                "{standards}: {} of {} bytes",
                compacted.len(),
                plain.len()
            );
        }
    });
}

#[test]
fn a_version_without_object_streams_is_stored_as_typst_writes_it() {
    run(async {
        for standards in ["standards = [\"1.4\"]", "standards = [\"a-1b\"]", "standards = [\"a-1a\"]"] {
            let left_alone = pdf(standards).await;
            assert!(!is_compacted(&left_alone), "{standards}");
            assert_eq!(left_alone, pdf(&format!("{standards}\ncompact = false")).await);
        }
    });
}

#[test]
fn every_shipped_sample_is_compacted_the_same_each_time() {
    run(async {
        let samples = || {
            ["invoice", "report", "statement"].map(|template| {
                let path = real_templates().join(template).join("sample.json");
                record(template, template, serde_json::from_slice(&fs::read(path).unwrap()).unwrap())
            })
        };
        let mut stored = Vec::new();
        for workers in [1, 2] {
            let mut stage = Stage::with(Config { templates_dir: real_templates(), ..config(workers) }).await;
            assert_eq!(stage.handle(samples().to_vec()).await, [""; 0]);
            stored.push(["invoice", "report", "statement"].map(|template| stage.pdf(template, template).unwrap()));
        }
        assert!(stored[0].iter().all(|pdf| is_compacted(pdf)));
        assert!(stored[0] == stored[1], "in other runs, on other numbers of threads");
    });
}

/// How often a document has to fit into its memory to count as one that always does.
const ATTEMPTS: usize = 5;

/// Two templates that differ in whether their PDFs are compacted.
fn compacted_and_plain(body: &str) -> Templates {
    let templates = Templates::with(body);
    templates.write("plain/typst.toml", format!("{MANIFEST}[tool.pressrun]\ncompact = false\n"));
    for file in ["main.typ", "sample.json"] {
        templates.write(&format!("plain/{file}"), fs::read(templates.path(&format!("note/{file}"))).unwrap());
    }
    templates
}

/// Whether a table with so many rows fits into the memory that there is.
async fn fits(stage: &mut Stage, template: &str, rows: u64) -> bool {
    match outcome(stage, record("m-1", template, json!({"text": "", "rows": rows}))).await {
        Outcome::Stored(_) => true,
        Outcome::PermanentFailure(failure) if failure.code == ErrorCode::MemoryLimit => false,
        other => panic!("{other:?}"),
    }
}

/// Whether it fits each time: how much of the memo cache has been evicted when the memory is needed depends on the clock.
async fn always_fits(stage: &mut Stage, template: &str, rows: u64) -> bool {
    for _ in 0..ATTEMPTS {
        if !fits(stage, template, rows).await {
            return false;
        }
    }
    true
}

#[test]
fn a_document_that_fits_a_memory_limit_without_compaction_fits_it_with() {
    run_alone(async {
        let body = "#table(columns: (2cm,) * 8, rows: 5mm, ..range(data.at(\"rows\", default: 1) * 8).map(n => [#n]))";
        let templates = compacted_and_plain(body);
        let config = Stage::config_with_memory(1, 90).await;
        let mut stage = Stage::with(Config { templates_dir: templates.config().templates_dir, ..config }).await;
        // The most rows that always fit, within two in a hundred.
        let (mut most, mut too_many) = (100, 3000);
        assert!(always_fits(&mut stage, "plain", most).await && !fits(&mut stage, "plain", too_many).await);
        while too_many - most > most / 50 {
            let middle = u64::midpoint(most, too_many);
            *(if always_fits(&mut stage, "plain", middle).await { &mut most } else { &mut too_many }) = middle;
        }
        assert!(
            always_fits(&mut stage, "note", most - most / 50).await,
            "{most} rows: {:?}",
            crate::support::log::take("failure")
        );
    });
}
