//! What a test wants requests to be answered with instead of being served.

use std::collections::VecDeque;
use std::sync::Mutex;

pub struct Faults<F> {
    /// With what a request has to contain that gets one.
    next: Mutex<VecDeque<(String, F)>>,
    /// For every such request, after `next`.
    lasting: Mutex<Option<(String, F)>>,
}

impl<F> Default for Faults<F> {
    fn default() -> Self {
        Self { next: Mutex::default(), lasting: Mutex::default() }
    }
}

impl<F: Copy> Faults<F> {
    /// Answers the next requests that contain this with these faults, one each.
    pub fn answer_next(&self, request: &str, faults: impl IntoIterator<Item = F>) {
        self.next.lock().unwrap().extend(faults.into_iter().map(|fault| (request.to_owned(), fault)));
    }

    /// Answers every request that contains this with this fault from now on, or as it should again.
    pub fn answer_all(&self, request: &str, fault: Option<F>) {
        *self.lasting.lock().unwrap() = fault.map(|fault| (request.to_owned(), fault));
    }

    pub fn of(&self, request: &str) -> Option<F> {
        let mut next = self.next.lock().unwrap();
        if let Some(index) = next.iter().position(|(part, _)| request.contains(part)) {
            return next.remove(index).map(|(_, fault)| fault);
        }
        let lasting = self.lasting.lock().unwrap();
        lasting.as_ref().filter(|(part, _)| request.contains(part)).map(|(_, fault)| *fault)
    }
}
