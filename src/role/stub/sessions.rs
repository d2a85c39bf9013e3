//! Every session of the workspace, wherever it is: here, or in a stub that handed over and lives on.

use std::sync::Arc;

use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::earlier::Earlier;
use super::laptops::Laptops;
use crate::identity::KeyPin;
use crate::lifeline::{LifelineHandle, Route};
use crate::transport::Io;
use crate::transport::carrier::Carrier;
use crate::transport::pass::pass;
use crate::wire::lifeline::Attach;
use crate::wire::{Refusal, RefusalCode};

/// The sessions of a workspace.
#[derive(Debug)]
pub struct Sessions {
    /// Those that are here.
    pub laptops: Arc<Laptops>,
    /// Where others may be.
    pub earlier: Earlier,
    /// Ends what passes through here.
    pub stop: CancellationToken,
    /// Devices that are being ended.
    pub endings: TaskTracker,
}

/// Where a session is.
#[derive(Debug)]
pub enum Place {
    /// In this process.
    Here(LifelineHandle),
    /// In an earlier one; the attach has been said on this carrier.
    Earlier(Box<Carrier<UnixStream>>),
}

impl Sessions {
    /// Finds the session that this attach is for.
    pub async fn find(&self, attach: &Attach, route: Route) -> Result<Place, Refusal> {
        match self.laptops.lifeline(attach.id) {
            Ok(lifeline) => Ok(Place::Here(lifeline)),
            Err(refusal) if refusal.code == RefusalCode::NotFound => {
                let link = self.earlier.resume(attach, route).await?;
                tracing::info!(?route, "a session goes on in an earlier stub");
                Ok(Place::Earlier(Box::new(link)))
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Passes a carrier on to where its session is, until either ends.
    pub fn pass<T: Io>(
        &self,
        carrier: Carrier<T>,
        link: Box<Carrier<UnixStream>>,
    ) -> impl Future<Output = ()> + use<T> {
        let stop = self.stop.clone();
        async move {
            tokio::select! {
                _ = pass(carrier, *link) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Ends every session of these devices, with the reason.
    /// Whoever asks may stop waiting; they end all the same.
    pub async fn end_devices(self: &Arc<Self>, pins: &[KeyPin], refusal: &Refusal) {
        let (this, pins, refusal) = (self.clone(), pins.to_vec(), refusal.clone());
        let _ = self.endings.spawn(async move { this.end_now(&pins, &refusal).await }).await;
    }

    async fn end_now(&self, pins: &[KeyPin], refusal: &Refusal) {
        for pin in pins {
            self.laptops.end_device(*pin, refusal).await;
        }
        self.earlier.end_devices(pins, refusal).await;
    }
}
