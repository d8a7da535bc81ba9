//! Long documents that are rendered in parts: they become one PDF, which depends on the message, the template and the
//! size of parts alone; a part that fails fails its document and nobody else; and nothing is left of the others.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crate::support::processes::{children, signal, until, until_run_works, until_runs_wait};
use crate::support::templates::{Templates, outcome};
use crate::support::{
    INPUT, OUTPUT, Stage, config, letter, log, pointer, received, record, record_of, run, run_alone, test_templates,
};
use bytes::Bytes;
use nix::sys::signal::Signal;
use pressrun::config::{Config, LogSettings};
use pressrun::function::deadline::Deadline;
use pressrun::function::event;
use pressrun::function::logging;
use pressrun::function::outcome::{ErrorCode, Failure, Outcome, Stored};
use pressrun::render::parts::{PageNumbers, Part};
use pressrun::render::{Document, Renderer, pool};
use serde_json::{Value, json};

/// What the test templates say in their manifests.
const PART_SIZE: usize = 20;
/// What every record of the support module says, in milliseconds since 1970.
const SENT_MS: i64 = 1_782_988_200_000;

fn data(rows: usize) -> Value {
    let rows: Vec<Value> = (0..rows).map(|row| json!({"text": format!("row {row}")})).collect();
    json!({"title": "Rows", "rows": rows})
}

fn rows(id: &str, rows: usize) -> Value {
    record(id, "rows", data(rows))
}

/// A document with a row that does something.
fn rows_with(id: &str, rows: usize, row: usize, what: &str) -> Value {
    let mut data = data(rows);
    data["rows"][row]["do"] = what.into();
    record(id, "rows", data)
}

fn stored(outcome: Outcome) -> Stored {
    match outcome {
        Outcome::Stored(stored) => stored,
        other => panic!("{other:?}"),
    }
}

fn failure(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::PermanentFailure(failure) | Outcome::TransientFailure(failure) => failure,
        other => panic!("{other:?}"),
    }
}

fn kill_runs(press: u32) {
    for run in children(press) {
        signal(run, Signal::SIGKILL);
    }
}

fn in_seconds(seconds: u64) -> Deadline {
    Deadline::from_lambda(SystemTime::now() + Duration::from_secs(seconds))
}

/// The PDF that is expected of a divided document, made of its parts one after the other.
fn expected(template: &str, id: &str, data: &Value, size: usize, page_numbers: bool) -> Bytes {
    let renderer = Renderer::load_only(&test_templates(), &[template.to_owned()]).unwrap();
    let elements = data["rows"].as_array().unwrap();
    let (total, count) = (elements.len(), elements.len().div_ceil(size));
    let document = |index: usize, pages| {
        let mut data = data.clone();
        let first = index * size;
        data["rows"] = elements[first..total.min(first + size)].into();
        Document {
            template: template.to_owned(),
            data: data.to_string().into(),
            ident: id.to_owned(),
            timestamp_ms: Some(SENT_MS),
            part: Some(Part { index, count, first, total, pages }),
            ..Document::default()
        }
    };
    let render = |document: Document| pool::on_fixed_pool(1, || renderer.render(document)).unwrap().unwrap();
    let mut numbers: Vec<Option<PageNumbers>> = vec![None; count];
    if page_numbers {
        let pages: Vec<usize> = (0..count).map(|index| render(document(index, None)).pages).collect();
        let total = pages.iter().sum();
        let before = |index: usize| pages[..index].iter().sum();
        numbers = (0..count).map(|index| Some(PageNumbers { before: before(index), total })).collect();
    }
    let parts: Vec<_> = numbers.iter().enumerate().map(|(index, pages)| render(document(index, *pages))).collect();
    let pages = parts.iter().map(|part| part.pages).sum();
    let pdfs: Vec<Bytes> = parts.into_iter().map(|part| part.bytes.into()).collect();
    renderer.join(&Document { data: Bytes::new(), ..document(0, None) }, pdfs, pages).unwrap().bytes.into()
}

#[test]
fn a_document_that_fits_into_one_part_is_rendered_whole() {
    run_alone(async {
        let (mut stage, emitted) = Stage::with_metrics(config(2)).await;
        assert_eq!(stage.handle(vec![rows("a", PART_SIZE), rows("none", 0)]).await, [""; 0]);
        let (documents, _) = emitted.take();
        assert!(documents.iter().all(|document| document["Parts"].is_null()), "{documents:?}");
        assert!(stage.pdf("rows", "a").is_some() && stage.pdf("rows", "none").is_some());
    });
}

#[test]
fn a_long_document_is_joined_from_its_parts_whatever_number_of_workers_there_is() {
    run_alone(async {
        let expected = expected("rows", "long", &data(3 * PART_SIZE + 7), PART_SIZE, false);
        for workers in [1, 2, 3] {
            let (mut stage, emitted) = Stage::with_metrics(config(workers)).await;
            assert_eq!(stage.handle(vec![rows("long", 3 * PART_SIZE + 7)]).await, [""; 0], "{:?}", log::take(""));
            assert!(stage.pdf("rows", "long") == Some(expected.clone()), "{workers} workers");
            let (documents, invocation) = emitted.take();
            let told = [&documents[0]["Parts"], &invocation["Leaks"], &invocation["RunsLost"]];
            assert_eq!(told, [4, 0, 0], "{:?}", log::take("leak"));
            assert!(log::take("stored")[0].contains("parts=4"));
        }
    });
}

#[test]
fn page_numbers_are_those_of_the_whole_document() {
    run(async {
        let data = json!({"rows": (0..70).collect::<Vec<usize>>()});
        let expected = expected("numbered-rows", "a", &data, PART_SIZE, true);
        let mut stage = Stage::with_workers(2).await;
        let stored = stored(outcome(&mut stage, record("a", "numbered-rows", data)).await);
        assert_eq!(stored.parts, Some(4));
        assert!(stored.pages > 4, "{stored:?}");
        assert!(stage.pdf("numbered-rows", "a") == Some(expected));
    });
}

/// A template whose parts have two pages each, or one if they are told that all have two.
const RESTLESS: &str = "#if \"part\" in sys.inputs { json(sys.inputs.part).index }\n\
                        #let pages = json(sys.inputs.pages)\n\
                        #if pages.total == 3 { pagebreak() }\nx";

#[test]
fn page_numbers_that_change_the_number_of_pages_again_and_again_are_an_error() {
    run(async {
        let templates = Templates::with(RESTLESS).and_section("parts = { of = \"/rows\", size = 1 }");
        let failure = templates.failure(json!({"rows": [1, 2, 3]})).await;
        assert_eq!(failure.code, ErrorCode::TypstError);
        assert!(failure.message.contains("other page counts in each of 3 rounds"), "{}", failure.message);
    });
}

#[test]
fn a_template_with_parts_that_does_not_read_which_it_is_stops_init() {
    run(async {
        let section = "parts = { of = \"/rows\", size = 2 }";
        let refused = Templates::with("#data.text").and_section(section).refused().await;
        assert!(
            refused.contains("does not read sys.inputs.part") && refused.contains("hint: read it with"),
            "{refused}"
        );
        let refused = Templates::with("#data.text").and_section("parts = { of = \"rows\", size = 2 }").refused().await;
        assert!(refused.contains("[tool.pressrun] parts: of = \"rows\" is no JSON pointer"), "{refused}");
        // Of others the inputs are as they were.
        let stored = Templates::with("#sys.inputs.keys().join()#data.text#assert(not \"part\" in sys.inputs)");
        stored.stored(json!({"text": "x"})).await;
    });
}

/// The text of a template's sample, whole and in parts.
fn texts_of_sample(templates: &Path, template: &str) -> (Vec<String>, Vec<String>) {
    let renderer = Renderer::load_only(templates, &[template.to_owned()]).unwrap();
    let text = |document| pool::on_fixed_pool(1, || renderer.text(document)).unwrap().unwrap().pieces;
    let parts = renderer.sample_in_parts(template).unwrap();
    assert!(parts.len() >= 3, "{}", parts.len());
    (text(renderer.sample(template).unwrap()), parts.into_iter().flat_map(text).collect())
}

#[test]
fn the_text_of_a_sample_in_parts_is_that_of_the_whole_unless_the_template_takes_a_part_for_it() {
    run(async {
        for template in ["rows", "numbered-rows"] {
            let (whole, parts) = texts_of_sample(&test_templates(), template);
            assert!(whole.len() > 3);
            assert_eq!(whole, parts, "{template}");
        }
        let sums_up = "#let part = if \"part\" in sys.inputs { json(sys.inputs.part) }\n\
                       #set page(header: [A header])\n\
                       #table(table.header([Number]), ..data.rows.map(row => [#row]), table.footer([The end]))\n\
                       #part.index of #data.rows.sum()";
        let templates = Templates::with(sums_up)
            .and_section("parts = { of = \"/rows\", size = 50 }")
            .and("note/sample.json", "{\"rows\": [1, 2, 3]}");
        let (whole, parts) = texts_of_sample(&templates.path(""), "note");
        assert_eq!(whole, ["1", "2", "3", "0 of 6"]);
        assert_eq!(parts, ["1", "0 of 1", "2", "1 of 2", "3", "2 of 3"]);
    });
}

#[test]
fn places_in_errors_are_those_of_the_whole_document() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        let typst = failure(outcome(&mut stage, rows_with("a", 60, 47, "fail")).await);
        assert_eq!(typst.code, ErrorCode::TypstError);
        assert!(
            typst.message.starts_with("in part 3 of 3: ")
                && typst.message.ends_with("no price for <value of /rows/47/text>"),
            "{}",
            typst.message
        );

        let mut wrong = data(60);
        wrong["rows"][51]["text"] = 3.into();
        let invalid = failure(outcome(&mut stage, record("b", "rows", wrong)).await);
        assert_eq!(invalid.code, ErrorCode::InvalidData);
        assert!(invalid.message.contains("/rows/51/text: value is not of type \"string\""), "{}", invalid.message);

        let mut unprintable = data(60);
        unprintable["rows"][52]["text"] = "日本".into();
        let missing = failure(outcome(&mut stage, record("c", "rows", unprintable)).await);
        assert!(missing.message.contains("the data have them at /rows/52/text"), "{}", missing.message);
    });
}

#[test]
fn a_document_of_too_many_parts_says_what_to_do() {
    run(async {
        let mut stage = Stage::with(Config { max_data_bytes: 8 * 1024 * 1024, ..config(1) }).await;
        let failure = failure(outcome(&mut stage, rows("a", 1000 * PART_SIZE + 1)).await);
        assert_eq!(failure.code, ErrorCode::InvalidData);
        assert!(failure.message.contains("/rows: an array of length 20001"), "{}", failure.message);
        assert!(failure.message.contains("raise size"), "{}", failure.message);
    });
}

/// Each in a batch of ten, with another document in parts.
#[test]
fn a_part_that_fails_fails_its_document_alone_and_nothing_is_left_of_the_others() {
    run_alone(async {
        let tight = Stage::config_with_memory(2, 300).await;
        let hasty = Config { max_render_time: Some(Duration::from_secs(2)), ..config(2) };
        for (what, code, config) in [
            ("fail", ErrorCode::TypstError, config(2)),
            ("panic", ErrorCode::TypstPanicked, config(2)),
            ("hang", ErrorCode::TimeLimit, hasty),
            ("eat", ErrorCode::MemoryLimit, tight),
        ] {
            let (mut stage, emitted) = Stage::with_metrics(config).await;
            let mut batch: Vec<Value> = (0..8).map(|number| letter(&format!("{what}-{number}"))).collect();
            batch.insert(2, rows_with(what, 10 * PART_SIZE, 47, what));
            batch.insert(7, rows(&format!("good-{what}"), 3 * PART_SIZE));
            let batch = event::parse(json!({"Records": batch})).unwrap();
            let outcomes = stage.function.process_batch(batch, Deadline::NONE).await;
            for (record, outcome) in outcomes {
                match outcome {
                    Outcome::PermanentFailure(failure) => assert_eq!((&*record.message_id, failure.code), (what, code)),
                    Outcome::Stored(_) => assert_ne!(record.message_id, what),
                    other => panic!("{what}: {}: {other:?}", record.message_id),
                }
            }
            let invocation = emitted.take_invocation();
            assert_eq!([&invocation["Leaks"], &invocation["PressChildren"]], [0, 2], "{what}: {:?}", log::take("leak"));
        }
    });
}

#[test]
fn undivided_documents_do_not_wait_for_the_parts_of_others() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        let mut batch = vec![rows("long", 10 * PART_SIZE)];
        batch.extend((0..3).map(|number| letter(&number.to_string())));
        assert_eq!(stage.handle(batch).await, [""; 0]);
        let puts: Vec<String> = stage.s3.requests();
        assert_eq!(puts.last().unwrap(), "PUT output/rows/long.pdf", "{puts:?}");
    });
}

#[test]
fn two_long_documents_are_rendered_beside_each_other() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        assert_eq!(stage.handle(vec![rows("a", 70), rows("b", 90)]).await, [""; 0]);
        for (id, count) in [("a", 70), ("b", 90)] {
            assert!(stage.pdf("rows", id) == Some(expected("rows", id, &data(count), PART_SIZE, false)), "{id}");
        }
    });
}

#[test]
fn a_long_message_behind_a_pointer_is_rendered_in_parts_too() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        let message = json!({"template": "rows", "data": data(50)}).to_string();
        stage.s3.put(INPUT, "message", message.into_bytes());
        assert_eq!(stage.handle(vec![record_of("a", pointer(INPUT, "message"))]).await, [""; 0]);
        assert!(stage.pdf("rows", "a") == Some(expected("rows", "a", &data(50), PART_SIZE, false)));
    });
}

#[test]
fn a_long_document_that_is_delivered_twice_is_rendered_once() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        assert!(!stored(outcome(&mut stage, rows("a", 50)).await).was_stored_before);
        assert!(stored(outcome(&mut stage, received(2, rows("a", 50))).await).was_stored_before);
        assert_eq!(stage.s3.requests(), ["PUT output/rows/a.pdf", "HEAD output/rows/a.pdf"]);
    });
}

#[test]
fn a_long_document_does_not_replace_what_it_must_not() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        let exclusive = |id: &str, rows: usize| {
            let body = json!({"template": "rows", "data": data(rows), "key": "taken.pdf", "if_exists": "fail"});
            record_of(id, body.to_string())
        };
        let first = stored(outcome(&mut stage, exclusive("a", 50)).await);
        assert_eq!(failure(outcome(&mut stage, exclusive("b", 60)).await).code, ErrorCode::KeyTaken);
        assert_eq!(stage.s3.object(OUTPUT, "taken.pdf").unwrap().body.len(), first.bytes);
    });
}

#[test]
fn the_deadline_in_the_middle_of_parts_leaves_nothing_and_the_next_invocation_is_as_ever() {
    run_alone(async {
        let (mut stage, emitted) = Stage::with_metrics(config(2)).await;
        let press = stage.function.press_id().unwrap();
        let hanging = rows_with("a", 10 * PART_SIZE, 5, "hang");
        assert_eq!(stage.handle_until(vec![hanging], in_seconds(2)).await, ["a"]);
        assert_eq!(emitted.take_invocation()["Leaks"], 0, "{:?}", log::take(""));
        assert_eq!(stage.function.press_id(), Some(press));
        assert_eq!(stage.handle(vec![rows("a", 50)]).await, [""; 0]);
        assert_eq!(emitted.take_invocation()["Leaks"], 0, "{:?}", log::take(""));
    });
}

#[test]
fn a_part_whose_run_is_killed_from_outside_is_rendered_again() {
    run_alone(async {
        let (mut stage, emitted) = Stage::with_metrics(config(2)).await;
        let press = stage.function.press_id().unwrap();
        until_runs_wait(press).await;
        let mut data = data(3 * PART_SIZE);
        for row in data["rows"].as_array_mut().unwrap() {
            row["do"] = "work".into();
        }
        let (failed, ()) = tokio::join!(stage.handle(vec![record("a", "rows", data.clone())]), async {
            for _ in 0..2 {
                until_run_works(press).await;
                tokio::time::sleep(Duration::from_millis(30)).await;
                kill_runs(press);
            }
        });
        assert_eq!(failed, [""; 0], "{:?}", log::take(""));
        assert_eq!(emitted.take_invocation()["Leaks"], 0);
        assert!(stage.pdf("rows", "a") == Some(expected("rows", "a", &data, PART_SIZE, false)));
    });
}

/// What is logged at the level DEBUG.
#[derive(Clone, Default)]
struct DebugLog(Arc<Mutex<Vec<u8>>>);

impl DebugLog {
    fn has(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.0.lock().unwrap()).contains(text)
    }
}

impl io::Write for DebugLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_run_that_is_killed_while_it_joins_is_replaced() {
    run_alone(async {
        let log = DebugLog::default();
        let settings = LogSettings::from_variables(|name| (name == "AWS_LAMBDA_LOG_LEVEL").then(|| "DEBUG".to_owned()));
        let writer = log.clone();
        let _subscriber = tracing::subscriber::set_default(logging::subscriber(settings, move || writer.clone()));
        let (mut stage, emitted) = Stage::with_metrics(config(1)).await;
        let press = stage.function.press_id().unwrap();
        until_runs_wait(press).await;
        let many = 40 * PART_SIZE;
        let (failed, ()) = tokio::join!(stage.handle(vec![rows("a", many)]), async {
            until("the parts are joined", || log.has("joining the parts")).await;
            until_run_works(press).await;
            kill_runs(press);
        });
        assert_eq!(failed, [""; 0]);
        let invocation = emitted.take_invocation();
        assert_eq!([&invocation["RunsLost"], &invocation["Leaks"]], [1, 0]);
        assert!(stage.pdf("rows", "a") == Some(expected("rows", "a", &data(many), PART_SIZE, false)));
    });
}

/// A table of eight columns, as in the module `cache_eviction`.
const TABLE: &str = "#let part = json(sys.inputs.part)\n\
                     #table(columns: 8, ..data.rows.map(row => range(8).map(cell => [#(row * 8 + cell)])).flatten())";

#[test]
fn a_long_document_takes_the_memory_of_a_part_and_says_what_was_evicted_in_all() {
    run_alone(async {
        let templates = Templates::with(TABLE)
            .and_section("parts = { of = \"/rows\", size = 1000 }")
            .and("note/sample.json", "{\"rows\": [1, 2, 3]}");
        let memory_bytes = Stage::config_with_memory(1, 250).await.memory_bytes;
        let (mut stage, emitted) = Stage::with_metrics(Config { memory_bytes, ..templates.config() }).await;
        let rows: Vec<usize> = (0..4000).collect();
        assert_eq!(
            stage.handle(vec![record("a", "note", json!({"rows": rows}))]).await,
            [""; 0],
            "{:?}",
            log::take("")
        );
        let (documents, invocation) = emitted.take();
        assert_eq!(documents[0]["Parts"], 4);
        assert!(documents[0]["CacheEvictions"].as_u64().unwrap() > 0);
        assert!(invocation["RunPeakMemory"].as_u64().unwrap() < 300_000_000, "{invocation}");
    });
}

#[test]
fn a_direct_call_gets_a_long_document_too() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        let event = json!({"template": "rows", "data": data(50), "respond": "inline"}).to_string();
        let answer = stage.function.answer(&event, Deadline::NONE).await.unwrap();
        let answer = serde_json::to_value(answer).unwrap();
        assert!(answer["pages"].as_u64().unwrap() >= 3, "{answer}");
    });
}
