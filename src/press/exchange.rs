//! The exchange of one request and one response with a run, over its pipes. What a run writes is about its
//! document, and is bounded.

use std::future;
use std::io;
use std::iter;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::codec::{FramedRead, FramedWrite};

use super::memory_watch::MemoryWatch;
use super::protocol::{self, DocumentHeader, Frame, FrameCodec, FrameKind, Response, RunLimits};

/// The longest that a run may take to read a part of a document, to begin with a complete one, or to end after it
/// has closed its pipe.
pub(super) const RESPONSE_GRACE: Duration = Duration::from_secs(2);

/// A request to a run: a document with its limits.
#[derive(Clone, Debug)]
pub struct Request {
    pub header: DocumentHeader,
    pub limits: RunLimits,
    /// The document's data, or what its task has instead, followed by the files that the header lists.
    pub content: Vec<Bytes>,
    /// The most bytes that a PDF and its timings may have in the function's memory.
    pub max_response_bytes: Option<u64>,
}

/// A run's response for a document.
#[derive(Debug)]
pub struct RunResponse {
    pub response: Response,
    /// The PDF; empty if the document was not rendered.
    pub pdf: Bytes,
    /// Typst's timings, gzipped; empty if there are none.
    pub timings: Bytes,
    /// How often Typst's memo cache was evicted for want of memory.
    pub cache_evictions: u32,
}

/// Why the exchange with a run is over.
pub(super) enum Stop {
    /// There is a response.
    Responded,
    /// The run is gone, as the press says.
    RunEnded,
    /// The run has closed a pipe.
    PipeClosed,
    /// The run has broken the protocol.
    ProtocolError,
    /// The run has not begun with the document in the time it has for that.
    NotBegun,
    /// The document has used all its time.
    TimedOut,
    /// The PDF is larger than the function has memory for.
    TooLarge,
}

/// The part of a response that has been received.
pub(super) struct Reception {
    max_bytes: Option<u64>,
    pub has_begun: bool,
    pdf: BytesMut,
    timings: BytesMut,
    cache_evictions: u32,
    pub response: Option<Response>,
}

impl Reception {
    pub fn new(max_bytes: Option<u64>) -> Self {
        let (pdf, timings) = (BytesMut::new(), BytesMut::new());
        Self { max_bytes, has_begun: false, pdf, timings, cache_evictions: 0, response: None }
    }

    pub fn take(&mut self, frame: &Frame) -> Result<(), Stop> {
        match frame.kind {
            FrameKind::Begun if !self.has_begun => self.has_begun = true,
            FrameKind::Pdf | FrameKind::Timings if self.has_begun => {
                let bytes = (self.pdf.len() + self.timings.len() + frame.payload.len()) as u64;
                if self.max_bytes.is_some_and(|max_bytes| bytes > max_bytes) {
                    return Err(Stop::TooLarge);
                }
                let part = if frame.kind == FrameKind::Pdf { &mut self.pdf } else { &mut self.timings };
                part.extend_from_slice(&frame.payload);
            }
            FrameKind::Response if self.has_begun => {
                self.response = Some(frame.parse().map_err(|_| Stop::ProtocolError)?);
            }
            _ => return Err(Stop::ProtocolError),
        }
        Ok(())
    }

    fn too_late(&self) -> Stop {
        if self.has_begun { Stop::TimedOut } else { Stop::NotBegun }
    }

    pub fn into_response(self, response: Response) -> RunResponse {
        let (pdf, timings) = (self.pdf.freeze(), self.timings.freeze());
        RunResponse { response, pdf, timings, cache_evictions: self.cache_evictions }
    }
}

/// Sends a document and receives the response, until the document's time is over.
pub(super) async fn exchange(
    requests: &mut FramedWrite<pipe::Sender, FrameCodec>,
    responses: &mut FramedRead<pipe::Receiver, FrameCodec>,
    request: &Request,
    threads: &mut watch::Receiver<usize>,
    mut memory: Option<&mut MemoryWatch>,
    reception: &mut Reception,
) -> Stop {
    let time_limit = request.limits.time;
    match send_request(requests, request).await {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Stop::NotBegun,
        Err(_) => return Stop::PipeClosed,
    }
    let mut give_up_at = Instant::now() + RESPONSE_GRACE;
    loop {
        let update = tokio::select! {
            frame = responses.next() => Err(frame),
            Ok(()) = threads.changed() => Ok(Frame::json(FrameKind::Threads, &*threads.borrow_and_update())),
            () = memory_is_short(memory.as_deref_mut()), if reception.has_begun => {
                reception.cache_evictions += 1;
                Ok(Frame::empty(FrameKind::EvictCache))
            }
            () = sleep_until(give_up_at) => return reception.too_late(),
        };
        let frame = match update {
            Err(frame) => frame,
            Ok(update) => match timeout_at(give_up_at, requests.send(update)).await {
                // On an error the run may have responded and ended meanwhile: its other pipe tells.
                Ok(_) => continue,
                Err(_) => return reception.too_late(),
            },
        };
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => return Stop::ProtocolError,
            Some(Err(_)) | None => return Stop::PipeClosed,
        };
        let had_begun = reception.has_begun;
        if let Err(stop) = reception.take(&frame) {
            return stop;
        }
        if reception.response.is_some() {
            return Stop::Responded;
        }
        if !had_begun && reception.has_begun {
            give_up_at = Instant::now() + time_limit;
        }
    }
}

/// Waits until the run's memory is short, or for ever if that is not limited.
async fn memory_is_short(memory: Option<&mut MemoryWatch>) {
    match memory {
        Some(memory) => memory.wait().await,
        None => future::pending().await,
    }
}

/// Sends a document, each part of it within the time that a run has to read one.
async fn send_request(requests: &mut FramedWrite<pipe::Sender, FrameCodec>, request: &Request) -> io::Result<()> {
    let header = Frame::json(FrameKind::Document, &(&request.header, &request.limits));
    let chunks = request.content.iter().flat_map(|part| protocol::chunks(FrameKind::Data, part));
    for frame in iter::once(header).chain(chunks).chain([Frame::empty(FrameKind::Render)]) {
        timeout(RESPONSE_GRACE, requests.send(frame)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    }
    Ok(())
}
