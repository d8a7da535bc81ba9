//! Connections that have gone silent while the function was frozen: they are open, and nothing is ever answered on
//! them. The first documents after that are stored as if nothing had been.

use std::time::{Duration, Instant, SystemTime};

use crate::support::embedded::s3::{self, EmbeddedS3};
use crate::support::embedded::sqs::{self, EmbeddedSqs};
use crate::support::proxy::Proxy;
use crate::support::{INPUT, OUTPUT, QUEUES, config, letter, pointer, record_of, run};
use pressrun::aws::{Clients, MAX_IDLE_TIME};
use pressrun::config::Config;
use pressrun::function::Function;
use pressrun::function::deadline::Deadline;
use serde_json::{Value, json};

/// Letters, every other of which lies in S3, and one message that fails for good.
fn batch(s3: &EmbeddedS3, name: &str) -> Vec<Value> {
    let mut records: Vec<Value> = (0..8).map(|number| letter(&format!("{name}-{number}"))).collect();
    for number in 0..8 {
        let id = format!("{name}-large-{number}");
        s3.put(INPUT, &id, json!({"template": "letter", "data": {"to": id}}).to_string());
        records.push(record_of(&id, pointer(INPUT, &id)));
    }
    records.push(record_of(&format!("{name}-bad"), "{"));
    records
}

#[test]
fn the_first_documents_after_hours_of_idleness_are_stored_at_once_however_many_connections_are_dead() {
    run(async {
        let (s3, sqs) = (EmbeddedS3::start(&[OUTPUT, INPUT]), EmbeddedSqs::start(&QUEUES));
        let (to_s3, to_sqs) = (Proxy::start(&s3.endpoint()), Proxy::start(&sqs.endpoint()));
        let config =
            Config { failed_queue_url: Some(sqs.url("failed")), done_queue_url: Some(sqs.url("done")), ..config(2) };
        let clients = Clients { s3: s3::client_for(&to_s3.endpoint()), sqs: Some(sqs::client_for(&to_sqs.endpoint())) };
        let mut function = Function::start(config, clients).await.unwrap();
        // Slow answers, so that many connections are open at once.
        s3.answer_all("", Some(s3::Fault::Delay(Duration::from_millis(400))));
        sqs.answer_all("done", Some(sqs::Fault::Delay(Duration::from_millis(400))));
        let event = json!({"Records": batch(&s3, "before")});
        assert!(function.handle(event, Deadline::NONE).await.unwrap().batch_item_failures.is_empty());
        s3.answer_all_with(None);
        sqs.answer_all("done", None);
        let silent = [to_s3.silence(), to_sqs.silence()];
        assert!(silent.iter().all(|silent| *silent >= 6), "{silent:?}");

        tokio::time::sleep(MAX_IDLE_TIME + Duration::from_millis(200)).await;
        let began = Instant::now();
        let deadline = Deadline::from_lambda(SystemTime::now() + Duration::from_mins(1));
        let event = json!({"Records": batch(&s3, "after")});
        assert!(function.handle(event, deadline).await.unwrap().batch_item_failures.is_empty());
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        assert_eq!((s3.keys(OUTPUT).len(), sqs.messages("done").len(), sqs.messages("failed").len()), (32, 32, 2));
    });
}
