//! The relay: two carriers of which the coordinator copies what arrives on one to the other, without looking into it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::{Sink, SinkExt, Stream};
use tokio::time::{Instant, Sleep, interval_at, sleep_until};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

use super::Io;
use super::carrier::{PING, WRITE_BUFFER, io_error};
use crate::wire::control::Control;
use crate::wire::limits::MAX_CARRIER_MESSAGE;

/// A relay whose two ends ping, and that hears nothing for this long, has lost one.
pub const SILENCE: Duration = Duration::from_secs(30);

/// Bytes that a relay may hold, whoever does not read: for each direction what the slow connection does not take, a message
/// that waits for it, and one that is arriving. TLS has buffers of its own beneath.
pub const RELAY_BUFFERS: usize = 2 * (WRITE_BUFFER + 2 * MAX_CARRIER_MESSAGE);

/// What a relay counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Relayed {
    /// Bytes from the first to the second.
    pub forth: u64,
    /// Bytes from the second to the first.
    pub back: u64,
}

#[derive(Debug, Default)]
struct Direction {
    /// What the relay itself has to say there; goes before what waits.
    say: Option<Message>,
    /// The last that it has to ask there.
    ping: Option<Message>,
    /// Which question was answered last, on the side that it comes from. A number, since the bytes are a piece of all that was read
    /// with them.
    pong: Option<u32>,
    /// Whether it is not read, since the side that it goes to takes nothing.
    blocked: bool,
    waiting: Option<Message>,
    unflushed: bool,
    done: bool,
    /// What broke the side that it comes from. What had arrived from there leaves first.
    broke: Option<io::Error>,
    bytes: u64,
}

/// How a relay ends because its coordinator stops.
#[derive(Debug)]
pub struct Drain<W, P, S> {
    /// Ready when both sides are to be told; the relay goes on.
    pub when: W,
    /// Ready when it must end, whoever is still there. Both are told again.
    pub part: P,
    /// What the first is told and what the second is, each time.
    pub say: S,
}

/// When the second side may be gone without a word.
#[derive(Debug)]
pub struct Doubt<D> {
    /// Has an item each time that there is a reason to ask it.
    pub reasons: D,
    /// How long it may then be silent. Whatever it says gives it as long again: behind what keeps a wire full, an answer is late.
    pub patience: Duration,
}

/// A connection that was joined so short a time ago is not asked: what made a reason may be the same that joined it.
const JUST_JOINED: Duration = Duration::from_secs(5);

/// What the second side was asked.
#[derive(Default)]
struct Questions {
    /// How many. The ping of each has its number: an answer to an earlier one says nothing of now.
    number: u32,
    /// Until when the last one may stay open.
    open_until: Option<Pin<Box<Sleep>>>,
}

impl<D: Stream<Item = ()> + Unpin> Doubt<D> {
    /// Asks when there is a reason. Ready when nothing came in time.
    fn poll_silent(
        &mut self,
        cx: &mut Context<'_>,
        joined: Instant,
        asked: &mut Questions,
        forth: &mut Direction,
    ) -> Poll<()> {
        let mut arises = false;
        while let Poll::Ready(Some(())) = Pin::new(&mut self.reasons).poll_next(cx) {
            arises = joined.elapsed() >= JUST_JOINED;
        }
        if arises {
            asked.number = asked.number.wrapping_add(1);
            // The first question that is open says how long: reasons that come one after the other put nothing off.
            asked.open_until.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + self.patience)));
            forth.ping = Some(Message::Ping(Bytes::copy_from_slice(&asked.number.to_be_bytes())));
        }
        match &mut asked.open_until {
            Some(until) => until.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl Questions {
    /// `pong` is what answered last.
    fn hear(&mut self, pong: Option<u32>) {
        if pong == Some(self.number) {
            self.open_until = None;
        }
    }
}

/// Copies binary messages both ways until either side ends, then ends the other. Never looks into them.
/// Holds one message of each direction at most; a side that does not read stops the other.
/// Ends when a side is silent for [`SILENCE`]: both ping; and when the second does not answer in `doubt`.
pub async fn relay<A: Io, B: Io, W, P, S, D>(
    mut a: WebSocketStream<A>,
    mut b: WebSocketStream<B>,
    mut drain: Drain<W, P, S>,
    mut doubt: Doubt<D>,
) -> (Relayed, io::Result<()>)
where
    D: Stream<Item = ()> + Unpin,
    W: Future<Output = ()>,
    P: Future<Output = ()>,
    S: FnMut() -> [Control; 2],
{
    let (mut forth, mut back) = (Direction::default(), Direction::default());
    let mut check = interval_at(Instant::now() + PING, PING);
    let joined = Instant::now();
    let (mut heard_a, mut heard_b) = (joined, joined);
    let mut when = std::pin::pin!(drain.when);
    let mut part = std::pin::pin!(drain.part);
    let (mut told, mut parting, mut asked) = (false, false, Questions::default());
    let outcome = std::future::poll_fn(|cx| {
        if part.as_mut().poll(cx).is_ready() {
            parting = true;
            return Poll::Ready(Ok(()));
        }
        if !told && when.as_mut().poll(cx).is_ready() {
            told = true;
            let [to_a, to_b] = (drain.say)().map(|say| Message::text(say.to_text()));
            (back.say, forth.say) = (Some(to_a), Some(to_b));
        }
        let before = heard_b;
        let silent = doubt.poll_silent(cx, joined, &mut asked, &mut forth).is_ready();
        let ab = poll_copy(cx, &mut a, &mut b, &mut forth, &mut heard_a);
        let ba = poll_copy(cx, &mut b, &mut a, &mut back, &mut heard_b);
        if let Poll::Ready(outcome) = ab {
            return Poll::Ready(outcome);
        }
        if let Poll::Ready(outcome) = ba {
            return Poll::Ready(outcome);
        }
        asked.hear(back.pong);
        if let Some(until) = &mut asked.open_until {
            // What it says is not read while the first takes nothing.
            if heard_b > before || back.blocked {
                until.as_mut().reset(Instant::now() + doubt.patience);
                // So that the timer wakes this task.
                let _ = until.as_mut().poll(cx);
            } else if silent {
                let why = "the second side does not answer, and there is a reason to doubt that it is there";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)));
            }
        }
        while check.poll_tick(cx).is_ready() {
            if heard_a.elapsed() > SILENCE || heard_b.elapsed() > SILENCE {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut)));
            }
        }
        Poll::Pending
    })
    .await;
    let close = async {
        if parting {
            let [to_a, to_b] = (drain.say)().map(|say| Message::text(say.to_text()));
            let _ = futures::future::join(a.send(to_a), b.send(to_b)).await;
        }
        let _ = futures::future::join(a.close(None), b.close(None)).await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), close).await;
    (Relayed { forth: forth.bytes, back: back.bytes }, outcome)
}

fn poll_copy<A: Io, B: Io>(
    cx: &mut Context<'_>,
    from: &mut WebSocketStream<A>,
    to: &mut WebSocketStream<B>,
    direction: &mut Direction,
    heard: &mut Instant,
) -> Poll<io::Result<()>> {
    let mut to = Pin::new(to);
    loop {
        direction.blocked = true;
        while direction.say.is_some() || direction.ping.is_some() || direction.waiting.is_some() {
            ready!(to.as_mut().poll_ready(cx)).map_err(io_error)?;
            let own = direction.say.take().or_else(|| direction.ping.take());
            if let Some(message) = own.or_else(|| direction.waiting.take()) {
                to.as_mut().start_send(message).map_err(io_error)?;
                direction.unflushed = true;
            }
        }
        direction.blocked = false;
        if !direction.done {
            match Pin::new(&mut *from).poll_next(cx) {
                Poll::Ready(Some(Ok(message))) => {
                    *heard = Instant::now();
                    match message {
                        Message::Binary(bytes) => {
                            direction.bytes += bytes.len() as u64;
                            direction.waiting = Some(Message::Binary(bytes));
                        }
                        Message::Close(_) => direction.done = true,
                        Message::Pong(pong) => direction.pong = pong[..].try_into().ok().map(u32::from_be_bytes),
                        _ => {}
                    }
                    continue;
                }
                Poll::Ready(Some(Err(tungstenite::Error::ConnectionClosed))) | Poll::Ready(None) => {
                    direction.done = true;
                }
                Poll::Ready(Some(Err(error))) => (direction.done, direction.broke) = (true, Some(io_error(error))),
                Poll::Pending => {}
            }
        }
        if direction.unflushed {
            ready!(to.as_mut().poll_flush(cx)).map_err(io_error)?;
            direction.unflushed = false;
        }
        return match direction.broke.take() {
            Some(error) => Poll::Ready(Err(error)),
            None if direction.done => Poll::Ready(Ok(())),
            None => Poll::Pending,
        };
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::super::carrier::tests::{bytes, ends};
    use super::super::carrier::{Arrival, Carrier};
    use super::*;

    /// Of a coordinator that does not stop.
    fn never() -> Drain<std::future::Pending<()>, std::future::Pending<()>, impl FnMut() -> [Control; 2]> {
        let say = || [Control::Unknown, Control::Unknown];
        Drain { when: std::future::pending(), part: std::future::pending(), say }
    }

    /// There is no reason for it.
    fn no_doubt() -> Doubt<stream::Pending<()>> {
        Doubt { reasons: stream::pending(), patience: Duration::ZERO }
    }

    const PATIENCE: Duration = Duration::from_secs(1);

    type End = Carrier<tokio::io::DuplexStream>;

    /// A relay, and what gives it a reason to ask.
    struct Doubted {
        laptop: End,
        stub: End,
        tell: futures::channel::mpsc::UnboundedSender<()>,
        relay: tokio::task::JoinHandle<(Relayed, io::Result<()>)>,
    }

    async fn doubted() -> Doubted {
        let ((laptop, near), (far, stub)) = (ends(false).await, ends(true).await);
        let (tell, reasons) = futures::channel::mpsc::unbounded();
        let doubt = Doubt { reasons, patience: PATIENCE };
        let relay = tokio::spawn(relay(near.into_websocket(), far.into_websocket(), never(), doubt));
        Doubted { laptop, stub, tell, relay }
    }

    /// In real time.
    #[tokio::test]
    async fn a_second_side_that_says_nothing_when_in_doubt_is_gone() {
        let Doubted { mut laptop, mut stub, tell, relay } = doubted().await;
        tell.unbounded_send(()).unwrap();
        tokio::time::sleep(JUST_JOINED).await;
        assert!(!relay.is_finished(), "it was joined a moment ago");
        // It answers.
        for _ in 0..2 {
            tell.unbounded_send(()).unwrap();
            let reads = tokio::time::timeout(PATIENCE * 2, stub.arrival()).await;
            assert!(reads.is_err(), "{reads:?}");
        }
        // It is busy, and its answer late.
        tell.unbounded_send(()).unwrap();
        for _ in 0..6 {
            stub.send(Bytes::from_static(b"busy")).await.unwrap();
            assert_eq!(bytes(&mut laptop).await, "busy");
            tokio::time::sleep(PATIENCE / 3).await;
        }
        assert!(!relay.is_finished());
        // What it said is no answer, and then nothing comes.
        let began = Instant::now();
        let arrival = laptop.arrival().await;
        assert!((PATIENCE / 2..SILENCE / 2).contains(&began.elapsed()), "{:?}", began.elapsed());
        assert!(matches!(arrival, Ok(None)), "{arrival:?}");
        assert_eq!(relay.await.unwrap().1.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    /// In real time: it cannot be told from one that is there while its bytes are not read.
    #[tokio::test]
    async fn a_second_side_is_not_gone_while_the_first_takes_nothing() {
        let Doubted { mut laptop, mut stub, tell, relay } = doubted().await;
        tokio::time::sleep(JUST_JOINED).await;
        let full = async {
            loop {
                stub.send(Bytes::from(vec![7; 60_000])).await.unwrap();
            }
        };
        assert!(tokio::time::timeout(PATIENCE, full).await.is_err());
        tell.unbounded_send(()).unwrap();
        tokio::time::sleep(PATIENCE * 3).await;
        assert!(!relay.is_finished());
        // Then nothing comes, and nothing answers.
        let began = Instant::now();
        while let Ok(Some(_)) = laptop.arrival().await {}
        assert!(began.elapsed() < SILENCE / 2, "{:?}", began.elapsed());
        assert_eq!(relay.await.unwrap().1.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_relay_one_of_whose_ends_is_silent_ends() {
        let (mut laptop, near) = ends(false).await;
        let (far, _stub) = ends(true).await;
        let began = Instant::now();
        let (relayed, arrival) =
            tokio::join!(relay(near.into_websocket(), far.into_websocket(), never(), no_doubt()), laptop.arrival());
        assert_eq!(relayed.1.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() > SILENCE && !matches!(arrival, Ok(Some(_))), "{arrival:?}");
    }

    #[tokio::test]
    async fn the_relay_copies_both_ways_and_ends_both() {
        let (mut laptop, near) = ends(false).await;
        let (far, mut stub) = ends(true).await;
        let relay = tokio::spawn(relay(near.into_websocket(), far.into_websocket(), never(), no_doubt()));
        for len in [100_000, 1, 50_000] {
            laptop.send(Bytes::from(vec![5; len])).await.unwrap();
            assert_eq!(bytes(&mut stub).await.len(), len, "messages keep their borders");
        }
        stub.send(Bytes::from_static(b"back")).await.unwrap();
        assert_eq!(bytes(&mut laptop).await, "back");
        drop(stub);
        assert!(!matches!(laptop.arrival().await, Ok(Some(_))));
        let (relayed, _) = relay.await.unwrap();
        assert_eq!(relayed, Relayed { forth: 150_001, back: 4 });
    }

    #[tokio::test]
    async fn a_relay_that_drains_tells_both_and_goes_on_until_it_is_parted() {
        let (mut laptop, near) = ends(false).await;
        let (far, mut stub) = ends(true).await;
        let (tell, when) = tokio::sync::oneshot::channel::<()>();
        let (end, part) = tokio::sync::oneshot::channel::<()>();
        let mut said = 0;
        let drain = Drain {
            when: async move { when.await.unwrap() },
            part: async move { part.await.unwrap() },
            say: move || {
                said += 10;
                [said, said + 1].map(|reconnect_after_ms| Control::Drain { reconnect_after_ms })
            },
        };
        let relay = tokio::spawn(relay(near.into_websocket(), far.into_websocket(), drain, no_doubt()));
        let told = |arrival: io::Result<Option<Arrival>>| match arrival {
            Ok(Some(Arrival::Control(Control::Drain { reconnect_after_ms }))) => reconnect_after_ms,
            other => panic!("{other:?}"),
        };
        tell.send(()).unwrap();
        assert_eq!((told(laptop.arrival().await), told(stub.arrival().await)), (10, 11));
        for _ in 0..3 {
            laptop.send(Bytes::from_static(b"forth")).await.unwrap();
            assert_eq!(bytes(&mut stub).await, "forth");
            stub.send(Bytes::from_static(b"back")).await.unwrap();
            assert_eq!(bytes(&mut laptop).await, "back");
        }
        end.send(()).unwrap();
        assert_eq!((told(laptop.arrival().await), told(stub.arrival().await)), (20, 21));
        let closed = tokio::join!(laptop.arrival(), stub.arrival());
        assert!(matches!(closed, (Ok(None), Ok(None))), "{closed:?}");
        let (relayed, outcome) = relay.await.unwrap();
        assert_eq!(relayed, Relayed { forth: 15, back: 12 });
        outcome.unwrap();
    }
}
