//! What comes after a PDF: each stored document is announced before its message is acknowledged.

use std::time::{Duration, SystemTime};

use crate::support::embedded::sqs::Fault;
use crate::support::{OUTPUT, Stage, config, in_group, letter, received, record, record_of, run};
use pressrun::function::deadline::Deadline;
use serde_json::{Value, json};

async fn stage() -> Stage {
    Stage::with_queues(config(1), Some("failed"), Some("done")).await
}

fn announcements(stage: &Stage, queue: &str) -> Vec<Value> {
    stage.sqs.messages(queue).iter().map(|message| serde_json::from_str(&message.body).unwrap()).collect()
}

#[test]
fn each_stored_document_is_announced() {
    run(async {
        let mut stage = stage().await;
        let long = record("long", "long", json!({"sections": 12, "paragraphs": 3}));
        assert_eq!(stage.handle(vec![long, record_of("bad", "{")]).await, [""; 0]);
        let object = stage.s3.object(OUTPUT, "long/long.pdf").unwrap();
        assert_eq!(
            announcements(&stage, "done"),
            [json!({
                "messageId": "long", "template": "long", "bucket": OUTPUT, "key": "long/long.pdf",
                "eTag": object.e_tag, "pages": object.metadata["pages"].parse::<usize>().unwrap(),
                "bytes": object.body.len(),
            })]
        );
    });
}

#[test]
fn a_document_whose_announcement_fails_is_delivered_again_and_announced_without_being_rendered_again() {
    run(async {
        let mut stage = stage().await;
        for fault in [Fault::InternalFailure, Fault::AccessDenied] {
            stage.sqs.answer_all("done", Some(fault));
            assert_eq!(stage.handle(vec![letter("a")]).await, ["a"]);
            assert!(stage.pdf("letter", "a").is_some() && announcements(&stage, "done").is_empty());
        }
        stage.sqs.answer_all("done", None);
        stage.s3.requests();
        assert_eq!(stage.handle(vec![received(2, letter("a"))]).await, [""; 0]);
        assert_eq!(stage.s3.requests(), ["HEAD output/letter/a.pdf"]);
        let announced = announcements(&stage, "done");
        assert_eq!((announced.len(), &announced[0]["pages"]), (1, &json!(1)));
        assert!(stage.sqs.messages("failed").is_empty(), "nothing is wrong with the message");
    });
}

#[test]
fn a_document_whose_announcement_the_deadline_ends_is_reported_as_failed() {
    run(async {
        let mut stage = stage().await;
        stage.sqs.answer_next("done", [Fault::Delay(Duration::ZERO)]);
        stage.sqs.answer_all("done", Some(Fault::Delay(Duration::from_mins(1))));
        let deadline = Deadline::from_lambda(SystemTime::now() + Duration::from_secs(4));
        let failed = stage.handle_until(vec![letter("a"), letter("b")], deadline).await;
        assert_eq!((failed.len(), announcements(&stage, "done").len()), (1, 1));
        assert_eq!(stage.s3.keys(OUTPUT).len(), 2);
    });
}

#[test]
fn a_document_that_is_not_stored_is_not_announced() {
    run(async {
        let mut stage = stage().await;
        stage.s3.answer_all_with(Some(crate::support::embedded::s3::Fault::SlowDown));
        assert_eq!(stage.handle(vec![letter("a"), record_of("bad", "{")]).await, ["a"]);
        assert!(announcements(&stage, "done").is_empty());
    });
}

#[test]
fn a_group_is_announced_in_order_and_stops_where_an_announcement_fails() {
    run(async {
        let mut stage = Stage::with_queues(config(2), None, Some("done.fifo")).await;
        let records = || (1..=4).map(|number| in_group("g", letter(&format!("g-{number}")))).collect::<Vec<_>>();
        stage.sqs.answer_next("done.fifo", [Fault::Delay(Duration::from_millis(100))]);
        assert_eq!(stage.handle(records()).await, [""; 0]);
        let ids = |announced: &[Value]| announced.iter().map(|one| one["messageId"].clone()).collect::<Vec<_>>();
        assert_eq!(ids(&announcements(&stage, "done.fifo")), ["g-1", "g-2", "g-3", "g-4"]);
        let first = &stage.sqs.messages("done.fifo")[0];
        assert_eq!((first.group.as_deref(), first.deduplication_id.as_deref()), (Some("g"), Some("g-1")));
        stage.sqs.answer_all("done.fifo", Some(Fault::InternalFailure));
        assert_eq!(stage.handle(records()).await, ["g-1", "g-2", "g-3", "g-4"]);
    });
}
