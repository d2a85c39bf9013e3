//! The task of a session: moves frames between the streams and the byte stream beneath. Decides nothing itself.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::header::Header;
use super::hub::Hub;
use super::inbound::{Got, Inbound};
use super::outbound::{Outbound, Wrote};
use super::table::Table;
use super::violation::Violation;
use crate::lifeline::paced::Paced;
use crate::transport::Io;

/// Bytes read, and bytes written, before the other direction has its turn.
const PORTION: usize = 256 * 1024;

/// Portions before other tasks have their turn.
const PORTIONS: usize = 4;

/// How long the last words may take: what was written to streams, the goodbye, and the end of the byte stream beneath.
const GOODBYE: Duration = Duration::from_secs(1);

/// The driver of a session.
#[derive(Debug)]
pub struct Driver<T> {
    io: T,
    hub: Arc<Hub>,
    table: Table,
    inbound: Inbound,
    outbound: Outbound,
    unflushed: bool,
    over: CancellationToken,
}

impl<T: Io + Paced> Driver<T> {
    /// A driver on `io`. It cancels `over` when the session is.
    pub fn new(io: T, hub: Arc<Hub>, table: Table, over: CancellationToken) -> Driver<T> {
        Driver { io, hub, table, inbound: Inbound::default(), outbound: Outbound::default(), unflushed: false, over }
    }

    /// Runs until the session ends, by itself or because `cancel` says so.
    pub async fn run(mut self, cancel: CancellationToken) -> io::Result<()> {
        let outcome = {
            let mut cancelled = pin!(cancel.cancelled());
            std::future::poll_fn(|cx| match cancelled.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Ok(())),
                Poll::Pending => self.poll(cx),
            })
            .await
        };
        self.over.cancel();
        let reason = match &outcome {
            Ok(()) => 0,
            Err(error) if error.get_ref().is_some_and(|inner| inner.is::<Violation>()) => 1,
            // There is nothing left to say it on.
            Err(_) => return outcome,
        };
        // An end that breaks the protocol is not sent any more of what was for it.
        let mut goodbye = if reason == 0 { Goodbye::Rest } else { Goodbye::Reason };
        let goodbye = std::future::poll_fn(|cx| self.poll_goodbye(cx, reason, &mut goodbye));
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
        outcome
    }

    /// Ready when the session is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.hub.awake();
        for _ in 0..PORTIONS {
            let wrote = match self.poll_write(cx) {
                Ok(wrote) => wrote,
                // The other end's reason, if it gave one, is in what has arrived.
                Err(error) => return Poll::Ready(self.poll_last(cx, PORTIONS * PORTION).1.unwrap_or(Err(error))),
            };
            let mut read = 0;
            while read < PORTION {
                match self.inbound.poll(cx, &mut self.io, &mut self.table)? {
                    Poll::Pending => break,
                    Poll::Ready(Got::Bytes(n)) => read += n,
                    Poll::Ready(Got::End(reason)) => return Poll::Ready(ended(reason)),
                }
            }
            self.hub.tell();
            if self.hub.has_drained() {
                return Poll::Ready(Ok(()));
            }
            let blocked = wrote == Wrote::Blocked;
            if wrote == Wrote::Enough {
                continue;
            }
            if read >= PORTION {
                // What arrives without a pause does not hold up what leaves.
                self.flush(cx, blocked)?;
                continue;
            }
            // What was read may have something to be said for it, and others may have entered the schedule meanwhile.
            if !blocked && self.table.has_answers() || !self.hub.sleep(cx.waker(), wrote == Wrote::All) {
                if blocked {
                    return Poll::Pending;
                }
                continue;
            }
            self.flush(cx, blocked)?;
            return Poll::Pending;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<Wrote> {
        let wrote = self.outbound.poll(cx, &mut self.io, &mut self.table, &self.hub, PORTION)?;
        self.unflushed |= self.outbound.has_written();
        Ok(wrote)
    }

    /// A byte stream that takes no more is on its way to flush itself.
    fn flush(&mut self, cx: &mut Context<'_>, blocked: bool) -> io::Result<()> {
        if self.unflushed && !blocked && Pin::new(&mut self.io).poll_flush(cx)?.is_ready() {
            self.unflushed = false;
        }
        Ok(())
    }

    /// Reads what has arrived, up to about `most` bytes: how many that were, and the error or the end in it.
    fn poll_last(&mut self, cx: &mut Context<'_>, most: usize) -> (usize, Option<io::Result<()>>) {
        let mut read = 0;
        while read < most {
            match self.inbound.poll(cx, &mut self.io, &mut self.table) {
                Poll::Ready(Ok(Got::Bytes(n))) => read += n,
                // The end of the byte stream after a goodbye is an end in order.
                Poll::Ready(Ok(Got::End(0))) if self.hub.has_heard() => return (read, Some(Ok(()))),
                Poll::Ready(Ok(Got::End(0))) | Poll::Pending => break,
                Poll::Ready(Ok(Got::End(reason))) => return (read, Some(ended(reason))),
                Poll::Ready(Err(error)) => return (read, Some(Err(error))),
            }
        }
        (read, None)
    }

    /// Sends what streams have queued and their windows take. What makes room for it, beneath or in a window, may be behind
    /// bulk that arrives, so that is read.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut left = PORTIONS * PORTION;
        loop {
            match self.outbound.poll(cx, &mut self.io, &mut self.table, &self.hub, PORTION)? {
                Wrote::Enough => continue,
                Wrote::All => return Poll::Ready(Ok(())),
                Wrote::AllButBulk | Wrote::Blocked => {}
            }
            match self.poll_last(cx, left) {
                // Whoever has ended the session takes nothing more.
                (_, Some(ended)) => return Poll::Ready(ended),
                (0, None) => return Poll::Pending,
                (read, None) => left = left.saturating_sub(read),
            }
            if left == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    /// Sends what streams have queued and their windows take, says goodbye, and ends the byte stream beneath.
    fn poll_goodbye(&mut self, cx: &mut Context<'_>, reason: u32, at: &mut Goodbye) -> Poll<io::Result<()>> {
        if *at == Goodbye::Rest {
            ready!(self.poll_rest(cx))?;
            *at = Goodbye::Reason;
        }
        if *at == Goodbye::Reason {
            self.table.end();
            if reason != 0 || !self.hub.is_done() {
                self.outbound.say(Header::go_away(reason));
            }
            *at = Goodbye::Word;
        }
        if *at == Goodbye::Word {
            ready!(self.outbound.poll_said(cx, &mut self.io))?;
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            *at = Goodbye::End;
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        self.over.cancel();
        self.table.end();
    }
}

/// How far a goodbye is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goodbye {
    Rest,
    Reason,
    Word,
    End,
}

fn ended(reason: u32) -> io::Result<()> {
    let text = match reason {
        0 => return Ok(()),
        1 => "the other side ended the session because of a broken protocol".to_owned(),
        2 => "the other side ended the session because of an error of its own".to_owned(),
        reason => format!("the other side ended the session for reason {reason}"),
    };
    Err(io::Error::new(io::ErrorKind::ConnectionAborted, text))
}
