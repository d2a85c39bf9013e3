//! The first message of a carrier, before it is any lifeline's.

use crate::transport::carrier::{Arrival, Messages};
use crate::wire::lifeline::{Attach, LifelineMessage};

/// What the laptop wants of a carrier that just came to be; `None` when it is no lifeline's, or breaks.
pub async fn first_attach(carrier: &mut impl Messages) -> Option<Attach> {
    loop {
        match std::future::poll_fn(|cx| carrier.poll_arrival(cx)).await {
            Ok(Some(Arrival::Bytes(bytes))) => match LifelineMessage::parse(bytes) {
                Ok(LifelineMessage::Attach(attach)) => return Some(attach),
                _ => return None,
            },
            Ok(Some(Arrival::Control(_))) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}
