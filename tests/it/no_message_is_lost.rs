//! Everything at once: bad messages, an S3 and an SQS that fail now and then, presses that are killed, messages that
//! come twice, also in one batch, and in any order, and direct calls between the batches. In the end every good message
//! has its one right object and every bad one stands in the failed queue.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::support::{OUTPUT, Stage, config, letter, processes, received, record, record_of, run};
use nix::sys::signal::Signal;
use pressrun::function::deadline::Deadline;
use serde_json::{Value, json};

const MESSAGES: usize = 2000;
/// Standard queues may deliver far more at once than ten.
const BATCH: usize = 100;

/// A message, and how a queue sees it.
struct Message {
    record: Value,
    /// What is wrong with it, if it is bad.
    error_code: Option<&'static str>,
    deliveries: u32,
    is_deleted: bool,
}

fn messages() -> Vec<Message> {
    let of = |number: usize| {
        let id = format!("m-{number}");
        let (record, error_code) = match number % 30 {
            0 => (record_of(&id, "{"), Some("InvalidMessage")),
            10 => (record(&id, "no-such-template", json!({})), Some("UnknownTemplate")),
            20 => (record(&id, "broken-at-line-3", json!({"broken": true})), Some("TypstError")),
            _ => (letter(&id), None),
        };
        Message { record, error_code, deliveries: 0, is_deleted: false }
    };
    (0..MESSAGES).map(of).collect()
}

fn chance(number: usize, round: u32) -> u64 {
    let mut hasher = DefaultHasher::new();
    (number, round).hash(&mut hasher);
    hasher.finish()
}

/// Whoever is not deleted, and one in twenty of those that are, in any order.
fn deliverable(messages: &[Message], round: u32) -> Vec<usize> {
    let comes = |number: &usize| !messages[*number].is_deleted || chance(*number, round).is_multiple_of(20);
    let mut numbers: Vec<usize> = (0..messages.len()).filter(comes).collect();
    numbers.sort_by_key(|number| chance(*number, round + 1000));
    numbers
}

fn id(message: &Message) -> &str {
    message.record["messageId"].as_str().unwrap()
}

/// Calls the function itself with a letter, again as long as that fails for now.
async fn call_until_stored(stage: &mut Stage, number: usize) {
    let key = format!("direct/{number}.pdf");
    let event = json!({"template": "letter", "data": {"to": "you"}, "key": key}).to_string();
    for _ in 0..20 {
        match stage.function.answer(&event, Deadline::NONE).await {
            Ok(answer) => return assert_eq!(serde_json::to_value(answer).unwrap()["key"], key),
            Err(error) => {
                let transient = ["StorageUnavailable", "StorageDenied", "AnnouncementFailed", "RunLost"];
                assert!(transient.contains(&error.error_type), "{error:?}");
            }
        }
    }
    panic!("{key} was never stored");
}

#[test]
fn of_two_thousand_messages_each_good_one_has_its_object_and_each_bad_one_is_dead_lettered() {
    run(async {
        let mut stage = Stage::with_queues(config(2), Some("failed"), Some("done")).await;
        stage.s3.stumble_one_in(10);
        stage.sqs.stumble_one_in(10);
        let mut messages = messages();
        let (mut batches, mut direct_calls) = (0, 0);
        for round in 0..10 {
            for batch in deliverable(&messages, round).chunks(BATCH) {
                let mut records = Vec::new();
                for number in batch {
                    messages[*number].deliveries += 1;
                    records.push(received(messages[*number].deliveries, messages[*number].record.clone()));
                }
                // Some come twice in one batch.
                let twice: Vec<Value> = records.iter().step_by(17).cloned().collect();
                records.extend(twice);
                batches += 1;
                if batches % 7 == 0 {
                    processes::signal(stage.function.press_id().unwrap(), Signal::SIGKILL);
                }
                let failed: BTreeSet<String> = stage.handle_until(records, Deadline::NONE).await.into_iter().collect();
                for number in batch {
                    messages[*number].is_deleted |= !failed.contains(id(&messages[*number]));
                }
                if batches % 5 == 0 {
                    call_until_stored(&mut stage, batches).await;
                    direct_calls += 1;
                }
            }
        }
        let again: Vec<u32> = messages.iter().map(|message| message.deliveries).filter(|times| *times > 1).collect();
        assert!(again.len() > 300 && messages.iter().all(|message| message.is_deleted), "each is done in the end");

        let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for message in stage.sqs.messages("failed") {
            let code = message.attributes["ErrorCode"].clone();
            reasons.entry(message.attributes["MessageId"].clone()).or_default().push(code);
        }
        let done = stage.sqs.messages("done");
        let announced: BTreeSet<String> =
            done.iter().map(|one| serde_json::from_str::<Value>(&one.body).unwrap()["messageId"].to_string()).collect();
        for message in &messages {
            let id = id(message);
            let object = stage.s3.object(OUTPUT, &format!("letter/{id}.pdf"));
            if let Some(error_code) = message.error_code {
                assert!(reasons[id].iter().all(|code| code == error_code), "{id}: {:?}", reasons[id]);
                assert!(object.is_none() && !announced.contains(&json!(id).to_string()), "{id}");
            } else {
                assert_eq!(object.unwrap().metadata["message-id"], id);
                assert!(stage.pdf("letter", id).is_some() && announced.contains(&json!(id).to_string()), "{id}");
                assert!(!reasons.contains_key(id), "{id}: {:?}", reasons[id]);
            }
        }
        assert!(direct_calls > 3, "{direct_calls}");
        assert_eq!(stage.s3.keys(OUTPUT).len(), MESSAGES * 9 / 10 + direct_calls);

        // Right ones: the same as where nothing ever fails.
        let mut calm = Stage::with_workers(1).await;
        for message in messages.iter().filter(|message| message.error_code.is_none()).step_by(50) {
            calm.handle(vec![message.record.clone()]).await;
            assert_eq!(calm.pdf("letter", id(message)), stage.pdf("letter", id(message)));
        }
    });
}
