//! What the programs read back from their own directories: any bytes, and genuine files with edits. The first byte selects
//! which.

#![no_main]

use std::io;
use std::path::PathBuf;
use std::sync::LazyLock;

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use nexus_proxy::identity::{KeyPin, Role};
use nexus_proxy::role::files;
use nexus_proxy::role::proxy::control::Holder;
use nexus_proxy::role::proxy::profile::{Profile, ProfileError};
use nexus_proxy::role::stub::kin::Kin;
use nexus_proxy::role::stub::laptops::Laptops;
use nexus_proxy::role::stub::link;
use nexus_proxy::role::stub::state::{StateError, StubState};
use nexus_proxy::wire::limits::MAX_DEVICES;
use nexus_proxy_fuzz::{become_member, comes_back, directory, edited, runtime};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

const URL: &str = "https://nexus.example:8443";
const PIN: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

const SECRET: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// Bytes of a holder's file that are read.
const MAX_HOLDER: usize = 4096;

static LAPTOP: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = directory("laptop");
    become_member(&dir, Role::Device("laptop".parse().expect("a name")));
    dir
});

static STUB: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = directory("stub");
    become_member(&dir, Role::Workspace("box".parse().expect("a name")));
    dir
});

/// The lock of whoever keeps a workspace up.
static HELD: LazyLock<PathBuf> = LazyLock::new(|| directory("up").join("box.lock"));

/// A stub that has the secret as it was written.
static KIN: LazyLock<Kin> = LazyLock::new(|| {
    let dir = directory("kin");
    files::write(&dir.join("kin.key"), SECRET.as_bytes()).expect("a file of ours");
    Kin::load(&dir).expect("it was written by ourselves").expect("it is there")
});

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let profile = format!(r#"{{"url":"{URL}","device":"laptop","workspaces":{{"box":"{PIN}","web":"{PIN}"}}}}"#);
    let stub =
        format!(r#"{{"workspace":"box","devices":["{PIN}"],"trust_first_device":false,"behind_balancer":true}}"#);
    let holder = r#"{"pid":4242,"socket":"/run/user/1000/nexus-proxy/box.sock"}"#;
    match bytes.int_in_range(0..=7)? {
        0 => laptop(bytes.bytes(bytes.len())?, false),
        1 => {
            let (file, changed) = edited(profile.as_bytes(), bytes)?;
            laptop(&file, !changed);
        }
        2 => workspace(bytes.bytes(bytes.len())?, false),
        3 => {
            let (file, changed) = edited(stub.as_bytes(), bytes)?;
            workspace(&file, !changed);
        }
        4 => held(bytes.bytes(bytes.len())?, false),
        5 => {
            let (file, changed) = edited(holder.as_bytes(), bytes)?;
            held(&file, !changed);
        }
        6 => kin(bytes.bytes(bytes.len())?),
        _ => kin(&edited(SECRET.as_bytes(), bytes)?.0),
    }
    Ok(())
}

/// A profile is as it was written, or damaged and says where; what is written to one is there when it is read again.
fn laptop(file: &[u8], genuine: bool) {
    let url = URL.parse().expect("an address");
    files::write(&LAPTOP.join("profile.json"), file).expect("a file of ours");
    let runtime = runtime();
    let mut profile = match runtime.block_on(Profile::load(&LAPTOP, &url)) {
        Ok(profile) => profile,
        // What is no text is not read at all.
        Err(ProfileError::File(_)) if std::str::from_utf8(file).is_err() => return,
        Err(ProfileError::Damaged { path, .. }) => {
            assert!(!genuine && path.ends_with("profile.json"));
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let (workspace, pin) = ("met-just-now".parse().expect("a name"), PIN.parse::<KeyPin>().expect("a pin"));
    let known = profile.pin(&workspace);
    let writing = runtime.block_on(profile.writing()).expect("nobody else is there");
    if profile.set_pin(&writing, &workspace, pin).is_err() {
        return assert!(known.is_some_and(|known| known != pin), "another key was pinned, and not kept");
    }
    drop(writing);
    let again = runtime.block_on(Profile::load(&LAPTOP, &url)).expect("it was written by ourselves");
    assert_eq!((again.device(), again.pin(&workspace)), (profile.device(), Some(pin)));
    assert!(!genuine || again.pin(&"box".parse().expect("a name")) == Some(pin));
}

/// The same for the stub's state.
fn workspace(file: &[u8], genuine: bool) {
    files::write(&STUB.join("stub.json"), file).expect("a file of ours");
    let mut state = match StubState::load(&STUB) {
        Ok(state) => state,
        Err(StateError::File(_)) if std::str::from_utf8(file).is_err() => return,
        Err(StateError::Damaged { path, .. }) => {
            assert!(!genuine && path.ends_with("stub.json"));
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let device = KeyPin::from_bytes([7; 32]);
    let admits = state.admits(&device);
    if state.add_device(device).is_err() {
        return assert!(!admits && state.devices().len() >= MAX_DEVICES);
    }
    let again = StubState::load(&STUB).expect("it was written by ourselves");
    assert_eq!((again.workspace(), again.devices()), (state.workspace(), state.devices()));
    assert!(again.admits(&device) && !again.takes_first());
    assert!(!genuine || again.admits(&PIN.parse().expect("a pin")));
}

/// The lock names whoever said so, or nobody.
fn held(file: &[u8], genuine: bool) {
    std::fs::write(&*HELD, file).expect("a file of ours");
    let Some(holder) = Holder::read(&HELD) else { return assert!(!genuine) };
    assert!(holder.socket.as_os_str().len() <= MAX_HOLDER);
    let again = serde_json::to_vec(&holder).expect("plain values");
    comes_back(&holder, serde_json::from_slice(&again));
}

/// The secret is 32 bytes in hexadecimal, or is damaged and says where. Nobody is kin who has another one, and no file is
/// replaced: who has read it before would be no kin any more.
fn kin(file: &[u8]) {
    let dir = directory("kin-read");
    let path = dir.join("kin.key");
    files::write(&path, file).expect("a file of ours");
    let text = std::str::from_utf8(file).ok().map(str::trim);
    let secret =
        text.filter(|text| text.len() == SECRET.len() && text.bytes().all(|b| b"0123456789abcdef".contains(&b)));
    match (Kin::load_or_make(&dir), secret) {
        (Ok(read), Some(secret)) => assert_eq!([ends(&read, &KIN), ends(&KIN, &read)], [secret == SECRET; 2]),
        (Err(error), None) => {
            assert!(error.kind() == io::ErrorKind::InvalidData && error.to_string().contains("kin.key"), "{error}");
        }
        (read, secret) => panic!("{:?} for {secret:?}", read.map(|_| ())),
    }
    assert_eq!(std::fs::read(&path).expect("a file of ours"), file);
}

/// Whether the one that `asks` may end the other.
fn ends(asks: &Kin, asked: &Kin) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let end = CancellationToken::new();
    runtime.block_on(async {
        let (one, other) = UnixStream::pair().expect("a pair of sockets");
        let (laptops, params) = (Laptops::default(), json!({}));
        let ask = asks.call::<Value>(one, link::END, &params);
        let (answer, served) = tokio::join!(ask, link::serve(other, asked, &laptops, &end));
        assert_eq!((answer.is_ok(), served.is_ok()), (end.is_cancelled(), end.is_cancelled()));
    });
    end.is_cancelled()
}
