//! Carriers that cannot say goodbye, and carriers that say what is not theirs to say.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::io::AsyncReadExt;

use super::key::SECRET;
use super::*;
use crate::wire::RefusalCode;
use crate::wire::lifeline::TAG;

/// A connection that takes nothing and brings nothing.
struct Stuck(#[expect(dead_code, reason = "its count is what it is held for")] Arc<()>);

impl Messages for Stuck {
    fn poll_arrival(&mut self, _: &mut Context<'_>) -> Poll<io::Result<Option<Arrival>>> {
        Poll::Pending
    }

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn start_send(&mut self, _: Bytes) -> io::Result<()> {
        Ok(())
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

#[tokio::test]
async fn carriers_that_cannot_say_goodbye_do_not_pile_up() {
    const MOVES: u64 = 100;
    let alive = Arc::new(());
    let carrier = || Box::new(Stuck(alive.clone()));
    let attach = |sequence, mode| Attach { id: LifelineId([7; 16]), sequence, mode, received: 0, tag: [0; TAG] };
    let begin = attach(0, AttachMode::Begin);
    let (mut lifeline, handle) = Lifeline::accept(carrier(), Route::Relay, &begin).expect("it begins");
    let key = ResumeKey::new(&[9; SECRET]);
    lifeline.set_key(key.clone());
    let moves = async {
        for sequence in 1..=MOVES {
            handle.arrived(carrier(), Route::Relay, key.sign_attach(attach(sequence, AttachMode::Move))).await;
        }
        handle.standing().wait_for(|s| matches!(s, Standing::Attached { moves: MOVES, .. })).await.expect("it lives");
    };
    tokio::select! {
        () = moves => {}
        _ = lifeline.read_u8() => panic!("nothing arrives"),
    }
    assert_eq!(Arc::strong_count(&alive) - 1, 1 + LEAVING, "the one in use, and those that were last");
    drop(lifeline);
    assert_eq!(Arc::strong_count(&alive), 1);
}

/// A connection that brings these, and no answer.
struct Says(VecDeque<Control>);

impl Messages for Says {
    fn poll_arrival(&mut self, _: &mut Context<'_>) -> Poll<io::Result<Option<Arrival>>> {
        self.0.pop_front().map_or(Poll::Pending, |control| Poll::Ready(Ok(Some(Arrival::Control(control)))))
    }

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn start_send(&mut self, _: Bytes) -> io::Result<()> {
        Ok(())
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_direct_carrier_says_nothing_for_the_coordinator() {
    let says = |words: &[Control]| Box::new(Says(words.iter().cloned().collect()));
    let refused = Control::Refused(Refusal::new(RefusalCode::Denied, "go away"));
    let (mut lifeline, handle) = Lifeline::dial(says(&[]), Route::Relay);
    lifeline.set_key(ResumeKey::new(&[9; SECRET]));
    let lies = async {
        for lie in [refused.clone(), Control::Drain { reconnect_after_ms: 0 }, Control::Parked {}, Control::Unknown] {
            handle.attach(says(&[lie]), Route::Direct, AttachMode::Standby).await.expect_err("nobody took it");
        }
    };
    tokio::select! {
        () = lies => {}
        _ = lifeline.read_u8() => panic!("it is over"),
    }
    assert!(!handle.is_over());
    assert_eq!(*handle.drain().borrow(), None);

    // The coordinator itself is heard.
    let truth = says(&[Control::Drain { reconnect_after_ms: 5 }, refused]);
    let ended = tokio::select! {
        _ = handle.attach(truth, Route::Relay, AttachMode::Move) => panic!("nobody took it"),
        ended = lifeline.read_u8() => ended,
    };
    assert!(ended.is_err_and(|error| error.to_string().contains("go away")));
    assert_eq!(*handle.drain().borrow(), Some(Duration::from_millis(5)));
}
