//! `-R`: connections to a port of the workspace go to a target that the laptop has chosen.
//!
//! The workspace's end listens for as long as the control stream lives: its end, its abort or its loss closes the
//! port at once, as does a session that begins to drain. The workspace names a listener, never a target.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::task::JoinSet;

use crate::service::dial::Place;
use crate::service::forward::{dial_and_relay, forward_all};
use crate::service::listen::Listener;
use crate::service::stats::ForwardStats;
use crate::service::udp::{UdpForward, serve_udp_at};
use crate::session::framed::{FrameReader, FramedStream, Io, StreamError};
use crate::session::opener::Opener;
use crate::session::way::Way;
use crate::wire::limits::OPEN_TIMEOUT;
use crate::wire::open::Accepted;
use crate::wire::{Endpoint, FrameKind, Open, Refusal, RefusalCode, StreamRequest};

/// How long the workspace may take to say that a listener is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The workspace's end of a `Listen` stream. Closes the port when the laptop does or `closed` is ready. Returns when it is
/// closed and, if that was in order, the connections it had accepted are over.
pub async fn serve_listen<S: Io, O: Opener>(
    mut stream: FramedStream<S>,
    bind: &Endpoint,
    listener: u32,
    opener: O,
    base_dir: &Path,
    closed: impl Future<Output = ()>,
) -> Result<(), StreamError> {
    let stats = Arc::<ForwardStats>::default();
    let mut tasks = JoinSet::new();
    let listening = match bind {
        Endpoint::Udp { .. } => UdpForward::listen(opener.clone(), bind, listener).await.map(Listening::Udp),
        _ => Listener::bind(bind, base_dir, Place::Workspace).await.map(Listening::Connections),
    };
    let listening = match listening {
        Ok(listening) => listening,
        Err(refusal) => {
            stream.refuse(&refusal).await;
            return Err(StreamError::Refused(refusal));
        }
    };
    let bound = match &listening {
        Listening::Udp(forward) => forward.bound().clone(),
        Listening::Connections(listener) => listener.bound().clone(),
    };
    stream.accepted(&Accepted { bound: Some(bound), ..Default::default() }).await?;
    let work = async {
        match listening {
            Listening::Udp(forward) => forward.forward_all().await,
            Listening::Connections(sockets) => {
                let request = |peer| StreamRequest::Accepted { listener, peer };
                forward_all(&sockets, &mut tasks, &opener, &stats, request).await
            }
        }
    };
    tokio::select! {
        over = control_over(&mut stream.reader) => over?,
        () = work => {}
        () = closed => {}
    }
    // The port is closed: `work` is dropped. What it accepted goes on, whether or not anybody waits to hear that it is.
    if stream.writer.end().await.is_ok() {
        let _ = stream.writer.close().await;
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

enum Listening<O> {
    Udp(UdpForward<O>),
    Connections(Listener),
}

async fn control_over<R: AsyncRead + Unpin>(reader: &mut FrameReader<R>) -> Result<(), StreamError> {
    let frame = reader.expect().await?;
    match frame.kind {
        FrameKind::End => Ok(()),
        FrameKind::Abort => Err(StreamError::Refused(frame.refusal())),
        kind => Err(StreamError::OutOfPlace(kind)),
    }
}

/// Where it listens: where it was asked to, with the port that the workspace says it picked. Nothing else of its
/// answer is shown or asked for again.
fn with_port(bind: &Endpoint, bound: Option<&Endpoint>) -> Endpoint {
    match (bind, bound) {
        (Endpoint::Tcp { host, port: 0 }, Some(Endpoint::Tcp { port, .. })) => {
            Endpoint::Tcp { host: host.clone(), port: *port }
        }
        (Endpoint::Udp { host, port: 0 }, Some(Endpoint::Udp { port, .. })) => {
            Endpoint::Udp { host: host.clone(), port: *port }
        }
        _ => bind.clone(),
    }
}

/// The laptop's end of a listener in the workspace. Dropping it closes the port.
#[derive(Debug)]
pub struct RemoteForward<S> {
    control: FramedStream<S>,
}

impl<S: Io> RemoteForward<S> {
    /// Asks the workspace to listen on `bind` and to name `listener` for each connection. Says where it listens.
    pub async fn open<O: Opener<Io = S>>(
        opener: &O,
        bind: &Endpoint,
        listener: u32,
    ) -> Result<(Endpoint, RemoteForward<S>), Refusal> {
        let open = Open::new(StreamRequest::Listen { bind: bind.clone(), listener });
        let ask = async {
            let io = opener.open().await?;
            let mut control = FramedStream::open(io, &open).await.map_err(StreamError::into_refusal)?;
            let accepted = control.answer().await.map_err(StreamError::into_refusal)?;
            Ok((with_port(bind, accepted.bound.as_ref()), RemoteForward { control }))
        };
        opener.way().timeout(OPEN_TIMEOUT, ask).await.unwrap_or_else(|_| {
            let message = format!("the workspace did not say within {OPEN_TIMEOUT:?} whether it listens on {bind}");
            Err(Refusal::new(RefusalCode::Timeout, message))
        })
    }

    /// Waits until the listener is lost, and says why. Safe to cancel.
    pub async fn lost(&mut self) -> Refusal {
        match control_over(&mut self.control.reader).await {
            Ok(()) => Refusal::new(RefusalCode::Unavailable, "the workspace stopped listening"),
            Err(error) => error.into_refusal(),
        }
    }

    /// Closes the port; returns when the workspace says that it has. Connections that are open go on.
    pub async fn close(mut self) -> Result<(), Refusal> {
        let close = async {
            // Complete from here on: one that is not waited for must not look as if it was cut.
            self.control.writer.end().await?;
            self.control.writer.close().await?;
            control_over(&mut self.control.reader).await
        };
        match tokio::time::timeout(CLOSE_TIMEOUT, close).await {
            Ok(closed) => closed.map_err(StreamError::into_refusal),
            Err(_) => Err(Refusal::new(RefusalCode::Timeout, "the workspace did not say that the port is closed")),
        }
    }
}

/// The laptop's end of an `Accepted` stream, which came by `way`: dials the target that the laptop chose for this listener, and relays.
/// Counted in `stats`, which are those of the listener.
pub async fn serve_accepted<S: Io>(
    stream: FramedStream<S>,
    way: &Way,
    target: &Endpoint,
    stats: &Arc<ForwardStats>,
) -> Result<(), Refusal> {
    let _open = stats.begin();
    let served = match target {
        Endpoint::Udp { .. } => serve_udp_at(stream, way, target, Place::Laptop, &stats.meter).await,
        _ => dial_and_relay(stream, target, Path::new(""), Place::Laptop, &stats.meter).await,
    };
    served.map_err(|error| {
        let refusal = error.into_refusal();
        stats.failed(refusal.clone());
        refusal
    })
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
