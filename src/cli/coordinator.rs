//! `nexus-coordinator`: the rendezvous, and the commands that its operator gives beside it.

use std::ffi::OsString;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Parser, Subcommand};
use serde_json::json;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::authority_command::{self, AuthorityCommand};
use super::failure::{self, Failure};
use super::generate::{self, Generate};
use super::home;
use super::log::Common;
use super::output::Output;
use super::signals;
use crate::role::coordinator::authority::{self, AuthorityError};
use crate::role::coordinator::balancer::{Balancer, Network};
use crate::role::coordinator::drain::Drain;
use crate::role::coordinator::public_url;
use crate::role::coordinator::registry::{AddWorkspace, Registry};
use crate::role::coordinator::server;
use crate::role::coordinator::store::{Store, StoreError, moment};
use crate::role::files::Lock;
use crate::transport::address::CoordinatorUrl;
use crate::wire::name::{DeviceName, WorkspaceName};

/// The rendezvous of nexus-proxy: laptops and workspaces both dial it, and it copies between them what it cannot read.
#[derive(Debug, Parser)]
#[command(name = "nexus-coordinator", version, after_help = failure::EXIT_CODES)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Where the authority's key and the database are [default: nexus-coordinator in the user's data directory].
    #[arg(long, global = true, env = "NEXUS_COORDINATOR_DATA")]
    data: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

/// Where the coordinator listens when it is told nothing: everywhere, on a port that needs no privilege.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8443);

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves. The certificate authority is made on the first start.
    Serve(Serve),
    /// A one-time code with which a laptop pairs: `nexus-proxy pair URL CODE`.
    Invite {
        /// How long the code is good for.
        #[arg(long, default_value = "10m", value_parser = duration)]
        ttl: Duration,
    },
    /// Workspaces.
    #[command(subcommand)]
    Workspace(Workspace),
    /// Devices: the laptops that are paired.
    #[command(subcommand)]
    Device(Device),
    /// The certificate authority, and how another takes its place.
    #[command(subcommand)]
    Authority(AuthorityCommand),
    /// Shell completions and man pages.
    #[command(subcommand)]
    Generate(Generate),
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Where to listen with TLS; port 0 picks one and prints it [default: 0.0.0.0:8443, or nowhere with
    /// --listen-plain].
    #[arg(long, env = "NEXUS_COORDINATOR_LISTEN", value_parser = address)]
    listen: Option<SocketAddr>,
    /// Where to listen without TLS, for a load balancer that ends it: 127.0.0.1:PORT. Needs --public-url; any other
    /// address needs --trusted-proxy.
    #[arg(long, env = "NEXUS_COORDINATOR_LISTEN_PLAIN", value_parser = address, requires = "public_url")]
    listen_plain: Option<SocketAddr>,
    /// The address under which clients reach it, such as https://nexus.example.com. `invite` and `workspace add` print
    /// it; with --listen-plain it is the load balancer's, and what clients sign names it.
    #[arg(long, env = "NEXUS_COORDINATOR_PUBLIC_URL")]
    public_url: Option<CoordinatorUrl>,
    /// An address or network (10.0.0.0/16) from which the load balancer connects, beside this machine. Repeatable.
    #[arg(
        long = "trusted-proxy",
        env = "NEXUS_COORDINATOR_TRUSTED_PROXY",
        value_delimiter = ',',
        requires = "listen_plain"
    )]
    trusted_proxies: Vec<Network>,
    /// A DNS name or address under which it is reached, for clients that look at the certificate's names. Repeatable.
    #[arg(long = "name")]
    names: Vec<String>,
    /// How long the certificates of laptops and workspaces live; they are renewed after two thirds of it. The
    /// coordinator's own lives seven times as long.
    #[arg(long, default_value = "24h", value_parser = duration)]
    leaf_lifetime: Duration,
    /// How long sessions may go on through it after SIGTERM or Ctrl-C. Its port is free at once; laptops go over to the
    /// coordinator that is started there within seconds, and it ends when they have. 0s where the next one is started
    /// only when this one has ended. A second signal ends it at once.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = maybe_no_time)]
    drain: Duration,
}

#[derive(Debug, Subcommand)]
enum Workspace {
    /// Adds a workspace and prints the one-time code with which its stub enrols.
    Add {
        /// Its name.
        name: WorkspaceName,
        /// It exists: make a new code, for a stub that lost its state or moves to another machine.
        #[arg(long)]
        reissue: bool,
        /// No laptop is paired yet: the workspace takes the first that comes, and no other.
        #[arg(long)]
        trust_first_device: bool,
        /// How long the code is good for.
        #[arg(long, default_value = "1h", value_parser = duration)]
        ttl: Duration,
    },
    /// Lists workspaces.
    List,
    /// Removes a workspace: its stub is refused from now on.
    Remove {
        /// Its name.
        name: WorkspaceName,
    },
}

#[derive(Debug, Subcommand)]
enum Device {
    /// Lists devices.
    List,
    /// Revokes a device: it is refused from now on.
    Revoke {
        /// Its name.
        name: DeviceName,
    },
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|e| format!("{e}. hint: write 10m, 24h, 7d"))?;
    if duration.is_zero() { Err("it must be longer than nothing".into()) } else { Ok(duration) }
}

fn maybe_no_time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e}. hint: write 10s, 1m, 0s"))
}

/// The program.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    super::run(arguments, |a: &Arguments| &a.common, |_| None, |a| matches!(a.command, Command::Serve(_)), command)
}

/// Opens the registry of a coordinator that has served before.
async fn existing(data: &Path) -> Result<Registry, Failure> {
    if !data.join("ca.pem").is_file() {
        let text = format!(
            "there is no coordinator in {}. hint: --data names its directory; `serve` makes it",
            data.display()
        );
        return Err(Failure::new(failure::USAGE, text));
    }
    registry(data).await
}

/// Opens the registry in a data directory, which is made when it is not there.
pub(super) async fn registry(data: &Path) -> Result<Registry, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(failure::FAILED, format!("{}: {error}", data.display()));
    let store = Store::open(data).await.map_err(|error| match error {
        // What is wrong with a file names it.
        StoreError::Io(_) => Failure::new(failure::FAILED, error),
        error => failed(&error),
    })?;
    let authorities = authority::load(&store, SystemTime::now()).await.map_err(|error| match error {
        AuthorityError::Store(error) => failed(&error),
        error => Failure::new(failure::FAILED, error),
    })?;
    Ok(Registry::new(store, authorities))
}

async fn command(arguments: Arguments) -> Result<u8, Failure> {
    let output = Output::new(arguments.common.json);
    let data = match arguments.data {
        Some(data) => data,
        None => home::data_dir("nexus-coordinator")?,
    };
    let now = SystemTime::now();
    match arguments.command {
        Command::Generate(what) => return generate::run::<Arguments>(&what),
        Command::Serve(serve) => return run(serve, &data, output).await,
        Command::Authority(what) => return authority_command::run(what, &existing(&data).await?, output).await,
        Command::Invite { ttl } => {
            let url = public_url::read(&data)?;
            let code = existing(&data).await?.invite(ttl, now).await?;
            let code = code.reveal();
            let lives = humantime::format_duration(ttl);
            let text = format!(
                "{}\n\nOn the laptop, once, within {lives}:\n  nexus-proxy pair {} {}",
                *code,
                shown(url.as_ref()),
                *code
            );
            output.plain(&text, &json!({"code": *code, "expires_in_s": ttl.as_secs(), "url": url}));
        }
        Command::Workspace(Workspace::Add { name, reissue, trust_first_device, ttl }) => {
            let url = public_url::read(&data)?;
            let options = AddWorkspace { trust_first_device, reissue, ttl };
            let code = existing(&data).await?.add_workspace(&name, &options, now).await?;
            let code = code.reveal();
            let lives = humantime::format_duration(ttl);
            let text = format!(
                "{}\n\nIn the workspace, once, within {lives}:\n  nexus-stub run --coordinator {} --enroll {}",
                *code,
                shown(url.as_ref()),
                *code
            );
            let json = json!({"workspace": name, "code": *code, "expires_in_s": ttl.as_secs(), "url": url});
            output.plain(&text, &json);
        }
        Command::Workspace(Workspace::List) => {
            let rows = existing(&data).await?.list_workspaces().await?;
            let json: Vec<_> = rows
                .iter()
                .map(|w| json!({"name": w.name, "enrolled": w.pin.is_some(), "pin": w.pin, "created": when(w.created)}))
                .collect();
            let line = |w: &crate::role::coordinator::store::WorkspaceRecord| {
                format!("{:<24} {}", w.name, if w.pin.is_some() { "enrolled" } else { "not enrolled yet" })
            };
            output.plain(&table(rows.iter().map(line), "no workspaces"), &json.into());
        }
        Command::Workspace(Workspace::Remove { name }) => {
            existing(&data).await?.remove_workspace(&name, now).await?;
            output.plain(&format!("{name} is removed"), &json!({"removed": name}));
        }
        Command::Device(Device::List) => {
            let rows = existing(&data).await?.list_devices().await?;
            let json: Vec<_> = rows
                .iter()
                .map(|d| {
                    let (created, last_seen) = (when(d.created), d.last_seen.map(when));
                    let revoked = d.revoked.map(when);
                    json!({"name": d.name, "pin": d.pin, "created": created, "last_seen": last_seen, "revoked": revoked})
                })
                .collect();
            let line = |d: &crate::role::coordinator::store::DeviceRecord| {
                format!("{:<24} {} {}", d.name, d.pin, if d.revoked.is_some() { "revoked" } else { "" })
            };
            output.plain(&table(rows.iter().map(line), "no devices"), &json.into());
        }
        Command::Device(Device::Revoke { name }) => {
            existing(&data).await?.revoke_device(&name, now).await?;
            output.plain(&format!("{name} is revoked"), &json!({"revoked": name}));
        }
    }
    Ok(0)
}

/// The address for what a person types elsewhere.
fn shown(url: Option<&CoordinatorUrl>) -> String {
    url.map_or_else(|| "https://THIS-HOST:PORT".to_owned(), CoordinatorUrl::to_string)
}

/// A time of the database, as `--json` has all times: RFC 3339.
fn when(seconds: i64) -> String {
    moment(seconds).format(&Rfc3339).unwrap_or_default()
}

fn table(lines: impl Iterator<Item = String>, none: &str) -> String {
    let lines: Vec<String> = lines.map(|line| line.trim_end().to_owned()).collect();
    if lines.is_empty() { none.to_owned() } else { lines.join("\n") }
}

/// How long one that was just told to end may take to let go of its ports.
const LET_GO: Duration = Duration::from_secs(2);

/// Held while serving: of two servers on one directory, each would look for stubs that are parked at the other. One that
/// stops lets go of it with its ports.
async fn only_server(data: &Path) -> Result<Lock, Failure> {
    crate::role::coordinator::files::prepare_data_dir(data)?;
    let file = crate::role::coordinator::files::open_private(&data.join("serve.lock"))?;
    Lock::wait(file, File::try_lock, LET_GO).await?.ok_or_else(|| {
        let text =
            format!("another nexus-coordinator serves {}. hint: stop it, or name another --data", data.display());
        Failure::new(failure::FAILED, text)
    })
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write ADDRESS:PORT, such as 0.0.0.0:8443 or [::]:8443".to_owned())
}

async fn listen(at: SocketAddr, option: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(at).await.map_err(|e| {
        let hint = format!("is another program there? {option} takes another address, port 0 picks a free one");
        Failure::new(failure::FAILED, format!("cannot listen on {at}: {e}. hint: {hint}"))
    })
}

/// Without TLS only this machine may be at the other end, or a load balancer that was named.
fn check_plain(serve: &Serve) -> Result<(), Failure> {
    match serve.listen_plain {
        Some(at) if !at.ip().is_loopback() && serve.trusted_proxies.is_empty() => {
            let text = format!(
                "{at} can be reached from other machines, and --listen-plain speaks without TLS: one-time codes would \
                 cross the network for all to read. hint: listen on 127.0.0.1, or name the load balancer's addresses \
                 with --trusted-proxy, and have the network between to yourself"
            );
            Err(Failure::new(failure::USAGE, text))
        }
        _ => Ok(()),
    }
}

async fn run(serve: Serve, data: &Path, output: Output) -> Result<u8, Failure> {
    check_plain(&serve)?;
    super::descriptors::raise(server::MAX_DESCRIPTORS);
    let right = Some(only_server(data).await?);
    let registry = registry(data).await?.with_leaf_lifetime(serve.leaf_lifetime);
    let domain = registry.authorities().trust().domain.to_string();
    let mut listeners = server::Listeners { right, ..server::Listeners::default() };
    let mut names = serve.names;
    names.push("localhost".to_owned());
    let with_tls = serve.listen.or_else(|| serve.listen_plain.is_none().then_some(LISTEN));
    if let Some(at) = with_tls {
        let listener = listen(at, "--listen").await?;
        let address = listener.local_addr()?;
        names.push(address.ip().to_string());
        let text = format!("listening on {address}, authority {domain}, data in {}", data.display());
        output.line("coordinator", &text, &json!({"event": "listening", "address": address, "domain": domain}));
        listeners.tls = Some(listener);
    }
    let public = serve.public_url.map(|url| url.or_behind_balancer(serve.listen_plain.is_some()));
    public_url::keep(data, public.as_ref())?;
    if let (Some(at), Some(public)) = (serve.listen_plain, &public) {
        let listener = listen(at, "--listen-plain").await?;
        let address = listener.local_addr()?;
        let authorities = registry.authorities();
        let balancer = Balancer::new(authorities.trust(), public, serve.trusted_proxies, SystemTime::now());
        let balancer = balancer.map_err(|e| Failure::new(failure::FAILED, e))?;
        let text = format!("listening on {address} without TLS, for the load balancer at {public}, authority {domain}");
        let json = json!({"event": "listening", "address": address, "domain": domain, "tls": false, "public": public});
        output.line("coordinator", &text, &json);
        listeners.plain = Some((listener, balancer));
    }
    let stop = CancellationToken::new();
    let drain = Drain::new(stop.clone(), serve.drain);
    let say = async {
        stop.cancelled().await;
        let lives = humantime::format_duration(serve.drain);
        let text = format!("stopping: takes nothing more; what goes through it has {lives} to find another way");
        output.line("coordinator", &text, &json!({"event": "stopping", "drain_ms": serve.drain.as_millis() as u64}));
        std::future::pending().await
    };
    tokio::select! {
        served = server::run(listeners, registry, names, drain) => served.map_err(|e| Failure::new(failure::FAILED, e))?,
        () = signals::ask_for_end(stop.clone()) => {}
        () = say => {}
    }
    Ok(0)
}
