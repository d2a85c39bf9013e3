//! One `nexus-proxy up` takes the place of another: how it asks, and how the other one lives on until it is done.

use std::time::Duration;

use serde_json::json;

use super::failure::{self, Failure};
use super::home::Home;
use super::output::Output;
use crate::lifeline::core::RETENTION;
use crate::role::proxy::control::{self, Claim};
use crate::role::proxy::daemon::{Daemon, HandedOver};
use crate::role::proxy::profile::{self, Profile};
use crate::transport::address::CoordinatorUrl;
use crate::wire::RefusalCode;
use crate::wire::name::WorkspaceName;

/// How long the running `up` may take to hand over: it has less for each of its steps.
const TAKE_OVER_PATIENCE: Duration = Duration::from_secs(60);

/// Asks the `up` that runs to hand over. When none does, there is nothing to ask.
pub async fn take_over(
    workspace: &WorkspaceName,
    coordinator: Option<&CoordinatorUrl>,
    home: &Home,
    output: Output,
) -> Result<(), Failure> {
    if let Some(url) = coordinator {
        // What would keep this one from coming up is found before the other has closed anything.
        Profile::load(&profile::directory(&home.data.join("coordinators"), url), url)
            .map_err(|e| Failure::new(failure::USAGE, e))?;
    }
    let stream = match control::connect(&home.run, workspace).await {
        Ok(stream) => stream,
        Err(refusal) if refusal.code == RefusalCode::Unavailable => return Ok(()),
        Err(refusal) => return Err(refusal.into()),
    };
    let params = json!({"coordinator": coordinator.map(CoordinatorUrl::to_string)});
    let asked = tokio::time::timeout(TAKE_OVER_PATIENCE, control::call::<HandedOver>(stream, "hand_over", params));
    let failed =
        |why: &dyn std::fmt::Display| format!("the running `nexus-proxy up {}` does not hand over: {why}", workspace);
    match asked.await {
        Ok(Ok((handed, _))) => {
            let text = format!(
                "took over; process {} goes on with {} until that is done",
                handed.pid,
                connections(handed.open)
            );
            output.line("take-over", &text, &json!({"event": "took_over", "pid": handed.pid, "open": handed.open}));
            Ok(())
        }
        Ok(Err(refusal)) if refusal.code == RefusalCode::Unsupported => {
            let why = "it is of a release that cannot. hint: `nexus-proxy down` ends it, with its connections";
            Err(Failure::new(failure::FAILED, failed(&why)))
        }
        Ok(Err(refusal)) => {
            let failure = Failure::from(refusal);
            Err(Failure::new(failure.code, failed(&failure.message)))
        }
        Err(_) => {
            let why = "it does not answer. hint: `nexus-proxy down` ends it, with its connections";
            Err(Failure::new(failure::FAILED, failed(&why)))
        }
    }
}

/// After the hand-over: lets go of what the next program needs, says so, and waits for as long as anything may go on.
pub async fn linger(daemon: &Daemon, claim: &mut Option<Claim>, output: Output) {
    let handed = daemon.handed_over().await;
    *claim = None;
    let text =
        format!("handed over to another `nexus-proxy up`; {} go on here until they are done", connections(handed.open));
    tracing::info!(open = handed.open, "handed over; what is open goes on here");
    output.line("take-over", &text, &json!({"event": "handed_over", "open": handed.open}));
    // As long as a session is kept without a way to the workspace.
    tokio::time::sleep(RETENTION).await;
}

fn connections(open: usize) -> String {
    if open == 1 { "1 connection".into() } else { format!("{open} connections") }
}
