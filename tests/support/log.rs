//! What the function says in its log.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::Once;

use pressrun::config::LogSettings;
use pressrun::function::logging;

thread_local! {
    static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Collects from now on what pressrun logs, as text, for each thread, and so each test, by itself.
/// To be called before anything is logged: tracing remembers whom that interests.
pub fn collect() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = logging::subscriber(LogSettings::from_variables(|_| None), || Collector);
        tracing::subscriber::set_global_default(subscriber).unwrap();
    });
}

/// The lines since this was asked last that contain this, each with its level, and whose it is.
pub fn take(part: &str) -> Vec<String> {
    let text = String::from_utf8(TEXT.take()).unwrap();
    text.lines().filter(|line| line.contains(part)).map(|line| line.trim_start().to_owned()).collect()
}

struct Collector;

impl Write for Collector {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        TEXT.with_borrow_mut(|text| text.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
