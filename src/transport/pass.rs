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
    done: bool,
    broke: Option<io::Error>,
}

/// Passes messages on until either carrier closes or breaks; then closes or breaks the other. Each keeps its own
/// heartbeat.
pub async fn pass<A: Io, B: Io>(mut a: Carrier<A>, mut b: Carrier<B>) -> io::Result<()> {
    let (mut forth, mut back) = (Direction::default(), Direction::default());
    std::future::poll_fn(|cx| {
        let ab = poll_direction(cx, &mut a, &mut b, &mut forth)?;
        let ba = poll_direction(cx, &mut b, &mut a, &mut back)?;
        if ab.is_ready() || ba.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
    // On an error both are dropped without a goodbye: a break is passed on as one.
    .inspect_err(|error: &io::Error| tracing::debug!(%error, "a carrier that was passed on broke"))?;
    futures::future::join(a.close(), b.close()).await;
    Ok(())
}

fn poll_direction<A: Io, B: Io>(
    cx: &mut Context<'_>,
    from: &mut Carrier<A>,
    to: &mut Carrier<B>,
    direction: &mut Direction,
) -> Poll<io::Result<()>> {
    loop {
        if direction.waiting.is_some() {
            ready!(to.poll_ready(cx))?;
            if let Some(arrival) = direction.waiting.take() {
                to.start_send_on(arrival)?;
                direction.unflushed = true;
            }
        }
        if !direction.done {
            match Messages::poll_arrival(from, cx) {
                Poll::Ready(Ok(Some(arrival))) => {
                    direction.waiting = Some(arrival);
                    continue;
                }
                Poll::Ready(Ok(None)) => direction.done = true,
                // What arrived before it leaves first: it may be the last that the other side will hear.
                Poll::Ready(Err(error)) => (direction.done, direction.broke) = (true, Some(error)),
                Poll::Pending => {}
            }
        }
        if direction.unflushed {
            ready!(to.poll_flush(cx))?;
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
        // What was sent before the break arrives before it.
        laptop.send(Bytes::from_static(b"last")).await.unwrap();
        drop(laptop);
        let arrives = async {
            assert!(matches!(stub.arrival().await, Ok(Some(Arrival::Bytes(got))) if got == "last"));
            assert!(stub.arrival().await.is_err());
        };
        let (passed, ()) = tokio::join!(pass(near, far), arrives);
        assert!(passed.is_err());
    }
}
