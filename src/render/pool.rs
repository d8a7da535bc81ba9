//! A pool of threads that lives for one document and can grow while the document is rendered.
//!
//! Dropping a rayon pool tells its threads to end but does not wait for them, which is the leak that this
//! project exists for. Here every thread is spawned by this module and joined by its handle.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::thread::{self, JoinHandle};

use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};

/// The stack of each thread, in bytes. Typst recurses deeply, but its own depth checks end a document well before
/// this much is used.
pub const STACK_BYTES: usize = 16 * 1024 * 1024;

/// Runs `work` on a pool of its own, and returns when it is done and every thread of the pool has been joined.
///
/// The pool starts with `threads` threads. `supervise` runs meanwhile on the calling thread, and may start more
/// threads, up to `max_threads`. It has to return once `done` has been called, which happens whether `work`
/// returns or panics.
///
/// # Errors
/// When the first thread cannot be spawned. It is not an error if fewer than `threads` can be.
///
/// # Panics
/// With the panic of `work`, after all threads are joined.
pub fn on_own_pool<T: Send>(
    threads: usize,
    max_threads: usize,
    work: impl FnOnce() -> T + Send,
    done: impl Fn() + Send,
    supervise: impl FnOnce(&mut Growing),
) -> io::Result<T> {
    let mut unstarted = Vec::with_capacity(max_threads);
    let pool = ThreadPoolBuilder::new()
        .num_threads(max_threads.max(1))
        .thread_name(|index| format!("page-{}", index + 1))
        .stack_size(STACK_BYTES)
        .spawn_handler(|thread| {
            unstarted.push(thread);
            Ok(())
        })
        .build()
        .map_err(io::Error::other)?;
    // They are started from the end of the list.
    unstarted.reverse();
    let mut growing = Growing { unstarted, started: Vec::with_capacity(max_threads) };
    growing.start_one()?;
    growing.grow_to(threads);

    let mut result = None;
    pool.in_place_scope(|scope| {
        let result = &mut result;
        scope.spawn(move |_| {
            *result = Some(panic::catch_unwind(AssertUnwindSafe(work)));
            done();
        });
        supervise(&mut growing);
    });
    growing.join(pool);
    match result.expect("the scope waits for what it spawned") {
        Ok(value) => Ok(value),
        Err(panic) => panic::resume_unwind(panic),
    }
}

/// Runs `work` on a pool of `threads` threads, all of which are joined before this returns.
///
/// # Errors
/// When no thread can be spawned.
///
/// # Panics
/// With the panic of `work`, after all threads are joined.
pub fn on_fixed_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_own_pool(threads, threads, work, || (), |_| ())
}

/// The threads of a pool: those that run, and those that may still be started.
///
/// To rayon a thread that has not been started looks busy, so no work ever waits for it.
pub struct Growing {
    unstarted: Vec<ThreadBuilder>,
    started: Vec<JoinHandle<()>>,
}

impl Growing {
    /// Starts threads until there are `threads` of them, or as many as the pool's bound and the system allow: a
    /// document is better rendered with fewer than not at all.
    pub fn grow_to(&mut self, threads: usize) {
        while self.started.len() < threads && self.start_one().is_ok() {}
    }

    fn start_one(&mut self) -> io::Result<()> {
        let Some(thread) = self.unstarted.pop() else {
            return Err(io::Error::other("the pool has all the threads it may have"));
        };
        let mut builder = thread::Builder::new().stack_size(STACK_BYTES);
        if let Some(name) = thread.name() {
            builder = builder.name(name.to_owned());
        }
        self.started.push(builder.spawn(move || thread.run())?);
        Ok(())
    }

    fn join(self, pool: ThreadPool) {
        drop(pool);
        for thread in self.started {
            // rayon catches the panics of jobs, so a thread itself never panics.
            let _ = thread.join();
        }
    }
}
