//! One `nexus-proxy up` takes the place of another: how it asks, how the other one lives on until it is done, and how that
//! one takes its place again when nobody follows.

use std::time::Duration;

use futures::future::LocalBoxFuture;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::failure::{self, Failure};
use super::home::Home;
use super::output::{Output, count};
use super::requests::Requests;
use super::up::{Up, load_profile};
use crate::lifeline::core::RETENTION;
use crate::role::proxy::control::{self, Door};
use crate::role::proxy::daemon::{Daemon, HandedOver, Status};
use crate::role::proxy::forwards::ForwardRequest;
use crate::role::proxy::ports;
use crate::role::proxy::profile;
use crate::role::proxy::tunnel::TunnelError;
use crate::session::framed::FramedStream;
use crate::transport::address::CoordinatorUrl;
use crate::transport::client::CoordinatorClient;
use crate::wire::call::Request;
use crate::wire::{FrameKind, RefusalCode};

/// How long the running `up` may take to hand over: it has less for each of its steps.
const TAKE_OVER_PATIENCE: Duration = Duration::from_secs(60);

/// What a person is told first when this one could not come up.
const NOT_TAKEN: &str = "not taken over, and the `nexus-proxy up` that runs goes on as before";

/// The `up` that handed over. When this one ends before it has said that it is up, that one takes its place again.
pub struct Predecessor {
    /// Its process.
    pub pid: u32,
    stream: FramedStream<UnixStream>,
}

impl Predecessor {
    /// Says that this one is up.
    pub async fn let_go(mut self) {
        let word = Request::new("followed", Value::Null);
        if let Err(error) = self.stream.writer.send_json(FrameKind::Message, &word).await {
            // It has ended: with nothing open, or told to.
            tracing::debug!(%error, "the program that handed over is gone");
        }
    }
}

/// Asks the `up` that runs to hand over, and takes its forwards, unless they are to be dropped. When none runs, there is
/// nothing to ask.
pub async fn take_over(
    up: &Up,
    forwards: &mut Requests,
    home: &Home,
    output: Output,
) -> Result<Option<Predecessor>, Failure> {
    let workspace = &up.workspace;
    let stream = match control::connect(&home.run, workspace).await {
        Ok(stream) => stream,
        Err(refusal) if refusal.code == RefusalCode::Unavailable => return Ok(None),
        Err(refusal) => return Err(refusal.into()),
    };
    if let Some(url) = &up.coordinator {
        could_come_up(up, url, &forwards.all(), home).await?;
    }
    let params = json!({"coordinator": up.coordinator.as_ref().map(CoordinatorUrl::to_string)});
    let asked = tokio::time::timeout(TAKE_OVER_PATIENCE, control::call::<HandedOver>(stream, "hand_over", params));
    let failed =
        |why: &dyn std::fmt::Display| format!("the running `nexus-proxy up {workspace}` does not hand over: {why}");
    match asked.await {
        Ok(Ok((handed, stream))) => {
            let text = format!(
                "took over; process {} goes on with {} until that is done",
                handed.pid,
                count(handed.open, "connection")
            );
            output.line("take-over", &text, &json!({"event": "took_over", "pid": handed.pid, "open": handed.open}));
            let predecessor = Predecessor { pid: handed.pid, stream };
            take_forwards(up, forwards, handed.forwards, output)?;
            Ok(Some(predecessor))
        }
        Ok(Err(refusal)) if refusal.code == RefusalCode::Unsupported => {
            let why =
                "it is of a release that cannot. hint: `nexus-proxy down WORKSPACE` ends it, with its connections";
            Err(Failure::new(failure::FAILED, failed(&why)))
        }
        Ok(Err(refusal)) => {
            let failure = Failure::from(refusal);
            Err(Failure::new(failure.code, failed(&failure.message)))
        }
        Err(_) => {
            let why = "it does not answer. hint: `nexus-proxy down WORKSPACE` ends it, with its connections";
            Err(Failure::new(failure::FAILED, failed(&why)))
        }
    }
}

/// Takes the other one's forwards beside those that are given here, or says which of them end.
fn take_forwards(up: &Up, forwards: &mut Requests, handed: Vec<ForwardRequest>, output: Output) -> Result<(), Failure> {
    let is_given = |handed: &ForwardRequest| !up.drop_forwards || forwards.own.iter().any(|own| own.is_again(handed));
    let (taken, dropped): (Vec<_>, Vec<_>) = handed.into_iter().partition(is_given);
    for one in dropped {
        let text = format!("its forward {} {} ends", one.kind.flag(), one.spec);
        output.line("take-over", &text, &json!({"event": "dropped", "forward": one}));
    }
    forwards.own = ports::joined(std::mem::take(&mut forwards.own), &forwards.configured, taken)?;
    Ok(())
}

/// Refuses what would keep this one from coming up, before the other has closed anything: a profile that is not there, a
/// coordinator that is not reached, a port that somebody else has.
async fn could_come_up(up: &Up, url: &CoordinatorUrl, requests: &[ForwardRequest], home: &Home) -> Result<(), Failure> {
    let dir = profile::directory(&home.data.join("coordinators"), url);
    let profile = load_profile(&dir, url).await.map_err(|(failure, _)| failure)?;
    let url = profile.url(url.clone());
    if up.ca_file.is_some() {
        super::ca_file::keep(&dir, &url, up.ca_file.as_deref())?;
    }
    let outer = profile.outer(&url).map_err(|e| Failure::new(failure::REFUSED, e))?;
    let client = CoordinatorClient::new(url, profile.trust.clone(), profile.credential.clone()).with_outer(outer);
    client.reach().await.map_err(|error| {
        let code = if error.is_passing() { failure::UNAVAILABLE } else { failure::REFUSED };
        Failure::new(code, format!("{NOT_TAKEN}: {error}"))
    })?;
    let stream = control::connect(&home.run, &up.workspace).await?;
    let (status, _) = control::ask::<Status>(stream, "status").await?;
    ports::can_be_had(requests, &status.forwards).await.map_err(|refusal| {
        let failure = Failure::from(refusal);
        Failure::new(failure.code, format!("{NOT_TAKEN}: {}", failure.message))
    })
}

/// After the hand-over: says so, and goes on until everything that is open is done, as long as a session is kept without a
/// way to the workspace. When nobody follows, `take_back` gives another life of this program, which runs beside that, and
/// tells whether it has the workspace at its end.
pub async fn live_on(
    daemon: &Daemon,
    running: LocalBoxFuture<'_, Result<(), TunnelError>>,
    take_back: impl Future<Output = Result<LocalBoxFuture<'_, Result<bool, Failure>>, Failure>>,
    home: &Home,
    output: Output,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let handed = daemon.handed_over().await;
    let text = format!(
        "handed over to another `nexus-proxy up`; what is open here goes on until it is done: {}",
        count(handed.open, "connection")
    );
    tracing::info!(open = handed.open, "handed over; what is open goes on here");
    output.line("take-over", &text, &json!({"event": "handed_over", "open": handed.open}));
    let live = async {
        let door = Door::open(&home.run, daemon.tunnel().workspace())
            .inspect_err(|error| tracing::warn!(%error, "`status` and `down` will not find this process"));
        let answer = async {
            match &door {
                Ok(door) => daemon.keep_door(door).await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            outcome = running => outcome.map_err(|error| Failure::new(failure::REFUSED, error)),
            () = tokio::time::sleep(RETENTION) => {
                let text = "a connection went on for a day after the hand-over. hint: it is ended with this process";
                Err(Failure::new(failure::FAILED, text))
            }
            () = answer => unreachable!("the door is kept for ever"),
        }
    };
    let follow = async {
        if stop.run_until_cancelled(daemon.is_followed()).await != Some(false) {
            return Ok(());
        }
        let life = match take_back.await {
            Ok(life) => life,
            // Mostly somebody has it, and needs no one to take it back. What is open here goes on as it would have.
            Err(failure) => {
                let why = failure.message;
                tracing::info!(why, "nobody followed, and the workspace is not taken back");
                let text =
                    format!("the other one is gone and was not up; this one does not take its place again: {why}");
                output.line("take-over", &text, &json!({"event": "not_taken_back", "why": why}));
                return Ok(());
            }
        };
        let text = "the other one is gone and was not up; this one takes its place again";
        tracing::info!("nobody followed; this program takes its place again");
        output.line("take-over", text, &json!({"event": "taken_back"}));
        let outcome = life.await;
        // Where that life has handed over as well, and is done, the rest goes on; otherwise all of it goes with that life.
        if !matches!(outcome, Ok(false)) {
            stop.cancel();
        }
        outcome.map(drop)
    };
    let (lived, followed) = tokio::join!(live, follow);
    followed.and(lived)
}
