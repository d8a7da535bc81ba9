//! The metrics that the function emits.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

use serde_json::Value;

/// A place for lines of metrics, which its clones read.
#[derive(Clone, Default)]
pub struct EmittedMetrics(Rc<RefCell<Vec<u8>>>);

impl EmittedMetrics {
    /// Takes the lines since this was last called: those of documents, and that of the invocation.
    pub fn take(&self) -> (Vec<Value>, Value) {
        let text = String::from_utf8(self.0.take()).unwrap();
        let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let (documents, mut invocations): (Vec<_>, Vec<_>) =
            records.partition(|record| record["messageId"].is_string());
        assert_eq!(invocations.len(), 1, "{invocations:?}");
        (documents, invocations.remove(0))
    }

    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Takes the line of the invocation.
    pub fn take_invocation(&self) -> Value {
        self.take().1
    }
}

impl Write for EmittedMetrics {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
