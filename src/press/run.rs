//! A run: a copy of its press, forked for one invocation. Renders documents one at a time, each on
//! a pool of its own, until its requests end.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem::{self, ManuallyDrop};
use std::os::fd::AsFd;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::protocol::{
    self, DocumentHeader, Frame, FrameKind, FrameReader, FrameWriter, ReadStatus, Response, RunLimits, Task,
};
use super::sandbox::{self, SandboxLevel};
use crate::os;
use crate::render::parts::Division;
use crate::render::timings::Recording;
use crate::render::{self, Document, RenderError, RenderedPdf, Renderer, pool};

/// Exit codes of a run, none of which a document can cause.
const EXIT_DONE: i32 = 0;
const EXIT_PIPE_BROKEN: i32 = 81;
const EXIT_PANICKED: i32 = 82;
/// The run has responded that Typst panicked, and ends after that.
const EXIT_AFTER_PANIC: i32 = 84;

/// Serves requests from stdin until that ends, then ends this process.
///
/// Unless a document is waiting already, the sample is rendered first, only for its effect on this process's
/// memory: a fresh copy pays for every page that it touches first. The first run of a press also renders it
/// before that, to prove that the sandbox allows it.
pub(super) fn main(renderer: &Renderer, cores: usize, level: SandboxLevel, sample: Option<&str>, is_first: bool) -> ! {
    panic::set_hook(Box::new(panic_hook));
    // Nothing may unwind into the frames copied from the press.
    let served = panic::catch_unwind(AssertUnwindSafe(|| {
        // Not dropped: to close a file, a debug build makes a system call that a run may not make.
        let mut run = ManuallyDrop::new(Run::start(renderer, cores, level)?);
        run.warm_up(sample.and_then(|template| renderer.sample(template)), is_first)?;
        run.serve()
    }));
    os::exit_now(match served {
        Ok(Ok(exit_code)) => exit_code,
        Ok(Err(error)) => {
            eprintln!("run: {error}");
            EXIT_PIPE_BROKEN
        }
        Err(_) => EXIT_PANICKED,
    })
}

/// Writes a panic's place to stderr, which goes to the log. Its message may quote a message's data, and is in
/// the response, redacted.
fn panic_hook(panic: &PanicHookInfo) {
    match panic.location() {
        Some(place) => eprintln!("panicked at {place}"),
        None => eprintln!("panicked"),
    }
}

struct Run<'a> {
    renderer: &'a Renderer,
    cores: usize,
    requests: FrameReader<io::Stdin>,
    responses: io::Stdout,
    /// Tells the listening thread that a document is done.
    done: EventFd,
}

impl<'a> Run<'a> {
    /// Restricts this process to what rendering needs.
    fn start(renderer: &'a Renderer, cores: usize, level: SandboxLevel) -> io::Result<Self> {
        let (requests, responses) = (FrameReader::new(io::stdin()), io::stdout());
        let done = EventFd::new()?;
        os::exit_on_out_of_memory();
        sandbox::restrict_run(level)?;
        Ok(Self { renderer, cores, requests, responses, done })
    }

    /// Renders the sample with an empty memo cache, so that the page faults of a fresh copy happen now and not in
    /// the first document. With the press's memo cache little would be touched: an invoice would then take 1.5
    /// times as long as in a process that never ends, instead of 1.1 times.
    fn warm_up(&mut self, sample: Option<Document>, is_first: bool) -> io::Result<()> {
        let Some(sample) = sample else { return Ok(()) };
        let began = Instant::now();
        // The PDF is not needed, and it does not matter whether there is one.
        let render = || pool::on_fixed_pool(1, || self.renderer.render(sample.clone())).map(drop);
        if is_first {
            render()?;
            protocol::write(&self.responses, Frame::empty(FrameKind::Sandboxed))?;
        }
        if !is_readable(&self.requests.pipe)? {
            render::evict_cache(0);
            render()?;
        }
        protocol::write(&self.responses, Frame::json(FrameKind::Warm, &began.elapsed()))
    }

    /// Renders documents until there are no more. Returns the code to exit with.
    fn serve(&mut self) -> io::Result<i32> {
        while let Some(Requested { header, limits, content }) = next_document(&mut self.requests)? {
            protocol::write(&self.responses, Frame::empty(FrameKind::Begun))?;
            limit_memory(limits.memory_bytes)?;
            let response = self.respond(&header, limits, content)?;
            let has_panicked = matches!(response, Response::Panicked { .. });
            protocol::write(&self.responses, response.into_frame())?;
            if has_panicked {
                // The panic may have left a lock of Typst's poisoned, and another run costs half a millisecond.
                return Ok(EXIT_AFTER_PANIC);
            }
            render::evict_cache(1);
        }
        Ok(EXIT_DONE)
    }

    /// Does what is asked for and sends the PDF if there is one, and its timings if they are asked for.
    fn respond(&mut self, header: &DocumentHeader, limits: RunLimits, content: Content) -> io::Result<Response> {
        let began = Instant::now();
        let Content { document, parts } = content;
        let recording = header.timings_slower_than.map(|_| Recording::begin());
        // Kept for the message of a panic; no bytes are copied.
        let kept = document.clone();
        let work =
            || self.perform_while_listening(limits.threads, |renderer| perform(renderer, header, document, parts));
        let pdf = match panic::catch_unwind(AssertUnwindSafe(work)) {
            Ok(performed) => match performed? {
                Ok(Performed::Pdf(pdf)) => pdf,
                Ok(Performed::Division(division)) => return Ok(Response::Divided(division)),
                Err(RenderError::Data(violations)) => return Ok(Response::InvalidData { violations }),
                Err(RenderError::Typst(diagnostics)) => return Ok(Response::TypstError { diagnostics }),
                Err(RenderError::UnknownTemplate) => {
                    return Err(io::Error::other("was asked for a template that its press does not have"));
                }
            },
            Err(panic) => {
                let message = self.renderer.redact_panic(&kept, &panic_message(&*panic));
                return Ok(Response::Panicked { message });
            }
        };
        let render_time = began.elapsed();
        let RenderedPdf { bytes, pages, e_invoice, warnings, reads_pages } = pdf;
        for chunk in protocol::chunks(FrameKind::Pdf, &Bytes::from(bytes)) {
            protocol::write(&self.responses, chunk)?;
        }
        if let (Some(recording), Some(slower_than)) = (recording, header.timings_slower_than)
            && render_time > slower_than
            && has_time_for_timings(render_time, limits.time)
        {
            let writer = FrameWriter { pipe: &self.responses, kind: FrameKind::Timings };
            recording.export(self.renderer, &header.template, writer)?;
        }
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        Ok(Response::Rendered { pages, e_invoice, warnings, render_time, reads_pages })
    }

    /// Does work on a pool, and meanwhile starts more threads for it as the function allows them.
    fn perform_while_listening<T: Send>(
        &mut self,
        threads: usize,
        work: impl FnOnce(&Renderer) -> T + Send,
    ) -> io::Result<T> {
        let Self { renderer, cores, requests, done, .. } = self;
        let renderer = *renderer;
        let mut listened = Ok(());
        let performed = pool::on_own_pool(
            threads,
            *cores,
            || work(renderer),
            || {
                done.write(1).expect("an eventfd takes a one");
            },
            |growing| listened = listen(requests, done, growing),
        );
        // The only error is that there was no memory for the first thread's stack.
        let Ok(performed) = performed else { os::exit_out_of_memory(pool::STACK_BYTES) };
        listened.map(|()| performed)
    }
}

/// What has come of a task.
enum Performed {
    Pdf(RenderedPdf),
    Division(Division),
}

/// Does what is asked for with a document, on the pool that this is called on.
fn perform(
    renderer: &Renderer,
    header: &DocumentHeader,
    document: Document,
    parts: Vec<Bytes>,
) -> Result<Performed, RenderError> {
    let pdf = match header.task {
        Task::Render => match renderer.divide(&document)? {
            Some(division) => return Ok(Performed::Division(division)),
            None => renderer.render(document)?,
        },
        Task::RenderPart(_) => renderer.render(document)?,
        Task::Join { pages, .. } => renderer.join(&document, parts, pages)?,
    };
    Ok(Performed::Pdf(pdf))
}

/// Whether a document's timings can surely be written before its time is over, since a document must not fail
/// for them: writing takes a fraction of the time that recording took.
fn has_time_for_timings(render_time: Duration, time_limit: Duration) -> bool {
    time_limit.saturating_sub(render_time) > render_time
}

/// A request that has arrived whole.
struct Requested {
    header: DocumentHeader,
    limits: RunLimits,
    content: Content,
}

/// What has arrived with a header.
struct Content {
    /// The document; without data if its parts are to be joined.
    document: Document,
    /// The PDFs of its parts, if these are to be joined.
    parts: Vec<Bytes>,
}

/// What has arrived so far with a header. Each part's PDF has memory of its own, which is let go of when it is joined.
#[derive(Default)]
struct Arriving {
    /// The lengths of the parts' PDFs that are not whole yet.
    lengths: VecDeque<usize>,
    parts: Vec<Bytes>,
    /// The beginning of the next part.
    part: BytesMut,
    /// What comes without parts or after them: the data, and the files.
    rest: BytesMut,
}

impl Arriving {
    fn of(task: &Task) -> Self {
        let lengths = match task {
            Task::Join { parts, .. } => parts.iter().copied().collect(),
            Task::Render | Task::RenderPart(_) => VecDeque::new(),
        };
        Self { lengths, ..Self::default() }
    }

    fn push(&mut self, mut bytes: &[u8]) {
        while let Some(length) = self.lengths.front() {
            let (of_part, others) = bytes.split_at(bytes.len().min(length - self.part.len()));
            self.part.extend_from_slice(of_part);
            bytes = others;
            if self.part.len() < *length {
                return;
            }
            self.parts.push(mem::take(&mut self.part).freeze());
            self.lengths.pop_front();
        }
        self.rest.extend_from_slice(bytes);
    }

    /// Takes apart what has arrived: the data, followed by the files.
    fn finish(self, header: &DocumentHeader) -> io::Result<Content> {
        let mut rest = self.rest.freeze();
        let mut files = BTreeMap::new();
        let not_whole = || io::Error::other("a document's files or parts are not whole");
        for (name, bytes) in header.files.iter().rev() {
            let start = rest.len().checked_sub(*bytes).ok_or_else(not_whole)?;
            files.insert(name.clone(), rest.split_off(start));
        }
        if !self.lengths.is_empty() {
            return Err(not_whole());
        }
        let document = Document {
            template: header.template.clone(),
            data: rest,
            files,
            ident: header.ident.clone(),
            timestamp_ms: header.timestamp_ms,
            is_sample: false,
            part: match header.task {
                Task::RenderPart(part) => Some(part),
                Task::Render | Task::Join { .. } => None,
            },
        };
        Ok(Content { document, parts: self.parts })
    }
}

/// Sets `RLIMIT_DATA` of this process, which cannot raise it again. Memory that it kept from the last document
/// counts, but can be used again.
fn limit_memory(bytes: Option<u64>) -> io::Result<()> {
    if let Some(bytes) = bytes {
        let (_, max_bytes) = getrlimit(Resource::RLIMIT_DATA)?;
        let bytes = bytes.min(max_bytes);
        setrlimit(Resource::RLIMIT_DATA, bytes, bytes)?;
    }
    Ok(())
}

/// Waits until a document's request is complete.
fn next_document(requests: &mut FrameReader<io::Stdin>) -> io::Result<Option<Requested>> {
    let mut header: Option<(DocumentHeader, RunLimits)> = None;
    let mut arriving = Arriving::default();
    while let Some(frame) = requests.wait()? {
        match (frame.kind, header.take()) {
            (FrameKind::Document, None) => {
                let (document, limits): (DocumentHeader, RunLimits) = frame.parse()?;
                arriving = Arriving::of(&document.task);
                header = Some((document, limits));
            }
            (FrameKind::Data, Some(begun)) => {
                arriving.push(&frame.payload);
                header = Some(begun);
            }
            (FrameKind::Render, Some((header, limits))) => {
                let content = arriving.finish(&header)?;
                return Ok(Some(Requested { header, limits, content }));
            }
            // It has come too late for the document that it was meant for.
            (FrameKind::Threads | FrameKind::EvictCache, none) => header = none,
            (kind, _) => return Err(io::Error::other(format!("a {kind:?} frame where it makes no sense"))),
        }
    }
    Ok(None)
}

/// Listens for requests while a document is rendered, and returns when that is done. An error of the
/// requests' pipe is kept until then.
fn listen(requests: &mut FrameReader<io::Stdin>, done: &EventFd, growing: &mut pool::Growing) -> io::Result<()> {
    let mut result = Ok(());
    let mut eviction = Eviction::default();
    loop {
        if result.is_ok() {
            result = apply_updates(requests, growing, &mut eviction);
        }
        let mut files =
            [PollFd::new(done.as_fd(), PollFlags::POLLIN), PollFd::new(requests.pipe.as_fd(), PollFlags::POLLIN)];
        let watched = if result.is_ok() { 2 } else { 1 };
        match poll(&mut files[..watched], PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if files[0].any() == Some(true) {
            done.read()?;
            return result;
        }
        if files[1].any() == Some(true) && requests.read()? == ReadStatus::Eof {
            result = Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Applies what has arrived while a document is being rendered: it may use more threads, or has to let go of
/// memory.
fn apply_updates(
    requests: &mut FrameReader<io::Stdin>,
    growing: &mut pool::Growing,
    eviction: &mut Eviction,
) -> io::Result<()> {
    while let Some(frame) = requests.buffered()? {
        match frame.kind {
            FrameKind::Threads => growing.grow_to(frame.parse()?),
            // Here and not on a thread of its own: to start one might take the memory that is short.
            FrameKind::EvictCache => eviction.evict(),
            kind => return Err(io::Error::other(format!("a {kind:?} frame while a document is being rendered"))),
        }
    }
    Ok(())
}

/// Evicts Typst's memo cache as it is asked to, but for a third of the time at most: meanwhile the document stands
/// still. An eviction looks at the whole cache, which takes long where most of it is in use.
#[derive(Default)]
struct Eviction {
    not_before: Option<Instant>,
}

impl Eviction {
    fn evict(&mut self) {
        let began = Instant::now();
        if self.not_before.is_some_and(|time| began < time) {
            return;
        }
        render::evict_cache(1);
        self.not_before = Some(Instant::now() + began.elapsed() * 2);
    }
}

fn is_readable(pipe: &impl AsFd) -> io::Result<bool> {
    let mut files = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut files, PollTimeout::ZERO)? > 0)
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|message| (*message).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_that_is_rendered_never_runs_out_of_time_for_its_timings() {
        let has_time =
            |took_ms, limit_ms| has_time_for_timings(Duration::from_millis(took_ms), Duration::from_millis(limit_ms));
        assert!(has_time(400, 1_000) && !has_time(600, 1_000) && !has_time(1_100, 1_000));
    }
}
