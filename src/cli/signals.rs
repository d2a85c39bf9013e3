//! Ctrl-C and its kin: the first asks for a clean end, the second takes it.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::failure;

/// Cancels `stop` at the first SIGINT, SIGTERM or SIGHUP; ends the process at the second. Poll it beside the work.
pub async fn ask_for_end(stop: CancellationToken) {
    let (Ok(mut int), Ok(mut term), Ok(mut hup)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()))
    else {
        return std::future::pending().await;
    };
    let mut asked = false;
    loop {
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = hup.recv() => {}
        }
        if asked {
            std::process::exit(failure::INTERRUPTED.into());
        }
        asked = true;
        stop.cancel();
    }
}
