//! The one connection that is parked at the coordinator at all times: what it becomes, what is said on it, and the next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::laptops::revoked;
use super::run::{Stub, StubEvent};
use crate::role::backoff::{Backoff, LONGEST, LONGEST_FOR_A_NAME};
use crate::role::renewal;
use crate::transport::carrier::{Arrival, Heartbeat};
use crate::transport::client::{ClientError, CoordinatorCarrier};
use crate::transport::http::UPGRADE_TIMEOUT;
use crate::wire::Refusal;
use crate::wire::control::Control;
use crate::wire::limits::MAX_REVOKED;

impl Stub {
    /// Keeps a connection parked until `taking` is cancelled. Each that is joined becomes a task of `tasks`, until `stop`.
    /// Ends by itself only when trying on is pointless. Who answers in the coordinator's place is waited out where the workspace
    /// was served before, by this stub or, if `is_known`, by the one from which it took over.
    pub(super) async fn keep_parked(
        self: &Arc<Self>,
        tasks: &TaskTracker,
        taking: &CancellationToken,
        stop: &CancellationToken,
        is_known: bool,
    ) -> Result<(), ClientError> {
        let mut backoff = Backoff::default();
        let mut parked_once = is_known;
        let mut changes = self.changes.subscribe();
        loop {
            let parked = tokio::select! {
                parked = self.park(&mut backoff, &mut parked_once) => parked,
                // What is parked may be dead without a word; a new connection costs little.
                _ = changes.changed() => {
                    backoff.reset();
                    continue;
                }
                () = taking.cancelled() => return Ok(()),
            };
            let (why, wait) = match parked {
                Ok(Parked::Joined { carrier, session }) => {
                    let (stub, stop) = (self.clone(), stop.clone());
                    tasks.spawn(async move { stub.joined(carrier, session, stop).await });
                    continue;
                }
                Ok(Parked::Drain(told)) => {
                    // It may say so each time: no reason to dial without a pause.
                    ("the coordinator is restarting".into(), told.max(backoff.next(rand::random())))
                }
                Ok(Parked::Ended) => ("the connection to the coordinator broke".into(), backoff.next(rand::random())),
                Err(error) if !(error.is_passing() || parked_once && error.is_between()) => return Err(error),
                Err(error) => {
                    let longest = if error.is_name() { LONGEST_FOR_A_NAME } else { LONGEST };
                    (error.to_string(), backoff.next_up_to(longest, rand::random()))
                }
            };
            self.told.away(&why, wait);
            (self.events)(StubEvent::Waiting(why, wait));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = changes.changed() => backoff.reset(),
                () = taking.cancelled() => return Ok(()),
            }
        }
    }

    /// Parks a connection and waits for what becomes of it.
    async fn park(&self, backoff: &mut Backoff, parked_once: &mut bool) -> Result<Parked, ClientError> {
        self.renew().await?;
        let mut carrier = self.client.park().await?;
        let mut confirmed = false;
        loop {
            let arrival = tokio::select! {
                arrival = carrier.arrival() => arrival,
                () = tokio::time::sleep(UPGRADE_TIMEOUT), if !confirmed => return Ok(Parked::Ended),
            };
            match arrival {
                Ok(Some(Arrival::Control(Control::Parked {}))) => {
                    confirmed = true;
                    carrier.set_heartbeat(Heartbeat::PARKED);
                    *parked_once = true;
                    backoff.reset();
                    self.told.ready();
                    (self.events)(StubEvent::Parked);
                }
                Ok(Some(Arrival::Control(Control::Join { session, .. }))) => {
                    carrier.set_heartbeat(Heartbeat::USUAL);
                    return Ok(Parked::Joined { carrier: Box::new(carrier), session });
                }
                Ok(Some(Arrival::Control(Control::Drain { reconnect_after_ms }))) => {
                    return Ok(Parked::Drain(Control::reconnect_after(reconnect_after_ms)));
                }
                Ok(Some(Arrival::Control(Control::Refused(refusal)))) => {
                    return Err(Refusal::new(refusal.code, refusal.message).into());
                }
                Ok(Some(Arrival::Control(Control::Revoked { pins }))) => {
                    let pins: Vec<_> = pins.iter().take(MAX_REVOKED).filter_map(|pin| pin.parse().ok()).collect();
                    self.sessions.laptops.shut_out(&pins, Instant::now());
                    self.sessions.end_devices(&pins, &revoked()).await;
                }
                Ok(Some(Arrival::Control(Control::Authorities {}))) => {
                    Box::pin(renewal::follow(&self.client, |fresh| self.state().save_fresh(fresh))).await;
                }
                Ok(Some(Arrival::Control(Control::Waiting { message }))) => self.told.notice(message),
                Ok(Some(Arrival::Control(Control::Unknown))) => {}
                Ok(Some(Arrival::Bytes(_)) | None) => return Ok(Parked::Ended),
                Err(error) => {
                    tracing::debug!(%error, "the parked connection broke");
                    return Ok(Parked::Ended);
                }
            }
        }
    }

    pub(super) async fn renew(&self) -> Result<(), ClientError> {
        Box::pin(renewal::before_dialling(&self.client, |fresh| self.state().save_fresh(fresh))).await
    }
}

enum Parked {
    Joined { carrier: Box<CoordinatorCarrier>, session: String },
    Drain(Duration),
    Ended,
}
