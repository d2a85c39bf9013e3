//! Ctrl-C and its kin: the first asks for a clean end, the second takes it.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{failure, queue};

/// Cancels `stop` at the first SIGINT, SIGTERM or SIGHUP; ends the process at the second. For as long as what is returned is
/// kept, which is never ready. In a task of its own: work that stands still does not hold up its end.
pub fn ask_for_end(stop: CancellationToken) -> impl Future<Output = ()> {
    let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let mut task = JoinSet::new();
    task.spawn(hear(signals, stop));
    async move {
        drop(task.join_next().await);
        std::future::pending().await
    }
}

async fn hear(signals: [io::Result<Signal>; 3], stop: CancellationToken) {
    let [Ok(mut int), Ok(mut term), Ok(mut hup)] = signals else { return };
    let mut asked = false;
    loop {
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = hup.recv() => {}
        }
        if asked {
            queue::finish();
            std::process::exit(failure::INTERRUPTED.into());
        }
        asked = true;
        stop.cancel();
    }
}
