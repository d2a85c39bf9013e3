//! `nexus-coordinator authority`: what an operator sees of the certificate authority, and how another takes its place.

use std::time::{Duration, SystemTime};

use clap::Subcommand;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::coordinator::duration;
use super::failure::{self, Failure};
use super::output::Output;
use super::signals;
use crate::role::coordinator::registry::Registry;
use crate::role::coordinator::rotation::{Patience, Step};
use crate::wire::{Refusal, RefusalCode};

/// How often `--wait` looks whether members are ready.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(super) enum AuthorityCommand {
    /// Which authorities are in force, what comes next, and who is not ready for it.
    Show,
    /// Takes the next step of a rotation: publishes another authority, lets it sign, retires the former one. Nothing that
    /// is connected breaks. Refused while somebody is not ready for the step.
    Rotate {
        /// Lets the next authority sign once it has been published for so long, whoever does not know it yet.
        #[arg(long, value_parser = duration)]
        overlap: Option<Duration>,
        /// Takes the step at once. Whoever is not ready comes back by itself, after an attempt that fails.
        #[arg(long, conflicts_with = "wait")]
        force: bool,
        /// Takes one step after the other until the rotation is complete, and waits so long in all for those who are not ready.
        /// Says who that is. Ctrl-C ends the waiting; the steps that were taken stay.
        #[arg(long, value_name = "TIME", value_parser = duration)]
        wait: Option<Duration>,
    },
}

/// The command.
pub(super) async fn run(what: AuthorityCommand, registry: &Registry, output: Output) -> Result<u8, Failure> {
    match what {
        AuthorityCommand::Show => {
            let rotation = registry.rotation(SystemTime::now()).await?;
            output.plain(&rotation.to_string(), &serde_json::to_value(&rotation).unwrap_or_default());
        }
        AuthorityCommand::Rotate { overlap, force, wait } => {
            let patience = Patience { overlap, force };
            let Some(wait) = wait else {
                step(registry, &patience, output).await?;
                return Ok(0);
            };
            let stop = CancellationToken::new();
            tokio::select! {
                outcome = all_steps(registry, &patience, wait, &stop, output) => outcome?,
                () = signals::ask_for_end(stop.clone()) => {}
            }
        }
    }
    Ok(0)
}

/// Takes one step, and says which.
async fn step(registry: &Registry, patience: &Patience, output: Output) -> Result<Step, Refusal> {
    let step = registry.rotate(patience, SystemTime::now()).await?;
    let rotation = registry.rotation(SystemTime::now()).await?;
    let text = match step {
        Step::Published => "the next authority is published. Once all know it, `rotate` lets it sign",
        Step::Switched => "the next authority signs. Once all have a certificate by it, `rotate` retires the former",
        Step::Retired => "the former authority is retired; the rotation is complete",
    };
    output.plain(text, &json!({"step": step, "authorities": rotation.authorities}));
    Ok(step)
}

/// Takes one step after the other. For `wait` in all, or until `stop`, members that are not ready are waited for; whom it
/// waits for is said as often as that changes.
async fn all_steps(
    registry: &Registry,
    patience: &Patience,
    wait: Duration,
    stop: &CancellationToken,
    output: Output,
) -> Result<(), Failure> {
    let deadline = Instant::now() + wait;
    let mut said = None;
    loop {
        match step(registry, patience, output).await {
            Ok(Step::Retired) => return Ok(()),
            Ok(_) => continue,
            Err(refusal) if refusal.code != RefusalCode::Unavailable || Instant::now() >= deadline => {
                return Err(refusal.into());
            }
            Err(_) => {}
        }
        let rotation = registry.rotation(SystemTime::now()).await?;
        let waits = Some((rotation.next, rotation.waiting.clone())).filter(|(_, waiting)| !waiting.is_empty());
        if said != waits && waits.is_some() {
            let text = format!("waits for {}", rotation.waits_for());
            output.plain(&text, &json!({"event": "waiting", "next": rotation.next, "waiting": rotation.waiting}));
            said = waits;
        }
        if stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_none() {
            let text = "interrupted: the rotation is not complete. hint: the steps that were taken stay; the same command goes \
                        on from there, and `nexus-coordinator authority show` says who is waited for";
            return Err(Failure::new(failure::INTERRUPTED, text));
        }
    }
}
