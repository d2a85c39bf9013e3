//! The rules of the registry and their sentences: when a code counts, which key may take which name, who is still
//! in force. Each reads facts and refuses; none changes anything but the code that it uses.

use std::fmt::Display;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::identity::authority::{csr_from_pem, csr_pin};
use crate::identity::{Code, IdentityError, KeyPin};
use crate::wire::limits::MAX_DEVICES;
use crate::wire::name::{DeviceName, WorkspaceName};
use crate::wire::{Refusal, RefusalCode};

use super::store::{Change, CodeRecord, DeviceRecord, StoreError, WorkspaceRecord};

pub(super) async fn use_code(change: &mut Change, code: &Code, now: SystemTime) -> Result<CodeRecord, Refusal> {
    let (hash, kind) = (code.hash(), code.kind().prefix());
    if let Some(record) = change.use_code(hash, kind, unix(now)).await.map_err(internal)? {
        return Ok(record);
    }
    let sentence = match change.code(hash, kind).await.map_err(internal)? {
        None => "this code is not known here; it may have been replaced by a newer one. hint: ask for a new code",
        Some(record) if record.used_at.is_some() => {
            "this code was used already; each works once. hint: ask for a new code; if it was not you who used it, revoke what it made"
        }
        Some(_) => "this code has expired. hint: ask for a new code and use it at once",
    };
    refuse(RefusalCode::Denied, sentence)
}

/// Whether `pin` may become the device `name`.
pub(super) async fn check_device(change: &mut Change, name: &DeviceName, pin: KeyPin) -> Result<(), Refusal> {
    if let Some(holder) = change.device_by_pin(pin).await.map_err(internal)? {
        if holder.revoked.is_some() {
            return refuse(
                RefusalCode::Denied,
                format!(
                    "this key was revoked, as device `{}`. hint: nexus-proxy pair --new-key makes another one",
                    holder.name
                ),
            );
        }
        if holder.name != *name {
            return refuse(
                RefusalCode::InvalidArguments,
                format!(
                    "this key is paired already, as device `{}`. hint: keep that name, or pair with --new-key",
                    holder.name
                ),
            );
        }
    } else if let Some(workspace) = change.workspace_by_pin(pin).await.map_err(internal)? {
        return refuse(
            RefusalCode::InvalidArguments,
            format!("this is the key of the workspace `{}`. hint: make a new key for the device", workspace.name),
        );
    }
    let taken = change.device(name).await.map_err(internal)?.filter(|device| device.revoked.is_none());
    match taken {
        Some(device) if device.pin != pin => refuse(
            RefusalCode::InvalidArguments,
            format!(
                "another device is called `{name}`. hint: choose another name with --name; or, if that device is gone, on the \
                 coordinator: `nexus-coordinator device revoke {name}`"
            ),
        ),
        None if change.device_pins().await.map_err(internal)?.len() >= MAX_DEVICES => refuse(
            RefusalCode::Busy,
            format!("there are {MAX_DEVICES} devices, which is the most. hint: revoke those that are gone"),
        ),
        _ => Ok(()),
    }
}

/// Whether `pin` may become the key of the workspace `name`.
pub(super) async fn check_workspace_key(change: &mut Change, name: &WorkspaceName, pin: KeyPin) -> Result<(), Refusal> {
    let holder = match change.workspace_by_pin(pin).await.map_err(internal)? {
        Some(workspace) if workspace.name == *name => return Ok(()),
        Some(workspace) => Some(format!("workspace `{}`", workspace.name)),
        None => change.device_by_pin(pin).await.map_err(internal)?.map(|device| format!("device `{}`", device.name)),
    };
    match holder {
        None => Ok(()),
        Some(holder) => refuse(
            RefusalCode::InvalidArguments,
            format!("this is the key of the {holder}. hint: make a new key for the workspace"),
        ),
    }
}

pub(super) fn device_in_force(device: &DeviceRecord) -> Result<(), Refusal> {
    match device.revoked {
        None => Ok(()),
        Some(_) => refuse(
            RefusalCode::Denied,
            format!("the device `{}` was revoked. hint: pair it again, with --new-key", device.name),
        ),
    }
}

pub(super) fn workspace_in_force(workspace: &WorkspaceRecord) -> Result<(), Refusal> {
    match workspace.revoked {
        None => Ok(()),
        Some(_) => refuse(
            RefusalCode::Denied,
            format!("the workspace `{}` was removed. hint: add it again and enrol it", workspace.name),
        ),
    }
}

pub(super) fn same_key(what: &str, name: &dyn Display, found: KeyPin, expected: Option<KeyPin>) -> Result<(), Refusal> {
    if expected == Some(found) {
        return Ok(());
    }
    refuse(
        RefusalCode::Denied,
        format!(
            "the {what} `{name}` has another key now. hint: if this is still it, pair (--new-key) or enrol it again"
        ),
    )
}

pub(super) fn read_csr(pem: &str) -> Result<(Vec<u8>, KeyPin), Refusal> {
    let read = || {
        let csr = csr_from_pem(pem)?;
        let pin = csr_pin(&csr)?;
        Ok((csr, pin))
    };
    read().map_err(|error: IdentityError| {
        let code = match error {
            IdentityError::TooLarge { .. } => RefusalCode::TooLarge,
            IdentityError::Malformed(_) => RefusalCode::Malformed,
            _ => RefusalCode::InvalidArguments,
        };
        Refusal::new(code, format!("the certificate request is refused: {error}. hint: {}", error.hint()))
    })
}

pub(super) fn no_device(name: &WorkspaceName) -> Refusal {
    Refusal::new(
        RefusalCode::Denied,
        format!(
            "no device is paired, so nobody could use the workspace `{name}`. hint: pair a device first; or let the workspace admit the first one that comes, with --trust-first-device"
        ),
    )
}

pub(super) fn no_workspace(name: &WorkspaceName) -> String {
    format!(
        "there is no workspace `{name}`. hint: on the coordinator: `nexus-coordinator workspace list` shows those that are \
         there, `nexus-coordinator workspace add {name}` adds it"
    )
}

pub(super) fn unknown(what: &str, name: &dyn Display) -> String {
    format!("there is no {what} `{name}` here. hint: pair it")
}

pub(super) fn refuse<T>(code: RefusalCode, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(code, message))
}

/// The peer hears that it is not its fault; the log hears what it was.
pub(super) fn internal(error: impl Into<Fault>) -> Refusal {
    let fault: Fault = error.into();
    tracing::error!(error = %fault.0, "the registry could not decide");
    Refusal::new(
        RefusalCode::Internal,
        "the coordinator has a fault of its own. hint: its log says which; try again later",
    )
}

pub(super) struct Fault(String);

impl Fault {
    pub(super) fn new(text: String) -> Fault {
        Fault(text)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        Fault(error.to_string())
    }
}

impl From<IdentityError> for Fault {
    fn from(error: IdentityError) -> Fault {
        Fault(error.to_string())
    }
}

impl From<&str> for Fault {
    fn from(error: &str) -> Fault {
        Fault(error.to_owned())
    }
}

/// Seconds since 1970.
pub(super) fn unix(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}
