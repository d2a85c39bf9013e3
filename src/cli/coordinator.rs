//! `nexus-coordinator`: the rendezvous, and the commands that its operator gives beside it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::failure::{self, Failure};
use super::generate::{self, Generate};
use super::home;
use super::log::Common;
use super::output::Output;
use super::signals;
use crate::role::coordinator::authority;
use crate::role::coordinator::registry::{AddWorkspace, Registry};
use crate::role::coordinator::server;
use crate::role::coordinator::store::Store;
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
    /// Shell completions and man pages.
    #[command(subcommand)]
    Generate(Generate),
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Where to listen; port 0 picks one and prints it.
    #[arg(long, default_value = "0.0.0.0:8443", env = "NEXUS_COORDINATOR_LISTEN", value_parser = address)]
    listen: SocketAddr,
    /// A DNS name or address under which it is reached, for clients that look at the certificate's names. Repeatable.
    #[arg(long = "name")]
    names: Vec<String>,
    /// How long the certificates of laptops and workspaces live; they are renewed after two thirds of it.
    #[arg(long, default_value = "24h", value_parser = duration)]
    leaf_lifetime: Duration,
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

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|e| format!("{e}. hint: write 10m, 24h, 7d"))?;
    if duration.is_zero() { Err("it must be longer than nothing".into()) } else { Ok(duration) }
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
    let store = Store::open(data).await.map_err(|e| Failure::new(failure::FAILED, e))?;
    let authority = authority::load_or_create(data, SystemTime::now()).map_err(|e| Failure::new(failure::FAILED, e))?;
    Ok(Registry::new(store, Arc::new(authority)))
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
        Command::Invite { ttl } => {
            let code = existing(&data).await?.invite(ttl, now).await?;
            let code = code.reveal();
            let lives = humantime::format_duration(ttl);
            let text = format!(
                "{}\n\nOn the laptop, once, within {lives}:\n  nexus-proxy pair https://THIS-HOST:PORT {}",
                *code, *code
            );
            output.plain(&text, &json!({"code": *code, "expires_in_s": ttl.as_secs()}));
        }
        Command::Workspace(Workspace::Add { name, reissue, trust_first_device, ttl }) => {
            let options = AddWorkspace { trust_first_device, reissue, ttl };
            let code = existing(&data).await?.add_workspace(&name, &options, now).await?;
            let code = code.reveal();
            let lives = humantime::format_duration(ttl);
            let text = format!(
                "{}\n\nIn the workspace, once, within {lives}:\n  nexus-stub run --coordinator https://THIS-HOST:PORT --enroll {}",
                *code, *code
            );
            output.plain(&text, &json!({"workspace": name, "code": *code, "expires_in_s": ttl.as_secs()}));
        }
        Command::Workspace(Workspace::List) => {
            let rows = existing(&data).await?.list_workspaces().await?;
            let json: Vec<_> = rows
                .iter()
                .map(|w| json!({"name": w.name, "enrolled": w.pin.is_some(), "pin": w.pin, "created": w.created}))
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
                    json!({"name": d.name, "pin": d.pin, "created": d.created, "last_seen": d.last_seen, "revoked": d.revoked})
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

fn table(lines: impl Iterator<Item = String>, none: &str) -> String {
    let lines: Vec<String> = lines.map(|line| line.trim_end().to_owned()).collect();
    if lines.is_empty() { none.to_owned() } else { lines.join("\n") }
}

/// Every connection is a file descriptor, and the usual allowance is a thousand of them.
fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard.min(server::MAX_DESCRIPTORS).max(soft), hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the number of open files stays as it is");
    }
}

/// Held while serving: of two servers on one directory, each would look for stubs that are parked at the other.
fn only_server(data: &Path) -> Result<std::fs::File, Failure> {
    crate::role::coordinator::files::prepare_data_dir(data)?;
    let path = data.join("serve.lock");
    let file = crate::role::coordinator::files::open_private(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => {
            let text =
                format!("another nexus-coordinator serves {}. hint: stop it, or name another --data", data.display());
            Err(Failure::new(failure::FAILED, text))
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write ADDRESS:PORT, such as 0.0.0.0:8443 or [::]:8443".to_owned())
}

async fn run(serve: Serve, data: &Path, output: Output) -> Result<u8, Failure> {
    raise_descriptors();
    let _only = only_server(data)?;
    let registry = registry(data).await?.with_leaf_lifetime(serve.leaf_lifetime);
    let listener = TcpListener::bind(serve.listen).await.map_err(|e| {
        let hint = "is another program there? --listen takes another address, port 0 picks a free one";
        Failure::new(failure::FAILED, format!("cannot listen on {}: {e}. hint: {hint}", serve.listen))
    })?;
    let address = listener.local_addr()?;
    let domain = registry.authority().domain().to_string();
    let text = format!("listening on {address}, authority {domain}, data in {}", data.display());
    output.line("coordinator", &text, &json!({"event": "listening", "address": address, "domain": domain}));
    let stop = CancellationToken::new();
    let mut names = serve.names;
    names.extend(["localhost".to_owned(), address.ip().to_string()]);
    tokio::select! {
        served = server::run(listener, registry, names, stop.clone()) => served.map_err(|e| Failure::new(failure::FAILED, e))?,
        () = signals::ask_for_end(stop) => {}
    }
    Ok(0)
}
