//! What function, press and runs say to each other, on two channels that never mix.
//!
//! The **control socket** joins function and press. Each packet is one [`PressCommand`] or one
//! [`PressEvent`], as JSON of at most 64 KiB; with a fork go the far ends of the run's three pipes.
//! Nothing of a message ever travels here.
//!
//! A run's **pipes** join function and run alone, in frames of at most 64 KiB, each a length, a
//! kind and a payload. A document, or a [`Task`] of one, goes down as [`FrameKind::Document`], any number of
//! [`FrameKind::Data`], [`FrameKind::Render`]; its response comes up as [`FrameKind::Begun`], any
//! number of [`FrameKind::Pdf`], then of [`FrameKind::Timings`], and one [`FrameKind::Response`],
//! the last frame whatever happened. Between these nothing else comes up.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use nix::errno::Errno;
use nix::unistd;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::codec::{Decoder, Encoder, LengthDelimitedCodec};

use super::sandbox::SandboxLevel;
use crate::os::ProcessEnd;
use crate::pdf::Level;
use crate::render::TemplateVersion;
use crate::render::diagnostics::{self, Diagnostic};
use crate::render::parts::{Division, Part};

/// The largest packet on the control socket.
pub const MAX_PACKET_BYTES: usize = 64 * 1024;
/// The largest frame after its length, which has four bytes: with it, a frame fits whole into a pipe.
pub const MAX_FRAME_BYTES: usize = 64 * 1024 - 4;
/// How much of a document's data or of a PDF one frame carries, beside its kind.
pub const CHUNK_BYTES: usize = MAX_FRAME_BYTES - 1;

/// The longest reason, in bytes. JSON escapes a byte to at most six (`\\u00XX`), so this fits into a packet.
const MAX_REASON_BYTES: usize = MAX_PACKET_BYTES / 8;
/// The most bytes that the texts of a response may take as JSON, all together: it has to fit into
/// one frame, whatever is in them.
const MAX_RESPONSE_TEXT_BYTES: usize = MAX_FRAME_BYTES - 4096;

/// What the function asks of the press.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PressCommand {
    /// Fork a run. With the packet come the run's ends of its pipes: request, response, stderr.
    Fork {
        /// Its number, which is never used again.
        run: u64,
        /// The template whose sample it warms itself with, by its index.
        sample: Option<usize>,
    },
    /// Kill a run, if it is there still.
    Kill { run: u64 },
}

/// What the press tells the function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PressEvent {
    /// The press begins with this part of its start.
    Starting {
        stage: StartStage,
    },
    /// The sample of this template is being rendered.
    SampleBegun {
        template: String,
    },
    /// It has been rendered, or has failed, after this time.
    SampleEnded {
        template: String,
        took: Duration,
    },
    /// The press is warm, and restricted so far: one packet for each of `count` templates, sorted by
    /// name.
    Ready {
        count: usize,
        name: String,
        version: TemplateVersion,
        level: SandboxLevel,
    },
    /// The templates are not what they should be. The press ends.
    Broken {
        reason: String,
    },
    Forked {
        run: u64,
        pid: i32,
    },
    NotForked {
        run: u64,
        errno: i32,
    },
    /// The run has ended and been reaped.
    Ended {
        run: u64,
        end: ProcessEnd,
    },
}

/// The stages of a press's start. They decide whether a lower sandbox level is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartStage {
    Loading,
    Sandbox,
    FirstRun,
}

impl fmt::Display for StartStage {
    /// Formats for the beginning of a sentence, as in "the press ended while it was restricting itself".
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Loading => "the press ended while it was loading templates and rendering samples",
            Self::Sandbox => "the press ended while it was restricting itself",
            Self::FirstRun => "the first run of the press ended before it had rendered a sample",
        })
    }
}

impl PressEvent {
    /// Says what is wrong with templates, as much of it as fits.
    #[must_use]
    pub fn broken(mut reason: String) -> Self {
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        Self::Broken { reason }
    }
}

/// The kind of a frame on a run's pipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Down: a document begins, as a [`DocumentHeader`] and [`RunLimits`].
    Document = b'D',
    /// Down: a part of its data, or after these of its files, one after the other.
    Data = b'd',
    /// Down: its data are whole; it is to be rendered.
    Render = b'R',
    /// Down, while a document is being rendered: it may use this many threads from now on, as JSON.
    Threads = b'T',
    /// Down, while a document is being rendered: its memory is short, so Typst's memo cache is to be evicted.
    EvictCache = b'E',
    /// Up, once, before [`FrameKind::Warm`], only from the first run of a press: it has rendered a sample in its
    /// sandbox.
    Sandboxed = b's',
    /// Up, once, before any document: the run has warmed itself, and how long that took, as JSON.
    Warm = b'W',
    /// Up: the request is whole, the document's time begins.
    Begun = b'B',
    /// Up: a part of the PDF.
    Pdf = b'P',
    /// Up, after the PDF: a part of its timings, gzipped, if there are any.
    Timings = b't',
    /// Up: the end of a response, as a [`Response`].
    Response = b'A',
}

impl TryFrom<u8> for FrameKind {
    type Error = io::Error;

    fn try_from(byte: u8) -> io::Result<Self> {
        use FrameKind::{Begun, Data, Document, EvictCache, Pdf, Render, Response, Sandboxed, Threads, Timings, Warm};
        [Document, Data, Render, Threads, EvictCache, Sandboxed, Warm, Begun, Pdf, Timings, Response]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
            .ok_or_else(|| invalid(format!("a frame of the unknown kind {byte:#04x}")))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: FrameKind,
    pub payload: Bytes,
}

impl Frame {
    #[must_use]
    pub fn new(kind: FrameKind, payload: impl Into<Bytes>) -> Self {
        Self { kind, payload: payload.into() }
    }

    #[must_use]
    pub fn empty(kind: FrameKind) -> Self {
        Self::new(kind, Bytes::new())
    }

    /// A frame whose payload is a value as JSON.
    ///
    /// # Panics
    /// When the value has no JSON form, which none of this module's types lacks.
    #[must_use]
    pub fn json(kind: FrameKind, value: &impl Serialize) -> Self {
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
pub fn chunks(kind: FrameKind, bytes: &Bytes) -> impl Iterator<Item = Frame> {
    (0..bytes.len()).step_by(CHUNK_BYTES).map(move |start| {
        let end = bytes.len().min(start + CHUNK_BYTES);
        Frame::new(kind, bytes.slice(start..end))
    })
}

/// What a run has to know of a document beside its data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DocumentHeader {
    pub template: String,
    /// The message id, which the PDF's document id is made from.
    pub ident: String,
    pub timestamp_ms: Option<i64>,
    /// The names of the files that come after the data, and how many bytes each has.
    pub files: Vec<(String, usize)>,
    pub task: Task,
    /// If it takes longer to render, its timings are asked for.
    pub timings_slower_than: Option<Duration>,
}

/// What is to be done with a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// It is to be rendered; or, if it is too long for one part, only to be checked and divided.
    Render,
    /// The data are those of one part, which is to be rendered.
    RenderPart(Part),
    /// Instead of data come the PDFs of all parts, one after the other, which are to be joined.
    Join {
        /// How many bytes each PDF has.
        parts: Vec<usize>,
        /// How many pages they have together.
        pages: usize,
    },
}

/// What a run may have for one attempt at a task.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct RunLimits {
    /// How many threads it may use to begin with.
    pub threads: usize,
    /// How long it may take. The function keeps this time, from [`FrameKind::Begun`] on.
    pub time: Duration,
    /// How much memory the run may have, as `RLIMIT_DATA` counts it. A run never gets more than it
    /// has had for a document before.
    pub memory_bytes: Option<u64>,
}

/// What a run says of a document, and of nothing else: how a run ends, the press tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// The PDF came before this, whole.
    Rendered {
        pages: u32,
        e_invoice: Option<Level>,
        warnings: Vec<Diagnostic>,
        render_time: Duration,
        /// Whether the template has read where a part's pages stand in the whole document.
        reads_pages: bool,
    },
    /// The document has been checked, and is too long for one part.
    Divided(Division),
    /// The data, or the XML of an e-invoice, are not what the template takes.
    InvalidData { violations: Vec<Diagnostic> },
    /// Typst found an error, or the PDF is not the e-invoice that it is to be.
    TypstError { diagnostics: Vec<Diagnostic> },
    /// Typst panicked. The run ends after it.
    Panicked { message: String },
}

impl Response {
    /// As a frame, with as much of its texts as fits.
    #[must_use]
    pub fn into_frame(mut self) -> Frame {
        match &mut self {
            Self::Rendered { warnings: list, .. }
            | Self::InvalidData { violations: list }
            | Self::TypstError { diagnostics: list } => diagnostics::truncate(list, MAX_RESPONSE_TEXT_BYTES),
            // Its bytes are bounded by the number of parts.
            Self::Divided(_) => {}
            Self::Panicked { message } => diagnostics::truncate_text(message, diagnostics::MAX_MESSAGE_BYTES),
        }
        Frame::json(FrameKind::Response, &self)
    }
}

/// Frames to bytes and back.
pub struct FrameCodec(LengthDelimitedCodec);

impl Default for FrameCodec {
    fn default() -> Self {
        Self(LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME_BYTES).new_codec())
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
        let kind = FrameKind::try_from(frame.split_to(1)[0])?;
        Ok(Some(Frame { kind, payload: frame.freeze() }))
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = io::Error;

    fn encode(&mut self, frame: Frame, bytes: &mut BytesMut) -> io::Result<()> {
        let length = 1 + frame.payload.len();
        if length > MAX_FRAME_BYTES {
            return Err(invalid(format!("a {:?} frame of {length} bytes, more than {MAX_FRAME_BYTES}", frame.kind)));
        }
        bytes.reserve(4 + length);
        bytes.put_u32(u32::try_from(length).expect("a frame is small"));
        bytes.put_u8(frame.kind as u8);
        bytes.put_slice(&frame.payload);
        Ok(())
    }
}

/// Reads frames from a pipe without tokio, for runs.
pub struct FrameReader<F> {
    pub pipe: F,
    codec: FrameCodec,
    buffer: BytesMut,
}

/// What one read from a pipe gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadStatus {
    Data,
    /// Only from a pipe that does not block.
    WouldBlock,
    /// The other end is closed.
    Eof,
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
    pub fn read(&mut self) -> io::Result<ReadStatus> {
        let mut chunk = [0; 16 * 1024];
        match unistd::read(&self.pipe, &mut chunk) {
            Ok(0) => Ok(ReadStatus::Eof),
            Ok(length) => {
                self.buffer.extend_from_slice(&chunk[..length]);
                Ok(ReadStatus::Data)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(ReadStatus::WouldBlock),
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
            if self.read()? == ReadStatus::Eof {
                let is_whole = self.buffer.is_empty();
                return if is_whole { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }
}

/// A packet for the control socket.
///
/// # Errors
/// When it is too long, which only the name of a template could make it.
pub fn encode_packet(packet: &impl Serialize) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(packet).map_err(io::Error::from)?;
    if bytes.len() > MAX_PACKET_BYTES {
        return Err(invalid(format!("a packet of {} bytes, more than {MAX_PACKET_BYTES}", bytes.len())));
    }
    Ok(bytes)
}

/// Reads a packet from the control socket.
///
/// # Errors
/// When it is none of this type.
pub fn decode_packet<T: DeserializeOwned>(packet: &[u8]) -> io::Result<T> {
    serde_json::from_slice(packet).map_err(|error| invalid(format!("a packet that cannot be read: {error}")))
}

/// A frame as bytes.
///
/// # Errors
/// When it is too long.
pub fn encode(frame: Frame) -> io::Result<BytesMut> {
    let mut bytes = BytesMut::new();
    FrameCodec::default().encode(frame, &mut bytes)?;
    Ok(bytes)
}

/// Writes frames to a pipe that blocks.
///
/// # Errors
/// When a frame is too long or the other end is closed.
pub fn write(pipe: &impl AsFd, frame: Frame) -> io::Result<()> {
    let bytes = encode(frame)?;
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
    pub kind: FrameKind,
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
    use crate::render::parts::MAX_PARTS;

    #[test]
    fn a_pdf_travels_whole_however_long() {
        for length in [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 8 * 1024 * 1024] {
            let pdf = (0..length).map(|index: usize| index.to_le_bytes()[0]).collect::<Bytes>();
            let mut bytes = BytesMut::new();
            for frame in chunks(FrameKind::Pdf, &pdf) {
                FrameCodec::default().encode(frame, &mut bytes).unwrap();
            }
            let mut codec = FrameCodec::default();
            let mut arrived = BytesMut::new();
            while let Some(frame) = codec.decode(&mut bytes).unwrap() {
                assert_eq!(frame.kind, FrameKind::Pdf);
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
    fn the_division_of_a_very_long_document_fits_into_a_frame() {
        let slice = 4_000_000_000..4_000_000_001;
        let slices = vec![slice.clone(); MAX_PARTS];
        let division = Division { total: usize::MAX, size: usize::MAX, array: slice, slices };
        encode(Response::Divided(division).into_frame()).unwrap();
    }

    #[test]
    fn half_a_frame_is_no_frame_yet() {
        let mut bytes = encode(Frame::json(FrameKind::Threads, &2)).unwrap();
        bytes.truncate(bytes.len() - 1);
        assert_eq!(FrameCodec::default().decode(&mut bytes).unwrap(), None);
    }
}
