//! What travels over the pipes between function, press and run: frames of at most 64 KiB, each a
//! length, a kind and a payload.
//!
//! A document goes down as [`Kind::Document`], any number of [`Kind::Data`], [`Kind::Set`]; its
//! answer comes up as any number of [`Kind::Pdf`], then of [`Kind::Trace`], and one
//! [`Kind::Verdict`], the last frame of the answer whatever happened. Between these nothing else
//! comes up.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use nix::errno::Errno;
use nix::unistd;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::codec::{Decoder, Encoder, LengthDelimitedCodec};

use crate::job::Editions;
use crate::typeset::diagnostics::Diagnostic;

/// The largest frame after its length. Also what a pipe holds, so that a frame fits whole.
pub const MOST_FRAME_BYTES: usize = 64 * 1024;
/// How much of a document's data or of a PDF one frame carries, beside its kind.
pub const CHUNK_BYTES: usize = MOST_FRAME_BYTES - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Down: a document begins, as a [`Header`].
    Document = b'D',
    /// Down: a part of its data, or after these of its files, one after the other.
    Data = b'd',
    /// Down: its data are whole; it is to be set.
    Set = b'S',
    /// Down, while a document is being set: it may use this many threads from now on, as JSON.
    Threads = b'T',
    /// Down: this invocation has no more documents for the press. Ends a document under way.
    EndInvocation = b'E',
    /// Up, before that: the press sets the sample of this template, a name as JSON.
    Warming = b'w',
    /// Up, once: the press is warm, or why it is not, as a [`Readiness`].
    Ready = b'R',
    /// Up, from run to press only: it has warmed itself and waits.
    Warm = b'W',
    /// Up, from run to press only: the request is whole, the document's time begins.
    Begun = b'B',
    /// Up: a part of the PDF.
    Pdf = b'P',
    /// Up, after the PDF: a part of its trace, gzipped, if there is one.
    Trace = b't',
    /// Up: the end of an answer, as an [`Answer`].
    Verdict = b'V',
    /// Up: the run has ended and been waited for, another one waits, as a [`RunEnd`].
    InvocationEnded = b'I',
}

impl TryFrom<u8> for Kind {
    type Error = io::Error;

    fn try_from(byte: u8) -> io::Result<Self> {
        use Kind::{
            Begun, Data, Document, EndInvocation, InvocationEnded, Pdf, Ready, Set, Threads, Trace, Verdict, Warm,
            Warming,
        };
        [Document, Data, Set, Threads, EndInvocation, Warming, Ready, Warm, Begun, Pdf, Trace, Verdict, InvocationEnded]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
            .ok_or_else(|| invalid(format!("a frame of the unknown kind {byte:#04x}")))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub payload: Bytes,
}

impl Frame {
    #[must_use]
    pub fn new(kind: Kind, payload: impl Into<Bytes>) -> Self {
        Self { kind, payload: payload.into() }
    }

    #[must_use]
    pub fn empty(kind: Kind) -> Self {
        Self::new(kind, Bytes::new())
    }

    /// A frame whose payload is a value as JSON.
    ///
    /// # Panics
    /// When the value has no JSON form, which none of this module's types lacks.
    #[must_use]
    pub fn json(kind: Kind, value: &impl Serialize) -> Self {
        Self::new(kind, serde_json::to_vec(value).expect("the types that travel have a JSON form"))
    }

    /// Reads the payload as JSON.
    ///
    /// # Errors
    /// When it is none, or not of this type.
    pub fn parse<T: DeserializeOwned>(&self) -> io::Result<T> {
        serde_json::from_slice(&self.payload)
            .map_err(|error| invalid(format!("a {:?} frame that cannot be read: {error}", self.kind)))
    }
}

/// Splits bytes into frames of one kind.
pub fn chunks(kind: Kind, bytes: &Bytes) -> impl Iterator<Item = Frame> {
    (0..bytes.len()).step_by(CHUNK_BYTES).map(move |start| {
        let end = bytes.len().min(start + CHUNK_BYTES);
        Frame::new(kind, bytes.slice(start..end))
    })
}

/// What a run has to know of a document beside its data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Header {
    pub template: String,
    pub ident: String,
    pub timestamp_ms: Option<i64>,
    /// The names of the files that come after the data, and how many bytes each has.
    pub files: Vec<(String, usize)>,
    /// How many threads it may use to begin with.
    pub threads: usize,
    /// How long it may be set. The press keeps this time, from when its run begins.
    pub time_limit: Duration,
    /// How much memory its run may have, as `RLIMIT_DATA` counts it.
    pub memory_limit_bytes: Option<u64>,
    /// If it takes longer to set, its trace is asked for.
    pub trace_slower_than: Option<Duration>,
    /// Whether the run there is has said that it ends, and is to be waited for: this one is for
    /// another.
    pub wants_another_run: bool,
}

/// What a press says when it has started.
#[derive(Debug, Serialize, Deserialize)]
pub enum Readiness {
    Warm { templates: Editions },
    Broken { reason: String },
}

/// The end of every answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The PDF came before this, whole.
    Set { pages: usize, warnings: Vec<Diagnostic>, typesetting: Duration },
    /// The data are not what the template's schema says.
    DataRefused { violations: Vec<Diagnostic> },
    /// Typst found an error.
    Refused { diagnostics: Vec<Diagnostic> },
    /// Typst panicked.
    Panicked { message: String },
    /// The run ended before it had answered. What came of the PDF is worthless.
    RunDied { end: RunEnd, cause: Cause },
}

/// Why a run ended before it had answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// The document had begun, and the way its run ended is one that a document can cause.
    Document,
    /// The document had its time, and the press killed the run.
    TimeLimit,
    /// The run was refused memory.
    MemoryLimit,
    /// Killed from outside, or before the document had begun: it deserves another try.
    Nobody,
}

/// How a run ended, and what it had used by then.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunEnd {
    /// As in "was killed by SIGSEGV".
    pub how: String,
    pub peak_memory_bytes: u64,
    pub cpu_time: Duration,
    /// What it had written to stderr, shortened.
    pub stderr: String,
}

/// Frames to bytes and back.
pub struct FrameCodec(LengthDelimitedCodec);

impl Default for FrameCodec {
    fn default() -> Self {
        Self(LengthDelimitedCodec::builder().max_frame_length(MOST_FRAME_BYTES).new_codec())
    }
}

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = io::Error;

    fn decode(&mut self, bytes: &mut BytesMut) -> io::Result<Option<Frame>> {
        let Some(mut frame) = self.0.decode(bytes)? else { return Ok(None) };
        if frame.is_empty() {
            return Err(invalid("a frame without a kind"));
        }
        let kind = Kind::try_from(frame.split_to(1)[0])?;
        Ok(Some(Frame { kind, payload: frame.freeze() }))
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = io::Error;

    fn encode(&mut self, frame: Frame, bytes: &mut BytesMut) -> io::Result<()> {
        let length = 1 + frame.payload.len();
        if length > MOST_FRAME_BYTES {
            return Err(invalid(format!("a {:?} frame of {length} bytes, more than {MOST_FRAME_BYTES}", frame.kind)));
        }
        bytes.reserve(4 + length);
        bytes.put_u32(u32::try_from(length).expect("a frame is small"));
        bytes.put_u8(frame.kind as u8);
        bytes.put_slice(&frame.payload);
        Ok(())
    }
}

/// Reads frames from a pipe without tokio, for presses and runs.
pub struct FrameReader<F> {
    pub pipe: F,
    codec: FrameCodec,
    buffer: BytesMut,
}

/// What one read from a pipe gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    Some,
    /// Only from a pipe that does not block.
    NothingYet,
    /// The other end is closed.
    End,
}

impl<F: AsFd> FrameReader<F> {
    pub fn new(pipe: F) -> Self {
        Self { pipe, codec: FrameCodec::default(), buffer: BytesMut::new() }
    }

    /// The next frame of what has been read so far.
    ///
    /// # Errors
    /// When that is not a frame.
    pub fn buffered(&mut self) -> io::Result<Option<Frame>> {
        self.codec.decode(&mut self.buffer)
    }

    /// Reads once from the pipe.
    ///
    /// # Errors
    /// When the pipe is broken.
    pub fn read(&mut self) -> io::Result<Read> {
        let mut chunk = [0; 16 * 1024];
        match unistd::read(&self.pipe, &mut chunk) {
            Ok(0) => Ok(Read::End),
            Ok(length) => {
                self.buffer.extend_from_slice(&chunk[..length]);
                Ok(Read::Some)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Read::NothingYet),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the next frame of a pipe that blocks. `None` at the pipe's end.
    ///
    /// # Errors
    /// When the pipe breaks, ends within a frame, or holds something else.
    pub fn wait(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            if self.read()? == Read::End {
                let is_whole = self.buffer.is_empty();
                return if is_whole { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }
}

/// A frame as bytes.
///
/// # Errors
/// When it is too long.
pub fn encoded(frame: Frame) -> io::Result<BytesMut> {
    let mut bytes = BytesMut::new();
    FrameCodec::default().encode(frame, &mut bytes)?;
    Ok(bytes)
}

/// Writes frames to a pipe that blocks.
///
/// # Errors
/// When a frame is too long or the other end is closed.
pub fn write(pipe: &impl AsFd, frame: Frame) -> io::Result<()> {
    let bytes = encoded(frame)?;
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        match unistd::write(pipe, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A pipe as a writer: what is written to it travels in frames of one kind.
pub struct FrameWriter<'a, F> {
    pub pipe: &'a F,
    pub kind: Kind,
}

impl<F: AsFd> io::Write for FrameWriter<'_, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(CHUNK_BYTES);
        write(self.pipe, Frame::new(self.kind, Bytes::copy_from_slice(&bytes[..length])))?;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn invalid(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pdf_travels_whole_however_long() {
        for length in [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 8 * 1024 * 1024] {
            let pdf = (0..length).map(|index: usize| index.to_le_bytes()[0]).collect::<Bytes>();
            let mut bytes = BytesMut::new();
            for frame in chunks(Kind::Pdf, &pdf) {
                FrameCodec::default().encode(frame, &mut bytes).unwrap();
            }
            let mut codec = FrameCodec::default();
            let mut arrived = BytesMut::new();
            while let Some(frame) = codec.decode(&mut bytes).unwrap() {
                assert_eq!(frame.kind, Kind::Pdf);
                arrived.extend_from_slice(&frame.payload);
            }
            assert_eq!(arrived, pdf);
        }
    }

    #[test]
    fn what_is_not_a_frame_is_an_error_and_never_a_panic() {
        for garbage in [&b"\xff\xff\xff\xffP"[..], b"\0\x01\0\x01P", b"\0\0\0\0", b"\0\0\0\x01?"] {
            FrameCodec::default().decode(&mut BytesMut::from(garbage)).unwrap_err();
        }
    }

    #[test]
    fn half_a_frame_is_no_frame_yet() {
        let mut bytes = encoded(Frame::json(Kind::Threads, &2)).unwrap();
        bytes.truncate(bytes.len() - 1);
        assert_eq!(FrameCodec::default().decode(&mut bytes).unwrap(), None);
    }
}
