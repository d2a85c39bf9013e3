//! What a stub that handed over still offers to those after it, on a socket in the state directory: carriers of its
//! sessions are brought here, and devices that are not served any more are ended here.
//!
//! Begins nothing. Only this user and root are let in, a bounded number at a time, and only those who prove that the state
//! directory is theirs are heard.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::kin::Kin;
use super::laptops::{Laptops, MAX_SESSIONS, unknown};
use super::{earlier, local};
use crate::lifeline::core::MAX_CARRIERS;
use crate::lifeline::{Route, first_attach};
use crate::role::ACCEPT_PAUSE;
use crate::session::framed::FramedStream;
use crate::transport::carrier::{Carrier, Side, websocket};
use crate::wire::call::Request;
use crate::wire::lifeline::{AttachMode, LifelineId};
use crate::wire::limits::{MAX_CONTROL, MAX_REVOKED};
use crate::wire::{FrameKind, Refusal, RefusalCode};

/// Brings a carrier of a session.
pub const RESUME: &str = "resume";
/// Ends the sessions of devices.
pub const END_DEVICES: &str = "end_devices";
/// Ends the process.
pub const END: &str = "end";

/// Requests that are heard at a time. A session's carriers come one after another.
const MAX_ASKING: usize = MAX_SESSIONS * MAX_CARRIERS;

/// How long the request, and then a carrier's first message, may take. Both are sent at once.
const FIRST_MESSAGE: Duration = Duration::from_secs(5);

/// The open socket; its file goes with it.
#[derive(Debug)]
pub struct Link {
    listener: UnixListener,
    path: PathBuf,
    kin: Kin,
}

#[derive(Deserialize)]
struct Resume {
    lifeline: String,
    route: Route,
}

#[derive(Deserialize)]
struct EndDevices {
    pins: Vec<String>,
    refusal: Refusal,
}

impl Link {
    /// Opens it in the state directory `dir`, for those who have `kin`.
    pub fn open(dir: &Path, kin: Kin) -> Result<Link, Refusal> {
        let path = earlier::own_socket(dir);
        let listener = local::bind(&path).map_err(|error| {
            let text = format!(
                "a socket for the successor cannot be opened: {error}. hint: its path may have about 100 bytes, and \
                 the state directory must be writable"
            );
            Refusal::new(RefusalCode::Internal, text)
        })?;
        Ok(Link { listener, path, kin })
    }

    /// Serves successors until `done`; cancels `end` when one of them ends this process.
    pub async fn run(self, laptops: Arc<Laptops>, done: CancellationToken, end: CancellationToken) {
        let asking = Arc::new(Semaphore::new(MAX_ASKING));
        let mut tasks = JoinSet::new();
        loop {
            while tasks.try_join_next().is_some() {}
            let accepted = tokio::select! {
                accepted = local::accept(&self.listener, &asking) => accepted,
                () = done.cancelled() => return,
            };
            match accepted {
                Ok((stream, permit)) => {
                    let (laptops, end, kin) = (laptops.clone(), end.clone(), self.kin.clone());
                    tasks.spawn(async move {
                        if let Err(why) = serve(stream, &kin, &laptops, &end).await {
                            tracing::debug!(why, "a successor's request came to nothing");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a successor failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves one request of a successor; cancels `end` when that ends this process. Says why it came to nothing.
pub async fn serve(stream: UnixStream, kin: &Kin, laptops: &Laptops, end: &CancellationToken) -> Result<(), String> {
    if !local::is_own(&stream) {
        return Err("another user tried to use the socket".into());
    }
    let mut stream = FramedStream::new(stream);
    stream.reader.limit(MAX_CONTROL);
    let frame = tokio::time::timeout(FIRST_MESSAGE, stream.reader.expect_kind(FrameKind::Message)).await;
    let frame = frame.map_err(|_| "no request arrived in time")?.map_err(|e| e.to_string())?;
    let request = Request::parse(&frame.payload).map_err(|refusal| refusal.to_string())?;
    let request = kin.hear(&mut stream, request).await?;
    let answer = match request.method.as_str() {
        RESUME => return resume(stream, &request, laptops).await,
        END_DEVICES => match parsed::<EndDevices>(&request) {
            Ok(EndDevices { pins, refusal }) => {
                let pins: Vec<_> = pins.iter().take(MAX_REVOKED).filter_map(|pin| pin.parse().ok()).collect();
                laptops.shut_out(&pins, Instant::now());
                for pin in pins {
                    laptops.end_device(pin, &refusal).await;
                }
                Ok(json!({}))
            }
            Err(refusal) => Err(refusal),
        },
        END => {
            end.cancel();
            Ok(json!({}))
        }
        method => {
            let text = format!("an earlier stub does not know `{}`", crate::wire::refusal::printable(method));
            Err(Refusal::new(RefusalCode::Unsupported, text))
        }
    };
    local::answer(&mut stream, request.id, answer).await.map_err(|e| e.to_string())
}

async fn resume(mut stream: FramedStream<UnixStream>, request: &Request, laptops: &Laptops) -> Result<(), String> {
    let wanted = parsed::<Resume>(request).and_then(|wanted| {
        let id = parse_name(&wanted.lifeline)?;
        Ok((id, wanted.route, laptops.lifeline(id).map_err(|ended| ended.unwrap_or_else(unknown))?))
    });
    let (id, route, lifeline) = match wanted {
        Ok(wanted) => wanted,
        Err(refusal) => {
            let answered = local::answer(&mut stream, request.id.clone(), Err(refusal)).await;
            return answered.map_err(|e| e.to_string());
        }
    };
    local::answer(&mut stream, request.id.clone(), Ok(json!({}))).await.map_err(|e| e.to_string())?;
    let mut carrier = carrier(stream.into_inner()).await;
    let attach = tokio::time::timeout(FIRST_MESSAGE, first_attach(&mut carrier)).await.ok().flatten();
    let attach = attach.filter(|attach| attach.id == id && attach.mode != AttachMode::Begin).ok_or("no attach")?;
    tracing::info!(?route, "a session goes on, by way of the stub that took over");
    lifeline.arrived(Box::new(carrier), route, attach).await;
    Ok(())
}

fn parsed<T: DeserializeOwned>(request: &Request) -> Result<T, Refusal> {
    let params: &Value = &request.params;
    T::deserialize(params).map_err(|e| Refusal::new(RefusalCode::InvalidArguments, e.to_string()))
}

/// A lifeline's name as a request has it: hexadecimal digits.
pub fn name(id: LifelineId) -> String {
    data_encoding::HEXLOWER.encode(&id.0)
}

fn parse_name(text: &str) -> Result<LifelineId, Refusal> {
    let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.map(LifelineId).ok_or_else(|| Refusal::new(RefusalCode::InvalidArguments, "not the name of a lifeline"))
}

/// The carrier that a connection becomes once a `resume` was answered.
pub async fn carrier(stream: UnixStream) -> Carrier<UnixStream> {
    Carrier::new(websocket(stream, Bytes::new(), Side::Unmasked).await)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde::de::IgnoredAny;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::identity::KeyPin;
    use crate::role::stub::earlier::Earlier;
    use crate::session::framed::StreamError;
    use crate::wire::lifeline::{Attach, TAG};

    fn refusal_of(answer: Result<(IgnoredAny, UnixStream), StreamError>) -> RefusalCode {
        match answer {
            Err(StreamError::Refused(refusal)) => refusal.code,
            other => panic!("{other:?}"),
        }
    }

    struct World {
        dir: tempfile::TempDir,
        kin: Kin,
        socket: PathBuf,
        done: CancellationToken,
        end: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let kin = Kin::load_or_make(dir.path()).unwrap();
            let link = Link::open(dir.path(), kin.clone()).unwrap();
            let (socket, done, end) = (link.path.clone(), CancellationToken::new(), CancellationToken::new());
            let task = tokio::spawn(link.run(Arc::default(), done.clone(), end.clone()));
            World { dir, kin, socket, done, end, task }
        }

        /// Of one that has the secret.
        async fn refused(&self, method: &str, params: Value) -> RefusalCode {
            let stream = UnixStream::connect(&self.socket).await.unwrap();
            refusal_of(self.kin.call(stream, method, &params).await)
        }

        async fn refused_as_it_is(&self, method: &str, params: Value) -> RefusalCode {
            let stream = UnixStream::connect(&self.socket).await.unwrap();
            refusal_of(local::call(stream, method, params).await)
        }
    }

    #[tokio::test]
    async fn what_does_not_belong_here_is_refused() {
        let world = World::new();
        let unknown = json!({"lifeline": "00".repeat(16), "route": "direct"});
        assert_eq!(world.refused(RESUME, unknown).await, RefusalCode::NotFound);
        for params in [json!({}), json!({"lifeline": "0", "route": "relay"}), Value::Null] {
            assert_eq!(world.refused(RESUME, params.clone()).await, RefusalCode::InvalidArguments);
            assert_eq!(world.refused(END_DEVICES, params).await, RefusalCode::InvalidArguments);
        }
        assert_eq!(world.refused("tool.list", Value::Null).await, RefusalCode::Unsupported);
        let too_long = vec![0x20, 0x00, 0xff, 0xff];
        for garbage in [b"\xff\xff\xff\xff".to_vec(), b"GET / HTTP/1.1\r\n\r\n".to_vec(), too_long] {
            let mut stream = UnixStream::connect(&world.socket).await.unwrap();
            stream.write_all(&garbage).await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(answer.is_empty(), "{answer:?}");
        }
        assert!(!world.end.is_cancelled());
    }

    #[tokio::test]
    async fn who_has_the_socket_and_not_the_directory_is_refused() {
        let (world, elsewhere) = (World::new(), tempfile::tempdir().unwrap());
        let stranger = Kin::load_or_make(elsewhere.path()).unwrap();
        let about = [
            (RESUME, json!({"lifeline": "00".repeat(16), "route": "direct"})),
            (END_DEVICES, json!({"pins": [], "refusal": Refusal::new(RefusalCode::Denied, "gone")})),
            (END, json!({})),
        ];
        for (method, params) in about {
            assert_eq!(world.refused_as_it_is(method, params.clone()).await, RefusalCode::Denied);
            let stream = UnixStream::connect(&world.socket).await.unwrap();
            assert_eq!(refusal_of(stranger.call(stream, method, &params).await), RefusalCode::Denied);
        }
        assert_eq!(world.refused_as_it_is(END, json!([1])).await, RefusalCode::Denied);
        assert!(!world.end.is_cancelled());
    }

    #[tokio::test]
    async fn who_says_nothing_is_not_waited_for() {
        let world = World::new();
        let mut silent = UnixStream::connect(&world.socket).await.unwrap();
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
        assert!(!world.task.is_finished());
    }

    #[tokio::test]
    async fn a_successor_may_end_it_and_its_socket_goes_with_it() {
        let world = World::new();
        assert_eq!(std::fs::metadata(&world.socket).unwrap().permissions().mode() & 0o777, 0o600);
        let earlier = Earlier::new(world.dir.path(), world.kin.clone());
        assert_eq!(earlier.count().await, 1);
        earlier.end_devices(&[KeyPin::from_bytes([1; 32])], &Refusal::new(RefusalCode::Denied, "gone")).await;
        assert!(!world.end.is_cancelled());
        earlier.end().await;
        assert!(world.end.is_cancelled());
        world.done.cancel();
        world.task.await.unwrap();
        assert!(!world.socket.exists());
        assert_eq!(earlier.count().await, 0);
    }

    #[tokio::test]
    async fn a_socket_that_a_killed_stub_left_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let earlier = Earlier::new(dir.path(), Kin::load_or_make(dir.path()).unwrap());
        let left = earlier::own_socket(dir.path());
        drop(local::bind(&left).unwrap());
        assert!(left.exists());
        let attach =
            Attach { id: LifelineId([7; 16]), sequence: 1, mode: AttachMode::Move, received: 0, tag: [0; TAG] };
        assert_eq!(earlier.resume(&attach, Route::Relay).await.unwrap_err().code, RefusalCode::NotFound);
        earlier.end_devices(&[KeyPin::from_bytes([1; 32])], &Refusal::new(RefusalCode::Denied, "gone")).await;
        earlier.end().await;
        assert_eq!(earlier.count().await, 0);
        assert!(!left.exists());
    }

    #[tokio::test]
    async fn a_message_about_the_most_devices_fits() {
        let world = World::new();
        let pins = vec![KeyPin::from_bytes([0xff; 32]).to_string(); MAX_REVOKED];
        let sentence = "\"".repeat(crate::wire::limits::MAX_SENTENCE);
        let params = json!({"pins": pins, "refusal": Refusal::new(RefusalCode::Denied, sentence)});
        let stream = UnixStream::connect(&world.socket).await.unwrap();
        world.kin.call::<IgnoredAny>(stream, END_DEVICES, &params).await.unwrap();
    }

    #[test]
    fn names_of_lifelines_round_trip() {
        let id = LifelineId(*b"0123456789abcdef");
        assert_eq!(parse_name(&name(id)).unwrap(), id);
        assert!(parse_name("zz").is_err() && parse_name("").is_err());
    }
}
