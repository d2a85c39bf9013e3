//! Tokens: where they come from, how long they are kept, and that they leave the laptop only by their owner's word.
//!
//! Refuses a token that was not declared with `expose: true`: once answered, its value is readable in the workspace.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::service::keychain::{Keychain, PASSPHRASE};
use crate::service::plain_file;
use crate::service::secret::Secret;
use crate::service::tool::run::Group;
use crate::wire::{Refusal, RefusalCode};

/// Bytes of a token. Certificates in PEM fit; nothing sensible is larger.
pub const MAX_TOKEN: usize = 64 * 1024;

/// How long a token is kept after it was fetched, when its declaration does not say.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(300);

/// How long a command that prints a token may take, when its declaration does not say. It may ask for a fingerprint.
pub const DEFAULT_COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// A variable in the laptop's environment.
    Env(String),
    /// A file.
    File(PathBuf),
    /// A program that prints it, with arguments as they are. It runs in the laptop's own environment.
    Command {
        /// Program and arguments.
        argv: Vec<String>,
        /// How long it may take.
        timeout: Duration,
    },
    /// An entry in the system's keychain, or in the encrypted file that stands in for it.
    Keychain {
        /// The service it is filed under.
        service: String,
        /// The account it is filed under.
        account: String,
    },
}

impl TokenSource {
    /// Fetches it now. Sentences name the kind of source, never what it contains.
    pub async fn fetch(&self, keychain: &Keychain) -> Result<Secret, Refusal> {
        match self {
            TokenSource::Env(name) => {
                let value = std::env::var_os(name).ok_or_else(|| missing("its environment variable is not set"))?;
                secret(std::os::unix::ffi::OsStringExt::into_vec(value))
            }
            TokenSource::File(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || plain_file::read(&path, MAX_TOKEN)).await;
                let read = read.map_err(|e| Refusal::new(RefusalCode::Internal, e.to_string()))?;
                secret(read.map_err(|e| missing(&format!("its file is unusable: {e}")))?)
            }
            TokenSource::Command { argv, timeout } => print(argv, *timeout).await,
            TokenSource::Keychain { service, account } => keychain
                .get(service, account)
                .await
                .map_err(|e| missing(&format!("the keychain is unusable: {e}")))?
                .ok_or_else(|| missing("the keychain has no such entry")),
        }
    }
}

fn missing(why: &str) -> Refusal {
    let message = format!("the token cannot be fetched: {why}. hint: its owner can check its source on the laptop");
    Refusal::new(RefusalCode::NotFound, message)
}

fn secret(bytes: Vec<u8>) -> Result<Secret, Refusal> {
    if bytes.len() > MAX_TOKEN {
        drop(Zeroizing::new(bytes));
        return Err(missing(&format!("its source gave more than {MAX_TOKEN} bytes")));
    }
    Secret::from_output(bytes).ok_or_else(|| missing("its source gave nothing, or something that is not UTF-8"))
}

async fn print(argv: &[String], timeout: Duration) -> Result<Secret, Refusal> {
    let (program, arguments) = argv.split_first().ok_or_else(|| missing("its command is empty"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_remove(PASSPHRASE)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // What it complains about may contain the token.
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| missing(&format!("its command does not start: {e}")))?;
    let group = Group::of(&child);
    // Room for everything at once: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_TOKEN + 1));
    let printed = async {
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX_TOKEN as u64 + 1).read_to_end(&mut bytes).await?;
        }
        child.wait().await
    };
    let status = tokio::time::timeout(timeout, printed).await;
    drop(group);
    match status {
        Ok(Ok(_)) if bytes.len() > MAX_TOKEN => secret(std::mem::take(&mut *bytes)),
        Ok(Ok(status)) if status.success() => secret(std::mem::take(&mut *bytes)),
        Ok(Ok(status)) => Err(missing(&format!("its command ended with {status}"))),
        Ok(Err(error)) => Err(missing(&format!("its command could not be read: {error}"))),
        Err(_) => Err(Refusal::new(
            RefusalCode::Timeout,
            format!(
                "the token cannot be fetched: its command took longer than {}. hint: its owner can run it by hand, or \
                 raise `timeout`",
                humantime::format_duration(timeout)
            ),
        )),
    }
}

/// A token as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSpec {
    /// What the workspace calls it by.
    pub service: String,
    /// Where it comes from.
    pub source: TokenSource,
    /// How long it is kept.
    pub lifetime: Duration,
    /// Whether a workspace may have its value.
    pub expose: bool,
}

/// A declared token and, for its lifetime, its value.
#[derive(Debug)]
pub struct Token {
    spec: TokenSpec,
    cached: Mutex<Option<Cached>>,
}

#[derive(Debug)]
struct Cached {
    secret: Secret,
    until: Instant,
    expires_at: SystemTime,
}

impl Token {
    /// A token that has not been fetched.
    pub fn new(spec: TokenSpec) -> Token {
        Token { spec, cached: Mutex::new(None) }
    }

    /// The declaration.
    pub fn spec(&self) -> &TokenSpec {
        &self.spec
    }

    /// The value and when it will be fetched anew. Callers that come together wait for one fetch.
    pub async fn current(&self, keychain: &Keychain) -> Result<(Secret, SystemTime), Refusal> {
        let mut cached = self.cached.lock().await;
        if let Some(cached) = cached.as_ref().filter(|c| Instant::now() < c.until) {
            return Ok((cached.secret.clone(), cached.expires_at));
        }
        *cached = None;
        let secret = self.spec.source.fetch(keychain).await?;
        let expires_at = SystemTime::now() + self.spec.lifetime;
        *cached = Some(Cached { secret: secret.clone(), until: Instant::now() + self.spec.lifetime, expires_at });
        Ok((secret, expires_at))
    }

    /// The answer to `auth.getToken`.
    pub async fn answer(&self, keychain: &Keychain, config: &str) -> Result<Value, Refusal> {
        let service = &self.spec.service;
        if !self.spec.expose {
            let message = format!(
                "token `{service}` stays on the laptop: answered, its value would become readable to everything in the \
                 workspace. hint: its owner can allow that with `expose: true` under `tokens.{service}` in {config}"
            );
            return Err(Refusal::new(RefusalCode::Denied, message));
        }
        let (secret, expires_at) = self.current(keychain).await?;
        let expires_at = OffsetDateTime::from(expires_at)
            .format(&Rfc3339)
            .map_err(|e| Refusal::new(RefusalCode::Internal, e.to_string()))?;
        Ok(json!({"service": service, "token": secret.expose(), "expires_at": expires_at}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(script: &str) -> TokenSource {
        TokenSource::Command { argv: ["sh", "-c", script].map(String::from).to_vec(), timeout: Duration::from_secs(20) }
    }

    fn token(source: TokenSource, lifetime: Duration, expose: bool) -> Token {
        Token::new(TokenSpec { service: "github".into(), source, lifetime, expose })
    }

    fn keychain(dir: &tempfile::TempDir) -> Keychain {
        Keychain::file_only(dir.path())
    }

    #[tokio::test]
    async fn every_source_gives_its_token() {
        let dir = tempfile::tempdir().unwrap();
        let keychain = keychain(&dir);
        let path = dir.path().join("t");
        std::fs::write(&path, "from-file\n").unwrap();
        keychain.set("nexus", "me", &Secret::new("from-keychain".into())).await.unwrap();
        let entry = TokenSource::Keychain { service: "nexus".into(), account: "me".into() };
        for (source, value) in [
            (TokenSource::File(path), "from-file"),
            (command("echo from-command"), "from-command"),
            (entry, "from-keychain"),
        ] {
            assert_eq!(source.fetch(&keychain).await.unwrap().expose(), value);
        }
        let path = std::env::var("PATH").unwrap();
        assert_eq!(TokenSource::Env("PATH".into()).fetch(&keychain).await.unwrap().expose(), path);
    }

    #[tokio::test]
    async fn sources_that_fail_say_so_without_content() {
        let dir = tempfile::tempdir().unwrap();
        let keychain = keychain(&dir);
        for source in [
            TokenSource::Env("NO_SUCH_VARIABLE_ANYWHERE".into()),
            TokenSource::File(dir.path().join("none")),
            TokenSource::File(dir.path().to_owned()),
            TokenSource::File("/dev/zero".into()),
            TokenSource::Keychain { service: "a".into(), account: "b".into() },
            command("echo hunter2; exit 1"),
            command("printf 'hunter2\\377'"),
            command("yes hunter2"),
            command("true"),
            TokenSource::Command { argv: vec!["no-such-program".into()], timeout: DEFAULT_COMMAND_TIMEOUT },
            TokenSource::Command { argv: vec![], timeout: DEFAULT_COMMAND_TIMEOUT },
        ] {
            let refusal = source.fetch(&keychain).await.unwrap_err();
            assert_eq!(refusal.code, RefusalCode::NotFound, "{source:?}");
            assert!(!refusal.message.contains("hunter2") && refusal.message.contains("hint:"), "{refusal}");
        }
        let slow =
            TokenSource::Command { argv: vec!["sleep".into(), "100".into()], timeout: Duration::from_millis(100) };
        assert_eq!(slow.fetch(&keychain).await.unwrap_err().code, RefusalCode::Timeout);
    }

    #[tokio::test]
    async fn callers_that_come_together_fetch_once_and_a_lifetime_ends() {
        let dir = tempfile::tempdir().unwrap();
        let keychain = keychain(&dir);
        let count = dir.path().join("count");
        let source = || command(&format!("echo x >> {}; sleep 0.1; echo t", count.display()));
        let lines = || std::fs::read_to_string(&count).unwrap().lines().count();
        let kept = token(source(), DEFAULT_LIFETIME, true);
        let together = (0..10).map(|_| kept.answer(&keychain, ""));
        for answer in futures::future::join_all(together).await {
            let answer = answer.unwrap();
            assert_eq!((&answer["token"], &answer["service"]), (&json!("t"), &json!("github")));
            OffsetDateTime::parse(answer["expires_at"].as_str().unwrap(), &Rfc3339).unwrap();
        }
        assert_eq!(lines(), 1);
        let passing = token(source(), Duration::ZERO, true);
        passing.current(&keychain).await.unwrap();
        passing.current(&keychain).await.unwrap();
        assert_eq!(lines(), 3);
        assert!(!format!("{kept:?}").contains("\"t\""));
    }

    #[tokio::test]
    async fn a_token_leaves_only_by_its_owners_word() {
        let dir = tempfile::tempdir().unwrap();
        let hidden = token(command("touch /nowhere"), DEFAULT_LIFETIME, false);
        let refusal = hidden.answer(&keychain(&dir), "~/.nexus/config.yaml").await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Denied);
        assert!(refusal.message.contains("expose: true") && refusal.message.contains("tokens.github"));
    }
}
