//! A long document is rendered in the memory that there is, by letting go of Typst's memo cache; and nothing
//! else comes of that.
//!
//! What memory there is depends on what this process has, so the tests run alone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::processes::{run_of, signal, until, until_runs_wait};
use crate::support::{Stage, config, letter, log, real_templates, record, run_alone, test_templates};
use nix::sys::signal::Signal;
use pressrun::census;
use pressrun::config::Config;
use pressrun::render::{self, Renderer, pool};
use serde_json::{Value, json};

/// As much memory for a run as a table of 4,000 rows fits into only without Typst's memo cache.
const MEGABYTES: u64 = 400;

fn table(id: &str, rows: usize) -> Value {
    record(id, "table", json!({"rows": rows, "page-total": false}))
}

#[test]
fn a_table_that_fits_only_without_the_memo_cache_has_the_same_bytes_as_with_it() {
    run_alone(async {
        for cores in [2, 1] {
            let (mut roomy, emitted) = Stage::with_metrics(Config { cores, ..config(1) }).await;
            assert_eq!(roomy.handle(vec![table("a", 4_000)]).await, [""; 0]);
            let (documents, invocation) = emitted.take();
            let peak = invocation["RunPeakMemory"].as_u64().unwrap();
            assert!(peak > MEGABYTES * 1_500_000, "with its cache it has {peak} bytes");
            assert!(documents[0]["CacheEvictions"].is_null());
            log::take("");

            let limited = Config { cores, ..Stage::config_with_memory(1, MEGABYTES).await };
            let (mut tight, emitted) = Stage::with_metrics(limited).await;
            assert_eq!(tight.handle(vec![table("a", 4_000)]).await, [""; 0], "{:?}", log::take(""));
            let (documents, invocation) = emitted.take();
            assert!(invocation["RunPeakMemory"].as_u64().unwrap() < MEGABYTES * 1_000_000);
            assert!(documents[0]["CacheEvictions"].as_u64().unwrap() > 0);
            assert!(log::take("stored")[0].contains("cacheEvictions="));
            assert_eq!(tight.pdf("table", "a"), roomy.pdf("table", "a"));
        }
    });
}

#[test]
fn a_document_that_fits_is_rendered_with_the_whole_memo_cache() {
    run_alone(async {
        let (mut stage, emitted) = Stage::with_metrics(Stage::config_with_memory(1, MEGABYTES).await).await;
        assert_eq!(stage.handle(vec![letter("a"), table("b", 200)]).await, [""; 0]);
        let (documents, _) = emitted.take();
        assert!(documents.iter().all(|document| document["CacheEvictions"].is_null()), "{documents:?}");
    });
}

#[test]
fn a_document_that_does_not_fit_or_is_killed_while_its_cache_is_evicted_harms_no_other() {
    run_alone(async {
        let (mut stage, emitted) = Stage::with_metrics(Stage::config_with_memory(1, MEGABYTES).await).await;
        assert_eq!(stage.handle(vec![table("long", 40_000), letter("a")]).await, ["long"]);
        assert_eq!(emitted.take_invocation()["Leaks"], 0, "{:?}", log::take(""));

        let press = stage.function.press_id().unwrap();
        until_runs_wait(press).await;
        let (failed, ()) = tokio::join!(stage.handle(vec![table("b", 3_000), letter("c")]), async {
            until("the run has half of its memory", || census::data_bytes(run_of(press)) > MEGABYTES * 500_000).await;
            signal(run_of(press), Signal::SIGKILL);
        });
        assert_eq!(failed, [""; 0], "it is rendered again");
        let invocation = emitted.take_invocation();
        assert_eq!([&invocation["RunsLost"], &invocation["Leaks"]], [1, 0], "{:?}", log::take(""));
    });
}

/// Renders all samples of a folder, in their order.
fn render_samples(renderer: &Renderer, threads: usize) -> Vec<Option<Vec<u8>>> {
    let names = renderer.templates().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
    let render = |name: &String| {
        let sample = renderer.sample(name).unwrap();
        pool::on_fixed_pool(threads, || renderer.render(sample)).unwrap().ok().map(|pdf| pdf.bytes)
    };
    names.iter().map(render).collect()
}

#[test]
fn an_eviction_at_any_moment_neither_hangs_a_document_nor_changes_it() {
    run_alone(async {
        for templates in [test_templates(), real_templates()] {
            let renderer = Renderer::load(&templates).unwrap();
            for threads in [1, 4] {
                render::evict_cache(0);
                let undisturbed = render_samples(&renderer, threads);
                render::evict_cache(0);
                let is_over = AtomicBool::new(false);
                thread::scope(|scope| {
                    scope.spawn(|| {
                        while !is_over.load(Ordering::Relaxed) {
                            render::evict_cache(1);
                            thread::sleep(Duration::from_millis(1));
                        }
                    });
                    for _ in 0..3 {
                        assert!(render_samples(&renderer, threads) == undisturbed, "{}", templates.display());
                    }
                    is_over.store(true, Ordering::Relaxed);
                });
            }
        }
    });
}
