//! Tests of sessions that drain: what is open goes on to its end, nothing else begins, and then both ends are done.

use super::header::{Flags, Header};
use super::peer::{Raw, in_time};
use super::window::FIRST_WINDOW;
use super::*;
use crate::wire::limits::FRAME_HEADER;
use crate::wire::{Refusal, RefusalCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::{JoinHandle, JoinSet};

/// One end, and its driver.
struct Side {
    opener: MuxOpener,
    acceptor: MuxAcceptor,
    driver: JoinHandle<io::Result<()>>,
}

impl Side {
    fn new(io: DuplexStream, end: End) -> Side {
        let (opener, acceptor, driver) = multiplex(io, end);
        Side { opener, acceptor, driver: tokio::spawn(driver) }
    }

    /// Its driver ends in order although its acceptor is held.
    async fn ends(self) {
        in_time(self.driver).await.unwrap().unwrap();
        assert!(self.opener.is_closed());
        drop(self.acceptor);
    }
}

fn pair(pipe: usize) -> [Side; 2] {
    let (a, b) = tokio::io::duplex(pipe);
    [Side::new(a, End::Laptop), Side::new(b, End::Workspace)]
}

/// A stream from one end to the other, and its other end.
async fn joined(from: &Side, to: &mut Side) -> (MuxStream, MuxStream) {
    let mut near = from.opener.open().await.unwrap();
    near.write_all(b"!").await.unwrap();
    let mut far = in_time(to.acceptor.accept()).await.unwrap();
    in_time(far.read_exact(&mut [0])).await.unwrap();
    (near, far)
}

#[tokio::test]
async fn a_session_without_streams_ends_at_once_whoever_drains_it_and_however_often() {
    for drained in [&[0][..], &[1], &[0, 0], &[0, 1], &[1, 0, 1]] {
        let sides = pair(1000);
        for at in drained {
            sides[*at].opener.drain();
            assert!(sides[*at].opener.is_draining());
        }
        for side in &sides {
            in_time(side.opener.draining()).await;
            in_time(side.opener.agreed()).await;
        }
        for side in sides {
            side.ends().await;
        }
    }
}

#[tokio::test]
async fn what_is_open_goes_on_until_all_of_it_has_arrived() {
    const BYTES: usize = 3 << 20;
    for drainer in [0, 1] {
        let mut sides = pair(20_000);
        let [laptop, workspace] = &mut sides;
        let streams = [joined(laptop, workspace).await, joined(workspace, laptop).await];
        let mut transfers = JoinSet::new();
        let (half, mut halves) = mpsc::channel(1);
        for (near, far) in streams {
            for (stream, half) in [(near, None), (far, Some(half.clone()))] {
                let (mut read, mut write) = tokio::io::split(stream);
                transfers.spawn(async move {
                    let sending = async {
                        for i in 0..BYTES / 65536 {
                            write.write_all(&[i as u8; 65536]).await.unwrap();
                        }
                        write.shutdown().await.unwrap();
                    };
                    let receiving = async {
                        let mut got = vec![0; BYTES / 2];
                        read.read_exact(&mut got).await.unwrap();
                        if let Some(half) = half {
                            half.send(()).await.unwrap();
                        }
                        read.read_to_end(&mut got).await.unwrap();
                        got
                    };
                    let ((), got) = tokio::join!(sending, receiving);
                    assert_eq!(got.len(), BYTES);
                    assert!(got.chunks(65536).enumerate().all(|(i, piece)| piece.iter().all(|b| *b == i as u8)));
                });
            }
        }
        in_time(halves.recv()).await.unwrap();
        sides[drainer].opener.drain();
        for side in &sides {
            in_time(side.opener.agreed()).await;
            assert_eq!(side.opener.open().await.unwrap_err().code, RefusalCode::Unavailable);
        }
        halves.close();
        while let Some(transfer) = in_time(transfers.join_next()).await {
            // Who waits to say that half has arrived need not.
            transfer.unwrap();
        }
        for side in sides {
            side.ends().await;
        }
    }
}

#[tokio::test]
async fn an_idle_stream_keeps_the_session_and_letting_it_go_ends_it() {
    for drainer in [0, 1] {
        for reset in [false, true] {
            let mut sides = pair(1000);
            let [laptop, workspace] = &mut sides;
            let (mut near, mut far) = joined(laptop, workspace).await;
            sides[drainer].opener.drain();
            for side in &sides {
                in_time(side.opener.agreed()).await;
            }
            // Far from over: it is of use in both directions.
            near.write_all(b"ping").await.unwrap();
            in_time(far.read_exact(&mut [0; 4])).await.unwrap();
            far.write_all(b"pong").await.unwrap();
            in_time(near.read_exact(&mut [0; 4])).await.unwrap();
            assert!(sides.iter().all(|side| !side.opener.is_closed() && side.opener.streams() == 1));
            if !reset {
                near.shutdown().await.unwrap();
                far.shutdown().await.unwrap();
                assert_eq!(in_time(far.read(&mut [0])).await.unwrap(), 0);
            }
            drop(near);
            if reset {
                let error = in_time(far.read(&mut [0])).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            }
            // Both directions are over; who still has it has not read it, and its end of the session waits for that.
            drop(far);
            for side in sides {
                side.ends().await;
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_was_opened_before_and_used_after_is_served() {
    for drainer in [0, 1] {
        let mut sides = pair(1000);
        let mut early = sides[drainer].opener.open().await.unwrap();
        let never = sides[drainer].opener.open().await.unwrap();
        sides[drainer].opener.drain();
        in_time(sides[drainer].opener.agreed()).await;
        early.write_all(b"hello").await.unwrap();
        early.shutdown().await.unwrap();
        let mut served = in_time(sides[1 - drainer].acceptor.accept()).await.unwrap();
        let mut hello = String::new();
        in_time(served.read_to_string(&mut hello)).await.unwrap();
        assert_eq!(hello, "hello");
        served.shutdown().await.unwrap();
        drop((early, served));
        assert!(sides.iter().all(|side| !side.opener.is_closed()));
        // One of which the other end never heard keeps it too.
        drop(never);
        for side in sides {
            side.ends().await;
        }
    }
}

const WORD: Header = Header::go_away(0);

#[tokio::test]
async fn a_stream_that_crossed_the_word_is_taken_and_a_later_one_refused() {
    let mut raw = Raw::new(End::Workspace, 1 << 20);
    raw.opener.drain();
    assert_eq!(raw.frame().await.0, WORD);
    raw.send(Header::data(1, Flags::SYN, 2), b"hi").await;
    let mut crossed = in_time(raw.acceptor.accept()).await.unwrap();
    in_time(crossed.read_exact(&mut [0; 2])).await.unwrap();
    raw.send(WORD, &[]).await;
    raw.send(Header::data(3, Flags::SYN.with(Flags::FIN), 2), b"hi").await;
    let (header, payload) = raw.frame().await;
    assert_eq!((header.stream, header.flags), (3, Flags::ACK.with(Flags::FIN)));
    let (_, body) = payload.split_first_chunk::<FRAME_HEADER>().unwrap();
    let refusal = Refusal::from_bytes(body);
    assert_eq!(refusal.code, RefusalCode::Unavailable);
    assert!(refusal.message.contains("handed over"), "{refusal}");
    crossed.shutdown().await.unwrap();
    assert_eq!(raw.frame().await.0, Header::data(1, Flags::ACK.with(Flags::FIN), 0));
    drop(crossed);
    // The second word says that nothing is open here; one of theirs still is.
    assert_eq!(raw.frame().await.0, WORD);
    raw.send(Header::data(1, Flags::FIN, 0), &[]).await;
    assert!(!raw.opener.is_closed());
    raw.send(WORD, &[]).await;
    assert_eq!(in_time(raw.io.read(&mut [0; 1])).await.unwrap(), 0);
    Side { opener: raw.opener, acceptor: raw.acceptor, driver: raw.driver }.ends().await;
}

#[tokio::test]
async fn a_stream_that_is_refused_has_room_for_a_first_window_and_no_more() {
    for (length, accused) in [(FIRST_WINDOW, false), (FIRST_WINDOW + 1, true)] {
        let mut raw = Raw::new(End::Workspace, 1 << 20);
        let held = raw.opener.open().await.unwrap();
        raw.opener.drain();
        assert_eq!(raw.frame().await.0, WORD);
        raw.send(WORD, &[]).await;
        raw.send(Header::data(1, Flags::SYN, length), &vec![7; length as usize]).await;
        if accused {
            let error = raw.outcome().await.unwrap_err();
            assert!(error.to_string().contains(&format!("room for {FIRST_WINDOW}")), "{error}");
            continue;
        }
        let (header, _) = raw.frame().await;
        assert_eq!((header.stream, header.flags), (1, Flags::ACK.with(Flags::FIN)));
        assert!(!raw.driver.is_finished());
        drop(held);
    }
}

#[tokio::test]
async fn the_word_comes_after_the_first_frames_of_streams_that_were_opened_before() {
    let mut raw = Raw::new(End::Laptop, 1 << 20);
    let mut streams = Vec::new();
    for _ in 0..100 {
        let mut stream = raw.opener.open().await.unwrap();
        stream.write_all(&[1; 1000]).await.unwrap();
        streams.push(stream);
    }
    raw.opener.drain();
    for i in 0..100 {
        assert_eq!(raw.frame().await.0, Header::data(2 * i + 1, Flags::SYN, 1000));
    }
    assert_eq!(raw.frame().await.0, WORD);
}

#[tokio::test]
async fn what_is_open_is_cut_when_the_byte_stream_ends_after_a_word() {
    let mut raw = Raw::new(End::Laptop, 1 << 20);
    let mut open = raw.opener.open().await.unwrap();
    open.write_all(b"hi").await.unwrap();
    raw.frame().await;
    raw.send(WORD, &[]).await;
    in_time(raw.opener.draining()).await;
    assert_eq!(raw.frame().await.0, WORD);
    assert!(!raw.opener.is_closed());
    raw.io.shutdown().await.unwrap();
    assert_eq!(in_time(open.read(&mut [0])).await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    Side { opener: raw.opener, acceptor: raw.acceptor, driver: raw.driver }.ends().await;
}

#[tokio::test]
async fn an_error_ends_a_session_that_drains() {
    let mut raw = Raw::new(End::Laptop, 1 << 20);
    let _open = raw.opener.open().await.unwrap();
    raw.send(WORD, &[]).await;
    in_time(raw.opener.draining()).await;
    raw.send(Header::go_away(2), &[]).await;
    let error = in_time(raw.driver).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("an error of its own"), "{error}");
}

#[tokio::test]
async fn dropping_the_acceptor_ends_a_session_that_drains_at_once() {
    let [laptop, workspace] = pair(1000);
    let open = laptop.opener.open().await.unwrap();
    laptop.opener.drain();
    in_time(laptop.opener.agreed()).await;
    drop(workspace.acceptor);
    in_time(workspace.driver).await.unwrap().unwrap();
    in_time(laptop.driver).await.unwrap().unwrap();
    drop(open);
}
