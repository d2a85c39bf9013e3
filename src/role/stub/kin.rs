//! What makes two processes stubs of one workspace: both read one secret in its state directory. Whoever has a socket of
//! theirs and not the directory, as programs that are given `NEXUS_STUB_SOCKET` alone, is no kin: hands nothing over, brings
//! no carrier, ends nothing, and is told nothing.
//!
//! The secret itself is never said. Each end has a nonce; who is asked proves itself first, with both nonces, and who asks
//! then proves itself and what it asks for. So whoever passes that on can pass on that and nothing else, once.
//!
//! Programs of the same user that may read the directory have all of the workspace already.

use std::io;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::local;
use crate::role::files;
use crate::session::framed::{FramedStream, StreamError};
use crate::wire::call::Request;
use crate::wire::{FrameKind, Refusal, RefusalCode};

/// The call that a request of kin begins with: a nonce for a nonce.
pub const METHOD: &str = "kin";

/// Its name in the state directory.
const FILE: &str = "kin.key";

/// Bytes of the secret; the file has them in hexadecimal.
const SECRET: usize = 32;

/// Bytes of a nonce.
const NONCE: usize = 32;

/// How long the request may take once whoever makes it was answered. It is sent at once.
const REQUEST: Duration = Duration::from_secs(5);

/// What the proofs of either end begin with, so that neither is the other's.
const ASKED: &[u8] = b"nexus-kin asked";
const ASKS: &[u8] = b"nexus-kin asks";

/// What begins, by whoever asks.
#[derive(Serialize, Deserialize)]
struct Challenge {
    nonce: String,
}

/// The answer to it.
#[derive(Serialize, Deserialize)]
struct Answer {
    nonce: String,
    proof: String,
}

/// The parameters of the request itself.
#[derive(Serialize, Deserialize)]
struct Proven {
    proof: String,
    params: Value,
}

/// The nonces of one connection: of whoever asks, and of whoever is asked.
struct Nonces([[u8; NONCE]; 2]);

/// The secret. Does not print.
#[derive(Clone)]
pub struct Kin(Zeroizing<String>);

impl std::fmt::Debug for Kin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kin")
    }
}

impl Kin {
    /// Reads it from the state directory `dir`; `None` where no stub has made one.
    pub fn load(dir: &Path) -> io::Result<Option<Kin>> {
        let path = dir.join(FILE);
        let Some(text) = files::read(&path)?.map(Zeroizing::new) else { return Ok(None) };
        let bytes = data_encoding::HEXLOWER.decode(text.trim().as_bytes()).map(Zeroizing::new);
        if !bytes.is_ok_and(|bytes| bytes.len() == SECRET) {
            let text = format!("{} is damaged. hint: stop the stubs of this workspace, and remove it", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Some(Kin(Zeroizing::new(text.trim().to_owned()))))
    }

    /// The same; it is made where there is none. For the one stub that serves the workspace: two would each make their own.
    pub fn load_or_make(dir: &Path) -> io::Result<Kin> {
        if let Some(kin) = Kin::load(dir)? {
            return Ok(kin);
        }
        let secret = Zeroizing::new(rand::random::<[u8; SECRET]>());
        let kin = Kin(Zeroizing::new(data_encoding::HEXLOWER.encode(&secret[..])));
        files::write(&dir.join(FILE), kin.0.as_bytes())?;
        Ok(kin)
    }

    /// Calls the stub at the other end, once it has proven that it is kin. The stream is good for what the two agreed on.
    pub async fn call<A: DeserializeOwned>(
        &self,
        stream: UnixStream,
        method: &str,
        params: &Value,
    ) -> Result<(A, UnixStream), StreamError> {
        let asks: [u8; NONCE] = rand::random();
        let challenge = Challenge { nonce: HEXLOWER.encode(&asks) };
        let (answer, stream): (Answer, _) = local::call(stream, METHOD, json!(challenge)).await?;
        let nonces = nonce(&answer.nonce).map(|asked| Nonces([asks, asked]));
        let nonces = nonces.filter(|nonces| self.is_proof(&answer.proof, ASKED, nonces, b""));
        let nonces = nonces.ok_or_else(|| StreamError::Refused(not_asked()))?;
        let proof = self.proof(ASKS, &nonces, &said(method, params));
        local::call(stream, method, json!(Proven { proof, params: params.clone() })).await
    }

    /// Answers the `first` request of a connection, and gives the one that follows, if whoever makes it has proven to be kin.
    /// Who has not is refused here; gives why.
    pub async fn hear(&self, stream: &mut FramedStream<UnixStream>, first: Request) -> Result<Request, String> {
        let asks = match (first.method.as_str(), Challenge::deserialize(&first.params)) {
            (METHOD, Ok(challenge)) => nonce(&challenge.nonce),
            _ => None,
        };
        let Some(asks) = asks else { return Err(refuse(stream, first.id).await) };
        let asked: [u8; NONCE] = rand::random();
        let nonces = Nonces([asks, asked]);
        let answer = Answer { nonce: HEXLOWER.encode(&asked), proof: self.proof(ASKED, &nonces, b"") };
        local::answer(stream, first.id, Ok(json!(answer))).await.map_err(|e| e.to_string())?;
        let frame = tokio::time::timeout(REQUEST, stream.reader.expect_kind(FrameKind::Message)).await;
        let frame = frame.map_err(|_| "no request arrived in time")?.map_err(|e| e.to_string())?;
        let request = Request::parse(&frame.payload).map_err(|refusal| refusal.to_string())?;
        match Proven::deserialize(&request.params) {
            Ok(Proven { proof, params }) if self.is_proof(&proof, ASKS, &nonces, &said(&request.method, &params)) => {
                Ok(Request { params, ..request })
            }
            _ => Err(refuse(stream, request.id).await),
        }
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.0.as_bytes())
    }

    fn proof(&self, whose: &[u8], nonces: &Nonces, what: &[u8]) -> String {
        HEXLOWER.encode(hmac::sign(&self.key(), &nonces.signed(whose, what)).as_ref())
    }

    fn is_proof(&self, proof: &str, whose: &[u8], nonces: &Nonces, what: &[u8]) -> bool {
        let proof = HEXLOWER.decode(proof.as_bytes()).unwrap_or_default();
        hmac::verify(&self.key(), &nonces.signed(whose, what), &proof).is_ok()
    }
}

impl Nonces {
    fn signed(&self, whose: &[u8], what: &[u8]) -> Vec<u8> {
        [whose, self.0.as_flattened(), what].concat()
    }
}

fn nonce(text: &str) -> Option<[u8; NONCE]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// A request as it is signed.
fn said(method: &str, params: &Value) -> Vec<u8> {
    json!([method, params]).to_string().into_bytes()
}

async fn refuse(stream: &mut FramedStream<UnixStream>, id: Value) -> String {
    let text = format!(
        "only a stub with the same state directory may ask for that. hint: run it with --state, and as the same user; it \
         reads {FILE} there"
    );
    let refusal = Refusal::new(RefusalCode::Denied, text);
    // Whoever hears it is told; who does not was not waiting.
    let _ = local::answer(stream, id, Err(refusal)).await;
    "whoever asked is no stub of this workspace".to_owned()
}

fn not_asked() -> Refusal {
    let text = format!(
        "who listens there is no stub with the same state directory. hint: --socket and --state must be those of one stub; \
         both read {FILE}"
    );
    Refusal::new(RefusalCode::Denied, text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What comes of a request by `asks` to `asked`: what it heard, and what the other one got.
    async fn talk(asks: &Kin, asked: &Kin) -> (Result<Request, String>, Result<Value, StreamError>) {
        let (one, other) = UnixStream::pair().unwrap();
        let params = json!({"b": [1, 2.5], "a": "\u{e9}"});
        let hear = async {
            let mut stream = FramedStream::new(other);
            let first = Request::parse(&stream.reader.expect().await.unwrap().payload).unwrap();
            let heard = asked.hear(&mut stream, first).await;
            if let Ok(request) = &heard {
                assert_eq!((request.method.as_str(), &request.params), ("end", &params));
                local::answer(&mut stream, request.id.clone(), Ok(json!(7))).await.unwrap();
            }
            heard
        };
        let (answer, heard) = tokio::join!(asks.call::<Value>(one, "end", &params), hear);
        (heard, answer.map(|(answer, _)| answer))
    }

    #[tokio::test]
    async fn one_directory_makes_kin_and_nothing_else_does() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(Kin::load(dir.path()).unwrap().is_none());
        let made = Kin::load_or_make(dir.path()).unwrap();
        let read = Kin::load(dir.path()).unwrap().unwrap();
        let (heard, answer) = talk(&read, &made).await;
        assert_eq!((heard.is_ok(), answer.unwrap()), (true, json!(7)));
        let stranger = Kin::load_or_make(other.path()).unwrap();
        let (heard, answer) = talk(&made, &stranger).await;
        assert!(heard.is_err(), "nothing is asked of one who has not proven itself");
        let Err(StreamError::Refused(refusal)) = answer else { panic!("{answer:?}") };
        assert_eq!(refusal.code, RefusalCode::Denied);
        assert!(!format!("{made:?}").contains(made.0.as_str()));
    }

    #[tokio::test]
    async fn what_was_not_proven_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let kin = Kin::load_or_make(dir.path()).unwrap();
        let zeros = "00".repeat(NONCE);
        for first in [Value::Null, json!({}), json!([1]), json!({"nonce": ""}), json!({"nonce": 1})] {
            assert_eq!(refused(&kin, METHOD, first, None).await, RefusalCode::Denied);
        }
        assert_eq!(refused(&kin, "end", json!({"nonce": zeros}), None).await, RefusalCode::Denied);
        // Another method, other parameters, the other end's proof, none.
        let nothing = json!({});
        for (method, params, whose) in
            [("resume", &nothing, ASKS), ("end", &json!([1]), ASKS), ("end", &nothing, ASKED), ("end", &nothing, b"")]
        {
            let proof = |nonces: &Nonces| kin.proof(whose, nonces, &said(method, params));
            let code = refused(&kin, METHOD, json!({"nonce": zeros}), Some(&proof)).await;
            assert_eq!(code, RefusalCode::Denied, "{method} {params}");
        }
    }

    /// How `kin` refuses an `end` that begins so, and goes on with what `proof` makes of the nonces.
    async fn refused(kin: &Kin, method: &str, first: Value, proof: Option<&dyn Fn(&Nonces) -> String>) -> RefusalCode {
        let (one, other) = UnixStream::pair().unwrap();
        let hear = async {
            let mut stream = FramedStream::new(other);
            let first = Request::parse(&stream.reader.expect().await.unwrap().payload).unwrap();
            kin.hear(&mut stream, first).await.unwrap_err();
        };
        let ask = async {
            match (local::call::<Answer>(one, method, first).await, proof) {
                (Err(error), _) => error.into_refusal().code,
                (Ok((answer, stream)), Some(proof)) => {
                    let proof = proof(&Nonces([[0; NONCE], nonce(&answer.nonce).unwrap()]));
                    let asked = local::call::<Value>(stream, "end", json!({"proof": proof, "params": {}})).await;
                    asked.unwrap_err().into_refusal().code
                }
                (Ok(_), None) => panic!("it was answered"),
            }
        };
        tokio::join!(ask, hear).0
    }

    #[test]
    fn a_file_that_is_damaged_or_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        Kin::load_or_make(dir.path()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for damaged in ["", "zz", "00"] {
            files::write(&path, damaged.as_bytes()).unwrap();
            assert!(Kin::load_or_make(dir.path()).unwrap_err().to_string().contains("hint:"));
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Kin::load(dir.path()).unwrap_err().to_string().contains("chmod 600"));
    }
}
