//! Passes a call of a program in the workspace to its laptop and back, frame by frame. It looks into none of them.
//!
//! Whoever calls is not left waiting in silence: while the way to the laptop is interrupted, a call that the laptop has
//! not taken ends after a moment, with a sentence. One that it works on goes on for as long as its session does.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::session::framed::{FrameReader, FrameWriter, FramedStream, Io, StreamError};
use crate::session::held::{HOLD, Way};
use crate::wire::{FrameKind, Refusal, RefusalCode};

/// Passes frames both ways until both are at their end, one side breaks, or the way is interrupted for too long before the
/// laptop has said anything.
pub async fn pass<L: Io, R: Io>(local: FramedStream<L>, remote: FramedStream<R>, way: Way) {
    pass_with(HOLD, local, remote, way).await;
}

async fn pass_with<L: Io, R: Io>(patience: Duration, local: FramedStream<L>, remote: FramedStream<R>, way: Way) {
    let FramedStream { reader: mut asking, writer: mut answered } = local;
    let FramedStream { reader: mut answering, writer: mut asked } = remote;
    // What was read before had a bound of its own.
    asking.limit(usize::MAX);
    let forth = forth(&mut asking, &mut asked);
    let back = back(&mut answering, &mut answered, way, patience);
    if let Err(error) = tokio::try_join!(forth, back) {
        tracing::debug!(%error, "a call ended early");
    }
    // Dropped here: the laptop sees a call that is not complete as given up, and ends what runs for it.
}

async fn forth<R, W>(from: &mut FrameReader<R>, to: &mut FrameWriter<W>) -> Result<(), StreamError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    while let Some(frame) = from.next().await? {
        to.send(frame.kind, &frame.payload).await?;
    }
    Ok(to.close().await?)
}

async fn back<R, W>(
    from: &mut FrameReader<R>,
    to: &mut FrameWriter<W>,
    mut way: Way,
    patience: Duration,
) -> Result<(), StreamError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut taken = false;
    loop {
        let frame = tokio::select! {
            biased;
            frame = from.next() => frame?,
            () = way.interrupted_for(patience), if !taken => {
                let refusal = given_up();
                to.send(FrameKind::Refuse, &refusal.to_bytes()).await?;
                to.close().await?;
                return Err(StreamError::Refused(refusal));
            }
        };
        let Some(frame) = frame else { return Ok(to.close().await?) };
        taken = true;
        to.send(frame.kind, &frame.payload).await?;
    }
}

fn given_up() -> Refusal {
    let text = "the connection to the laptop is interrupted, and it has not said that it took the call. hint: try again in a \
                while; `nexus-stub status` says whether a laptop is there";
    Refusal::new(RefusalCode::Unavailable, text)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::DuplexStream;
    use tokio::sync::watch;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::lifeline::{Route, Standing};

    const SOON: Duration = Duration::from_millis(50);

    /// A program, the laptop, and what passes between them.
    struct World {
        program: FramedStream<DuplexStream>,
        laptop: FramedStream<DuplexStream>,
        standing: watch::Sender<Standing>,
        passing: JoinHandle<()>,
    }

    impl World {
        fn new() -> World {
            let attached = Standing::Attached { route: Route::Relay, round_trip: None, standby: false, moves: 0 };
            let standing = watch::Sender::new(attached);
            let way = Way::of(standing.subscribe());
            let ((program, local), (laptop, remote)) = (tokio::io::duplex(1000), tokio::io::duplex(1000));
            let passing = tokio::spawn(pass_with(SOON, FramedStream::new(local), FramedStream::new(remote), way));
            World { program: FramedStream::new(program), laptop: FramedStream::new(laptop), standing, passing }
        }

        fn interrupt(&self) {
            let since = Instant::now();
            self.standing.send_replace(Standing::Suspect { since, why: "silent".into() });
        }
    }

    #[tokio::test]
    async fn frames_and_ends_pass_both_ways() {
        let mut world = World::new();
        let long = vec![b'x'; 500_000];
        let ask = async {
            world.program.writer.send(FrameKind::Message, &long).await.unwrap();
            world.program.writer.close().await.unwrap();
            world.program.reader.expect().await.unwrap()
        };
        let answer = async {
            assert_eq!(world.laptop.reader.expect().await.unwrap().payload, long);
            assert!(world.laptop.reader.next().await.unwrap().is_none());
            world.laptop.writer.send(FrameKind::Accept, b"{}").await.unwrap();
            world.laptop.writer.close().await.unwrap();
        };
        let (frame, ()) = tokio::join!(ask, answer);
        assert_eq!((frame.kind, &frame.payload[..]), (FrameKind::Accept, &b"{}"[..]));
        assert!(world.program.reader.next().await.unwrap().is_none());
        world.passing.await.unwrap();
    }

    #[tokio::test]
    async fn a_call_that_nobody_took_is_refused_soon() {
        let mut world = World::new();
        world.program.writer.send(FrameKind::Message, b"request").await.unwrap();
        world.interrupt();
        let frame = world.program.reader.expect().await.unwrap();
        assert_eq!(frame.kind, FrameKind::Refuse);
        assert!(frame.refusal().message.contains("interrupted") && frame.refusal().message.contains("hint: try again"));
        world.passing.await.unwrap();
        assert!(world.laptop.reader.expect().await.is_ok(), "what was said");
        assert!(world.laptop.reader.expect().await.is_err(), "and that it is given up");
    }

    #[tokio::test]
    async fn a_call_that_is_worked_on_waits_for_as_long_as_it_takes() {
        let mut world = World::new();
        world.laptop.writer.send(FrameKind::Accept, b"{}").await.unwrap();
        assert_eq!(world.program.reader.expect().await.unwrap().kind, FrameKind::Accept);
        world.interrupt();
        let soon = tokio::time::timeout(SOON * 4, world.program.reader.next()).await;
        assert!(soon.is_err(), "it is waited for");
        world.laptop.writer.send(FrameKind::Message, b"answer").await.unwrap();
        assert_eq!(world.program.reader.expect().await.unwrap().payload, &b"answer"[..]);
    }

    #[tokio::test]
    async fn a_program_that_is_gone_ends_the_call() {
        let world = World::new();
        let World { program, mut laptop, passing, standing: _standing } = world;
        drop(program);
        assert!(laptop.reader.next().await.unwrap().is_none());
        drop(laptop);
        passing.await.unwrap();
    }
}
