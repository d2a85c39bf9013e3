//! What arrives on a carrier, as a WebSocket: whole messages within their bound, or an error. In whatever pieces.

#![no_main]

use std::task::{Context, Poll};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nexus_proxy::transport::carrier::{Arrival, Carrier, Messages, Side, websocket};
use nexus_proxy::wire::limits::MAX_CARRIER_MESSAGE;
use nexus_proxy_fuzz::{Flag, Pipe, runtime};

fuzz_target!(|data: &[u8]| {
    let Some((how, rest)) = data.split_first() else { return };
    let Some((cut, rest)) = rest.split_first() else { return };
    let side = [Side::Client, Side::Server, Side::Unmasked][usize::from(how % 3)];
    let whole = arrivals(side, rest, 0, 0);
    let pieces = arrivals(side, rest, usize::from(how / 3), usize::from(*cut).min(rest.len()));
    assert_eq!(whole, pieces, "the pieces made a difference");
});

/// What arrives of `bytes`, of which the first `ahead` came along with the answer of HTTP.
fn arrivals(side: Side, bytes: &[u8], piece: usize, ahead: usize) -> Vec<String> {
    let runtime = runtime();
    let _within = runtime.enter();
    let (ahead, rest) = bytes.split_at(ahead);
    let pipe = Pipe::default();
    pipe.with(|ends| (ends.inward, ends.piece, ends.ended, ends.room) = (rest.to_vec(), piece, true, usize::MAX));
    let ws = runtime.block_on(websocket(pipe, Bytes::copy_from_slice(ahead), side));
    let mut carrier = Carrier::new(ws);
    let waker = Flag::raised().into();
    let mut cx = Context::from_waker(&waker);
    let mut arrived = Vec::new();
    loop {
        match carrier.poll_arrival(&mut cx) {
            Poll::Ready(Ok(Some(arrival))) => {
                if let Arrival::Bytes(bytes) = &arrival {
                    assert!(bytes.len() <= MAX_CARRIER_MESSAGE);
                }
                arrived.push(format!("{arrival:?}"));
            }
            Poll::Ready(Ok(None)) => break arrived.push("closed".into()),
            Poll::Ready(Err(error)) => break arrived.push(format!("{:?}", error.kind())),
            Poll::Pending => panic!("all there is has arrived"),
        }
    }
    arrived
}
