//! Passes a call of a program in the workspace to its laptop and back, frame by frame. It looks into none of them.
//!
//! A call that has begun goes on for as long as its session and its program do, whatever becomes of the connections
//! beneath: what was said is delivered. One that begins while the way is known to be interrupted is held for a moment, and
//! then refused, by whoever opens its stream.

use tokio::io::{AsyncRead, AsyncWrite};

use crate::session::framed::{FrameReader, FrameWriter, FramedStream, Io, StreamError};

/// Passes frames both ways until both are at their end, or one side breaks.
pub async fn pass<L: Io, R: Io>(local: FramedStream<L>, remote: FramedStream<R>) {
    let FramedStream { reader: mut asking, writer: mut answered } = local;
    let FramedStream { reader: mut answering, writer: mut asked } = remote;
    // What was read before had a bound of its own.
    asking.limit(usize::MAX);
    if let Err(error) = tokio::try_join!(copy(&mut asking, &mut asked), copy(&mut answering, &mut answered)) {
        tracing::debug!(%error, "a call ended early");
    }
    // Dropped here: the laptop sees a call that is not complete as given up, and ends what runs for it.
}

async fn copy<R, W>(from: &mut FrameReader<R>, to: &mut FrameWriter<W>) -> Result<(), StreamError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    while let Some(frame) = from.next().await? {
        to.send(frame.kind, &frame.payload).await?;
    }
    Ok(to.close().await?)
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::wire::FrameKind;

    /// A program, the laptop, and what passes between them.
    struct World {
        program: FramedStream<DuplexStream>,
        laptop: FramedStream<DuplexStream>,
        passing: JoinHandle<()>,
    }

    impl World {
        fn new() -> World {
            let ((program, local), (laptop, remote)) = (tokio::io::duplex(1000), tokio::io::duplex(1000));
            let passing = tokio::spawn(pass(FramedStream::new(local), FramedStream::new(remote)));
            World { program: FramedStream::new(program), laptop: FramedStream::new(laptop), passing }
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
    async fn a_program_that_is_gone_ends_the_call() {
        let world = World::new();
        let World { program, mut laptop, passing } = world;
        drop(program);
        assert!(laptop.reader.next().await.unwrap().is_none());
        drop(laptop);
        passing.await.unwrap();
    }
}
