//! What the programs read back from their own directories: any bytes, and genuine files with edits. The first byte selects
//! whose.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use nexus_proxy::identity::{KeyPin, Role};
use nexus_proxy::role::files;
use nexus_proxy::role::proxy::profile::{Profile, ProfileError};
use nexus_proxy::role::stub::state::{StateError, StubState};
use nexus_proxy::wire::limits::MAX_DEVICES;
use nexus_proxy_fuzz::{become_member, directory, edited, runtime};

const URL: &str = "https://nexus.example:8443";
const PIN: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

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

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let profile = format!(r#"{{"url":"{URL}","device":"laptop","workspaces":{{"box":"{PIN}","web":"{PIN}"}}}}"#);
    let stub =
        format!(r#"{{"workspace":"box","devices":["{PIN}"],"trust_first_device":false,"behind_balancer":true}}"#);
    match bytes.int_in_range(0..=3)? {
        0 => laptop(bytes.bytes(bytes.len())?, false),
        1 => {
            let (file, changed) = edited(profile.as_bytes(), bytes)?;
            laptop(&file, !changed);
        }
        2 => workspace(bytes.bytes(bytes.len())?, false),
        _ => {
            let (file, changed) = edited(stub.as_bytes(), bytes)?;
            workspace(&file, !changed);
        }
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
