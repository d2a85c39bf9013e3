//! A forward that lives as long as the command that asked for it: kept at the running `up`, and asked for again at the one
//! that takes its place.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::Instant;

use super::failure::{self, Failure};
use super::output::Output;
use super::proxy::show_forward;
use crate::role::proxy::control;
use crate::role::proxy::daemon::Moved;
use crate::role::proxy::forwards::{ForwardRequest, ForwardStatus};
use crate::session::framed::FramedStream;
use crate::wire::name::WorkspaceName;
use crate::wire::{Refusal, RefusalCode};

/// How long the `up` that takes over may take to listen, and to answer: a machine that starts it has much to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked for: nothing tells that across processes.
const POLL: Duration = Duration::from_millis(50);

/// A forward at a running `up`.
pub struct Lease {
    run: PathBuf,
    workspace: WorkspaceName,
    stream: FramedStream<UnixStream>,
}

impl Lease {
    /// Asks for a forward, and shows it.
    pub async fn take(
        run: &Path,
        workspace: &WorkspaceName,
        request: &ForwardRequest,
        output: Output,
    ) -> Result<Lease, Refusal> {
        let stream = control::connect_awake(run, workspace).await?;
        let params = serde_json::to_value(request).unwrap_or_default();
        let (status, stream): (ForwardStatus, _) = control::call(stream, "forward", params).await?;
        show_forward(output, &status);
        Ok(Lease { run: run.to_owned(), workspace: workspace.clone(), stream })
    }

    /// Keeps it, at one `up` after the other; ends with the reason why it is gone.
    pub async fn keep(mut self, output: Output) -> Failure {
        loop {
            let moved = match self.stream.reader.next().await {
                Ok(Some(frame)) => frame.json::<Moved>().ok(),
                Ok(None) | Err(_) => None,
            };
            let Some(Moved { again }) = moved else {
                let name = &self.workspace;
                let text = format!("workspace `{name}` is not up any more. {}", control::how_up(name));
                return Failure::new(failure::UNAVAILABLE, text);
            };
            match self.take_again(&again, output).await {
                Ok(lease) => self = lease,
                Err(refusal) => return refusal.into(),
            }
        }
    }

    async fn take_again(&self, again: &ForwardRequest, output: Output) -> Result<Lease, Refusal> {
        let deadline = Instant::now() + PATIENCE;
        let may_pass = |code| matches!(code, RefusalCode::Unavailable | RefusalCode::Timeout);
        loop {
            match Lease::take(&self.run, &self.workspace, again, output).await {
                Err(refusal) if may_pass(refusal.code) && Instant::now() < deadline => {
                    tokio::time::sleep(POLL).await;
                }
                taken => return taken,
            }
        }
    }
}
