//! `nexus-proxy`: the laptop's program.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::config_check;
use super::exec::{self, Exec};
use super::failure::{self, Failure};
use super::generate::{self, Generate};
use super::home::Home;
use super::lease::Lease;
use super::log::Common;
use super::output::Output;
use super::status;
use super::up::{self, Up};
use crate::identity::KeyPin;
use crate::role::proxy::config::Config;
use crate::role::proxy::control;
use crate::role::proxy::forwards::{ForwardKind, ForwardRequest, ForwardStatus};
use crate::role::proxy::profile::{self, Profile, ProfileError};
use crate::service;
use crate::service::call::client;
use crate::service::keychain::Keychain;
use crate::session::framed::{FramedStream, StreamError};
use crate::transport::address::CoordinatorUrl;
use crate::wire::name::{DeviceName, WorkspaceName};
use crate::wire::{Open, StreamRequest};

/// Bytes of a secret on standard input: what a token may have.
const MAX_SECRET: u64 = 64 * 1024;

/// A coding agent works in a remote workspace; your secrets, tools and localhost stay on this laptop.
///
/// `nexus-proxy up` is all a first run needs: it starts a coordinator and a workspace on this machine.
#[derive(Debug, Parser)]
#[command(name = "nexus-proxy", version, after_help = failure::EXIT_CODES)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Brings a workspace up and keeps it: connects, forwards, serves its calls. Ctrl-C ends it.
    #[command(after_help = failure::EXIT_CODES)]
    Up(Up),
    /// Runs a program in a workspace; output streams, standard input and exit code are passed on. With --json each piece of
    /// output is a line, and how it ended is the last.
    ///
    /// Ctrl-C, SIGTERM and SIGHUP are passed on, and the program decides what they mean. The third ends exec itself, and the program
    /// with it. The first does while there is no program yet, and the second where `nexus-proxy up` does not answer within a second, such as one
    /// that was stopped; the program ends when that goes on.
    #[command(after_help = failure::EXIT_CODES)]
    Exec(Exec),
    /// Forwards ports while it runs. Ctrl-C ends them; other forwards go on.
    Forward(Forward),
    /// How what is up is doing.
    Status {
        /// One workspace; all that are up without it.
        workspace: Option<WorkspaceName>,
    },
    /// Ends a workspace's `up`, and everything it started; also those that handed it over and live on.
    Down {
        /// The workspace.
        #[arg(default_value = "default")]
        workspace: WorkspaceName,
    },
    /// Pairs this laptop with a coordinator: the key is made here and stays here.
    Pair {
        /// The coordinator: https://HOST:PORT, or https+balancer://HOST when TLS ends at a load balancer before it.
        url: CoordinatorUrl,
        /// From `nexus-coordinator invite`; `-` reads it from standard input, where no other user sees it.
        code: String,
        /// This device's name there [default: the host name].
        #[arg(long)]
        name: Option<DeviceName>,
        /// The authorities that certify the load balancer, in PEM, in place of those that the system trusts. Kept for
        /// later connections.
        #[arg(long)]
        ca_file: Option<PathBuf>,
        /// Makes another key where this laptop is paired there already, as after a revocation. Workspaces know the former one: one by
        /// one they have to be told, with `nexus-proxy device add`, on a laptop that they know.
        #[arg(long)]
        new_key: bool,
    },
    /// Forgets the pinned key of a workspace, after you made that workspace anew.
    Forget {
        /// The workspace.
        workspace: WorkspaceName,
        /// Its coordinator.
        #[arg(long, env = "NEXUS_COORDINATOR")]
        coordinator: CoordinatorUrl,
    },
    /// The devices that a workspace serves. A laptop that is paired after the workspace was made must be added by one
    /// that it knows; the coordinator cannot.
    #[command(subcommand)]
    Device(Device),
    /// Secrets in the keychain of this machine, for tokens with `keychain:` in the configuration. Where there is no
    /// keychain, an encrypted file beside the configuration holds them.
    #[command(subcommand)]
    Secret(Secret),
    /// The configuration: ~/.nexus/config.yaml.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Shell completions and man pages.
    #[command(subcommand)]
    Generate(Generate),
}

#[derive(Debug, Args)]
struct Forward {
    /// The workspace.
    workspace: WorkspaceName,
    #[command(flatten)]
    flags: ForwardFlags,
}

/// `-L`, `-R` and `-D`.
#[derive(Debug, Default, Args)]
pub struct ForwardFlags {
    /// [BIND:]PORT:HOST:HOSTPORT[/udp] or paths of Unix sockets: listens here, leads into the workspace. Port 0 picks one. A
    /// relative path begins in this directory; one in the workspace, in that of the workspace.
    #[arg(short = 'L', value_name = "SPEC", value_parser = |text: &str| ForwardKind::Local.checked(text))]
    local: Vec<String>,
    /// The same shape the other way: listens in the workspace, leads to a service of this laptop.
    #[arg(short = 'R', value_name = "SPEC", value_parser = |text: &str| ForwardKind::Remote.checked(text))]
    remote: Vec<String>,
    /// [BIND:]PORT: SOCKS5 here, into the workspace's network; names are resolved there.
    #[arg(short = 'D', value_name = "SPEC", value_parser = |text: &str| ForwardKind::Dynamic.checked(text))]
    dynamic: Vec<String>,
}

impl ForwardFlags {
    /// What is asked for.
    pub fn requests(&self) -> Vec<ForwardRequest> {
        let of =
            |kind, specs: &[String]| specs.iter().map(move |spec| ForwardRequest::new(kind, spec)).collect::<Vec<_>>();
        let mut all = of(ForwardKind::Local, &self.local);
        all.extend(of(ForwardKind::Remote, &self.remote));
        all.extend(of(ForwardKind::Dynamic, &self.dynamic));
        all
    }

    /// As arguments again, for the background process.
    pub fn arguments(&self) -> Vec<String> {
        let of = |flag: &'static str, specs: &[String]| {
            specs.iter().flat_map(move |spec| [flag.to_owned(), spec.clone()]).collect::<Vec<_>>()
        };
        [of("-L", &self.local), of("-R", &self.remote), of("-D", &self.dynamic)].concat()
    }
}

#[derive(Debug, Subcommand)]
enum Device {
    /// Lists the keys of the devices that the workspace serves.
    List {
        /// The workspace; it must be up.
        workspace: WorkspaceName,
    },
    /// Adds a device by the pin of its key, which `nexus-proxy pair` prints on it.
    Add {
        /// The workspace; it must be up.
        workspace: WorkspaceName,
        /// sha256:…
        pin: KeyPin,
    },
    /// Takes a device off the list; its next session is refused.
    Remove {
        /// The workspace; it must be up.
        workspace: WorkspaceName,
        /// sha256:…
        pin: KeyPin,
    },
}

#[derive(Debug, Subcommand)]
enum Secret {
    /// Keeps a secret, read from standard input: `nexus-proxy secret set github me < token.txt`.
    Set {
        /// The service, as in the configuration.
        service: String,
        /// The account, as in the configuration.
        account: String,
    },
    /// Forgets a secret.
    Delete {
        /// The service.
        service: String,
        /// The account.
        account: String,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Reads the configuration and says what it declares, or what is wrong with it.
    Check {
        /// The file [default: ~/.nexus/config.yaml].
        path: Option<PathBuf>,
    },
}

/// The program.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let audit = |a: &Arguments| match a.command {
        Command::Up(_) => Home::find().ok().map(|home| home.audit()),
        _ => None,
    };
    super::run(arguments, |a: &Arguments| &a.common, audit, |a| matches!(a.command, Command::Up(_)), command)
}

async fn command(arguments: Arguments) -> Result<u8, Failure> {
    let common = arguments.common;
    let output = Output::new(common.json);
    match arguments.command {
        Command::Up(args) => Box::pin(up::run(args, &common)).await,
        Command::Exec(args) => exec::exec(args, output).await,
        Command::Forward(args) => forward(args, output).await,
        Command::Status { workspace } => status::status(workspace, output).await,
        Command::Down { workspace } => status::down(workspace, output).await,
        Command::Pair { url, code, name, ca_file, new_key } => {
            pair(url, code, name, ca_file.as_deref(), new_key, output).await
        }
        Command::Forget { workspace, coordinator } => {
            let dir = profile::directory(&Home::find()?.data.join("coordinators"), &coordinator);
            let mut profile = Profile::load(&dir, &coordinator).await.map_err(|e| Failure::new(failure::USAGE, e))?;
            let failed = |e: ProfileError| Failure::new(failure::FAILED, e);
            let writing = profile.writing().await.map_err(failed)?;
            let known = profile.forget(&writing, &workspace).map_err(failed)?;
            let text =
                if known { "its key is forgotten; the next contact pins it anew" } else { "no key of it was known" };
            output.plain(text, &json!({"workspace": workspace, "forgotten": known}));
            Ok(0)
        }
        Command::Secret(what) => secret(what, output).await,
        Command::Device(what) => device(what, output).await,
        Command::Config(ConfigCommand::Check { path }) => config_check::check(path.as_deref(), output),
        Command::Generate(what) => generate::run::<Arguments>(&what),
    }
}

/// The configuration at a path that was named, which must be there, or at the usual place, where it may be missing.
pub fn load(named: Option<&Path>, home: &Home) -> Result<Config, Failure> {
    if let Some(path) = named.filter(|path| !path.exists()) {
        let text = format!("there is no configuration at {}. hint: check the path", path.display());
        return Err(Failure::new(failure::USAGE, text));
    }
    Config::load(named.unwrap_or(&home.config)).map_err(|e| Failure::new(failure::USAGE, e))
}

/// The forwards that the configuration asks for.
pub fn configured(config: &Config) -> Result<Vec<ForwardRequest>, Failure> {
    let forwards = &config.forwards;
    let wrong = |error| Failure::new(failure::USAGE, format!("{}: forwards: {error}", config.path.display()));
    let checked = |kind: ForwardKind, specs: &[String]| {
        specs.iter().map(|spec| kind.checked(spec)).collect::<Result<_, _>>().map_err(wrong)
    };
    let flags = ForwardFlags {
        local: checked(ForwardKind::Local, &forwards.local)?,
        remote: checked(ForwardKind::Remote, &forwards.remote)?,
        dynamic: checked(ForwardKind::Dynamic, &forwards.dynamic)?,
    };
    Ok(flags.requests())
}

/// A line about a forward that began.
pub fn show_forward(output: Output, status: &ForwardStatus) {
    let (here, there) = match status.kind {
        ForwardKind::Local => (format!("{} here", status.listen), "in the workspace"),
        ForwardKind::Remote => (format!("{} in the workspace", status.listen), "here"),
        ForwardKind::Dynamic => (format!("{} here", status.listen), "the workspace's network (SOCKS5)"),
    };
    let target = status.target.as_ref().map(|target| format!("{target} ")).unwrap_or_default();
    output.line("forward", &format!("{here} → {target}{there}"), &json!({"event": "forward", "forward": status}));
}

async fn forward(args: Forward, output: Output) -> Result<u8, Failure> {
    let requests = args.flags.requests();
    if requests.is_empty() {
        let text = "nothing to forward. hint: -L 8080:127.0.0.1:3000, -R 5432:127.0.0.1:5432 or -D 1080";
        return Err(Failure::new(failure::USAGE, text));
    }
    let home = Home::find()?;
    let mut leases = Vec::new();
    for request in &requests {
        leases.push(Lease::take(&home.run, &args.workspace, request, output).await?);
    }
    let stop = CancellationToken::new();
    let lost = futures::future::select_all(leases.into_iter().map(|lease| Box::pin(lease.keep(output))));
    tokio::select! {
        (failure, ..) = lost => Err(failure),
        () = stop.cancelled() => Ok(0),
        () = super::signals::ask_for_end(stop.clone()) => Ok(0),
    }
}

async fn secret(what: Secret, output: Output) -> Result<u8, Failure> {
    let config = Home::find()?.config;
    let keychain = Keychain::new(config.parent().unwrap_or(&config));
    let failed = |e: crate::service::keychain::KeychainError| Failure::new(failure::FAILED, e);
    match what {
        Secret::Set { service, account } => {
            let mut bytes = Vec::new();
            let mut input = tokio::io::stdin().take(MAX_SECRET + 1);
            input.read_to_end(&mut bytes).await?;
            let secret =
                (bytes.len() as u64 <= MAX_SECRET).then(|| service::secret::Secret::from_output(bytes)).flatten();
            let secret = secret.ok_or_else(|| {
                let text = "standard input is empty, not UTF-8, or over 64 KiB. hint: nexus-proxy secret set SERVICE ACCOUNT < FILE";
                Failure::new(failure::USAGE, text)
            })?;
            keychain.set(&service, &account, &secret).await.map_err(failed)?;
            output.plain("kept", &json!({"kept": {"service": service, "account": account}}));
        }
        Secret::Delete { service, account } => {
            let there = keychain.delete(&service, &account).await.map_err(failed)?;
            output.plain(if there { "forgotten" } else { "there was none" }, &json!({"forgotten": there}));
        }
    }
    Ok(0)
}

async fn device(what: Device, output: Output) -> Result<u8, Failure> {
    let (workspace, method, params) = match what {
        Device::List { workspace } => (workspace, "device.list", Value::Null),
        Device::Add { workspace, pin } => (workspace, "device.add", json!({"pin": pin})),
        Device::Remove { workspace, pin } => (workspace, "device.remove", json!({"pin": pin})),
    };
    let stream = control::connect_awake(&Home::find()?.run, &workspace).await?;
    let stream = FramedStream::open(stream, &Open::new(StreamRequest::Call {})).await;
    let stream = stream.map_err(StreamError::into_refusal)?;
    let answer = client::call(stream, method, params, tokio::io::sink(), tokio::io::sink()).await?;
    let devices = answer["devices"].as_array().into_iter().flatten();
    // The workspace says so: what is no pin is not shown.
    let pins: Vec<KeyPin> = devices.filter_map(|pin| pin.as_str()?.parse().ok()).collect();
    let lines: Vec<String> = pins.iter().map(KeyPin::to_string).collect();
    output.plain(&lines.join("\n"), &json!({"devices": lines}));
    Ok(0)
}

async fn pair(
    url: CoordinatorUrl,
    code: String,
    name: Option<DeviceName>,
    ca_file: Option<&Path>,
    new_key: bool,
    output: Output,
) -> Result<u8, Failure> {
    let dir = profile::directory(&Home::find()?.data.join("coordinators"), &url);
    let former = match Profile::load(&dir, &url).await {
        Ok(paired) if !new_key => return Err(Failure::new(failure::USAGE, paired_already(&paired, &url))),
        Ok(paired) => Some(paired),
        // What is damaged is made anew.
        Err(ProfileError::NotPaired(_) | ProfileError::Damaged { .. }) => None,
        Err(error) => return Err(Failure::new(failure::FAILED, error)),
    };
    super::ca_file::keep(&dir, &url, ca_file)?;
    let device = name.unwrap_or_else(up::device_name);
    let code = match code.as_str() {
        "-" => {
            let mut text = String::new();
            tokio::io::stdin().take(MAX_SECRET).read_to_string(&mut text).await?;
            text.trim().to_owned()
        }
        _ => code,
    };
    let profile = Profile::pair(&dir, &url, &code, device).await.map_err(|error| {
        let code = match &error {
            ProfileError::Coordinator(error) if error.is_passing() => failure::UNAVAILABLE,
            ProfileError::Coordinator(_) => failure::REFUSED,
            ProfileError::Code(_) => failure::USAGE,
            _ => failure::FAILED,
        };
        Failure::new(code, error)
    })?;
    let pin = profile.credential.key.pin();
    let former_pin = former.as_ref().map(|former| former.credential.key.pin());
    let next = match former {
        Some(former) if former.trust.shares(&profile.trust) => format!(
            "its key was: {}\nnext: nexus-proxy device add WORKSPACE {pin}, on a laptop that the workspace knows, for each that this one \
             uses; where there is none, nexus-coordinator workspace add WORKSPACE --reissue, and enrol it again",
            former.credential.key.pin()
        ),
        _ => format!("next: nexus-proxy up WORKSPACE --coordinator {url}"),
    };
    let text = format!(
        "paired with {url} as device `{}`, authority {}\nthis device's key: {pin}\n{next}",
        profile.device(),
        profile.trust.domain
    );
    output.plain(
        &text,
        &json!({"coordinator": url, "device": profile.device(), "domain": profile.trust.domain, "pin": pin, "former_pin": former_pin}),
    );
    Ok(0)
}

/// What is said to who would pair a laptop anew without meaning to.
fn paired_already(paired: &Profile, url: &CoordinatorUrl) -> String {
    format!(
        "this laptop is paired with {url} already, as device `{}`, and with another key its workspaces would not know it. hint: \
         `nexus-proxy up WORKSPACE --coordinator {url}` goes on with the one that it has; where that says that it was revoked, is not known, or \
         that the authority is another one, --new-key makes another",
        paired.device()
    )
}
