//! Real handshakes in memory: who is let in, who is not, and what each side then knows.

use std::time::{Duration, SystemTime};

use rustls::{ClientConnection, Connection, NamedGroup, ProtocolVersion, ServerConnection};

use super::*;
use crate::identity::{Authority, Bundle, Identity, PrivateKey};

const HOUR: Duration = Duration::from_secs(3600);
const ALPN: &[&[u8]] = &[b"nexus/1"];

struct World {
    authority: Authority,
}

impl World {
    fn new(domain: &str) -> World {
        World { authority: Authority::create(domain.parse().unwrap(), SystemTime::now()).unwrap() }
    }

    fn trust(&self) -> &Trust {
        self.authority.trust()
    }

    fn credential(&self, role: Role) -> Credential {
        self.credential_at(role, SystemTime::now())
    }

    fn credential_at(&self, role: Role, now: SystemTime) -> Credential {
        let key = PrivateKey::generate().unwrap();
        let identity = Identity::new(self.authority.domain().clone(), role);
        let chain = self.authority.issue(&key.csr_der().unwrap(), &identity, HOUR, now, &[]).unwrap();
        Credential::new(chain, key).unwrap()
    }
}

fn device(name: &str) -> Role {
    Role::Device(name.parse().unwrap())
}

fn workspace(name: &str) -> Role {
    Role::Workspace(name.parse().unwrap())
}

fn any_device() -> Expect {
    Expect::Device(Arc::new(|_| Ok(())))
}

fn expect_workspace(name: &str, pin: Option<KeyPin>) -> Expect {
    Expect::Workspace { name: name.parse().unwrap(), pin }
}

struct Shaken {
    client: Result<ClientConnection, Error>,
    server: Result<ServerConnection, Error>,
}

impl Shaken {
    fn both(self) -> (ClientConnection, ServerConnection) {
        (self.client.expect("client"), self.server.expect("server"))
    }

    /// What the client refused.
    fn client_error(self) -> IdentityError {
        assert!(self.server.is_err(), "the server must learn of it");
        IdentityError::find(&self.client.expect_err("client refuses")).expect("an identity error")
    }

    /// What the server refused.
    fn server_error(self) -> IdentityError {
        let error = self.client.expect_err("the client must learn of it");
        assert!(matches!(error, Error::AlertReceived(_)), "{error:?}");
        assert!(IdentityError::explain(&std::io::Error::other(error)).is_some());
        IdentityError::find(&self.server.expect_err("server refuses")).expect("an identity error")
    }
}

/// Carries records both ways until neither side has any more, or one has refused and the other knows.
fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Shaken {
    let name = ServerName::try_from("anything.example").unwrap();
    let mut client = Connection::from(ClientConnection::new(client, name).unwrap());
    let mut server = Connection::from(ServerConnection::new(server).unwrap());
    let (mut client_result, mut server_result) = (Ok(()), Ok(()));
    for _ in 0..10 {
        carry(&mut client, &mut server, &mut server_result);
        carry(&mut server, &mut client, &mut client_result);
    }
    let Connection::Client(client) = client else { unreachable!() };
    let Connection::Server(server) = server else { unreachable!() };
    Shaken { client: client_result.map(|()| client), server: server_result.map(|()| server) }
}

fn carry(from: &mut Connection, to: &mut Connection, result: &mut Result<(), Error>) {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = &bytes[..];
    while !rest.is_empty() && result.is_ok() {
        to.read_tls(&mut rest).unwrap();
        *result = to.process_new_packets().map(drop);
    }
}

/// A laptop that dials the workspace `web` and a stub that is it.
fn inner(world: &World, expect: Expect, laptop: Option<&Credential>, stub: &Credential, admit: Expect) -> Shaken {
    shake(
        client_config(world.trust(), expect, laptop, ALPN).unwrap(),
        server_config(world.trust(), stub, ClientAuth::Required(admit), ALPN).unwrap(),
    )
}

#[test]
fn both_sides_are_who_they_say() {
    let world = World::new("d");
    let (laptop, stub) = (world.credential(device("laptop")), world.credential(workspace("web")));
    let pin = laptop.key.pin();
    let admit = Expect::Device(Arc::new(move |peer| {
        assert_eq!(peer.pin, pin);
        Ok(())
    }));
    let expect = expect_workspace("web", Some(stub.key.pin()));
    let (client, server) = inner(&world, expect, Some(&laptop), &stub, admit).both();
    for connection in [&**client as &rustls::CommonState, &**server] {
        assert!(!connection.is_handshaking());
        assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(connection.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
        assert_eq!(connection.alpn_protocol(), Some(ALPN[0]));
    }
    let seen = PeerCertificate::parse(&server.peer_certificates().unwrap()[0]).unwrap();
    assert_eq!(seen.identity, *laptop.identity());
    assert_eq!(client.tls13_tickets_received(), 0);
}

#[test]
fn another_authority_is_refused() {
    let (world, other) = (World::new("d"), World::new("e"));
    let (laptop, stub) = (world.credential(device("laptop")), world.credential(workspace("web")));
    let foreign = other.credential(workspace("web"));
    let error = inner(&world, expect_workspace("web", None), Some(&laptop), &foreign, any_device()).client_error();
    assert_eq!(error, IdentityError::WrongAuthority);
    let foreign = other.credential(device("laptop"));
    let error = inner(&world, expect_workspace("web", None), Some(&foreign), &stub, any_device()).server_error();
    assert_eq!(error, IdentityError::WrongAuthority);
}

#[test]
fn an_authority_with_the_same_name_is_another() {
    let (world, twin) = (World::new("d"), World::new("d"));
    let (laptop, stub) = (world.credential(device("laptop")), world.credential(workspace("web")));
    let foreign = twin.credential(workspace("web"));
    let error = inner(&world, expect_workspace("web", None), Some(&laptop), &foreign, any_device()).client_error();
    assert_eq!(error, IdentityError::WrongAuthority);
    let foreign = twin.credential(device("laptop"));
    let error = inner(&world, expect_workspace("web", None), Some(&foreign), &stub, any_device()).server_error();
    assert_eq!(error, IdentityError::WrongAuthority);
}

#[test]
fn another_domain_role_or_name_is_refused() {
    let world = World::new("d");
    let laptop = world.credential(device("laptop"));
    let wrong_name = |shaken: Shaken| {
        let error = shaken.client_error();
        assert!(matches!(error, IdentityError::WrongName { .. }), "{error:?}");
    };
    for role in [workspace("api"), device("web"), Role::Node("web".parse().unwrap()), Role::Coordinator] {
        let other = world.credential(role);
        wrong_name(inner(&world, expect_workspace("web", None), Some(&laptop), &other, any_device()));
    }
    let stub = world.credential(workspace("web"));
    wrong_name(inner(&world, Expect::Coordinator, Some(&laptop), &stub, any_device()));
    // The same authority under another domain: its name is trusted, not its key alone.
    let mut elsewhere = world.trust().clone();
    elsewhere.domain = "e".parse().unwrap();
    wrong_name(shake(
        client_config(&elsewhere, expect_workspace("web", None), Some(&laptop), ALPN).unwrap(),
        server_config(world.trust(), &stub, ClientAuth::Required(any_device()), ALPN).unwrap(),
    ));
    // And of the client.
    for role in [workspace("laptop"), Role::Coordinator] {
        let other = world.credential(role);
        let error = inner(&world, expect_workspace("web", None), Some(&other), &stub, any_device()).server_error();
        assert!(matches!(error, IdentityError::WrongName { .. }), "{error:?}");
    }
}

#[test]
fn any_client_is_anyone_but_the_coordinator() {
    let world = World::new("d");
    let coordinator = world.credential(Role::Coordinator);
    let dial = |role| {
        let credential = world.credential(role);
        shake(
            client_config(world.trust(), Expect::Coordinator, Some(&credential), &[]).unwrap(),
            server_config(world.trust(), &coordinator, ClientAuth::Optional(Expect::AnyClient), &[]).unwrap(),
        )
    };
    for role in [device("a"), workspace("a"), Role::Node("a".parse().unwrap())] {
        dial(role).both();
    }
    assert!(matches!(dial(Role::Coordinator).server_error(), IdentityError::WrongName { .. }));
}

#[test]
fn another_key_is_refused() {
    let world = World::new("d");
    let (laptop, stub) = (world.credential(device("laptop")), world.credential(workspace("web")));
    let expected = PrivateKey::generate().unwrap().pin();
    let expect = expect_workspace("web", Some(expected));
    let error = inner(&world, expect, Some(&laptop), &stub, any_device()).client_error();
    assert_eq!(error, IdentityError::WrongPin { expected, found: stub.key.pin() });
}

#[test]
fn a_device_that_is_not_on_the_list_is_refused() {
    let world = World::new("d");
    let (laptop, stub) = (world.credential(device("laptop")), world.credential(workspace("web")));
    let list = [PrivateKey::generate().unwrap().pin()];
    let admit = Expect::Device(Arc::new(move |peer: &PeerCertificate| {
        let device = peer.identity.role.to_string();
        if list.contains(&peer.pin) { Ok(()) } else { Err(IdentityError::NotAdmitted { device, pin: peer.pin }) }
    }));
    let error = inner(&world, expect_workspace("web", None), Some(&laptop), &stub, admit).server_error();
    assert_eq!(error, IdentityError::NotAdmitted { device: "device/laptop".into(), pin: laptop.key.pin() });
}

#[test]
fn time_is_checked_on_both_sides() {
    let world = World::new("d");
    let now = SystemTime::now();
    let (laptop, stub) = (world.credential(device("laptop")), world.credential(workspace("web")));
    for (time, expected) in [(now - 2 * HOUR, IdentityError::Expired), (now + HOUR, IdentityError::NotYetValid)] {
        let late = world.credential_at(workspace("web"), time);
        let error = inner(&world, expect_workspace("web", None), Some(&laptop), &late, any_device()).client_error();
        assert_eq!(error, expected);
        let late = world.credential_at(device("laptop"), time);
        let error = inner(&world, expect_workspace("web", None), Some(&late), &stub, any_device()).server_error();
        assert_eq!(error, expected);
    }
}

#[test]
fn a_client_without_a_certificate() {
    let world = World::new("d");
    let stub = world.credential(workspace("web"));
    let error = inner(&world, expect_workspace("web", None), None, &stub, any_device()).server_error();
    assert_eq!(error, IdentityError::NoCertificate);
    let coordinator = world.credential(Role::Coordinator);
    let optional = ClientAuth::Optional(Expect::AnyClient);
    let (_, server) = shake(
        client_config(world.trust(), Expect::Coordinator, None, &[]).unwrap(),
        server_config(world.trust(), &coordinator, optional, &[]).unwrap(),
    )
    .both();
    assert!(server.peer_certificates().is_none());
}

#[test]
fn bootstrap_learns_the_authority_of_the_code() {
    let world = World::new("d");
    let coordinator = world.credential(Role::Coordinator);
    let server =
        |credential| server_config(world.trust(), credential, ClientAuth::Optional(Expect::AnyClient), &[]).unwrap();
    let (config, handle) = bootstrap_client_config(&world.trust().ca_pin().prefix(), &[]).unwrap();
    assert_eq!(handle.trust(), None);
    shake(config, server(&coordinator)).both();
    assert_eq!(handle.trust().as_ref(), Some(world.trust()));

    let (config, handle) = bootstrap_client_config(&[7; 16], &[]).unwrap();
    assert_eq!(shake(config, server(&coordinator)).client_error(), IdentityError::NotOfThisCode);
    assert_eq!(handle.trust(), None);

    // A workspace of the same authority is not its coordinator.
    let (config, handle) = bootstrap_client_config(&world.trust().ca_pin().prefix(), &[]).unwrap();
    let error = shake(config, server(&world.credential(workspace("web")))).client_error();
    assert!(matches!(error, IdentityError::WrongName { .. }));
    assert_eq!(handle.trust(), None);
}

#[test]
fn bootstrap_is_not_fooled_by_a_borrowed_authority() {
    // The right authority beside a leaf of another.
    let (world, evil) = (World::new("d"), World::new("d"));
    let mut coordinator = evil.credential(Role::Coordinator);
    coordinator.chain.push(world.trust().newest().ca.clone());
    let (config, handle) = bootstrap_client_config(&world.trust().ca_pin().prefix(), &[]).unwrap();
    let optional = ClientAuth::Optional(Expect::AnyClient);
    let server = server_config(evil.trust(), &coordinator, optional, &[]).unwrap();
    assert_eq!(shake(config, server).client_error(), IdentityError::WrongAuthority);
    assert_eq!(handle.trust(), None);
}

#[test]
fn an_authority_does_not_pass_as_a_peer() {
    let world = World::new("d");
    assert!(PeerCertificate::parse(&world.trust().newest().ca).is_err());
}

/// A peer that knows one authority or both, and one with a certificate by either: who gets along with whom.
#[test]
fn during_a_rotation_both_authorities_are_believed_and_afterwards_one() {
    let (first, next) = (World::new("d"), World::new("d"));
    let now = SystemTime::now();
    let crossed = first.authority.vouch(&next.authority, now).unwrap();
    let next = World { authority: next.authority.with_crossed(vec![crossed.clone()]) };
    let (before, after) = (first.trust().clone(), next.trust().clone());
    let bundle = Bundle::new(after.clone(), vec![before.clone()], vec![crossed]).unwrap();
    let both = before.follow(&bundle, now).unwrap();
    let credentials = |world: &World| (world.credential(device("laptop")), world.credential(workspace("web")));
    let (old_device, old_workspace) = credentials(&first);
    let (new_device, new_workspace) = credentials(&next);
    let meet = |laptop: (&Trust, &Credential), stub: (&Trust, &Credential)| {
        let config = client_config(laptop.0, expect_workspace("web", None), Some(laptop.1), &[]).unwrap();
        shake(config, server_config(stub.0, stub.1, ClientAuth::Required(any_device()), &[]).unwrap())
    };
    // During the overlap: whichever has moved on, on either side; and one who knows nothing of it yet.
    for trust in [&both, &before] {
        for laptop in [&old_device, &new_device] {
            for stub in [&old_workspace, &new_workspace] {
                meet((trust, laptop), (&both, stub)).both();
                meet((&both, laptop), (trust, stub)).both();
            }
        }
    }
    // Afterwards the former authority is nobody's, though it was a good one.
    assert_eq!(meet((&after, &new_device), (&after, &old_workspace)).client_error(), IdentityError::WrongAuthority);
    assert!(meet((&after, &old_device), (&after, &new_workspace)).server.is_err());
    meet((&after, &new_device), (&after, &new_workspace)).both();
}

#[test]
fn a_code_from_before_a_switch_is_enough_to_know_the_coordinator_after_it() {
    let (first, next) = (World::new("d"), World::new("d"));
    let crossed = first.authority.vouch(&next.authority, SystemTime::now()).unwrap();
    let next = World { authority: next.authority.with_crossed(vec![crossed]) };
    let mut coordinator = next.credential(Role::Coordinator);
    coordinator.chain.push(first.trust().newest().ca.clone());
    for trust in [first.trust(), next.trust()] {
        let (config, handle) = bootstrap_client_config(&trust.ca_pin().prefix(), &[]).unwrap();
        let anyone = ClientAuth::Optional(Expect::AnyClient);
        shake(config, server_config(next.trust(), &coordinator, anyone, &[]).unwrap()).both();
        assert_eq!(handle.trust().as_ref(), Some(trust));
    }
}

#[test]
fn two_rotations_lie_between_a_peer_and_a_certificate_that_it_believes() {
    let all: Vec<World> = (0..3).map(|_| World::new("d")).collect();
    let vouch = |by: usize| all[by].authority.vouch(&all[by + 1].authority, SystemTime::now()).unwrap();
    let crossed = vec![vouch(1), vouch(0)];
    let first = all[0].trust().clone();
    let last = World { authority: all.into_iter().next_back().unwrap().authority.with_crossed(crossed) };
    let config = client_config(&first, Expect::Coordinator, None, &[]).unwrap();
    let own = last.credential(Role::Coordinator);
    shake(config, server_config(last.trust(), &own, ClientAuth::Optional(Expect::AnyClient), &[]).unwrap()).both();
}
