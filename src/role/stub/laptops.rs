//! The laptops that are connected now. A new session of a device takes the place of its old one at once; calls go to
//! the laptop that came last.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::identity::KeyPin;
use crate::lifeline::{Ended, LifelineHandle};
use crate::session::mux::{MuxOpener, MuxStream};
use crate::session::opener::Opener;
use crate::wire::lifeline::LifelineId;
use crate::wire::{Refusal, RefusalCode};

/// Sessions at a time. Each device has one.
pub const MAX_SESSIONS: usize = 64;

/// Sessions whose place was taken that are remembered, so that their laptops are told why when they come back.
const MAX_REMEMBERED: usize = 256;

#[derive(Debug)]
struct Connected {
    id: u64,
    device: KeyPin,
    opener: MuxOpener,
    lifeline: LifelineHandle,
    end: CancellationToken,
}

/// The laptops that are connected now.
#[derive(Debug)]
pub struct Laptops {
    connected: Mutex<Vec<Connected>>,
    replaced: Mutex<VecDeque<LifelineId>>,
    count: watch::Sender<usize>,
}

impl Default for Laptops {
    fn default() -> Laptops {
        Laptops { connected: Mutex::default(), replaced: Mutex::default(), count: watch::Sender::new(0) }
    }
}

impl Laptops {
    /// Takes a session in, and ends an older one of the same device, with the reason. The token is cancelled when
    /// this one must end.
    pub async fn enter(&self, device: KeyPin, opener: MuxOpener, lifeline: LifelineHandle) -> (u64, CancellationToken) {
        let id = rand::random();
        let end = CancellationToken::new();
        let mut replaced = Vec::new();
        self.change(|connected| {
            replaced.extend(connected.extract_if(.., |old| old.device == device));
            if connected.len() >= MAX_SESSIONS {
                replaced.push(connected.remove(0));
            }
            connected.push(Connected { id, device, opener, lifeline, end: end.clone() });
        });
        for old in replaced {
            self.remember(old.lifeline.id());
            old.lifeline.end(Ended::Refused(taken_over())).await;
            old.end.cancel();
        }
        (id, end)
    }

    /// The session whose lifeline has this name.
    pub fn lifeline(&self, id: LifelineId) -> Result<LifelineHandle, Refusal> {
        let connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = connected.iter().find(|c| c.lifeline.id() == id && !c.lifeline.is_over()) {
            return Ok(found.lifeline.clone());
        }
        if self.replaced.lock().unwrap_or_else(PoisonError::into_inner).contains(&id) {
            return Err(taken_over());
        }
        let text =
            "the workspace does not know this session any more. hint: its stub was restarted; a new session begins";
        Err(Refusal::new(RefusalCode::NotFound, text))
    }

    /// Ends every session of a device, with the reason.
    pub async fn end_device(&self, device: KeyPin, refusal: &Refusal) {
        let mut ended = Vec::new();
        self.change(|connected| ended.extend(connected.extract_if(.., |c| c.device == device)));
        for old in ended {
            old.lifeline.end(Ended::Refused(refusal.clone())).await;
            old.end.cancel();
        }
    }

    fn remember(&self, id: LifelineId) {
        let mut replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        if replaced.len() == MAX_REMEMBERED {
            replaced.pop_front();
        }
        replaced.push_back(id);
    }

    /// The session is over.
    pub fn leave(&self, id: u64) {
        self.change(|connected| connected.retain(|c| c.id != id));
    }

    /// How many there are, as it changes.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    fn change(&self, f: impl FnOnce(&mut Vec<Connected>)) {
        let mut connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut connected);
        self.count.send_replace(connected.len());
    }

    /// A stream to the laptop that came last.
    pub async fn open(&self) -> Result<MuxStream, Refusal> {
        let opener = {
            let connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
            connected.iter().rev().find(|c| !c.opener.is_closed()).map(|c| c.opener.clone())
        };
        match opener {
            Some(opener) => opener.open().await,
            None => {
                let text = "no laptop is connected to this workspace. hint: run `nexus-proxy up` on the laptop";
                Err(Refusal::new(RefusalCode::Unavailable, text))
            }
        }
    }
}

fn taken_over() -> Refusal {
    let text = "a new login of this device took over this workspace. hint: only one `nexus-proxy up` of a device serves \
                a workspace at a time";
    Refusal::new(RefusalCode::TakenOver, text)
}
