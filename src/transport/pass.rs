//! Passes what arrives on one carrier on to another, both ways and as it is: messages of the lifeline and control
//! messages. Holds one message of each direction; a side that does not read stops the other. Looks into nothing.

use std::io;
use std::task::{Context, Poll, ready};

use super::Io;
use super::carrier::{Arrival, Carrier, Messages};

#[derive(Default)]
struct Direction {
    waiting: Option<Arrival>,
    unflushed: bool,
    /// How its source ended.
    end: Option<io::Result<()>>,
    /// Its other side takes nothing any more.
    stuck: bool,
}

/// Passes messages on until either carrier closes or breaks; then closes or breaks the other, after what had arrived
/// before. Each keeps its own heartbeat.
pub async fn pass<A: Io, B: Io>(mut a: Carrier<A>, mut b: Carrier<B>) -> io::Result<()> {
    let (mut forth, mut back) = (Direction::default(), Direction::default());
    std::future::poll_fn(|cx| {
        for outcome in [forth.poll(cx, &mut a, &mut b), back.poll(cx, &mut b, &mut a)] {
            if outcome.is_ready() {
                return outcome;
            }
        }
        // A side that takes nothing has ended, which is read behind what it said last.
        if forth.stuck && back.stuck { Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) } else { Poll::Pending }
    })
    .await
    // Both are dropped without a goodbye: a break is passed on as one.
    .inspect_err(|error: &io::Error| tracing::debug!(%error, "a carrier that was passed on broke"))?;
    futures::future::join(a.close(), b.close()).await;
    Ok(())
}

impl Direction {
    /// Ready when the source has ended and everything before that has left.
    fn poll<A: Io, B: Io>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Carrier<A>,
        to: &mut Carrier<B>,
    ) -> Poll<io::Result<()>> {
        if !self.stuck {
            match self.poll_move(cx, from, to) {
                Poll::Ready(Err(_)) => self.stuck = true,
                Poll::Ready(Ok(())) => return Poll::Ready(self.end.take().unwrap_or(Ok(()))),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Pending
    }

    /// An error is the other side's.
    fn poll_move<A: Io, B: Io>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Carrier<A>,
        to: &mut Carrier<B>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.waiting.is_some() {
                ready!(to.poll_ready(cx))?;
                if let Some(arrival) = self.waiting.take() {
                    to.start_send_on(arrival)?;
                    self.unflushed = true;
                }
            }
            if self.end.is_none() {
                match Messages::poll_arrival(from, cx) {
                    Poll::Ready(Ok(Some(arrival))) => {
                        self.waiting = Some(arrival);
                        continue;
                    }
                    Poll::Ready(Ok(None)) => self.end = Some(Ok(())),
                    Poll::Ready(Err(error)) => self.end = Some(Err(error)),
                    Poll::Pending => {}
                }
            }
            if self.unflushed {
                ready!(to.poll_flush(cx))?;
                self.unflushed = false;
            }
            return if self.end.is_some() { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::io::DuplexStream;

    use super::*;
    use crate::transport::carrier::{Side, websocket};
    use crate::wire::control::Control;
    use crate::wire::limits::MAX_CARRIER_MESSAGE;

    async fn ends() -> (Carrier<DuplexStream>, Carrier<DuplexStream>) {
        let (a, b) = crate::transport::memory::pair();
        let carrier = async |io| Carrier::new(websocket(io, Bytes::new(), Side::Unmasked).await);
        (carrier(a).await, carrier(b).await)
    }

    #[tokio::test]
    async fn everything_passes_both_ways_until_one_side_closes() {
        let ((mut laptop, near), (far, mut stub)) = (ends().await, ends().await);
        let talk = async {
            let large = Bytes::from(vec![7; MAX_CARRIER_MESSAGE]);
            for _ in 0..8 {
                let got = tokio::join!(laptop.send(large.clone()), stub.arrival());
                assert!(matches!(got, (Ok(()), Ok(Some(Arrival::Bytes(got)))) if got == large));
            }
            stub.send(Bytes::from_static(b"back")).await.unwrap();
            assert!(matches!(laptop.arrival().await, Ok(Some(Arrival::Bytes(got))) if got == "back"));
            let drain = Control::Drain { reconnect_after_ms: 7 };
            laptop.send_control(&drain).await.unwrap();
            assert!(matches!(stub.arrival().await, Ok(Some(Arrival::Control(got))) if got == drain));
            // What was sent before the close arrives before it.
            laptop.send(Bytes::from_static(b"last")).await.unwrap();
            let last = async {
                assert!(matches!(stub.arrival().await, Ok(Some(Arrival::Bytes(got))) if got == "last"));
                assert!(matches!(stub.arrival().await, Ok(None)));
            };
            tokio::join!(laptop.close(), last);
        };
        let (passed, ()) = tokio::join!(pass(near, far), talk);
        passed.unwrap();
    }

    #[tokio::test]
    async fn a_break_is_passed_on_as_a_break() {
        let ((mut laptop, near), (far, mut stub)) = (ends().await, ends().await);
        // Its last words are for the other end all the same.
        for word in ["two", "last", "words"] {
            laptop.send(Bytes::from_static(word.as_bytes())).await.unwrap();
        }
        drop(laptop);
        // Nor does it matter that nobody reads what comes back.
        stub.send(Bytes::from_static(b"back")).await.unwrap();
        assert!(pass(near, far).await.is_err());
        for word in ["two", "last", "words"] {
            assert!(matches!(stub.arrival().await, Ok(Some(Arrival::Bytes(got))) if got == word));
        }
        assert!(stub.arrival().await.is_err());
    }
}
