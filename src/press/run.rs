//! A run: a copy of its press, forked for one invocation. Sets documents one at a time, each on
//! a pool of its own, until its requests end.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use super::frames::{self, Answer, Frame, FrameReader, FrameWriter, Header, Kind, Read};
use super::sandbox::RunFilters;
use crate::os;
use crate::typeset::redaction::Redaction;
use crate::typeset::trace::Recording;
use crate::typeset::{self, Document, SetError, Typesetter, pool};

/// Exit codes, which the press tells apart from what a document does to its run.
const EXIT_DONE: i32 = 0;
const EXIT_PIPE_BROKEN: i32 = 81;
const EXIT_PANICKED: i32 = 82;
/// It has said of a document that Typst panicked, which is all there is to say of it.
pub(super) const EXIT_AFTER_PANIC: i32 = 84;

/// What a trace takes at most to be written, with some to spare: it is half a million events.
const TIME_FOR_A_TRACE: Duration = Duration::from_secs(2);

/// Serves requests from stdin until it ends, then ends this process.
///
/// The sample of the template `sample` is set first, for nothing but its effect on this
/// process's memory: a fresh copy pays for every page that it touches first. Not if a document
/// is waiting already.
pub fn main(typesetter: &Typesetter, most_threads: usize, filters: &RunFilters, sample: Option<&str>) -> ! {
    panic::set_hook(Box::new(say_where));
    // Nothing may unwind into the frames copied from the press.
    let served = panic::catch_unwind(AssertUnwindSafe(|| serve(typesetter, most_threads, filters, sample)));
    os::exit_now(match served {
        Ok(Ok(exit_code)) => exit_code,
        Ok(Err(error)) => {
            eprintln!("run: {error}");
            EXIT_PIPE_BROKEN
        }
        Err(_) => EXIT_PANICKED,
    })
}

/// What a panic says on stderr, which goes to the log. Its message may quote a message's data: that
/// is in the answer, without them.
fn say_where(panic: &PanicHookInfo) {
    match panic.location() {
        Some(place) => eprintln!("panicked at {place}"),
        None => eprintln!("panicked"),
    }
}

/// Gives the code to exit with.
fn serve(typesetter: &Typesetter, most_threads: usize, filters: &RunFilters, sample: Option<&str>) -> io::Result<i32> {
    let mut requests = FrameReader::new(io::stdin());
    let answers = io::stdout();
    let done = EventFd::new()?;
    os::exit_when_out_of_memory();
    filters.wall_in_run()?;
    if let Some(sample) = sample.and_then(|template| typesetter.sample(template)) {
        if !is_readable(&requests.pipe)? {
            warm_up(typesetter, sample)?;
        }
        frames::write(&answers, Frame::empty(Kind::Warm))?;
    }
    while let Some((header, data)) = next_document(&mut requests)? {
        frames::write(&answers, Frame::empty(Kind::Begun))?;
        let begun = Instant::now();
        limit_memory(header.memory_limit_bytes)?;
        let (threads, slower_than, time_limit) = (header.threads, header.trace_slower_than, header.time_limit);
        let document = document(header, data)?;
        let data = document.data.clone();
        let template = document.template.clone();
        let recording = slower_than.map(|_| Recording::begin());
        let set = panic::catch_unwind(AssertUnwindSafe(|| {
            set_while_listening(typesetter, document, threads, most_threads, &mut requests, &done)
        }));
        let (pdf, answer) = match set {
            Ok(set) => match set? {
                Ok(pdf) => {
                    let answer = Answer::Set { pages: pdf.pages, warnings: pdf.warnings, typesetting: begun.elapsed() };
                    (pdf.bytes, answer)
                }
                Err(SetError::Data(violations)) => (Vec::new(), Answer::DataRefused { violations }),
                Err(SetError::Typst(diagnostics)) => (Vec::new(), Answer::Refused { diagnostics }),
                Err(SetError::UnknownTemplate) => {
                    return Err(io::Error::other("was asked for a template that its press does not have"));
                }
            },
            Err(panic) => {
                (Vec::new(), Answer::Panicked { message: Redaction::of(&data).without_values(&panic_message(&*panic)) })
            }
        };
        let panicked = matches!(answer, Answer::Panicked { .. });
        for chunk in frames::chunks(Kind::Pdf, &Bytes::from(pdf)) {
            frames::write(&answers, chunk)?;
        }
        if let (Some(recording), Answer::Set { typesetting, .. }) = (recording, &answer)
            && slower_than.is_some_and(|slower_than| *typesetting > slower_than)
            && has_time_for_a_trace(*typesetting, time_limit)
        {
            recording.export(typesetter, &template, FrameWriter { pipe: &answers, kind: Kind::Trace })?;
        }
        frames::write(&answers, Frame::json(Kind::Verdict, &answer))?;
        if panicked {
            // It may have left a lock of Typst's poisoned. Another run costs half a millisecond.
            return Ok(EXIT_AFTER_PANIC);
        }
        typeset::forget_older_documents();
    }
    Ok(EXIT_DONE)
}

/// Whether a document's trace can be written before its time is over. A document that is set must
/// not fail for that.
fn has_time_for_a_trace(typesetting: Duration, time_limit: Duration) -> bool {
    time_limit.saturating_sub(typesetting) > typesetting.min(TIME_FOR_A_TRACE)
}

/// Takes apart what has arrived for a document: its data, and behind these its files.
fn document(header: Header, arrived: Bytes) -> io::Result<Document> {
    let mut rest = arrived;
    let mut files = BTreeMap::new();
    for (name, bytes) in header.files.into_iter().rev() {
        let start =
            rest.len().checked_sub(bytes).ok_or_else(|| io::Error::other("a document's files are not whole"))?;
        files.insert(name, rest.split_off(start));
    }
    let Header { template, ident, timestamp_ms, .. } = header;
    Ok(Document { template, data: rest, files, ident, timestamp_ms, is_sample: false })
}

/// Limits what this process may have, all in all. What it still holds of the document before it
/// can use again.
fn limit_memory(bytes: Option<u64>) -> io::Result<()> {
    setrlimit(Resource::RLIMIT_DATA, bytes.unwrap_or(RLIM_INFINITY), RLIM_INFINITY)?;
    Ok(())
}

/// Sets a sample as if for the first time, so that the memory which that takes is this process's
/// own before a document needs it. With the press's memo cache it would be done at once, and
/// touch next to nothing: a run of one invoice then takes 1.5 times as long as one in a run that
/// never ends, instead of 1.1 times.
fn warm_up(typesetter: &Typesetter, sample: Document) -> io::Result<()> {
    typeset::forget_all_documents();
    // What it looks like does not matter, not even whether it comes out.
    let _ = pool::on_fixed_pool(1, || typesetter.set(sample))?;
    Ok(())
}

/// Waits for a document's request to be whole.
fn next_document(requests: &mut FrameReader<io::Stdin>) -> io::Result<Option<(Header, Bytes)>> {
    let mut header: Option<Header> = None;
    let mut data = BytesMut::new();
    while let Some(frame) = requests.wait()? {
        match (frame.kind, header.take()) {
            (Kind::Document, None) => header = Some(frame.parse()?),
            (Kind::Data, Some(begun)) => {
                data.extend_from_slice(&frame.payload);
                header = Some(begun);
            }
            (Kind::Set, Some(whole)) => return Ok(Some((whole, data.freeze()))),
            // Came too late for the document it was meant for.
            (Kind::Threads, none) => header = none,
            (kind, _) => return Err(io::Error::other(format!("a {kind:?} frame where it makes no sense"))),
        }
    }
    Ok(None)
}

/// Sets a document, and meanwhile starts more threads for it as the function allows them.
fn set_while_listening(
    typesetter: &Typesetter,
    document: Document,
    threads: usize,
    most_threads: usize,
    requests: &mut FrameReader<io::Stdin>,
    done: &EventFd,
) -> io::Result<Result<typeset::Pdf, SetError>> {
    let mut broken = Ok(());
    let set = pool::on_own_pool(
        threads,
        most_threads,
        || typesetter.set(document),
        || {
            done.write(1).expect("an eventfd takes a one");
        },
        |growing| broken = listen(requests, done, growing),
    );
    // Only that no thread can be started, for want of room for its stack.
    let Ok(set) = set else { os::exit_out_of_memory(pool::STACK_BYTES) };
    broken.map(|()| set)
}

/// Returns when the document is done. An error of the requests' pipe is kept until then.
fn listen(requests: &mut FrameReader<io::Stdin>, done: &EventFd, growing: &mut pool::Growing) -> io::Result<()> {
    let mut result = Ok(());
    loop {
        if result.is_ok() {
            result = obey(requests, growing);
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
        if files[1].any() == Some(true) && requests.read()? == Read::End {
            result = Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Follows what has arrived while a document is being set: only that it may use more threads.
fn obey(requests: &mut FrameReader<io::Stdin>, growing: &mut pool::Growing) -> io::Result<()> {
    while let Some(frame) = requests.buffered()? {
        match frame.kind {
            Kind::Threads => growing.grow_to(frame.parse()?),
            kind => return Err(io::Error::other(format!("a {kind:?} frame while a document is being set"))),
        }
    }
    Ok(())
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
    fn a_document_that_is_set_never_runs_out_of_time_for_its_trace() {
        let has_time =
            |took_ms, limit_ms| has_time_for_a_trace(Duration::from_millis(took_ms), Duration::from_millis(limit_ms));
        assert!(has_time(27_000, 30_000) && !has_time(28_500, 30_000) && !has_time(31_000, 30_000));
        assert!(has_time(400, 1_000) && !has_time(600, 1_000), "as long again where less is granted");
    }
}
