//! Who waits for whom at the rendezvous, and who is given to whom, with carriers in memory.

use super::*;
use crate::role::coordinator::drain::{RELAYS, SPREAD, STUBS_FIRST};
use crate::transport::carrier::{Side, websocket};
use bytes::Bytes;
use futures::FutureExt;
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;

async fn ends() -> (Carrier<DuplexStream>, Carrier<DuplexStream>) {
    let (near, far) = crate::transport::memory::pair();
    let near = Carrier::new(websocket(near, Bytes::new(), Side::Client).await);
    let far = Carrier::new(websocket(far, Bytes::new(), Side::Server).await);
    (near, far)
}

fn nobody() -> watch::Receiver<Revoked> {
    watch::channel(Revoked::default()).1
}

fn key(number: u8) -> KeyPin {
    KeyPin::from_bytes([number; 32])
}

fn steps() -> watch::Receiver<i64> {
    watch::channel(0).1
}

fn never() -> Drain {
    Drain::new(CancellationToken::new(), RELAYS)
}

fn told(control: Control) -> Duration {
    match control {
        Control::Drain { reconnect_after_ms } => Duration::from_millis(reconnect_after_ms),
        other => panic!("{other:?}"),
    }
}

fn control(arrival: std::io::Result<Option<Arrival>>) -> Control {
    match arrival {
        Ok(Some(Arrival::Control(control))) => control,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn joins_whoever_comes_first() {
    for stub_first in [true, false] {
        let rendezvous = Arc::new(Rendezvous::new(nobody(), steps(), never()));
        let (mut stub, stub_far) = ends().await;
        let (mut laptop, laptop_far) = ends().await;
        let name: WorkspaceName = "w".parse().unwrap();
        let park = {
            let (rendezvous, name) = (rendezvous.clone(), name.clone());
            async move { rendezvous.park(name, key(1), stub_far).await }
        };
        let connect = {
            let (rendezvous, name) = (rendezvous.clone(), name.clone());
            async move { rendezvous.connect(name, "d".parse().unwrap(), laptop_far).await }
        };
        let mut tasks = tokio::task::JoinSet::new();
        if stub_first {
            tasks.spawn(park);
            assert_eq!(control(stub.arrival().await), Control::Parked {});
            tasks.spawn(connect);
        } else {
            tasks.spawn(connect);
            tokio::task::yield_now().await;
            tasks.spawn(park);
            assert_eq!(control(stub.arrival().await), Control::Parked {});
        }
        assert!(matches!(control(stub.arrival().await), Control::Join { device: Some(d), .. } if d == "d"));
        assert!(matches!(control(laptop.arrival().await), Control::Join { .. }));
        laptop.send(Bytes::from_static(b"hi")).await.unwrap();
        assert!(matches!(stub.arrival().await, Ok(Some(Arrival::Bytes(got))) if got == "hi"));
        assert_eq!(rendezvous.parked(&name), 0);
    }
}

#[tokio::test]
async fn a_stop_tells_everyone_when_to_come_back_and_what_is_relayed_goes_on() {
    const LAPTOPS: usize = 8;
    let drain = Drain::new(CancellationToken::new(), RELAYS);
    let rendezvous = Arc::new(Rendezvous::new(nobody(), steps(), drain.clone()));
    let mut tasks = tokio::task::JoinSet::new();
    let park = async |tasks: &mut tokio::task::JoinSet<()>, name: &str| {
        let (mut stub, far) = ends().await;
        let (rendezvous, name) = (rendezvous.clone(), name.parse().unwrap());
        tasks.spawn(async move { rendezvous.park(name, key(1), far).await });
        assert_eq!(control(stub.arrival().await), Control::Parked {});
        stub
    };
    let connect = async |tasks: &mut tokio::task::JoinSet<()>, name: &str| {
        let (laptop, far) = ends().await;
        let (rendezvous, name) = (rendezvous.clone(), name.parse().unwrap());
        tasks.spawn(async move { rendezvous.connect(name, "d".parse().unwrap(), far).await });
        laptop
    };
    let mut stub = park(&mut tasks, "joined").await;
    let mut laptop = connect(&mut tasks, "joined").await;
    assert!(matches!(control(stub.arrival().await), Control::Join { .. }));
    assert!(matches!(control(laptop.arrival().await), Control::Join { .. }));
    let mut idle = park(&mut tasks, "idle").await;
    let mut waiting = Vec::new();
    for _ in 0..LAPTOPS {
        waiting.push(connect(&mut tasks, "absent").await);
    }
    drain.stop.cancel();

    assert!(told(control(idle.arrival().await)) <= STUBS_FIRST);
    assert!(matches!(idle.arrival().await, Ok(None)));
    let mut times = Vec::new();
    for mut laptop in waiting {
        let time = told(control(laptop.arrival().await));
        assert!((STUBS_FIRST..=SPREAD).contains(&time), "{time:?}");
        times.push(time);
        assert!(matches!(laptop.arrival().await, Ok(None)));
    }
    times.sort_unstable();
    times.dedup();
    assert!(times.len() > LAPTOPS / 2, "they would come back together: {times:?}");

    told(control(laptop.arrival().await));
    told(control(stub.arrival().await));
    laptop.send(Bytes::from_static(b"on")).await.unwrap();
    assert!(matches!(stub.arrival().await, Ok(Some(Arrival::Bytes(got))) if got == "on"));
    let mut late = connect(&mut tasks, "joined").await;
    told(control(late.arrival().await));
    drain.part.cancel();
    told(control(laptop.arrival().await));
    assert!(matches!(laptop.arrival().await, Ok(None)));
    told(control(stub.arrival().await));
    assert!(matches!(stub.arrival().await, Ok(None)));
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

#[test]
fn a_connection_that_was_silent_is_asked_for_as_long_as_its_path_needs() {
    let ms = Duration::from_millis;
    assert_eq!(may_take(FRESH, None), None);
    assert_eq!(may_take(FRESH + ms(1), None), Some(ANSWER));
    assert_eq!(may_take(FRESH * 2, Some(ms(5))), Some(ANSWER));
    assert_eq!(may_take(FRESH * 2, Some(ms(300))), Some(ms(1200)));
    assert_eq!(may_take(FRESH * 2, Some(ms(3000))), Some(PONG));
}

/// In real time, all of it at once. Two connections are parked and silent; the newer one is silent for good.
#[tokio::test]
async fn a_connection_that_does_not_answer_is_not_given_out() {
    let rendezvous = Arc::new(Rendezvous::new(nobody(), steps(), never()));
    let name: WorkspaceName = "w".parse().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let mut park = async || {
        let (mut stub, far) = ends().await;
        let (rendezvous, name) = (rendezvous.clone(), name.clone());
        tasks.spawn(async move { rendezvous.park(name, key(1), far).await });
        assert_eq!(control(stub.arrival().await), Control::Parked {});
        stub
    };
    let (mut there, mut forgotten) = (park().await, park().await);
    let (mut first, first_far) = ends().await;
    let (mut second, second_far) = ends().await;
    // Reading answers pings, and a forgotten connection is not read.
    let asked = tokio::time::timeout(FRESH + ANSWER, there.arrival()).await;
    assert!(asked.is_err(), "{asked:?}");
    let connect = async |laptop| rendezvous.connect(name.clone(), "d".parse().unwrap(), laptop).await;
    let served = async {
        assert!(matches!(control(there.arrival().await), Control::Join { .. }));
        assert!(
            matches!(control(first.arrival().await), Control::Waiting { message } if message.contains("not answered"))
        );
        assert!(matches!(control(first.arrival().await), Control::Join { .. }));
    };
    tokio::select! {
        () = served => {}
        () = connect(first_far) => panic!("it is not joined"),
    }
    // The next laptop has it when it answers after all.
    let served = async {
        assert!(matches!(control(forgotten.arrival().await), Control::Join { .. }));
        assert!(matches!(control(second.arrival().await), Control::Join { .. }));
    };
    tokio::select! {
        () = served => {}
        () = connect(second_far) => panic!("it is not joined"),
    }
}

#[tokio::test]
async fn the_newest_connections_stay_parked() {
    let rendezvous = Arc::new(Rendezvous::new(nobody(), steps(), never()));
    let mut tasks = tokio::task::JoinSet::new();
    let mut stubs = Vec::new();
    for _ in 0..MAX_PARKED + 2 {
        let (mut stub, far) = ends().await;
        let rendezvous = rendezvous.clone();
        tasks.spawn(async move { rendezvous.park("w".parse().unwrap(), key(1), far).await });
        assert_eq!(control(stub.arrival().await), Control::Parked {});
        stubs.push(stub);
    }
    // Closed, or broken in the middle of an answer to a ping.
    assert!(!matches!(stubs[0].arrival().await, Ok(Some(_))));
    assert_eq!(rendezvous.parked(&"w".parse().unwrap()), MAX_PARKED);
}

/// What the coordinator says to a stub that is there: reading answers its pings.
fn listens(mut stub: Carrier<DuplexStream>) -> (mpsc::UnboundedReceiver<Control>, tokio::task::AbortHandle) {
    let (hears, heard) = mpsc::unbounded_channel();
    let listens = async move {
        while let Ok(Some(Arrival::Control(control))) = stub.arrival().await {
            let _ = hears.send(control);
        }
    };
    (heard, tokio::spawn(listens).abort_handle())
}

#[tokio::test]
async fn of_two_stubs_of_a_workspace_the_later_one_waits_until_the_other_is_gone_and_both_are_told() {
    let rendezvous = Arc::new(Rendezvous::new(nobody(), steps(), never()));
    let name: WorkspaceName = "w".parse().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let mut park = async || {
        let (stub, far) = ends().await;
        let (rendezvous, name) = (rendezvous.clone(), name.clone());
        tasks.spawn(async move { rendezvous.park(name, key(1), far).await });
        listens(stub)
    };
    // What is joined is asked for the sake of those that may stay alone.
    let mut reasons = rendezvous.renewals(&name);
    let (mut first, ends) = tokio::join!(park(), reasons.next()).0;
    assert_eq!(first.recv().await, Some(Control::Parked {}));
    for _ in 0..2 {
        let (mut second, _) = park().await;
        let Some(Control::Refused(refusal)) = second.recv().await else { panic!("it is not refused") };
        assert_eq!(refusal.code, RefusalCode::Busy, "it tries again");
        assert!(refusal.message.contains("cloned image") && refusal.message.contains("--enroll"), "{refusal}");
        assert_eq!(second.recv().await, None, "it is closed");
        let Some(Control::Waiting { message }) = first.recv().await else { panic!("it is not told") };
        assert!(message.contains("was refused") && message.contains("--enroll"), "{message}");
    }
    assert_eq!(rendezvous.parked(&name), 1);
    assert_eq!(reasons.next().now_or_never(), None, "a second stub is no reason");
    ends.abort();
    let ((mut second, _ends), reason) = tokio::join!(park(), reasons.next());
    assert_eq!((second.recv().await, reason), (Some(Control::Parked {}), Some(())));
}

/// Its old stub is cut off a moment later.
#[tokio::test]
async fn a_workspace_that_was_enrolled_anew_is_not_refused_for_the_key_before() {
    let rendezvous = Arc::new(Rendezvous::new(nobody(), steps(), never()));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 1..3 {
        let (stub, far) = ends().await;
        let rendezvous = rendezvous.clone();
        tasks.spawn(async move { rendezvous.park("w".parse().unwrap(), key(number), far).await });
        let (mut heard, _) = listens(stub);
        assert_eq!(heard.recv().await, Some(Control::Parked {}), "{number}");
    }
}

#[tokio::test]
async fn of_stubs_that_come_together_one_stays() {
    let rendezvous = Arc::new(Rendezvous::new(nobody(), steps(), never()));
    let name: WorkspaceName = "w".parse().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let mut stubs = Vec::new();
    for _ in 0..MAX_PARKED {
        let (stub, far) = ends().await;
        let (rendezvous, name) = (rendezvous.clone(), name.clone());
        tasks.spawn(async move { rendezvous.park(name, key(1), far).await });
        stubs.push(listens(stub).0);
    }
    let mut parked = 0;
    for stub in &mut stubs {
        match stub.recv().await {
            Some(Control::Parked {}) => parked += 1,
            Some(Control::Refused(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((parked, rendezvous.parked(&name)), (1, 1));
}

/// A path on which a stub's last words come after its next connection.
#[tokio::test]
async fn what_a_stub_said_before_it_let_go_does_not_keep_its_next_connection_out() {
    let rendezvous = Arc::new(Rendezvous::new(nobody(), steps(), never()));
    let name: WorkspaceName = "w".parse().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let mut park = async || {
        let (stub, far) = ends().await;
        let (rendezvous, name) = (rendezvous.clone(), name.clone());
        tasks.spawn(async move { rendezvous.park(name, key(1), far).await });
        stub
    };
    let mut last = park().await;
    assert_eq!(control(last.arrival().await), Control::Parked {});
    let (mut next, _ends) = listens(park().await);
    // Until it has asked.
    while rendezvous.parked(&name) < 2 {
        tokio::task::yield_now().await;
    }
    last.ping().await.unwrap();
    drop(last);
    assert_eq!(next.recv().await, Some(Control::Parked {}));
    while rendezvous.parked(&name) > 1 {
        tokio::task::yield_now().await;
    }
}
