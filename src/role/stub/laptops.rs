//! The laptops that are connected now. A new session of a device takes the place of its old one at once; calls go to
//! the laptop that came last.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::identity::KeyPin;
use crate::session::mux::{MuxOpener, MuxStream};
use crate::session::opener::Opener;
use crate::wire::{Refusal, RefusalCode};

/// Sessions at a time. Each device has one.
pub const MAX_SESSIONS: usize = 64;

#[derive(Debug)]
struct Connected {
    id: u64,
    device: KeyPin,
    opener: MuxOpener,
    end: CancellationToken,
}

/// The laptops that are connected now.
#[derive(Debug)]
pub struct Laptops {
    connected: Mutex<Vec<Connected>>,
    count: watch::Sender<usize>,
}

impl Default for Laptops {
    fn default() -> Laptops {
        Laptops { connected: Mutex::default(), count: watch::Sender::new(0) }
    }
}

impl Laptops {
    /// Takes a session in, and ends an older one of the same device. The token is cancelled when this one must end.
    pub fn enter(&self, device: KeyPin, opener: MuxOpener) -> (u64, CancellationToken) {
        let id = rand::random();
        let end = CancellationToken::new();
        self.change(|connected| {
            connected.retain(|old| {
                let same = old.device == device;
                if same {
                    old.end.cancel();
                }
                !same
            });
            if connected.len() >= MAX_SESSIONS {
                connected.remove(0).end.cancel();
            }
            connected.push(Connected { id, device, opener, end: end.clone() });
        });
        (id, end)
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
