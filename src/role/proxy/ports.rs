//! Whether the ports that forwards ask for on the laptop can be had, found before anything else is given up for them.
//!
//! Each is bound and let go again. So it is an opinion and no promise: another program may take one meanwhile.

use std::path::Path;

use super::forwards::{ForwardKind, ForwardRequest, ForwardStatus};
use crate::service::dial::Place;
use crate::service::forward_spec::{DynamicSpec, ForwardSpec};
use crate::service::listen::{Listener, bind_udp};
use crate::wire::{Endpoint, Refusal, RefusalCode};

/// Refuses when a port is in use, unless one of `held` has it: whoever runs those lets go of them.
pub async fn can_be_had(requests: &[ForwardRequest], held: &[ForwardStatus]) -> Result<(), Refusal> {
    for request in requests {
        let Some(bind) = here(request)? else { continue };
        let bound = match &bind {
            Endpoint::Udp { host, port } => bind_udp(host, *port, Place::Laptop).await.map(drop),
            bind => Listener::bind(bind, Path::new(""), Place::Laptop).await.map(drop),
        };
        match bound {
            Err(_) if held.iter().any(|one| one.kind != ForwardKind::Remote && is_at(&bind, &one.listen)) => {}
            bound => bound?,
        }
    }
    Ok(())
}

/// Where a forward listens on the laptop, if it does.
fn here(request: &ForwardRequest) -> Result<Option<Endpoint>, Refusal> {
    let bad = |e: &dyn std::fmt::Display| Refusal::new(RefusalCode::InvalidArguments, e.to_string());
    Ok(match request.kind {
        ForwardKind::Local => Some(request.spec.parse::<ForwardSpec>().map_err(|e| bad(&e))?.bind),
        ForwardKind::Dynamic => Some(request.spec.parse::<DynamicSpec>().map_err(|e| bad(&e))?.bind),
        ForwardKind::Remote => None,
    })
}

/// Whether `listen`, as a status has it, is on the same port, at whatever address.
fn is_at(bind: &Endpoint, listen: &str) -> bool {
    match bind {
        Endpoint::Tcp { port, .. } => listen.ends_with(&format!(":{port}")),
        Endpoint::Udp { port, .. } => listen.ends_with(&format!(":{port}/udp")),
        Endpoint::Unix { path } => listen == path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(kind: ForwardKind, listen: String) -> ForwardStatus {
        let (error, target) = (None, None);
        ForwardStatus { id: 1, kind, listen, target, ready: true, error, open: 0, total: 0, sent: 0, received: 0 }
    }

    #[tokio::test]
    async fn a_port_that_another_program_has_is_found_and_one_that_is_let_go_is_not() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp_port = udp.local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let unix = dir.path().join("taken.sock").display().to_string();
        let _unix = std::os::unix::net::UnixListener::bind(&unix).unwrap();
        let cases = [
            (ForwardKind::Local, format!("{port}:127.0.0.1:9"), format!("127.0.0.1:{port}")),
            (ForwardKind::Dynamic, port.to_string(), format!("*:{port}")),
            (ForwardKind::Local, format!("{udp_port}:127.0.0.1:9/udp"), format!("127.0.0.1:{udp_port}/udp")),
            (ForwardKind::Local, format!("{unix}:127.0.0.1:9"), unix.clone()),
        ];
        for (kind, spec, listen) in cases {
            let request = [ForwardRequest::new(kind, spec)];
            let refusal = can_be_had(&request, &[held(kind, "127.0.0.1:1".into())]).await.unwrap_err();
            assert_eq!(refusal.code, RefusalCode::AddressInUse, "{refusal}");
            assert!(can_be_had(&request, &[held(ForwardKind::Remote, listen.clone())]).await.is_err());
            can_be_had(&request, &[held(kind, listen)]).await.unwrap();
        }
        let free = [
            ForwardRequest::new(ForwardKind::Local, "0:127.0.0.1:9"),
            // The workspace's port is not for this machine to judge.
            ForwardRequest::new(ForwardKind::Remote, format!("{port}:127.0.0.1:9")),
        ];
        can_be_had(&free, &[]).await.unwrap();
    }
}
