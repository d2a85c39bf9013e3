//! The list of devices that the workspace serves, changed by a device that is on it. The only way to change it: the
//! coordinator has none.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::sessions::Sessions;
use super::state::{StateError, StubState};
use crate::identity::KeyPin;
use crate::session::framed::{FramedStream, Io};
use crate::session::way::Way;
use crate::wire::call::{Request, Response};
use crate::wire::open::Accepted;
use crate::wire::{FrameKind, Refusal, RefusalCode};

/// How long the request of a call may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct PinParams {
    pin: KeyPin,
}

/// Serves one call of the laptop with the key `caller`, which came by `way`.
pub async fn serve<S: Io>(
    mut stream: FramedStream<S>,
    way: &Way,
    caller: KeyPin,
    state: &Mutex<StubState>,
    sessions: &Arc<Sessions>,
) -> std::io::Result<()> {
    stream.accepted(&Accepted::default()).await?;
    let Ok(Ok(frame)) = way.timeout(REQUEST_TIMEOUT, stream.reader.expect()).await else { return Ok(()) };
    let response = match (frame.kind, Request::parse(&frame.payload)) {
        (FrameKind::Message, Ok(request)) => {
            tracing::info!(target: "audit", method = request.method, %caller, "device list");
            let mut removed = None;
            let outcome = dispatch(&request, caller, state, &mut removed);
            if let Some(pin) = removed {
                let text = "this device was removed from the workspace's list, by another device on it";
                sessions.end_devices(&[pin], &Refusal::new(RefusalCode::Denied, text)).await;
            }
            Response::new(request.id.clone(), outcome)
        }
        (FrameKind::Message, Err(refusal)) => Response::new(Value::Null, Err(refusal)),
        (kind, _) => {
            let refusal = Refusal::new(RefusalCode::Malformed, format!("{kind:?} frame where a call belongs"));
            Response::new(Value::Null, Err(refusal))
        }
    };
    stream.writer.send_json(FrameKind::Message, &response).await?;
    stream.writer.close().await
}

fn dispatch(
    request: &Request,
    caller: KeyPin,
    state: &Mutex<StubState>,
    removed: &mut Option<KeyPin>,
) -> Result<Value, Refusal> {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let pin = || {
        let params: PinParams = serde_json::from_value(request.params.clone()).map_err(|e| {
            let text = format!("`pin` must be a key's pin: {e}. hint: `nexus-coordinator device list` shows them");
            Refusal::new(RefusalCode::InvalidArguments, text)
        })?;
        Ok::<_, Refusal>(params.pin)
    };
    let kept = |error: StateError| Refusal::new(RefusalCode::Internal, error.to_string());
    match request.method.as_str() {
        "device.list" => {}
        "device.add" => state.add_device(pin()?).map_err(kept)?,
        "device.remove" => {
            let pin = pin()?;
            if pin == caller {
                let text = "a device cannot remove itself: nobody could add it again. hint: do it from another device";
                return Err(Refusal::new(RefusalCode::Denied, text));
            }
            let there = state.remove_device(&pin).map_err(kept)?;
            // Also of one that was not there: whoever is not on the list has no business in a session.
            *removed = Some(pin);
            if !there {
                return Err(Refusal::new(RefusalCode::NotFound, "no device with that key is on the list"));
            }
        }
        method => {
            let text = format!("a workspace does not know the method `{}`", crate::wire::refusal::printable(method));
            return Err(Refusal::new(RefusalCode::Unsupported, text));
        }
    }
    let mut pins: Vec<String> = state.devices().iter().map(ToString::to_string).collect();
    pins.sort();
    Ok(json!({"devices": pins}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::stub::state::tests::state;

    #[test]
    fn a_removal_ends_what_the_device_has_whether_it_was_on_the_list_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let (caller, other) = (KeyPin::from_bytes([1; 32]), KeyPin::from_bytes([2; 32]));
        let mut state = state(dir.path());
        assert!(state.admit(caller).unwrap());
        state.add_device(other).unwrap();
        let state = Mutex::new(state);
        let request = Request::new("device.remove", json!({"pin": other}));
        let remove = || {
            let mut removed = None;
            let outcome = dispatch(&request, caller, &state, &mut removed);
            (outcome.map_err(|refusal| refusal.code), removed)
        };
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert_eq!(remove(), (Err(RefusalCode::Internal), None));
        std::fs::create_dir(dir.path()).unwrap();
        assert_eq!(remove(), (Ok(json!({"devices": [caller.to_string()]})), Some(other)));
        assert_eq!(remove(), (Err(RefusalCode::NotFound), Some(other)));
    }
}
