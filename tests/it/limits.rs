//! Documents that want more time or memory than they may have: they fail alone, with the reason,
//! and their neighbours are stored in the same invocation.

use std::time::{Duration, SystemTime};

use crate::support::{
    INPUT, Stage, config, letter, log, pointer, real_templates, received, record, record_of, run, run_alone,
};
use pressrun::config::Config;
use pressrun::function::deadline::Deadline;
use pressrun::function::event;
use pressrun::function::outcome::{ErrorCode, Failure, Outcome};
use serde_json::{Value, json};

fn endless(id: &str) -> Value {
    record(id, "endless", json!({"endless": true}))
}

fn in_seconds(seconds: u64) -> Deadline {
    Deadline::from_lambda(SystemTime::now() + Duration::from_secs(seconds))
}

/// Nine letters, and others put among them at every third place.
fn among_nine_letters(others: Vec<Value>) -> Vec<Value> {
    let mut records: Vec<Value> = (0..9).map(|number| letter(&format!("good-{number}"))).collect();
    for (index, other) in others.into_iter().enumerate() {
        records.insert(index * 3, other);
    }
    records
}

async fn outcomes(stage: &mut Stage, records: Vec<Value>, deadline: Deadline) -> Vec<(String, Outcome)> {
    let records = event::parse(json!({"Records": records})).unwrap();
    let outcomes = stage.function.process_batch(records, deadline).await;
    outcomes.into_iter().map(|(record, outcome)| (record.message_id, outcome)).collect()
}

fn failure_of<'a>(outcomes: &'a [(String, Outcome)], id: &str) -> &'a Failure {
    match &outcomes.iter().find(|(other, _)| other == id).unwrap().1 {
        Outcome::DeadLettered(failure) | Outcome::PermanentFailure(failure) | Outcome::TransientFailure(failure) => {
            failure
        }
        other => panic!("{id}: {other:?}"),
    }
}

fn assert_only_these_failed(outcomes: &[(String, Outcome)], code: ErrorCode, bad: &[&str]) {
    for (id, outcome) in outcomes {
        match outcome {
            Outcome::Stored(_) => assert!(!bad.contains(&id.as_str()), "{id} was stored"),
            Outcome::PermanentFailure(failure) => {
                assert!(bad.contains(&id.as_str()) && failure.code == code, "{id}: {failure:?}");
            }
            other => panic!("{id}: {other:?}"),
        }
    }
}

#[test]
fn a_batch_gets_through_however_many_documents_never_end() {
    run(async {
        let mut stage = Stage::with_workers(1).await;
        for place in [0, 2, 4] {
            let mut batch: Vec<Value> = (0..4).map(|number| endless(&number.to_string())).collect();
            batch.insert(place, letter("good"));
            let outcomes = outcomes(&mut stage, batch, in_seconds(6)).await;
            assert!(matches!(&outcomes[place].1, Outcome::Stored(_)), "{:?}", outcomes[place].1);
            let slow = outcomes.iter().filter(|(id, _)| id != "good").map(|(id, _)| failure_of(&outcomes, id).code);
            assert!(slow.into_iter().all(|code| code == ErrorCode::DeadlineReached || code == ErrorCode::TimeLimit));
            let last = if place == 4 { "3" } else { "2" };
            assert!(failure_of(&outcomes, last).code == ErrorCode::DeadlineReached, "short of its grant: no fault");
        }
    });
}

/// Without `MAX_RENDER_MS`, so that it is cut short while others wait.
#[test]
fn a_document_that_never_ends_is_a_permanent_failure_at_its_second_delivery_whoever_waits_beside_it() {
    run(async {
        for workers in [1, 2] {
            let mut stage = Stage::with_workers(workers).await;
            let first = outcomes(&mut stage, vec![endless("bad"), letter("a"), letter("b")], in_seconds(5)).await;
            assert!(matches!(first[0].1, Outcome::TransientFailure(_)), "{first:?}");
            // Beside another that comes for the first time, and beside good ones that were delivered before.
            let mut batch = among_nine_letters(vec![endless("new"), received(2, endless("bad"))]);
            batch.extend((0..3).map(|number| received(3, letter(&format!("again-{number}")))));
            let second = outcomes(&mut stage, batch, in_seconds(6)).await;
            for (id, outcome) in &second {
                match outcome {
                    Outcome::PermanentFailure(failure) => {
                        assert_eq!((id.as_str(), failure.code), ("bad", ErrorCode::TimeLimit), "{failure:?}");
                    }
                    Outcome::TransientFailure(failure) => {
                        assert_eq!((id.as_str(), failure.code), ("new", ErrorCode::DeadlineReached), "{failure:?}");
                    }
                    Outcome::Stored(_) => assert!(!["bad", "new"].contains(&id.as_str()), "{id}"),
                    other => panic!("{other:?}"),
                }
            }
        }
    });
}

/// Each delivery finds out as many as there are workers at least, those first that have come back most often.
#[test]
fn of_many_documents_that_never_end_each_is_found_out_and_none_is_blamed_for_less_than_its_full_limit() {
    run(async {
        let mut stage = Stage::with_workers(2).await;
        let mut waiting: Vec<String> = (0..4).map(|number| number.to_string()).collect();
        let mut deliveries = 1;
        while !waiting.is_empty() {
            let mut batch: Vec<Value> = waiting.iter().map(|id| received(deliveries, endless(id))).collect();
            batch.push(letter(&format!("good-{deliveries}")));
            let outcomes = outcomes(&mut stage, batch, in_seconds(4)).await;
            let failed: Vec<&(String, Outcome)> =
                outcomes.iter().filter(|(_, outcome)| !matches!(outcome, Outcome::Stored(_))).collect();
            assert_eq!(failed.len(), waiting.len(), "the letter is stored");
            waiting.retain(|id| failure_of(&outcomes, id).code == ErrorCode::DeadlineReached);
            assert!(deliveries == 1 || waiting.len() + 2 <= failed.len(), "{outcomes:?}");
            deliveries += 1;
        }
        assert!(deliveries <= 4, "{deliveries}");
    });
}

#[test]
fn a_document_that_needs_most_of_the_memory_is_rendered_alone() {
    run_alone(async {
        let mut stage = Stage::with_memory(2, 400).await;
        let large = |id: &str| record(id, "greedy", json!({"megabytes": 250}));
        let outcomes = outcomes(&mut stage, among_nine_letters(vec![large("x"), large("y")]), in_seconds(60)).await;
        assert_only_these_failed(&outcomes, ErrorCode::MemoryLimit, &[]);
        // And in one press, where what the run holds of the document before may be what is lacking.
        let mut stage = Stage::with_memory(1, 400).await;
        let batch = vec![large("x"), letter("a"), large("y"), large("z")];
        let outcomes = self::outcomes(&mut stage, batch, in_seconds(60)).await;
        assert_only_these_failed(&outcomes, ErrorCode::MemoryLimit, &[]);
    });
}

/// A message behind a pointer, with a file of its own.
fn behind_a_pointer(stage: &Stage, id: &str, template: &str, data: &Value, file: Vec<u8>) -> Value {
    let message = json!({"template": template, "data": data, "files": {"enclosed": format!("file-of-{id}")}});
    stage.s3.put(INPUT, id, message.to_string());
    stage.s3.put(INPUT, &format!("file-of-{id}"), file);
    record_of(id, pointer(INPUT, id))
}

const MEGABYTE: usize = 1_000_000;

#[test]
fn no_more_is_read_ahead_than_a_quarter_of_the_memory() {
    run_alone(async {
        let config = Stage::config_with_memory(1, 260).await;
        let max_render_time = Some(Duration::from_secs(1));
        let mut stage = Stage::with(Config { max_data_bytes: 15 * MEGABYTE, max_render_time, ..config }).await;
        let mut batch = vec![endless("slow")];
        for number in 0..8 {
            let id = number.to_string();
            batch.push(behind_a_pointer(&stage, &id, "letter", &json!({"to": "you"}), vec![b'x'; 15 * MEGABYTE]));
        }
        let outcomes = outcomes(&mut stage, batch, in_seconds(60)).await;
        assert_eq!(failure_of(&outcomes, "slow").code, ErrorCode::TimeLimit);
        assert!(outcomes[1..].iter().all(|(_, outcome)| matches!(outcome, Outcome::Stored(_))), "{outcomes:?}");
        let requests = stage.s3.requests();
        let before_the_first_pdf = requests.iter().take_while(|request| !request.starts_with("PUT"));
        let files = before_the_first_pdf.filter(|request| request.contains("file-of-")).count();
        // Three, and the next ones as those are rendered.
        assert!((3..=6).contains(&files), "{files} of 8 were read while no press was free");
    });
}

#[test]
fn a_document_is_not_blamed_for_what_others_take_of_the_memory() {
    run_alone(async {
        let config = Stage::config_with_memory(1, 300).await;
        let mut stage = Stage::with(Config { max_data_bytes: 15 * MEGABYTE, ..config }).await;
        // It would fit if the others' files were not read meanwhile.
        let mut batch = vec![record("large", "greedy", json!({"megabytes": 190}))];
        for number in 0..4 {
            let id = number.to_string();
            batch.push(behind_a_pointer(&stage, &id, "letter", &json!({"to": "you"}), vec![b'x'; 15 * MEGABYTE]));
        }
        let outcomes = outcomes(&mut stage, batch, in_seconds(60)).await;
        assert_only_these_failed(&outcomes, ErrorCode::MemoryLimit, &[]);
    });
}

#[test]
fn documents_that_are_rendered_alone_do_not_wait_for_their_own_memory() {
    run_alone(async {
        let config = Stage::config_with_memory(2, 400).await;
        // Room for the inputs of one at a time.
        let mut stage = Stage::with(Config { max_data_bytes: 100 * MEGABYTE, ..config }).await;
        let batch: Vec<Value> = (0..5)
            .map(|number| {
                let greedy = json!({"megabytes": 250});
                behind_a_pointer(&stage, &number.to_string(), "greedy", &greedy, vec![b'x'; 1000])
            })
            .collect();
        let outcomes = outcomes(&mut stage, among_nine_letters(batch), in_seconds(60)).await;
        assert_only_these_failed(&outcomes, ErrorCode::MemoryLimit, &[]);
    });
}

#[test]
fn a_run_takes_less_memory_where_there_is_one_core() {
    run_alone(async {
        let mut peaks = Vec::new();
        for cores in [2, 1] {
            let config = Config { templates_dir: real_templates(), cores, ..config(1) };
            let (mut stage, emitted) = Stage::with_metrics(config).await;
            let samples = ["invoice", "report", "statement"].map(|template| {
                let sample = std::fs::read(real_templates().join(template).join("sample.json")).unwrap();
                record(template, template, serde_json::from_slice(&sample).unwrap())
            });
            assert_eq!(stage.handle(samples.into()).await, [""; 0], "{:?}", log::take(""));
            peaks.push(emitted.take_invocation()["RunPeakMemory"].as_u64().unwrap());
        }
        assert!(peaks[1] < peaks[0], "{peaks:?}");
    });
}

#[test]
fn too_little_memory_for_any_document_stops_init() {
    run(async {
        let s3 = crate::support::embedded::s3::EmbeddedS3::start(&[crate::support::OUTPUT]);
        let tiny = Config { memory_bytes: Some(64 * 1024 * 1024), ..config(2) };
        let error = pressrun::function::Function::start(tiny, s3.client()).await.err().unwrap().to_string();
        assert!(error.starts_with("64 MB of memory are too little: ") && error.contains("WORKERS"), "{error}");
    });
}
