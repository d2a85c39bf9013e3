//! Memory of each program idle, per idle forwarded connection at each end, and per parked stub at the coordinator.
//! Memory of the processes alone: what the kernel holds for sockets is the same for every tunnel.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};
use nexus_proxy::identity::{Credential, PrivateKey};
use nexus_proxy::role::coordinator::authority::load_or_create;
use nexus_proxy::role::coordinator::registry::AddWorkspace;
use nexus_proxy::role::coordinator::{Registry, Store};
use nexus_proxy::transport::address::CoordinatorUrl;
use nexus_proxy::transport::carrier::{Arrival, Heartbeat};
use nexus_proxy::transport::client::CoordinatorClient;
use nexus_proxy::wire::control::Control;
use nexus_proxy::wire::name::WorkspaceName;
use nexus_proxy::wire::onboarding::{CodeText, EnrollRequest};
use tokio::task::JoinSet;

use super::distant::Coordinator;
use super::peers::{self, Route};
use super::report::{Report, figure};
use super::rig::{Programs, Tunnel, Way, memory};
use super::target::{self, touch};

/// Idle connections held at once.
const CONNECTIONS: usize = 2_000;

/// Stubs parked at once.
const PARKED: usize = 1_000;

/// Those that pay for what is there once.
const FIRST: usize = 50;

/// How long a program may tidy up before its memory is read.
const SETTLE: Duration = Duration::from_secs(2);

/// Programs, connections, parked stubs.
pub fn run(programs: &Programs, report: &Report) -> Result<()> {
    report.title("memory", "Proportional set size; per connection and per stub it is the growth, divided.");
    let target = target::serve_idle()?;
    let mut tunnel = Tunnel::start(programs, Way::Relay)?;
    std::thread::sleep(SETTLE);
    let mb = |bytes: f64| figure("MB", bytes / 1e6, 1);
    report.row("memory", "nexus-proxy up, idle, coordinator inside", &[mb(memory(tunnel.up_pid())?)]);
    report.row("memory", "nexus-stub, idle", &[mb(memory(tunnel.stub_pid())?)]);
    let route = Route::ours("nexus-proxy", &mut tunnel, target)?;
    idle_connections(report, &route)?;
    let (name, start) = peers::SSH;
    match start(target)? {
        Some(route) => idle_connections(report, &route)?,
        None => report.absent("memory", name, "not installed"),
    }
    drop(tunnel);
    coordinator(programs, report)
}

fn idle_connections(report: &Report, route: &Route) -> Result<()> {
    // The first ones pay for what is there once.
    let mut held = hold(route.port, CONNECTIONS / 20)?;
    std::thread::sleep(SETTLE);
    let all = |pids: &[u32]| pids.iter().map(|pid| memory(*pid)).sum::<Result<f64>>();
    let before = (all(&route.near)?, all(&route.far)?);
    held.extend(hold(route.port, CONNECTIONS)?);
    std::thread::sleep(SETTLE);
    let each = |now: f64, before: f64| (now - before) / CONNECTIONS as f64 / 1e3;
    let figures = [
        figure("KB at the client's end", each(all(&route.near)?, before.0), 1),
        figure("KB at the server's", each(all(&route.far)?, before.1), 1),
    ];
    report.row("memory", &format!("per idle connection, {}", route.name), &figures);
    Ok(())
}

fn hold(port: u16, count: usize) -> Result<Vec<std::net::TcpStream>> {
    (0..count).map(|_| touch(port)).collect()
}

fn coordinator(programs: &Programs, report: &Report) -> Result<()> {
    let coordinator = Coordinator::start(programs)?;
    std::thread::sleep(SETTLE);
    report.row("memory", "nexus-coordinator, idle", &[figure("MB", memory(coordinator.pid())? / 1e6, 1)]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let url = CoordinatorUrl::from(coordinator.address);
        let clients = enrolled(&coordinator.data(), &url, PARKED + FIRST).await?;
        let (first, rest) = clients.split_at(FIRST);
        let mut held = JoinSet::new();
        park(first, &mut held).await?;
        tokio::time::sleep(SETTLE).await;
        let before = memory(coordinator.pid())?;
        park(rest, &mut held).await?;
        tokio::time::sleep(SETTLE).await;
        let each = (memory(coordinator.pid())? - before) / PARKED as f64 / 1e3;
        if let Some(ended) = held.try_join_next() {
            return Err(anyhow!("a stub is not parked any more: {}", ended?));
        }
        report.row("memory", "per parked stub, at the coordinator", &[figure("KB", each, 1)]);
        Ok(())
    })
}

/// Workspaces of the coordinator whose data is in `data`, each with a key of its own.
async fn enrolled(data: &Path, url: &CoordinatorUrl, count: usize) -> Result<Vec<CoordinatorClient>> {
    let now = SystemTime::now();
    let registry = Registry::new(Store::open(data).await?, load_or_create(data, now).await?.into());
    let options = AddWorkspace { trust_first_device: true, ..AddWorkspace::default() };
    let mut clients = Vec::with_capacity(count);
    for n in 0..count {
        let name: WorkspaceName = format!("bench-{n}").parse()?;
        let code = registry.add_workspace(&name, &options, now).await.map_err(|refusal| anyhow!("{refusal}"))?;
        let key = PrivateKey::generate()?;
        let request = EnrollRequest { code: CodeText::new(code.reveal().as_str()), csr: key.csr_pem()? };
        let answer = registry.enroll(&request, now).await.map_err(|refusal| anyhow!("{refusal}"))?;
        let credential = Credential::from_pem(&answer.chain, key)?;
        clients.push(CoordinatorClient::new(url.clone(), registry.authorities().trust().clone(), credential));
    }
    Ok(clients)
}

/// A connection of each workspace, as a stub parks it: one that did not answer would not be kept. Each is a task of `held`, which ends
/// when it is not parked any more, with the reason.
async fn park(clients: &[CoordinatorClient], held: &mut JoinSet<String>) -> Result<()> {
    for client in clients {
        let mut carrier = client.park().await?;
        let arrival = carrier.arrival().await?.context("the coordinator hung up")?;
        ensure!(matches!(arrival, Arrival::Control(Control::Parked {})), "not parked: {arrival:?}");
        carrier.set_heartbeat(Heartbeat::PARKED);
        held.spawn(async move {
            loop {
                match carrier.arrival().await {
                    Ok(Some(Arrival::Control(Control::Revoked { .. } | Control::Authorities {}))) => {}
                    other => return format!("{other:?}"),
                }
            }
        });
    }
    Ok(())
}
