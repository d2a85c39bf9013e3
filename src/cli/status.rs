//! `nexus-proxy status` and `down`: asks what is up, shows it, ends it.

use std::path::Path;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::UnixStream;

use super::failure::{self, Failure};
use super::home::Home;
use super::output::{Output, count};
use super::way::{next_attempt, path_text, second, within_line};
use crate::lifeline::Route;
use crate::role::local;
use crate::role::proxy::control::{self, socket_path};
use crate::role::proxy::daemon::Status;
use crate::role::proxy::forwards::ForwardKind;
use crate::wire::name::WorkspaceName;
use crate::wire::{Refusal, RefusalCode};

/// Shows one workspace, or all that are up.
pub async fn status(workspace: Option<WorkspaceName>, output: Output) -> Result<u8, Failure> {
    let home = Home::find()?;
    let names = match &workspace {
        Some(name) => vec![name.clone()],
        None => running(&home).await,
    };
    let ask = async |name| {
        let stream = control::connect(&home.run, name).await?;
        Ok(control::ask::<Status>(stream, "status").await?.0)
    };
    let asked = futures::future::join_all(names.iter().map(ask));
    let (asked, handed_over) = tokio::join!(asked, handed_over(&home, workspace.as_ref()));
    let (mut all, mut failed) = (Vec::new(), Vec::new());
    for (name, asked) in names.iter().zip(asked) {
        match asked {
            Ok(status) => all.push(status),
            Err(refusal) => failed.push((name, refusal)),
        }
    }
    if output.is_json() {
        let failed: Vec<Value> =
            failed.iter().map(|(name, why): &(_, Refusal)| json!({"workspace": name, "error": why})).collect();
        output.plain("", &json!({"workspaces": all, "failed": failed, "handed_over": handed_over}));
        return Ok(if all.is_empty() { failure::UNAVAILABLE } else { 0 });
    }
    all.iter().for_each(|status| show_status(output, status));
    if !all.is_empty() {
        for (name, why) in &failed {
            output.line("workspace", &format!("{name}: {}", within_line(&why.message)), &Value::Null);
        }
    }
    for status in &handed_over {
        let text = format!(
            "{} (process {}), version {}: {} until done",
            status.workspace,
            status.pid,
            status.version,
            count(status.earlier, "connection")
        );
        output.line("handed over", &text, &Value::Null);
    }
    match (all.is_empty(), failed.pop()) {
        (true, Some((_, refusal))) => Err(refusal.into()),
        (true, None) => Err(Failure::new(failure::UNAVAILABLE, "nothing is up. hint: run `nexus-proxy up`")),
        (false, _) => Ok(0),
    }
}

/// Those that handed over and live on, of one workspace or of all. One that ends meanwhile is none.
async fn handed_over(home: &Home, workspace: Option<&WorkspaceName>) -> Vec<Status> {
    let ask = async |door: std::path::PathBuf| {
        let stream = control::connect_at(&door).await?;
        control::ask::<Status>(stream, "status").await.map(|(status, _)| status)
    };
    let asked = control::doors(&home.run, workspace).await.into_iter().map(ask);
    futures::future::join_all(asked).await.into_iter().flatten().collect()
}

async fn running(home: &Home) -> Vec<WorkspaceName> {
    let entries = std::fs::read_dir(&home.run).into_iter().flatten().flatten();
    let mut names: Vec<WorkspaceName> = Vec::new();
    for name in entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".sock")?.parse().ok()) {
        if !local::is_deserted(&socket_path(&home.run, &name)).await {
            names.push(name);
        }
    }
    names.sort();
    names
}

/// A time that `up` told.
fn moment(value: &Value) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(value.as_str()?, &Rfc3339).ok()
}

/// What is said of a direct way that nothing stands by for.
const ALONE: &str = ", with no way through the coordinator behind it";

/// How the tunnel is: since when, why, and what is next.
fn tunnel(status: &Status) -> String {
    let tunnel = &status.tunnel;
    let since = moment(&tunnel["since"]).map(second).unwrap_or_default();
    let text = |key: &str| within_line(tunnel[key].as_str().unwrap_or_default());
    let next = next_attempt(moment(&tunnel["next"]));
    match tunnel["state"].as_str() {
        Some("up") => {
            let path = if status.path == "direct" { Route::Direct } else { Route::Relay };
            let notice =
                tunnel["notice"].as_str().map(|notice| format!("; {}", within_line(notice))).unwrap_or_default();
            let why = |key: &str, next: &str| {
                let text = tunnel[key].as_str()?;
                Some(format!(": {} ({})", within_line(text), next_attempt(moment(&tunnel[next]))))
            };
            let way = path_text(path, tunnel["round_trip_ms"].as_f64());
            let rest = match (path, tunnel["standby"] == true) {
                (Route::Direct, true) => String::new(),
                (Route::Direct, false) => format!("{ALONE}{}", why("standby_why", "standby_next").unwrap_or_default()),
                (Route::Relay, _) => {
                    why("direct_why", "direct_next").map(|why| format!("; not directly{why}")).unwrap_or_default()
                }
            };
            format!("up since {since}, {way}{rest}{notice}")
        }
        Some("resuming") => {
            let next = match tunnel["doing"].as_str() {
                Some(_) => format!("{next}: {}", doing(tunnel)),
                None => next,
            };
            let last = tunnel["last"].as_str().map(|last| format!("; {}", within_line(last))).unwrap_or_default();
            // The one that is under way is said beside it.
            let under_way = u64::from(tunnel["retry_ms"] == 0);
            let attempts = match tunnel["attempt"].as_u64().unwrap_or_default().saturating_sub(under_way) {
                0 => String::new(),
                attempts => format!("{}, ", count(attempts as usize, "attempt")),
            };
            format!("interrupted since {since}: {}{last} ({attempts}{next})", text("why"))
        }
        Some("waiting") => format!("down since {since}: {} ({next})", text("why")),
        Some("connecting") if tunnel["why"].is_string() => {
            let attempt = tunnel["attempt"].as_u64().unwrap_or_default();
            format!("down since {since}: {} (attempt {attempt} is under way: {})", text("why"), doing(tunnel))
        }
        Some("connecting") => format!("connecting since {since}: {}", doing(tunnel)),
        _ => format!("failed: {}", text("why")),
    }
}

/// What an attempt waits for.
fn doing(tunnel: &Value) -> &'static str {
    match tunnel["doing"].as_str() {
        Some("waits_for_stub") => "it waits for the workspace's stub at the coordinator",
        Some("verifies") => "it verifies the workspace",
        _ => "it waits for the coordinator",
    }
}

fn show_status(output: Output, status: &Status) {
    let state = tunnel(status);
    let none = Value::Null;
    output.line("workspace", &format!("{} (process {})", status.workspace, status.pid), &none);
    output.line("coordinator", &format!("{}, as device {}", status.coordinator, status.device), &none);
    output.line("tunnel", &state, &none);
    if status.earlier > 0 {
        let rest = if status.earlier == 1 {
            "goes on in an earlier session until it is done"
        } else {
            "go on in earlier sessions until they are done"
        };
        let text = format!("{} {rest}", count(status.earlier, "connection"));
        output.line("earlier", &text, &none);
    }
    for forward in &status.forwards {
        let (from, to) = match forward.kind {
            ForwardKind::Local => ("here", "in the workspace"),
            ForwardKind::Remote => ("in the workspace", "here"),
            ForwardKind::Dynamic => ("here", "SOCKS5"),
        };
        let flag = forward.kind.flag();
        let target = forward.target.as_ref().map(|target| format!("{target} ")).unwrap_or_default();
        let counts = format!(
            "{} open, {} so far, {} B up, {} B down",
            forward.open, forward.total, forward.sent, forward.received
        );
        let error = forward.error.as_ref().map(|e| format!("; {}", within_line(e))).unwrap_or_default();
        output.line("forward", &format!("{flag} {} {from} → {target}{to} ({counts}){error}", forward.listen), &none);
    }
}

/// Ends a workspace's `up` and those that handed it over and live on, and waits until all have ended.
pub async fn down(workspace: WorkspaceName, output: Output) -> Result<u8, Failure> {
    let home = Home::find()?;
    let handed_over = handed_over(&home, Some(&workspace)).await;
    let doors = control::doors(&home.run, Some(&workspace)).await;
    let standing = control::connect(&home.run, &workspace).await;
    match standing {
        Err(refusal) if refusal.code != RefusalCode::Unavailable => return Err(refusal.into()),
        Err(_) if doors.is_empty() => {
            let text = format!(
                "workspace `{workspace}` is not up: there is nothing to end. hint: `nexus-proxy status` shows what is up"
            );
            return Err(Failure::new(failure::UNAVAILABLE, text));
        }
        Err(_) => {}
        Ok(stream) => end(stream, &socket_path(&home.run, &workspace), &workspace).await?,
    }
    for door in doors {
        match control::connect_at(&door).await {
            Ok(stream) => end(stream, &door, &workspace).await?,
            // It is done meanwhile.
            Err(refusal) if refusal.code == RefusalCode::Unavailable => {}
            Err(refusal) => return Err(refusal.into()),
        }
    }
    let earlier: String = handed_over
        .iter()
        .map(|status| {
            format!(
                "; process {}, which had handed over, ended with {}",
                status.pid,
                count(status.earlier, "connection")
            )
        })
        .collect();
    let pids: Vec<u32> = handed_over.iter().map(|status| status.pid).collect();
    output.plain(&format!("{workspace} is down{earlier}"), &json!({"down": workspace, "handed_over": pids}));
    Ok(0)
}

/// Ends the process whose socket is at `path`, and waits until it has ended.
async fn end(stream: UnixStream, path: &Path, workspace: &WorkspaceName) -> Result<(), Failure> {
    let (_, stream): (Value, _) = control::ask(stream, "down").await?;
    if control::ends(stream, path).await {
        return Ok(());
    }
    let text = format!("workspace `{workspace}` was told to end, and is still at it. hint: try again in a moment");
    Err(Failure::new(failure::FAILED, text))
}
