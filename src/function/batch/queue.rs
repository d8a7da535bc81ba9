//! Where a batch's tasks wait for a worker: documents first, and parts of divided documents when nothing else waits.

use std::time::Instant;

use tokio::sync::{Mutex, mpsc, oneshot};

use super::cores::WaitingDocument;
use super::render::{DocumentTask, RenderFailure, Rendered};
use crate::press::protocol::Task;

/// A task that waits for a worker.
pub(super) struct QueuedTask<'a> {
    pub task: DocumentTask<'a>,
    pub waiting: Option<WaitingDocument>,
    pub queued_at: Instant,
    /// When nobody waits for the response any more, the task is not begun, or given up.
    pub response: oneshot::Sender<Result<Rendered, RenderFailure>>,
}

/// Where tasks are sent to. When the last clone is dropped and nothing is left, the workers end their runs.
#[derive(Clone)]
pub(super) struct WorkQueue<'a> {
    first: mpsc::UnboundedSender<QueuedTask<'a>>,
    parts: mpsc::UnboundedSender<QueuedTask<'a>>,
}

/// Where workers take tasks from.
pub(super) struct Work<'a>(Mutex<Receivers<'a>>);

struct Receivers<'a> {
    first: mpsc::UnboundedReceiver<QueuedTask<'a>>,
    parts: mpsc::UnboundedReceiver<QueuedTask<'a>>,
}

/// Makes a queue with both its ends.
pub(super) fn work_queue<'a>() -> (WorkQueue<'a>, Work<'a>) {
    let (first, first_receiver) = mpsc::unbounded_channel();
    let (parts, parts_receiver) = mpsc::unbounded_channel();
    let receivers = Receivers { first: first_receiver, parts: parts_receiver };
    (WorkQueue { first, parts }, Work(Mutex::new(receivers)))
}

impl<'a> WorkQueue<'a> {
    /// Sends a task to whichever worker is free next. What comes of it can be waited for; if that is dropped, the
    /// task is given up.
    pub fn send(
        &self,
        task: DocumentTask<'a>,
        waiting: Option<WaitingDocument>,
    ) -> oneshot::Receiver<Result<Rendered, RenderFailure>> {
        let queue = if matches!(task.header.task, Task::RenderPart(_)) { &self.parts } else { &self.first };
        let (response, rendered) = oneshot::channel();
        let is_sent = queue.send(QueuedTask { task, waiting, queued_at: Instant::now(), response }).is_ok();
        debug_assert!(is_sent, "workers wait as long as tasks can be sent to them");
        rendered
    }
}

impl<'a> Work<'a> {
    /// Waits for the next task. `None` when there is none and none can come any more.
    pub async fn next(&self) -> Option<QueuedTask<'a>> {
        let Receivers { first, parts } = &mut *self.0.lock().await;
        tokio::select! {
            biased;
            Some(task) = first.recv() => Some(task),
            Some(part) = parts.recv() => Some(part),
            else => None,
        }
    }
}
