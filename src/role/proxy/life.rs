//! One session's life: it is served, mended and kept on the direct way until it is over.
//!
//! A tunnel has one session that stands, and beside it earlier ones that drain. Those live the same life; only the one that
//! stands is what the tunnel's state tells of.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::climb::Climb;
use super::tunnel::{Tunnel, TunnelError};
use super::tunnel_state::{self, Remarks, Step, TunnelState};
use crate::lifeline::{Ended, LifelineHandle, Route, Standing};
use crate::session::establish::{Session, SessionError};
use crate::session::mux::{MuxOpener, MuxStream};
use crate::session::way::Way;
use crate::transport::client::ClientError;
use crate::wire::{Refusal, RefusalCode};

/// A session of a tunnel.
pub struct Life<'a> {
    /// Whose session it is.
    pub(super) tunnel: &'a Tunnel,
    /// Brings carriers.
    pub(super) lifeline: LifelineHandle,
    /// Opens streams.
    pub(super) opener: MuxOpener,
    /// What its state says of it.
    pub(super) standing: tunnel_state::Standing,
    /// Where the workspace said that it can be reached: a session that drains cannot ask again.
    addresses: Mutex<Vec<SocketAddr>>,
    /// What there is to say of it.
    remarks: Mutex<Remarks>,
    /// Of its direct ways.
    climb: Mutex<Climb>,
    retired: AtomicBool,
}

impl<'a> Life<'a> {
    /// The life of a session that has begun.
    pub fn new(tunnel: &'a Tunnel, session: &Session, standing: tunnel_state::Standing) -> Arc<Life<'a>> {
        Arc::new(Life {
            tunnel,
            lifeline: session.lifeline.clone(),
            opener: session.opener.clone(),
            standing,
            addresses: Mutex::default(),
            remarks: Mutex::default(),
            climb: Mutex::new(tunnel.climb()),
            retired: AtomicBool::new(false),
        })
    }

    /// Serves the session and has it mended until it is over; gives the reason.
    pub async fn run<F, S>(self: Arc<Self>, session: Session, serve: &F) -> TunnelError
    where
        F: Fn(MuxStream, Way) -> S,
        S: Future<Output = ()> + Send + 'static,
    {
        let _alive = self.tunnel.lives.token();
        self.publish(self.standing.up(Route::Relay, None, false, 0, Remarks::default()));
        let probe = async {
            let mut changes = self.tunnel.changes();
            while changes.changed().await.is_ok() {
                self.lifeline.probe().await;
            }
        };
        let way = Way::of(&self.lifeline);
        let mut broke = false;
        let served = tokio::select! {
            why = serve_session(session, &way, serve, &self.tunnel.ending, &mut broke) => Ok(why),
            error = self.mend() => Err(error),
            error = self.keep_direct() => Err(error),
            () = probe => Ok("this program is ending".into()),
        };
        let ended = self.lifeline.standing().borrow().clone();
        if !self.retired.load(Ordering::Relaxed) {
            self.keep_climb(broke && is_of_the_way(&ended));
        }
        match (served, ended) {
            (Err(error), _) => error,
            (Ok(_), Standing::Ended(Ended::Refused(refusal))) if refusal.code == RefusalCode::TakenOver => {
                TunnelError::TakenOver(refusal)
            }
            (Ok(_), Standing::Ended(Ended::Refused(refusal))) => {
                TunnelError::Coordinator(ClientError::Refused(Refusal { code: passing(refusal.code), ..refusal }))
            }
            (Ok(_), Standing::Ended(ended @ (Ended::Position(_) | Ended::Expired))) => {
                TunnelError::Session(SessionError::Refused(Refusal::new(RefusalCode::Unavailable, ended.to_string())))
            }
            (Ok(why), _) => TunnelError::Session(SessionError::Refused(Refusal::new(RefusalCode::Unavailable, why))),
        }
    }

    /// The next session takes its place: what becomes of this one is no longer the tunnel's state.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
        self.keep_climb(false);
    }

    /// What it has shown of the direct way is the next session's to begin with. Where it `broke` on it, that is part of it.
    fn keep_climb(&self, broke: bool) {
        let mut climb = self.climb().clone();
        climb.session_ended(broke, Instant::now(), rand::random());
        self.tunnel.set_climb(climb);
    }

    /// Publishes how the tunnel is, if this is the session that stands.
    pub(super) fn publish(&self, state: TunnelState) {
        if !self.retired.load(Ordering::Relaxed) {
            self.tunnel.publish(state);
        }
    }

    /// Says how the attempt goes that it waits for, if this is the session that stands.
    pub(super) fn step(&self, step: Step) {
        if !self.retired.load(Ordering::Relaxed) {
            self.tunnel.step(step);
        }
    }

    /// What there is to say of it, as was said last.
    pub(super) fn remarks(&self) -> Remarks {
        self.remarks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says something else of it from here on.
    pub(super) fn remark(&self, change: impl FnOnce(&mut Remarks)) {
        let remarks = {
            let mut remarks = self.remarks.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut remarks);
            remarks.clone()
        };
        if !self.retired.load(Ordering::Relaxed) {
            self.tunnel.remark(remarks);
        }
    }

    /// Says what threatens it, if anything does.
    pub(super) fn set_notice(&self, notice: Option<String>) {
        self.remark(|remarks| remarks.notice = notice);
    }

    /// What became of its direct ways.
    pub(super) fn climb(&self) -> MutexGuard<'_, Climb> {
        self.climbing().lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, for whoever shows it how the session stands.
    pub(super) fn climbing(&self) -> &Mutex<Climb> {
        &self.climb
    }

    /// Where the workspace can be reached directly, as it said last.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps what the workspace said.
    pub(super) fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }
}

/// Whether a session that broke may have broken on the way: what the workspace or the coordinator said is not its doing.
fn is_of_the_way(ended: &Standing) -> bool {
    !matches!(ended, Standing::Ended(Ended::Refused(_) | Ended::Expired))
}

/// A workspace that does not know a session any more takes the next one.
fn passing(code: RefusalCode) -> RefusalCode {
    if code == RefusalCode::NotFound { RefusalCode::Unavailable } else { code }
}

/// Serves a session's incoming streams until it ends, or until `ending`; gives the reason, and whether what arrived in it `broke`
/// it. Streams end with it.
async fn serve_session<F, S>(
    mut session: Session,
    way: &Way,
    serve: &F,
    ending: &CancellationToken,
    broke: &mut bool,
) -> String
where
    F: Fn(MuxStream, Way) -> S,
    S: Future<Output = ()> + Send + 'static,
{
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            stream = session.acceptor.accept() => match stream {
                Some(stream) => {
                    streams.spawn(serve(stream, way.clone()));
                }
                None => break,
            },
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
            () = ending.cancelled() => {
                session.end().await;
                return "this program is ending".into();
            }
        }
    }
    session.end_streams(&mut streams).await;
    match session.ended().await {
        Ok(()) if session.opener.has_drained() => "all that was open in it is done".into(),
        Ok(()) => "the other side ended the session".into(),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => "the connection was closed".into(),
        Err(error) => {
            *broke = true;
            format!("the connection broke: {error}")
        }
    }
}
