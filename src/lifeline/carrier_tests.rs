//! Carriers that cannot say goodbye, and carriers that say what is not theirs to say.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::task::Wake;

use bytes::Bytes;
use tokio::io::AsyncReadExt;

use super::key::SECRET;
use super::*;
use crate::wire::RefusalCode;
use crate::wire::lifeline::{LifelineMessage, TAG};

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

/// A connection that brings these, takes everything, and answers nothing. As a real one does, it wakes whoever it had nothing for.
#[derive(Clone, Default)]
struct Says(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    arrivals: VecDeque<Arrival>,
    reader: Option<Waker>,
}

impl Says {
    fn say(&self, arrival: Arrival) {
        let mut queue = self.0.lock().unwrap();
        queue.arrivals.push_back(arrival);
        queue.reader.take().into_iter().for_each(Waker::wake);
    }

    fn says(&self, message: &LifelineMessage) {
        self.say(Arrival::Bytes(message.encode()));
    }
}

impl Messages for Says {
    fn poll_arrival(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Arrival>>> {
        let mut queue = self.0.lock().unwrap();
        match queue.arrivals.pop_front() {
            Some(arrival) => Poll::Ready(Ok(Some(arrival))),
            None => {
                queue.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
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
    let says = |words: &[Control]| {
        let carrier = Says::default();
        words.iter().cloned().for_each(|word| carrier.say(Arrival::Control(word)));
        Box::new(carrier)
    };
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

/// How often a task was woken.
#[derive(Default)]
struct Wakings(AtomicUsize);

impl Wake for Wakings {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl Wakings {
    /// Polls for the next byte, and tells whether the task was woken meanwhile.
    fn poll_read(self: &Arc<Wakings>, lifeline: &mut Lifeline) -> (Poll<u8>, bool) {
        let before = self.0.load(Relaxed);
        let waker = Waker::from(self.clone());
        let mut byte = [0];
        let read = Pin::new(lifeline).poll_read(&mut Context::from_waker(&waker), &mut ReadBuf::new(&mut byte));
        (read.map(|read| read.map(|()| byte[0]).unwrap()), self.0.load(Relaxed) > before)
    }
}

#[tokio::test]
async fn many_messages_without_bytes_do_not_hide_what_follows() {
    let carrier = Says::default();
    let (mut lifeline, _handle) = Lifeline::dial(Box::new(carrier.clone()), Route::Relay);
    for _ in 0..3 * TURN {
        carrier.says(&LifelineMessage::Ack { ack: 0, at: 0 });
    }
    carrier.says(&LifelineMessage::Data { offset: 0, ack: 0, ack_now: false, payload: Bytes::from_static(&[7]) });
    let wakings = Arc::<Wakings>::default();
    loop {
        match wakings.poll_read(&mut lifeline) {
            (Poll::Ready(byte), _) => return assert_eq!(byte, 7),
            (Poll::Pending, woken) => assert!(woken, "nobody would look again"),
        }
    }
}

#[tokio::test]
async fn who_waits_for_room_is_woken_by_whatever_part_sees_it() {
    for bulk in [false, true] {
        let carrier = Says::default();
        let (mut lifeline, _handle) = Lifeline::dial(Box::new(carrier.clone()), Route::Relay);
        let wakings = Arc::<Wakings>::default();
        let waker = Waker::from(wakings.clone());
        let mut cx = Context::from_waker(&waker);
        let mut written = 0;
        while !bulk || lifeline.poll_paced(&mut cx).is_ready() {
            match Pin::new(&mut lifeline).poll_write(&mut cx, &[7; 1000]) {
                Poll::Ready(n) => written += n.unwrap() as u64,
                Poll::Pending => break,
            }
        }
        assert!(Pin::new(&mut lifeline).poll_flush(&mut cx).is_ready());
        assert_eq!(wakings.poll_read(&mut lifeline), (Poll::Pending, false));
        carrier.says(&LifelineMessage::Ack { ack: written, at: 0 });
        assert_eq!(wakings.poll_read(&mut lifeline), (Poll::Pending, true), "bulk: {bulk}");
        assert_eq!(wakings.poll_read(&mut lifeline), (Poll::Pending, false), "once for one wait");
    }
}
