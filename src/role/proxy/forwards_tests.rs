//! Forwards that listen on the laptop, without a session: which ports are waited for, and how that ends.

use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;

use super::*;
use crate::role::changes::Change;
use crate::role::proxy::tunnel_state::Told;

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(30);

/// Forwards of a tunnel without a session, and what they run in.
fn forwards() -> (Forwards, TaskTracker) {
    let (_, current) = watch::channel(None);
    let tasks = TaskTracker::new();
    let opener = TunnelOpener::new(current, &Told::default(), tokio::sync::watch::channel(Change::default()).1);
    (Forwards::new(opener, tasks.clone(), CancellationToken::new(), false), tasks)
}

async fn listens(forwards: &Forwards, id: u32) {
    let mut listening = forwards.entries().of[&id].listening.clone();
    let at = listening.wait_for(|listening| matches!(listening, Listening::At(_)));
    tokio::time::timeout(PATIENCE, at).await.expect("it never listens").unwrap();
}

async fn all_end(tasks: &TaskTracker) {
    tasks.close();
    tokio::time::timeout(PATIENCE, tasks.wait()).await.expect("a task is left");
}

#[tokio::test]
async fn a_port_on_the_laptop_that_is_in_use_is_waited_for_where_it_went_on_before() {
    let dir = tempfile::tempdir().unwrap();
    let unix = dir.path().join("taken.sock").display().to_string();
    let socket = UnixListener::bind(&unix).unwrap();
    let [local, dynamic] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let requests = [
        ForwardRequest::new(ForwardKind::Local, format!("{}:127.0.0.1:9", port(&local))),
        ForwardRequest::new(ForwardKind::Dynamic, port(&dynamic).to_string()),
        ForwardRequest::new(ForwardKind::Local, format!("{}:127.0.0.1:9/udp", datagrams.local_addr().unwrap().port())),
        ForwardRequest::new(ForwardKind::Local, format!("{unix}:127.0.0.1:9")),
    ];
    let (forwards, tasks) = forwards();
    forwards.announce(&requests);
    for (before, request) in requests.iter().enumerate() {
        let refusal = forwards.add(request, Refused::Ends).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::AddressInUse);
        assert_eq!(forwards.status().len(), before, "there is none");
        let status = forwards.add_own(request, Refused::Waits).await.unwrap();
        assert!(!status.ready && status.error.is_some_and(|error| error.contains("in use")));
    }
    let status = forwards.status();
    assert_eq!(status.len(), requests.len());
    let handed_on = forwards.handed_on();
    assert!(handed_on.iter().zip(&requests).all(|(one, request)| one.is_again(request) && one.at.is_some()));
    drop((local, dynamic, datagrams, socket));
    for status in status {
        listens(&forwards, status.id).await;
    }
    assert!(forwards.status().iter().all(|status| !status.error.as_ref().unwrap().contains("in use")));
    TcpListener::bind(forwards.status()[0].listen.as_str()).expect_err("it has the port");
    forwards.close().await;
    all_end(&tasks).await;
}

#[tokio::test]
async fn a_port_that_is_waited_for_is_forgotten_when_its_forward_ends_or_is_closed() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let request = ForwardRequest::new(ForwardKind::Local, format!("{}:127.0.0.1:9", at.port()));
    let (forwards, tasks) = forwards();
    let removed = forwards.add(&request, Refused::Waits).await.unwrap();
    forwards.remove(removed.id);
    let closed = forwards.add(&request, Refused::Waits).await.unwrap();
    tokio::time::timeout(CLOSE_TIMEOUT, forwards.close()).await.expect("nothing has to be waited for");
    all_end(&tasks).await;
    assert_eq!(forwards.status()[0].id, closed.id);
    drop(taken);
    TcpListener::bind(at).expect("nobody took it");
}

#[tokio::test]
async fn an_address_that_is_not_there_is_refused_to_who_begins_and_waited_for_where_it_went_on_before() {
    let (forwards, tasks) = forwards();
    let request = ForwardRequest::new(ForwardKind::Local, "192.0.2.1:0:127.0.0.1:9");
    let refusal = forwards.add(&request, Refused::Ends).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::InvalidArguments);
    assert!(forwards.status().is_empty());
    // One that went on before: the network that has the address may be away.
    let waits = forwards.add(&request, Refused::Waits).await.unwrap();
    assert!(!waits.ready && forwards.refusal(waits.id).is_some_and(|why| why.contains("no address")), "{waits:?}");
    forwards.close().await;
    all_end(&tasks).await;
}

#[tokio::test]
async fn on_one_machine_no_forward_leads_to_itself() {
    let (_, current) = watch::channel(None);
    let tasks = TaskTracker::new();
    let opener = TunnelOpener::new(current, &Told::default(), tokio::sync::watch::channel(Change::default()).1);
    let forwards = Forwards::new(opener, tasks.clone(), CancellationToken::new(), true);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for spec in [format!("{free}"), format!("{free}:localhost:{free}"), format!("localhost:{free}:127.0.0.1:{free}")] {
        for kind in [ForwardKind::Local, ForwardKind::Remote] {
            let refusal = forwards.add(&ForwardRequest::new(kind, spec.clone()), Refused::Ends).await.unwrap_err();
            assert!(refusal.message.contains("lead to itself"), "{spec}: {refusal}");
        }
    }
    for spec in [format!("127.0.0.2:{free}:127.0.0.1:{free}"), format!("[::1]:{free}:127.0.0.1:{free}")] {
        let added = forwards.add(&ForwardRequest::new(ForwardKind::Local, spec.clone()), Refused::Ends).await;
        let status = added.unwrap_or_else(|refusal| panic!("{spec}: {refusal}"));
        forwards.remove(status.id);
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let same = taken.local_addr().unwrap().port().to_string();
    let refusal = forwards.add(&ForwardRequest::new(ForwardKind::Local, same), Refused::Ends).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::AddressInUse);
    forwards.add(&ForwardRequest::new(ForwardKind::Local, format!("0:127.0.0.1:{free}")), Refused::Ends).await.unwrap();
    assert_eq!(forwards.status().len(), 1);
}
