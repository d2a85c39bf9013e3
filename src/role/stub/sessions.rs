//! Every session of the workspace, wherever it is: here, or in a stub that handed over and lives on.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::earlier::Earlier;
use super::laptops::{Laptops, MAX_SESSIONS};
use crate::identity::KeyPin;
use crate::lifeline::core::MAX_CARRIERS;
use crate::lifeline::{LifelineHandle, Route};
use crate::transport::Io;
use crate::transport::carrier::Carrier;
use crate::transport::pass::pass;
use crate::wire::lifeline::Attach;
use crate::wire::{Refusal, RefusalCode};

/// Carriers that may pass through here to earlier stubs at a time: those of as many sessions as one stub has.
const MAX_PASSING: usize = MAX_SESSIONS * MAX_CARRIERS;

/// How long whoever ends devices waits for earlier stubs.
const MOMENT: Duration = Duration::from_secs(3);

/// The sessions of a workspace.
#[derive(Debug)]
pub struct Sessions {
    /// Those that are here.
    pub laptops: Arc<Laptops>,
    /// Where others may be.
    pub earlier: Earlier,
    /// For carriers that pass through here.
    pub passing: Arc<Semaphore>,
    /// Ends what passes through here.
    pub stop: CancellationToken,
    /// Devices that are being ended.
    pub endings: TaskTracker,
    /// Those of which earlier stubs are told.
    told: Mutex<HashSet<KeyPin>>,
}

/// Where a session is.
#[derive(Debug)]
pub enum Place {
    /// In this process.
    Here(LifelineHandle),
    /// In an earlier one; the attach has been said there.
    Earlier(Passage),
}

/// A carrier to an earlier stub, and the right to have one.
#[derive(Debug)]
pub struct Passage {
    link: Box<Carrier<UnixStream>>,
    _permit: OwnedSemaphorePermit,
}

impl Sessions {
    /// No sessions yet; `stop` ends what passes through here.
    pub fn new(earlier: Earlier, stop: CancellationToken) -> Sessions {
        Sessions {
            laptops: Arc::default(),
            earlier,
            passing: Arc::new(Semaphore::new(MAX_PASSING)),
            stop,
            endings: TaskTracker::new(),
            told: Mutex::default(),
        }
    }

    /// Finds the session that this attach is for.
    pub async fn find(&self, attach: &Attach, route: Route) -> Result<Place, Refusal> {
        match self.laptops.lifeline(attach.id) {
            Ok(lifeline) => Ok(Place::Here(lifeline)),
            Err(Some(ended)) => Err(ended),
            Err(None) => {
                let permit = self.passing.clone().try_acquire_owned().map_err(|_| {
                    let text = "too many connections of earlier stubs pass through this one. hint: it tries again";
                    Refusal::new(RefusalCode::Busy, text)
                })?;
                let link = self.earlier.resume(attach, route).await?;
                tracing::info!(?route, "a session goes on in an earlier stub");
                Ok(Place::Earlier(Passage { link: Box::new(link), _permit: permit }))
            }
        }
    }

    /// Passes a carrier on to where its session is, until either ends.
    pub fn pass<T: Io>(&self, carrier: Carrier<T>, passage: Passage) -> impl Future<Output = ()> + use<T> {
        let stop = self.stop.clone();
        async move {
            tokio::select! {
                _ = pass(carrier, *passage.link) => {}
                () = stop.cancelled() => {}
            }
            drop(passage._permit);
        }
    }

    /// Ends every session of these devices, with the reason: those that are here at once. Earlier stubs are told until each
    /// has heeded it, for which whoever asks waits a moment and no longer.
    pub async fn end_devices(self: &Arc<Self>, pins: &[KeyPin], refusal: &Refusal) {
        let (this, pins, refusal) = (self.clone(), pins.to_vec(), refusal.clone());
        let ending = self.endings.spawn(async move {
            for pin in &pins {
                this.laptops.end_device(*pin, &refusal).await;
            }
            // The coordinator says anew with every parked connection who is revoked.
            let pins: Vec<KeyPin> = pins.into_iter().filter(|pin| this.told().insert(*pin)).collect();
            this.stop.run_until_cancelled(this.earlier.end_devices(&pins, &refusal)).await;
            this.told().retain(|pin| !pins.contains(pin));
        });
        let _ = tokio::time::timeout(MOMENT, ending).await;
    }

    fn told(&self) -> std::sync::MutexGuard<'_, HashSet<KeyPin>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
