//! The WebSocket carrier: binary messages belong to the lifeline, text messages are control, pings keep it alive.
//!
//! It passes messages on as they are. A peer that is silent and answers no ping is taken for dead. Over a bound, or
//! malformed: the carrier ends with an error.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::{Sink, SinkExt, StreamExt};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::Callback;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

use super::Io;
use crate::wire::control::Control;
use crate::wire::limits::MAX_CARRIER_MESSAGE;

/// Bytes of messages gathered before they are written to the connection beneath without being flushed.
const GATHER: usize = 64 * 1024;

/// A peer that is silent for this long is sent a ping; so a NAT or a load balancer with an idle timeout of half a
/// minute keeps the connection.
pub const PING: Duration = Duration::from_secs(12);

/// How long the answer may take. A peer that sends nothing until then is dead.
pub const PONG: Duration = Duration::from_secs(4);

/// As [`PING`], for a stub's parked connection: nothing else tells the stub that laptops cannot come any more.
pub const PARKED_PING: Duration = Duration::from_secs(4);

/// As [`PONG`], for a stub's parked connection: another one costs little.
pub const PARKED_PONG: Duration = Duration::from_secs(2);

/// Bytes read from a connection at a time. The buffer exists for as long as the connection does, parked ones too.
const READ_BUFFER: usize = 8 * 1024;

/// Bytes that may wait in the WebSocket layer for a slow connection: a message, and control messages beside it.
pub const WRITE_BUFFER: usize = GATHER + 2 * MAX_CARRIER_MESSAGE;

/// When a silent peer is asked whether it is there, and given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    ping: Duration,
    pong: Duration,
}

impl Heartbeat {
    /// Of every carrier, unless it is told otherwise.
    pub const USUAL: Heartbeat = Heartbeat { ping: PING, pong: PONG };

    /// Of a parked connection, at the stub.
    pub const PARKED: Heartbeat = Heartbeat { ping: PARKED_PING, pong: PARKED_PONG };
}

/// Which end of the upgrade this program was, and whether masking was negotiated away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It dialled, and masks what it sends.
    Client,
    /// It accepted.
    Server,
    /// Neither end masks.
    Unmasked,
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(GATHER)
        .max_write_buffer_size(WRITE_BUFFER)
        .max_message_size(Some(MAX_CARRIER_MESSAGE))
        .max_frame_size(Some(MAX_CARRIER_MESSAGE))
        .accept_unmasked_frames(false)
}

/// A WebSocket on an upgraded connection. `read_ahead` is what the HTTP layer had already read.
pub async fn websocket<T: Io>(io: T, read_ahead: Bytes, side: Side) -> WebSocketStream<T> {
    let role = if side == Side::Client { Role::Client } else { Role::Server };
    let config = config().accept_unmasked_frames(side == Side::Unmasked);
    WebSocketStream::from_partially_read(io, read_ahead.into(), role, Some(config)).await
}

/// Answers an upgrade, with what `answer` adds to it, on a connection where neither side masks.
pub async fn accepted_unmasked<T: Io>(io: T, answer: impl Callback + Unpin) -> io::Result<Carrier<T>> {
    let config = config().accept_unmasked_frames(true);
    let ws = tokio_tungstenite::accept_hdr_async_with_config(io, answer, Some(config)).await.map_err(io_error)?;
    Ok(Carrier::new(ws))
}

pub(super) fn io_error(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

/// What arrived on a carrier that is not yet, or not only, a byte stream.
#[derive(Debug)]
pub enum Arrival {
    /// A control message.
    Control(Control),
    /// A message of the lifeline.
    Bytes(Bytes),
}

/// What a lifeline needs of a carrier: whole messages, in order, until it breaks.
pub trait Messages: Send + Unpin + 'static {
    /// The next message; `None` when the peer closed.
    fn poll_arrival(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Arrival>>>;

    /// Ready when a message can be taken.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Takes a message, after `poll_ready`. It leaves when flushed, or before.
    fn start_send(&mut self, message: Bytes) -> io::Result<()>;

    /// Everything taken leaves.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Says goodbye to the next hop.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// A WebSocket whose messages are a lifeline's, with control messages beside them.
#[derive(Debug)]
pub struct Carrier<T> {
    ws: WebSocketStream<T>,
    alarm: Pin<Box<Sleep>>,
    heartbeat: Heartbeat,
    heard: Instant,
    /// When the ping left that waits for its answer.
    pinged: Option<Instant>,
    round_trip: Option<Duration>,
}

impl<T: Io> Carrier<T> {
    /// A carrier on `ws`.
    pub fn new(ws: WebSocketStream<T>) -> Carrier<T> {
        let (now, heartbeat) = (Instant::now(), Heartbeat::USUAL);
        let alarm = Box::pin(sleep_until(now + heartbeat.ping));
        Carrier { ws, alarm, heartbeat, heard: now, pinged: None, round_trip: None }
    }

    /// Takes another heartbeat.
    pub fn set_heartbeat(&mut self, heartbeat: Heartbeat) {
        self.heartbeat = heartbeat;
        self.alarm.as_mut().reset(Instant::now());
    }

    /// When the peer last said something, as far as that was read.
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// To the next hop and back, as the last answered ping told.
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Pings the peer, whether or not it is silent.
    pub async fn ping(&mut self) -> io::Result<()> {
        self.pinged = Some(Instant::now());
        self.ws.send(Message::Ping(Bytes::new())).await.map_err(io_error)
    }

    /// Whether the peer, which has nothing to say by itself, answers a ping within `patience`. An error when it left, broke,
    /// or said something else.
    pub async fn answers(&mut self, patience: Duration) -> io::Result<bool> {
        let asked = Instant::now();
        let answer = async {
            self.ping().await?;
            std::future::poll_fn(|cx| match self.poll_arrival(cx) {
                Poll::Ready(Ok(Some(_))) => Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                Poll::Ready(Ok(None)) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending if self.heard > asked => Poll::Ready(Ok(())),
                Poll::Pending => Poll::Pending,
            })
            .await
        };
        match tokio::time::timeout(patience, answer).await {
            Ok(answered) => answered.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// The next control message or bytes; `None` when the peer closed.
    pub async fn arrival(&mut self) -> io::Result<Option<Arrival>> {
        std::future::poll_fn(|cx| self.poll_arrival(cx)).await
    }

    /// Sends a control message. Whoever does not read is waited for as long as for an answer.
    pub async fn send_control(&mut self, control: &Control) -> io::Result<()> {
        let sending = self.ws.send(Message::text(control.to_text()));
        match tokio::time::timeout(PONG, sending).await {
            Ok(sent) => sent.map_err(io_error),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Sends a message of the lifeline.
    pub async fn send(&mut self, message: Bytes) -> io::Result<()> {
        self.ws.send(Message::Binary(message)).await.map_err(io_error)
    }

    /// Says goodbye, so that the peer sees an end and not a break.
    pub async fn close(mut self) {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.ws.close(None)).await;
    }

    /// Takes what arrived on another carrier, as it is, after `poll_ready`.
    pub(super) fn start_send_on(&mut self, arrival: Arrival) -> io::Result<()> {
        let message = match arrival {
            Arrival::Bytes(bytes) => Message::Binary(bytes),
            Arrival::Control(control) => Message::text(control.to_text()),
        };
        Pin::new(&mut self.ws).start_send(message).map_err(io_error)
    }

    /// The WebSocket beneath, for the relay, which copies messages.
    pub fn into_websocket(self) -> WebSocketStream<T> {
        self.ws
    }

    fn poll_arrival(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Arrival>>> {
        loop {
            match self.ws.poll_next_unpin(cx) {
                Poll::Pending => {
                    ready!(self.poll_alive(cx))?;
                    return Poll::Pending;
                }
                Poll::Ready(None) => return Poll::Ready(Ok(None)),
                Poll::Ready(Some(Err(tungstenite::Error::ConnectionClosed))) => return Poll::Ready(Ok(None)),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(io_error(error))),
                Poll::Ready(Some(Ok(message))) => {
                    self.heard = Instant::now();
                    match message {
                        Message::Binary(bytes) => return Poll::Ready(Ok(Some(Arrival::Bytes(bytes)))),
                        Message::Text(text) => {
                            let control = Control::parse(&text)
                                .map_err(|refusal| io::Error::new(io::ErrorKind::InvalidData, refusal))?;
                            return Poll::Ready(Ok(Some(Arrival::Control(control))));
                        }
                        Message::Close(_) => return Poll::Ready(Ok(None)),
                        Message::Pong(_) => {
                            let pinged = self.pinged.take();
                            self.round_trip = pinged.map(|pinged| self.heard - pinged).or(self.round_trip);
                        }
                        Message::Ping(_) | Message::Frame(_) => {}
                    }
                }
            }
        }
    }

    /// Pending while the peer is alive; sends the pings that are due.
    fn poll_alive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Heartbeat { ping, pong } = self.heartbeat;
        while self.alarm.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let unanswered = self.pinged.filter(|pinged| self.heard < *pinged);
            let next = match unanswered {
                Some(pinged) if now >= pinged + pong => {
                    let error = io::Error::new(io::ErrorKind::TimedOut, "the connection went silent");
                    return Poll::Ready(Err(error));
                }
                Some(pinged) => pinged + pong,
                None if now < self.heard + ping => self.heard + ping,
                None => {
                    self.pinged = Some(now);
                    // A connection that takes no ping is not asked twice: what keeps it full has to be answered too.
                    if Pin::new(&mut self.ws).poll_ready(cx).map_err(io_error)?.is_ready() {
                        Pin::new(&mut self.ws).start_send(Message::Ping(Bytes::new())).map_err(io_error)?;
                        let _ = Pin::new(&mut self.ws).poll_flush(cx).map_err(io_error)?;
                    }
                    now + pong
                }
            };
            self.alarm.as_mut().reset(next);
        }
        Poll::Pending
    }
}

impl<T: Io> Messages for Carrier<T> {
    fn poll_arrival(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Arrival>>> {
        Carrier::poll_arrival(self, cx)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.ws).poll_ready(cx).map_err(io_error)
    }

    fn start_send(&mut self, message: Bytes) -> io::Result<()> {
        Pin::new(&mut self.ws).start_send(Message::Binary(message)).map_err(io_error)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.ws).poll_flush(cx).map_err(io_error)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.ws).poll_close(cx).map_err(io_error)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    pub async fn ends(unmasked: bool) -> (Carrier<tokio::io::DuplexStream>, Carrier<tokio::io::DuplexStream>) {
        let (a, b) = crate::transport::memory::pair();
        let (client, server) = if unmasked { (Side::Unmasked, Side::Unmasked) } else { (Side::Client, Side::Server) };
        let a = Carrier::new(websocket(a, Bytes::new(), client).await);
        let b = Carrier::new(websocket(b, Bytes::new(), server).await);
        (a, b)
    }

    pub async fn bytes<T: Io>(carrier: &mut Carrier<T>) -> Bytes {
        match carrier.arrival().await {
            Ok(Some(Arrival::Bytes(bytes))) => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn messages_pass_masked_and_unmasked() {
        for unmasked in [false, true] {
            let (mut a, mut b) = ends(unmasked).await;
            for len in [1, 1000, MAX_CARRIER_MESSAGE] {
                let sent = Bytes::from(vec![len as u8; len]);
                let (outcome, got) = tokio::join!(a.send(sent.clone()), bytes(&mut b));
                outcome.unwrap();
                assert_eq!(got, sent);
            }
            tokio::join!(a.close(), async { assert!(matches!(b.arrival().await, Ok(None))) });
        }
    }

    #[tokio::test]
    async fn control_passes_beside_bytes() {
        let (mut a, mut b) = ends(false).await;
        a.send_control(&Control::Parked {}).await.unwrap();
        a.send(Bytes::from_static(b"x")).await.unwrap();
        assert!(matches!(b.arrival().await.unwrap(), Some(Arrival::Control(Control::Parked {}))));
        assert_eq!(bytes(&mut b).await, "x");
    }

    #[tokio::test]
    async fn a_message_over_the_bound_ends_the_carrier() {
        let (a, mut b) = ends(false).await;
        let mut ws = a.into_websocket();
        ws.get_ref(); // the raw WebSocket has no bound of its own on what it sends
        let send = ws.send(Message::binary(vec![0; MAX_CARRIER_MESSAGE + 1]));
        let (_, got) = tokio::join!(
            async {
                let _ = send.await;
            },
            b.arrival()
        );
        assert_eq!(got.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn an_unmasked_frame_is_refused_where_masking_was_agreed() {
        let (mut a, b) = crate::transport::memory::pair();
        a.write_all(&[0x82, 0x01, 0x41]).await.unwrap();
        let mut b = Carrier::new(websocket(b, Bytes::new(), Side::Server).await);
        assert!(b.arrival().await.is_err());
    }

    /// In real time, all of it at once: the one that is silent ends, and the others are there when it has.
    #[tokio::test]
    async fn who_does_not_answer_or_read_is_given_up_and_who_does_is_kept() {
        let began = Instant::now();
        let silent = async {
            let (mut a, _b) = ends(false).await;
            let error = a.arrival().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(began.elapsed() >= PING + PONG, "{:?}", began.elapsed());
        };
        let kept = async {
            let (mut a, mut b) = ends(false).await;
            // Reading answers pings, and nothing is ever read.
            let idle = tokio::time::timeout(PING + PONG * 2, async { tokio::join!(a.arrival(), b.arrival()) });
            assert!(idle.await.is_err(), "a carrier whose other end answers was given up");
        };
        let unread = async {
            let (mut a, _b) = ends(false).await;
            while tokio::time::timeout(PONG / 8, a.send(Bytes::from(vec![0; 1 << 16]))).await.is_ok() {}
            let began = Instant::now();
            assert_eq!(a.send_control(&Control::Parked {}).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert!(began.elapsed() >= PONG, "{:?}", began.elapsed());
        };
        tokio::join!(silent, kept, unread);
    }
}
