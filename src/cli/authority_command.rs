//! `nexus-coordinator authority`: what an operator sees of the certificate authority, and how another takes its place.

use std::time::{Duration, SystemTime};

use clap::Subcommand;
use serde_json::json;
use tokio::time::Instant;

use super::coordinator::duration;
use super::failure::Failure;
use super::output::Output;
use crate::role::coordinator::registry::Registry;
use crate::role::coordinator::rotation::{Patience, Step};
use crate::wire::RefusalCode;

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
        #[arg(long)]
        force: bool,
        /// Takes one step after the other until the rotation is complete, and waits so long in all for those who are not ready.
        #[arg(long, value_parser = duration)]
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
            let deadline = wait.map(|wait| Instant::now() + wait);
            loop {
                let done = step(registry, &patience, deadline, output).await? == Step::Retired;
                if done || wait.is_none() {
                    break;
                }
            }
        }
    }
    Ok(0)
}

/// Takes one step; until `deadline` it is tried again while members are not ready.
async fn step(
    registry: &Registry,
    patience: &Patience,
    deadline: Option<Instant>,
    output: Output,
) -> Result<Step, Failure> {
    loop {
        match registry.rotate(patience, SystemTime::now()).await {
            Ok(step) => {
                let rotation = registry.rotation(SystemTime::now()).await?;
                let text = match step {
                    Step::Published => "the next authority is published. Once all know it, `rotate` lets it sign",
                    Step::Switched => {
                        "the next authority signs. Once all have a certificate by it, `rotate` retires the former"
                    }
                    Step::Retired => "the former authority is retired; the rotation is complete",
                };
                output.plain(text, &json!({"step": step, "authorities": rotation.authorities}));
                return Ok(step);
            }
            Err(refusal) => match deadline {
                Some(deadline) if refusal.code == RefusalCode::Unavailable && Instant::now() < deadline => {
                    tokio::time::sleep(LOOK).await;
                }
                _ => return Err(refusal.into()),
            },
        }
    }
}
