//! `nexus-proxy status` and `down`: asks what is up, shows it, ends it.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::failure::{self, Failure};
use super::home::Home;
use super::output::Output;
use super::way::{next_attempt, path_text, second, within_line};
use crate::lifeline::Route;
use crate::role::proxy::control::{self, socket_path};
use crate::role::proxy::daemon::Status;
use crate::role::proxy::forwards::ForwardKind;
use crate::wire::name::WorkspaceName;

/// Shows one workspace, or all that are up.
pub async fn status(workspace: Option<WorkspaceName>, output: Output) -> Result<u8, Failure> {
    let home = Home::find()?;
    let names = match workspace {
        Some(name) => vec![name],
        None => running(&home),
    };
    let mut all = Vec::new();
    let mut failed = None;
    for name in &names {
        let asked = async {
            let stream = control::connect(&home.run, name).await?;
            control::call::<Status>(stream, "status", Value::Null).await
        };
        match asked.await {
            Ok((status, _)) => all.push(status),
            Err(refusal) => failed = Some(Failure::from(refusal)),
        }
    }
    if output.is_json() {
        output.plain("", &json!({"workspaces": all}));
        return Ok(if all.is_empty() { failure::UNAVAILABLE } else { 0 });
    }
    match (all.is_empty(), failed) {
        (true, Some(failure)) => Err(failure),
        (true, None) => Err(Failure::new(failure::UNAVAILABLE, "nothing is up. hint: run `nexus-proxy up`")),
        (false, _) => {
            all.iter().for_each(|status| show_status(output, status));
            Ok(0)
        }
    }
}

fn running(home: &Home) -> Vec<WorkspaceName> {
    let entries = std::fs::read_dir(&home.run).into_iter().flatten().flatten();
    let mut names: Vec<WorkspaceName> = entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".sock")?.parse().ok())
        .filter(|name| std::os::unix::net::UnixStream::connect(socket_path(&home.run, name)).is_ok())
        .collect();
    names.sort();
    names
}

/// A time that `up` told.
fn moment(value: &Value) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(value.as_str()?, &Rfc3339).ok()
}

/// How the tunnel is: since when, why, and what is next.
fn tunnel(status: &Status) -> String {
    let tunnel = &status.tunnel;
    let since = moment(&tunnel["since"]).map(second).unwrap_or_default();
    let text = |key: &str| within_line(tunnel[key].as_str().unwrap_or_default());
    let next = next_attempt(moment(&tunnel["next"]));
    match tunnel["state"].as_str() {
        Some("up") => {
            let path = if status.path == "direct" { Route::Direct } else { Route::Relay };
            format!("up since {since}, {}", path_text(path, tunnel["round_trip_ms"].as_f64()))
        }
        Some("resuming") => {
            let last = tunnel["last"].as_str().map(|last| format!("; {}", within_line(last))).unwrap_or_default();
            format!("interrupted since {since}: {}{last} ({next})", text("why"))
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
        let text = format!("{} connections go on in earlier sessions until they are done", status.earlier);
        output.line("earlier", &text, &none);
    }
    for forward in &status.forwards {
        let (flag, from, to) = match forward.kind {
            ForwardKind::Local => ("-L", "here", "in the workspace"),
            ForwardKind::Remote => ("-R", "in the workspace", "here"),
            ForwardKind::Dynamic => ("-D", "here", "SOCKS5"),
        };
        let target = forward.target.as_ref().map(|target| format!("{target} ")).unwrap_or_default();
        let counts = format!(
            "{} open, {} so far, {} B up, {} B down",
            forward.open, forward.total, forward.sent, forward.received
        );
        let error = forward.error.as_ref().map(|e| format!("; {}", within_line(e))).unwrap_or_default();
        output.line("forward", &format!("{flag} {} {from} → {target}{to} ({counts}){error}", forward.listen), &none);
    }
}

/// Ends a workspace's `up`, and waits until it has ended.
pub async fn down(workspace: WorkspaceName, output: Output) -> Result<u8, Failure> {
    let home = Home::find()?;
    let stream = control::connect(&home.run, &workspace).await?;
    let (_, mut stream): (Value, _) = control::call(stream, "down", Value::Null).await?;
    let _ = stream.reader.next().await;
    if !control::ended(&socket_path(&home.run, &workspace)).await {
        let text = format!("workspace `{workspace}` was told to end, and is still at it. hint: try again in a moment");
        return Err(Failure::new(failure::FAILED, text));
    }
    output.plain(&format!("{workspace} is down"), &json!({"down": workspace}));
    Ok(0)
}
