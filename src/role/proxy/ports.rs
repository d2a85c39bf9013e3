//! The ports of forwards across a hand-over: whether those on the laptop can be had, found before anything else is given up
//! for them, and which of two programs' forwards would have the same.
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

/// The forwards of a program that takes over: its `own`, each as the other one had it, with its port, if that is among the
/// `handed`; then what else was handed, unless one of its own has that port, or one of the `configured`.
pub fn joined(
    own: Vec<ForwardRequest>,
    configured: &[ForwardRequest],
    handed: Vec<ForwardRequest>,
) -> Result<Vec<ForwardRequest>, Refusal> {
    let mut all = own;
    for handed in handed {
        if let Some(own) = all.iter_mut().find(|own| own.at.is_none() && own.is_again(&handed)) {
            *own = handed;
            continue;
        }
        let listen = bind(&handed)?.to_string();
        let mut is_there = configured.iter().any(|one| one.is_again(&handed));
        for one in all.iter().chain(configured).filter(|one| is_remote(one) == is_remote(&handed)) {
            is_there |= is_at(&bind(one)?, &listen);
        }
        if !is_there {
            all.push(handed);
        }
    }
    Ok(all)
}

fn is_remote(request: &ForwardRequest) -> bool {
    request.kind == ForwardKind::Remote
}

/// Where a forward listens on the laptop, if it does.
fn here(request: &ForwardRequest) -> Result<Option<Endpoint>, Refusal> {
    if is_remote(request) { Ok(None) } else { bind(request).map(Some) }
}

/// Where a forward is asked to listen.
fn bind(request: &ForwardRequest) -> Result<Endpoint, Refusal> {
    let bad = |e: &dyn std::fmt::Display| Refusal::new(RefusalCode::InvalidArguments, e.to_string());
    if let Some(at) = &request.at {
        return Ok(at.clone());
    }
    Ok(match request.kind {
        ForwardKind::Local | ForwardKind::Remote => request.spec.parse::<ForwardSpec>().map_err(|e| bad(&e))?.bind,
        ForwardKind::Dynamic => request.spec.parse::<DynamicSpec>().map_err(|e| bad(&e))?.bind,
    })
}

/// Whether `listen`, as a status has it, is on the same port, at whatever address. Port 0 is none.
fn is_at(bind: &Endpoint, listen: &str) -> bool {
    match bind {
        Endpoint::Tcp { port: 0, .. } | Endpoint::Udp { port: 0, .. } => false,
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

    #[test]
    fn what_is_handed_over_goes_on_unless_something_else_has_its_port() {
        let at = |port| Some(Endpoint::Tcp { host: "127.0.0.1".into(), port });
        let asked = |kind, spec: &str| ForwardRequest::new(kind, spec);
        let handed = |kind, spec: &str, port| ForwardRequest { at: at(port), ..ForwardRequest::new(kind, spec) };
        let own = vec![asked(ForwardKind::Local, "0:127.0.0.1:1"), asked(ForwardKind::Remote, "9000:127.0.0.1:9")];
        let configured = [asked(ForwardKind::Dynamic, "1080"), asked(ForwardKind::Local, "0:127.0.0.1:4")];
        let others = vec![
            // The same: with the port that was picked.
            handed(ForwardKind::Local, "0:127.0.0.1:1", 40000),
            // The port of the SOCKS proxy is on the laptop.
            handed(ForwardKind::Local, "1080:127.0.0.1:2", 1080),
            // That of a listener in the workspace is not.
            handed(ForwardKind::Local, "9000:127.0.0.1:3", 9000),
            handed(ForwardKind::Local, "0:127.0.0.1:1", 40001),
            handed(ForwardKind::Local, "0:127.0.0.1:4", 40002),
            // Never begun there; one on a port that is taken, one on any.
            asked(ForwardKind::Local, "1080:127.0.0.1:5"),
            asked(ForwardKind::Remote, "0:127.0.0.1:6"),
        ];
        let expected = vec![others[0].clone(), own[1].clone(), others[2].clone(), others[3].clone(), others[6].clone()];
        assert_eq!(joined(own, &configured, others).unwrap(), expected);
    }
}
