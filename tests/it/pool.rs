//! The pool of one document. In a program of its own, since it counts this process's threads.

use crate::support::processes::{threads, until};
use crate::support::{run, test_templates};
use pressrun::render::{Renderer, pool};

/// The story's own regression test: three documents on a pool of ten.
#[test]
fn three_documents_on_a_pool_of_ten_leave_no_thread() {
    run(async {
        let renderer = Renderer::load(&test_templates()).unwrap();
        let before = threads(std::process::id());
        for _ in 0..3 {
            let document = renderer.sample("long").unwrap();
            pool::on_fixed_pool(10, || renderer.render(document)).unwrap().unwrap();
            // A joined thread may be in the kernel's list for some microseconds more.
            until("the threads are as before", || threads(std::process::id()) == before).await;
        }
    });
}
