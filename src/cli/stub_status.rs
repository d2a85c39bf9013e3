//! `nexus-stub status`: asks the stub that serves the workspace how it is, and shows that.

use std::convert::Infallible;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::failure::{self, Failure};
use super::output::{Output, count};
use super::queue;
use super::stub_socket;
use super::way::{next_attempt, path_text, second, within_line};
use crate::role::stub::local;
use crate::role::stub::status::{LaptopStatus, Reached};
use crate::transport::carrier::{PING, PONG};
use crate::wire::refusal::printable;

/// Shows the stub that listens at `socket`.
pub async fn show(socket: &Path, output: Output) -> Result<u8, Failure> {
    let Some(stream) = local::connect(socket).await? else {
        let text = format!("no stub serves {}. hint: is `nexus-stub run` running here?", socket.display());
        return Err(Failure::new(failure::UNAVAILABLE, text));
    };
    let status = stub_socket::status(stream).await?;
    if output.is_json() {
        output.plain("", &json!(status));
        return Ok(0);
    }
    let line = |label: &str, text: String| output.line(label, &printable(&text), &Value::Null);
    let minutes = count(usize::try_from(status.uptime_s / 60).unwrap_or(usize::MAX), "minute");
    line("workspace", format!("{} (process {}, for {minutes})", status.workspace, status.pid));
    line("coordinator", format!("{}: {}", status.coordinator, reached(&status.reached)));
    if let Some(notice) = &status.notice {
        line("notice", format!("{} (last at {})", within_line(&notice.what), second(notice.at)));
    }
    match status.laptops.is_empty() {
        true => line("laptop", "none is connected".into()),
        false => status.laptops.iter().for_each(|status| line("laptop", laptop(status))),
    }
    if status.earlier > 0 {
        let lives = if status.earlier == 1 { "lives on until what it has" } else { "live on until what they have" };
        line("earlier", format!("{} that handed over {lives} is done", count(status.earlier, "stub")));
    }
    Ok(0)
}

/// How often it is looked whether a call waits for its way.
const LOOK: Duration = Duration::from_secs(3);

/// For how long nobody may have known of an interruption when a call began.
const UNNOTICED: Duration = PING.saturating_add(PONG);

/// Says on standard error when a laptop is not reached, and why: a call that waits for it goes on by itself.
pub async fn tell_interruptions(socket: &Path) -> Infallible {
    let began = Instant::now();
    let mut told = false;
    loop {
        tokio::time::sleep(LOOK).await;
        let Ok(Some(stream)) = local::connect(socket).await else { continue };
        let Ok(status) = stub_socket::status(stream).await else { continue };
        let why = interruption(&status.laptops, began.elapsed());
        if let Some(why) = why.as_ref().filter(|_| !told) {
            queue::say_error(format!("nexus-stub: {}\n", printable(why)).as_bytes());
        }
        told = why.is_some();
    }
}

/// Which laptop is not reached that a call may wait for which began so long ago, and why. Which one has it is not known here; one that was
/// known to be away has not.
fn interruption(laptops: &[LaptopStatus], call: Duration) -> Option<String> {
    let longest = (call + UNNOTICED).as_secs_f64();
    let waits = |laptop: &LaptopStatus| laptop.interrupted_s.filter(|time| laptop.is_expected() && *time <= longest);
    let (laptop, time) = laptops.iter().find_map(|laptop| Some((laptop, waits(laptop)?)))?;
    let (device, why) = (&laptop.device, within_line(laptop.why.as_deref().unwrap_or("nothing is known")));
    Some(format!(
        "the connection to the laptop `{device}` has been interrupted for {time:.0} s: {why}; a call that waits for it goes on when it is \
         back, and Ctrl-C gives it up"
    ))
}

fn reached(reached: &Reached) -> String {
    match reached {
        Reached::Connecting => "connecting".into(),
        Reached::Ready { since } => format!("ready for laptops since {}", second(*since)),
        Reached::Away { since, why, failed, next } => {
            let (since, why, next) = (second(*since), within_line(why), next_attempt(Some(*next)));
            let attempts = if *failed == 1 { "" } else { &format!("{failed} attempts, ") };
            format!("not reached since {since}: {why} ({attempts}{next})")
        }
    }
}

fn laptop(status: &LaptopStatus) -> String {
    let LaptopStatus { device, since, drains, streams, path, round_trip_ms, why, interrupted_s, .. } = status;
    let way = match (path, interrupted_s, why) {
        (Some(path), _, _) => path_text(*path, *round_trip_ms),
        (None, Some(time), Some(why)) => {
            format!("no way for {time:.1} s: {}; the laptop is expected to come back", within_line(why))
        }
        (None, _, _) => "its session begins".into(),
    };
    let drains = if *drains { ", replaced by a later session" } else { "" };
    format!("{device} since {}, {way}; {streams} open{drains}", second(*since))
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::identity::KeyPin;
    use crate::lifeline::{Ended, Route, Standing};

    #[test]
    fn it_is_said_since_when_why_and_what_is_next() {
        let since = OffsetDateTime::UNIX_EPOCH;
        let why = "refused. hint: is it running?".to_owned();
        let away = Reached::Away { since, why, failed: 3, next: OffsetDateTime::now_utc() + Duration::from_secs(60) };
        let said = reached(&away);
        assert!(said.starts_with("not reached since 1970-01-01T00:00:00Z: refused. is it running? (3 attempts, next"));
        let (anna, key) = ("anna".parse().unwrap(), KeyPin::from_bytes([1; 32]));
        let of = |standing: Standing| laptop(&LaptopStatus::new(&anna, key, since, false, 2, &standing));
        let attached = Standing::Attached {
            route: Route::Relay,
            round_trip: Some(Duration::from_millis(2)),
            standby: false,
            moves: 0,
        };
        let said = of(attached);
        assert_eq!(said, "anna since 1970-01-01T00:00:00Z, through the coordinator, 2.0 ms there and back; 2 open");
        let said = of(Standing::Lost { since: Instant::now(), why: "the connection broke".into() });
        assert!(said.contains("no way for ") && said.contains("the connection broke"), "{said}");
    }

    #[test]
    fn a_laptop_that_is_not_reached_is_named() {
        let of = |standing: Standing| {
            let (name, key) = ("anna".parse().unwrap(), KeyPin::from_bytes([7; 32]));
            LaptopStatus::new(&name, key, OffsetDateTime::UNIX_EPOCH, false, 2, &standing)
        };
        let lost = || of(Standing::Lost { since: Instant::now(), why: "the connection broke".into() });
        let attached = || of(Standing::Attached { route: Route::Relay, round_trip: None, standby: false, moves: 0 });
        let interruption = |laptops: &[LaptopStatus]| interruption(laptops, Duration::from_secs(10));
        assert_eq!(interruption(&[]), None);
        assert_eq!(interruption(&[attached()]), None);
        let ended = of(Standing::Ended(Ended::Complete));
        assert_eq!(interruption(&[ended]), None);
        // Closed last night, and another one has the call.
        let mut old = lost();
        old.interrupted_s = Some(40_000.0);
        assert_eq!(interruption(&[attached(), old]), None);
        let why = interruption(&[attached(), lost()]).unwrap();
        assert!(
            why.contains("laptop `anna` has been interrupted for 0 s: the connection broke") && why.contains("Ctrl-C"),
            "{why}"
        );
    }
}
