//! Frames on any byte stream: a mux stream, a local Unix socket, an in-memory pipe in a test.
//!
//! Refuses frames over their bound before reading their payload, and tells a clean end (an `End` frame) from a
//! truncation (the stream stops without one).

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};

use super::way::Way;
pub use crate::transport::Io;
use crate::wire::frame::FrameError;
use crate::wire::limits::{FRAME_HEADER, MAX_DATA, OPEN_TIMEOUT};
use crate::wire::open::Accepted;
use crate::wire::{FrameHeader, FrameKind, Open, Refusal, RefusalCode};

/// What ends a stream before its time.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection beneath failed.
    #[error("the stream broke: {0}")]
    Io(#[from] io::Error),
    /// The peer sent a header that is not allowed.
    #[error("the other side broke the protocol: {0}")]
    Frame(#[from] FrameError),
    /// The peer sent a frame that has no place here.
    #[error("the other side broke the protocol: {0:?} frame out of place")]
    OutOfPlace(FrameKind),
    /// The stream stopped without an end.
    #[error("the stream was cut before its end")]
    Truncated,
    /// The peer refused or gave up, with its reason.
    #[error("{0}")]
    Refused(Refusal),
}

impl StreamError {
    /// As a refusal, to pass on to whoever asked.
    pub fn into_refusal(self) -> Refusal {
        match self {
            StreamError::Refused(refusal) => refusal,
            StreamError::Io(_) | StreamError::Truncated => Refusal::new(RefusalCode::Unavailable, self.to_string()),
            StreamError::Frame(_) | StreamError::OutOfPlace(_) => {
                Refusal::new(RefusalCode::Malformed, self.to_string())
            }
        }
    }
}

/// One frame, whole.
#[derive(Debug, Clone)]
pub struct Frame {
    /// What the payload is.
    pub kind: FrameKind,
    /// The payload, within the bound of its kind.
    pub payload: Bytes,
}

impl Frame {
    /// The payload as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        serde_json::from_slice(&self.payload)
            .map_err(|e| Refusal::new(RefusalCode::Malformed, format!("{:?} frame does not parse: {e}", self.kind)))
    }

    /// The refusal in a `Refuse` or `Abort` frame.
    pub fn refusal(&self) -> Refusal {
        Refusal::from_bytes(&self.payload)
    }
}

/// Reads frames. Holds no buffer while it waits for a header.
#[derive(Debug)]
pub struct FrameReader<R> {
    io: R,
    header: [u8; FRAME_HEADER],
    header_len: usize,
    current: Option<FrameHeader>,
    payload: BytesMut,
    only: Option<FrameKind>,
    max: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Frames from `io`.
    pub fn new(io: R) -> FrameReader<R> {
        FrameReader {
            io,
            header: [0; FRAME_HEADER],
            header_len: 0,
            current: None,
            payload: BytesMut::new(),
            only: None,
            max: usize::MAX,
        }
    }

    /// The next frame; `None` when the stream ends between frames. Safe to cancel: nothing read is lost.
    pub async fn next(&mut self) -> Result<Option<Frame>, StreamError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next frame of a stream that must not end here.
    pub async fn expect(&mut self) -> Result<Frame, StreamError> {
        self.next().await?.ok_or(StreamError::Truncated)
    }

    /// From here on no frame with more than `max` bytes of payload has a place here. For streams that are held for
    /// long and have no use for a large one: a peer could leave each of them a byte short of it.
    pub fn limit(&mut self, max: usize) {
        self.max = max;
    }

    /// The next frame, which must be of this kind. Another is refused by its header, before its payload takes memory.
    pub async fn expect_kind(&mut self, kind: FrameKind) -> Result<Frame, StreamError> {
        self.only = Some(kind);
        let frame = self.expect().await;
        self.only = None;
        frame
    }

    /// As [`next`](Self::next), for callers that poll.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, StreamError>> {
        let header = match self.current {
            Some(header) => header,
            None => match ready!(self.poll_header(cx))? {
                Some(header) if self.only.is_some_and(|only| only != header.kind) || header.len > self.max => {
                    return Poll::Ready(Err(StreamError::OutOfPlace(header.kind)));
                }
                Some(header) => *self.current.insert(header),
                None => return Poll::Ready(Ok(None)),
            },
        };
        // Grown as bytes arrive, so that a header alone cannot make us allocate its announced length.
        while self.payload.len() < header.len {
            let missing = header.len - self.payload.len();
            self.payload.reserve(missing.min(MAX_DATA));
            let n = ready!(self.poll_payload(cx, missing))?;
            if n == 0 {
                return Poll::Ready(Err(StreamError::Truncated));
            }
        }
        self.current = None;
        let payload = self.payload.split().freeze();
        Poll::Ready(Ok(Some(Frame { kind: header.kind, payload })))
    }

    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<FrameHeader>, StreamError>> {
        while self.header_len < FRAME_HEADER {
            let mut buf = ReadBuf::new(&mut self.header[self.header_len..]);
            match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                Poll::Pending => {
                    self.payload = BytesMut::new();
                    return Poll::Pending;
                }
                Poll::Ready(result) => result?,
            }
            match buf.filled().len() {
                0 if self.header_len == 0 => return Poll::Ready(Ok(None)),
                0 => return Poll::Ready(Err(StreamError::Truncated)),
                n => self.header_len += n,
            }
        }
        self.header_len = 0;
        Poll::Ready(Ok(Some(FrameHeader::decode(self.header)?)))
    }

    fn poll_payload(&mut self, cx: &mut Context<'_>, missing: usize) -> Poll<io::Result<usize>> {
        let mut space = (&mut self.payload).limit(missing);
        tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut space)
    }
}

/// Writes frames, header and payload in one write.
#[derive(Debug)]
pub struct FrameWriter<W> {
    io: W,
}

/// A buffer with room for a frame header in front, to be filled and sent without a copy.
#[derive(Debug)]
pub struct DataBuffer(Vec<u8>);

impl DataBuffer {
    /// An empty buffer for one `Data` frame.
    pub fn new() -> DataBuffer {
        let mut bytes = Vec::with_capacity(FRAME_HEADER + MAX_DATA);
        bytes.resize(FRAME_HEADER, 0);
        DataBuffer(bytes)
    }

    /// Where payload goes: an appending buffer of exactly [`MAX_DATA`] bytes.
    pub fn space(&mut self) -> impl BufMut + '_ {
        let room = FRAME_HEADER + MAX_DATA - self.0.len();
        (&mut self.0).limit(room)
    }

    /// Bytes of payload so far.
    pub fn payload_len(&self) -> usize {
        self.0.len() - FRAME_HEADER
    }

    /// The payload so far.
    pub fn payload(&self) -> &[u8] {
        &self.0[FRAME_HEADER..]
    }

    /// Empties it for the next frame.
    pub fn clear(&mut self) {
        self.0.truncate(FRAME_HEADER);
    }
}

impl Default for DataBuffer {
    fn default() -> DataBuffer {
        DataBuffer::new()
    }
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Frames to `io`.
    pub fn new(io: W) -> FrameWriter<W> {
        FrameWriter { io }
    }

    /// Sends one frame. Not safe to cancel: drop the stream after cancelling.
    pub async fn send(&mut self, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(FRAME_HEADER + payload.len());
        bytes.extend_from_slice(&FrameHeader::new(kind, payload.len()).encode());
        bytes.extend_from_slice(payload);
        self.io.write_all(&bytes).await?;
        self.io.flush().await
    }

    /// Sends one frame with a JSON payload.
    pub async fn send_json<T: Serialize>(&mut self, kind: FrameKind, value: &T) -> io::Result<()> {
        let payload = serde_json::to_vec(value)?;
        if payload.len() > kind.max_payload() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                FrameError::TooLarge { kind, len: payload.len(), max: kind.max_payload() },
            ));
        }
        self.send(kind, &payload).await
    }

    /// Sends what `buffer` holds as one frame of `kind` (`Data` or `Stderr`) and empties it.
    pub async fn send_buffer(&mut self, kind: FrameKind, buffer: &mut DataBuffer) -> io::Result<()> {
        let header = FrameHeader::new(kind, buffer.payload_len()).encode();
        buffer.0[..FRAME_HEADER].copy_from_slice(&header);
        self.io.write_all(&buffer.0).await?;
        buffer.clear();
        self.io.flush().await
    }

    /// Sends bytes as as many `Data` frames as they need.
    pub async fn send_data(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while bytes.has_remaining() {
            let n = bytes.len().min(MAX_DATA);
            self.send(FrameKind::Data, &bytes[..n]).await?;
            bytes.advance(n);
        }
        Ok(())
    }

    /// Fails when the stream is cut: for who neither reads nor has anything to say, and would not learn it otherwise.
    pub async fn check(&mut self) -> io::Result<()> {
        self.io.flush().await
    }

    /// Says that the content is complete.
    pub async fn end(&mut self) -> io::Result<()> {
        self.send(FrameKind::End, &[]).await
    }

    /// Says that the content will not be completed, and why. A peer that is gone is no error.
    pub async fn abort(&mut self, refusal: &Refusal) {
        let _ = self.send(FrameKind::Abort, &refusal.to_bytes()).await;
        let _ = self.io.shutdown().await;
    }

    /// Closes this direction of the stream beneath. After `end`, `refuse` or the last message.
    pub async fn close(&mut self) -> io::Result<()> {
        self.io.shutdown().await
    }
}

/// Both directions of a stream of frames.
#[derive(Debug)]
pub struct FramedStream<S> {
    /// What arrives.
    pub reader: FrameReader<ReadHalf<S>>,
    /// What leaves.
    pub writer: FrameWriter<WriteHalf<S>>,
}

impl<S: Io> FramedStream<S> {
    /// Frames on `io`, in both directions.
    pub fn new(io: S) -> FramedStream<S> {
        let (read, write) = tokio::io::split(io);
        FramedStream { reader: FrameReader::new(read), writer: FrameWriter::new(write) }
    }

    /// The stream beneath, for a gateway that passes the rest on as it is. Only between frames.
    pub fn into_inner(self) -> S {
        self.reader.io.unsplit(self.writer.io)
    }

    /// Opens: sends the open frame. The caller may send content before the answer.
    pub async fn open(io: S, open: &Open) -> Result<FramedStream<S>, StreamError> {
        let payload = open.to_bytes().map_err(StreamError::Refused)?;
        let mut stream = FramedStream::new(io);
        stream.writer.send(FrameKind::Open, &payload).await?;
        Ok(stream)
    }

    /// The acceptor's answer to our open frame.
    pub async fn answer(&mut self) -> Result<Accepted, StreamError> {
        let frame = self.reader.expect().await?;
        match frame.kind {
            FrameKind::Accept => frame.json().map_err(StreamError::Refused),
            FrameKind::Refuse | FrameKind::Abort => Err(StreamError::Refused(frame.refusal())),
            kind => Err(StreamError::OutOfPlace(kind)),
        }
    }

    /// Accepts: reads the open frame, within [`OPEN_TIMEOUT`].
    pub async fn accept(io: S) -> Result<(Open, FramedStream<S>), StreamError> {
        Self::accept_within(io, OPEN_TIMEOUT).await
    }

    /// As [`accept`](Self::accept), with a time of the caller's.
    pub async fn accept_within(io: S, time: Duration) -> Result<(Open, FramedStream<S>), StreamError> {
        let mut stream = FramedStream::new(io);
        let opened = tokio::time::timeout(time, stream.reader.expect_kind(FrameKind::Open)).await;
        stream.opened(opened.ok()).await
    }

    /// As [`accept`](Self::accept), of a stream that came by `way`: interruptions do not count.
    pub async fn accept_by(io: S, way: &Way) -> Result<(Open, FramedStream<S>), StreamError> {
        let mut stream = FramedStream::new(io);
        let opened = way.timeout(OPEN_TIMEOUT, stream.reader.expect_kind(FrameKind::Open)).await;
        stream.opened(opened.ok()).await
    }

    /// Goes on with the frame that was waited for, if it came in time.
    async fn opened(self, frame: Option<Result<Frame, StreamError>>) -> Result<(Open, FramedStream<S>), StreamError> {
        let refusal = match frame {
            None => Refusal::new(RefusalCode::Timeout, "no open frame arrived in time"),
            Some(Err(error @ (StreamError::Io(_) | StreamError::Truncated))) => return Err(error),
            Some(Err(error)) => error.into_refusal(),
            Some(Ok(frame)) => match Open::parse(&frame.payload) {
                Ok(open) => return Ok((open, self)),
                Err(refusal) => refusal,
            },
        };
        self.refuse(&refusal).await;
        Err(StreamError::Refused(refusal))
    }

    /// Answers that the stream begins.
    pub async fn accepted(&mut self, accepted: &Accepted) -> io::Result<()> {
        self.writer.send_json(FrameKind::Accept, accepted).await
    }

    /// Answers that there will be no stream. A peer that is gone is no error.
    pub async fn refuse(mut self, refusal: &Refusal) {
        let _ = self.writer.send(FrameKind::Refuse, &refusal.to_bytes()).await;
        let _ = self.writer.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::StreamRequest;
    use proptest::prelude::*;

    fn call() -> Open {
        Open::new(StreamRequest::Call {})
    }

    #[tokio::test]
    async fn opens_answers_and_carries() {
        let (a, b) = tokio::io::duplex(100);
        let opener = async {
            let mut stream = FramedStream::open(a, &call()).await.unwrap();
            stream.writer.send_data(&[7; 200_000]).await.unwrap();
            stream.writer.end().await.unwrap();
            stream.answer().await
        };
        let acceptor = async {
            let (open, mut stream) = FramedStream::accept(b).await.unwrap();
            assert_eq!(open, call());
            let mut total = 0;
            loop {
                let frame = stream.reader.expect().await.unwrap();
                match frame.kind {
                    FrameKind::Data => total += frame.payload.len(),
                    kind => break assert_eq!(kind, FrameKind::End),
                }
            }
            assert_eq!(total, 200_000);
            stream.accepted(&Accepted { pid: Some(1), ..Default::default() }).await.unwrap();
        };
        let (answer, ()) = tokio::join!(opener, acceptor);
        assert_eq!(answer.unwrap().pid, Some(1));
    }

    #[tokio::test]
    async fn refusals_reach_the_opener() {
        let (a, b) = tokio::io::duplex(1000);
        let mut opener = FramedStream::open(a, &call()).await.unwrap();
        let (_, acceptor) = FramedStream::accept(b).await.unwrap();
        let refusal = Refusal::new(RefusalCode::NotDeclared, "no");
        acceptor.refuse(&refusal).await;
        assert!(matches!(opener.answer().await, Err(StreamError::Refused(r)) if r == refusal));
    }

    #[tokio::test]
    async fn a_cut_stream_is_not_an_end() {
        for (cut, clean) in [(0, true), (2, false), (4, false), (6, false)] {
            let (mut a, b) = tokio::io::duplex(100);
            a.write_all(&[0x10, 0, 0, 5, 1, 2, 3][..cut]).await.unwrap();
            drop(a);
            let mut reader = FrameReader::new(b);
            match reader.next().await {
                Ok(None) => assert!(clean),
                Err(StreamError::Truncated) => assert!(!clean),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn garbage_instead_of_an_open_frame_is_refused() {
        for bytes in
            // The last is a header whose payload never comes: it is judged without one.
            [
                &b"GET / HTTP/1.1\r\n\r\n"[..],
                &[0x01, 0xff, 0xff, 0xff],
                &[0x01, 0, 0, 1, b'{'],
                &[0x10, 0, 0, 0],
                &[0x20, 0x10, 0, 0],
            ]
        {
            let (mut a, b) = tokio::io::duplex(1000);
            a.write_all(bytes).await.unwrap();
            assert!(matches!(FramedStream::accept(b).await, Err(StreamError::Refused(_))));
            let mut reader = FrameReader::new(a);
            assert_eq!(reader.expect().await.unwrap().kind, FrameKind::Refuse);
        }
    }

    #[tokio::test]
    async fn a_frame_over_the_limit_is_out_of_place_before_its_payload() {
        let (mut a, b) = tokio::io::duplex(1000);
        a.write_all(&[0x10, 0, 0, 2, 1, 2, 0x20, 0x10, 0, 0]).await.unwrap();
        let mut reader = FrameReader::new(b);
        reader.limit(MAX_DATA);
        assert_eq!(reader.expect().await.unwrap().payload.len(), 2);
        assert!(matches!(reader.expect().await, Err(StreamError::OutOfPlace(FrameKind::Message))));
    }

    #[tokio::test]
    async fn an_opener_that_says_nothing_is_refused_in_time() {
        let (mut a, b) = tokio::io::duplex(1000);
        a.write_all(&[0x01, 0]).await.unwrap();
        assert!(matches!(
            FramedStream::accept_within(b, Duration::from_millis(20)).await,
            Err(StreamError::Refused(_))
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_frames_or_an_error(pieces: Vec<Vec<u8>>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (mut a, b) = tokio::io::duplex(1 << 20);
                for piece in &pieces {
                    a.write_all(piece).await.unwrap();
                }
                drop(a);
                let mut reader = FrameReader::new(b);
                while let Ok(Some(_)) = reader.next().await {}
            });
        }
    }
}
