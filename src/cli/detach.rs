//! `nexus-proxy up --detach`: the same command in the background, and what it says until its tunnel is up.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};

use super::failure::{self, Failure};
use super::home::Home;
use super::log::{Common, LogFormat};
use super::output::Output;
use super::up::Up;
use crate::role::files;

/// How long the tunnel is waited for before it is left on its way.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts the same command in the background, waits until its tunnel is up, and leaves it.
pub async fn run(up: Up, home: &Home, common: &Common) -> Result<u8, Failure> {
    let output = Output::new(common.json);
    files::private_dir(&home.data)?;
    let log = home.data.join(format!("{}.log", up.workspace));
    let file = files::log(&log)?;
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.arg("--json").arg(format!("-{}", "v".repeat(common.verbose.max(1).into())));
    command.args(["--log-format", if common.log_format == LogFormat::Json { "json" } else { "text" }]);
    command.args(["up", up.workspace.as_str()]).arg("--background").arg(&log);
    if let Some(url) = &up.coordinator {
        command.args(["--coordinator", &url.to_string()]);
    }
    if let Some(file) = &up.ca_file {
        command.arg("--ca-file").arg(file);
    }
    if let Some(config) = &up.config {
        command.arg("--config").arg(config);
    }
    if up.no_direct {
        command.arg("--no-direct");
    }
    if up.take_over {
        command.arg("--take-over");
    }
    if up.drop_forwards {
        command.arg("--drop-forwards");
    }
    command.args(up.forwards.arguments());
    // A process group of its own, so that Ctrl-C on this terminal does not reach it.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().ok_or_else(|| std::io::Error::other("no pipe to the background process"))?;
    let mut lines = BufReader::new(stdout).lines();
    let mut interrupted = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut why = None;
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line?,
            _ = interrupted.recv() => {
                let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(nix::unistd::Pid::from_raw);
                if let Some(pid) = pid {
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
                }
                let _ = child.wait().await;
                return Ok(failure::INTERRUPTED);
            }
            () = tokio::time::sleep_until(deadline) => {
                let text = format!(
                    "the tunnel is not up yet; it goes on trying in the background. hint: `nexus-proxy status {}`, log {}",
                    up.workspace,
                    log.display()
                );
                return Err(Failure::new(failure::UNAVAILABLE, text));
            }
        };
        let Some(line) = line else { break };
        let Ok(event) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
        let text = match event["event"].as_str() {
            Some("failed") => {
                why = Failure::from_json(&event["error"]);
                continue;
            }
            Some("coordinator") => format!("  coordinator  {}", event["url"].as_str().unwrap_or_default()),
            Some("workspace") => format!("  workspace    {}", event["name"].as_str().unwrap_or_default()),
            Some("took_over") => format!("  take-over    took over from process {}", event["pid"]),
            Some("dropped") => {
                format!("  take-over    its forward {} ends", event["forward"]["spec"].as_str().unwrap_or_default())
            }
            Some("forward") => {
                let forward = &event["forward"];
                format!(
                    "  forward      {} → {}",
                    forward["listen"].as_str().unwrap_or_default(),
                    forward["target"].as_str().unwrap_or("SOCKS5")
                )
            }
            Some("tunnel") => match event["tunnel"]["state"].as_str() {
                Some("up") => "  tunnel       up, end-to-end verified; in the background".to_owned(),
                Some("waiting") => {
                    format!("  tunnel       down: {}", event["tunnel"]["why"].as_str().unwrap_or_default())
                }
                _ => continue,
            },
            _ => continue,
        };
        output.plain(&text, &event);
        if event["tunnel"]["state"] == "up" {
            return Ok(0);
        }
    }
    let status = child.wait().await?;
    Err(why.unwrap_or_else(|| wordless(status, &log)))
}

/// Of a background process that ended without a word to the one that started it.
fn wordless(status: ExitStatus, log: &Path) -> Failure {
    let place = log.display();
    let hint = match std::fs::metadata(log) {
        Ok(file) if file.len() > 0 => format!("its log is {place}"),
        _ => format!("its log, {place}, is empty, as on a full disk; without --detach it may say why"),
    };
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(failure::FAILED);
    Failure::new(code, format!("the background process ended ({status}). hint: {hint}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn who_ended_without_a_word_has_a_log_or_is_asked_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("w.log");
        let killed = || wordless(ExitStatus::from_raw(9), &log);
        assert!(killed().message.contains("is empty") && killed().message.contains("without --detach"));
        std::fs::write(&log, "").unwrap();
        assert!(killed().message.contains("is empty"));
        std::fs::write(&log, "a word").unwrap();
        assert!(killed().message.ends_with(&format!("its log is {}", log.display())));
        assert_eq!(killed().code, failure::FAILED);
        assert_eq!(wordless(ExitStatus::from_raw(4 << 8), &log).code, 4);
    }
}
