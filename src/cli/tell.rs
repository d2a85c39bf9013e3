//! What a person who started `up` is told of the tunnel as it changes: each thing once, since when, why, and what is next.

use std::time::Duration;

use time::OffsetDateTime;

use super::output::count;
use super::way::{next_attempt, path_text, second, within_line};
use crate::lifeline::Route;
use crate::role::proxy::tunnel_state::{Remarks, TunnelState};

/// Attempts after which a person is told that it is still tried, and again after twice as many each time.
const OFTEN: u32 = 4;

/// What was told last.
#[derive(Debug, Default)]
pub struct Told {
    said: Said,
    /// Why it was down, when that was told last: once, and not for each attempt.
    down: Option<String>,
    /// Since when it is interrupted or down.
    gone: Option<OffsetDateTime>,
    /// What there was to say of the session that stands.
    remarked: Remarks,
}

/// What of a state is news when it changes. A state repeats with another round trip or another time to wait.
#[derive(Debug, Default, PartialEq)]
enum Said {
    #[default]
    Nothing,
    Up {
        since: OffsetDateTime,
        path: Route,
        moves: u64,
        notice: Option<String>,
        not_direct: Option<String>,
        alone: Option<String>,
    },
    Resuming {
        /// Whether it is known what became of an attempt. Each may say it in other words.
        has_failed: bool,
        /// How often it had failed when it was time to say that it still does.
        failed: u32,
    },
    Down {
        why: String,
        retry_ms: u64,
    },
}

impl Said {
    fn of(state: &TunnelState) -> Said {
        match state {
            TunnelState::Connecting { .. } | TunnelState::Failed { .. } => Said::Nothing,
            TunnelState::Up { since, path, moves, remarks, .. } => Said::Up {
                since: *since,
                path: *path,
                moves: *moves,
                notice: remarks.notice.clone(),
                not_direct: remarks.direct_why.clone(),
                alone: remarks.standby_why.clone(),
            },
            TunnelState::Resuming { last, attempt, retry_ms, .. } => {
                let failed = failed(*attempt, *retry_ms);
                let failed = if failed < OFTEN { 0 } else { 1 << failed.ilog2() };
                Said::Resuming { has_failed: last.is_some(), failed }
            }
            TunnelState::Waiting { why, retry_ms, .. } => Said::Down { why: why.clone(), retry_ms: *retry_ms },
        }
    }
}

/// What is news of a state.
#[derive(Debug, Default, PartialEq)]
pub struct News {
    /// A session begins.
    pub begins: bool,
    /// What a person reads, line by line.
    pub lines: Vec<String>,
    /// A program reads the state whenever something in it is news.
    pub changed: bool,
}

impl Told {
    /// What is news of this state; what a session that begins is told with, `up` says itself.
    pub fn news(&mut self, now: &TunnelState) -> News {
        let before = std::mem::replace(&mut self.said, Said::of(now));
        if before == self.said || matches!(self.said, Said::Nothing) {
            return News::default();
        }
        let mut news = News { changed: true, ..News::default() };
        match now {
            TunnelState::Up { since, path, moves, round_trip_ms, remarks, .. } => {
                match &before {
                    // Another one took its place while nobody looked.
                    Said::Up { since: s, .. } if s != since => self.begins(&mut news),
                    // Whatever it moved to is in the line that says it is up, or beside what is remarked.
                    Said::Up { path: p, moves: m, .. } if (p, m) == (path, moves) => {}
                    // The usual beginning, through the coordinator and then directly, is not news.
                    Said::Up { .. } if (*path, *moves) == (Route::Direct, 1) => {}
                    Said::Up { .. } | Said::Resuming { .. } => {
                        let went = match self.gone.take() {
                            Some(since) => format!("goes on after {}", time_since(since)),
                            None => "moved".to_owned(),
                        };
                        let path = path_text(*path, *round_trip_ms);
                        news.lines.push(format!("{went}, {path}; nothing was lost"));
                    }
                    Said::Nothing | Said::Down { .. } => self.begins(&mut news),
                }
                let before = std::mem::replace(&mut self.remarked, remarks.clone());
                news.lines.extend(remarked(&before, remarks));
            }
            TunnelState::Resuming { why, since, attempt, last, retry_ms, .. } => {
                let next = match (*retry_ms, failed(*attempt, *retry_ms)) {
                    (0, 0) => "an attempt is under way".to_owned(),
                    (0, failed) => format!("{}, another is under way", count(failed as usize, "attempt")),
                    (wait, 0) => format!("next attempt in {}", seconds(wait)),
                    (wait, failed) => format!("{}, next in {}", count(failed as usize, "attempt"), seconds(wait)),
                };
                self.gone = Some(*since);
                let time = second(*since);
                let is_known = matches!(before, Said::Resuming { .. });
                news.lines.push(match last.as_deref().map(within_line).filter(|_| is_known) {
                    Some(last) => format!("interrupted since {time}: {last} ({next}, and again until it is back)"),
                    None => {
                        format!("interrupted: {why}; everything waits for another connection since {time} ({next})")
                    }
                });
            }
            TunnelState::Waiting { why, since, retry_ms, .. } if self.down.as_ref() != Some(why) => {
                self.down = Some(why.clone());
                let (text, since, retry) = (within_line(why), second(*since), seconds(*retry_ms));
                news.lines
                    .push(format!("down: {text} (since {since}; next attempt in {retry}, and again until it is up)"));
            }
            TunnelState::Waiting { .. } | TunnelState::Connecting { .. } | TunnelState::Failed { .. } => {}
        }
        news
    }
}

impl Told {
    fn begins(&mut self, news: &mut News) {
        news.begins = true;
        (self.gone, self.down, self.remarked) = (None, None, Remarks::default());
    }
}

/// What is new of what there is to say of a session that stands. Why a way is not taken is told when that begins, and not for
/// each attempt.
fn remarked(before: &Remarks, now: &Remarks) -> Vec<String> {
    let mut lines = Vec::new();
    match &now.notice {
        Some(text) if before.notice.as_ref() != Some(text) => lines.push(format!("up; {}", within_line(text))),
        None if before.notice.is_some() => lines.push("up; what threatened the session is over".to_owned()),
        _ => {}
    }
    if let Some(why) = now.direct_why.as_ref().filter(|_| before.direct_why.is_none()) {
        lines.push(format!("up, not directly: {} ({})", within_line(why), next_attempt(now.direct_next)));
    }
    if let Some(why) = now.standby_why.as_ref().filter(|_| before.standby_why.is_none()) {
        let next = next_attempt(now.standby_next);
        lines.push(format!("up, with no way through the coordinator behind it: {} ({next})", within_line(why)));
    }
    if before.standby_why.is_some() && now.standby_why.is_none() {
        lines.push("up, with a way through the coordinator again".to_owned());
    }
    lines
}

/// Attempts that have failed: the one that is under way has not.
fn failed(attempt: u32, retry_ms: u64) -> u32 {
    attempt.saturating_sub(u32::from(retry_ms == 0))
}

fn time_since(since: OffsetDateTime) -> String {
    let time: Duration = (OffsetDateTime::now_utc() - since).try_into().unwrap_or_default();
    seconds(time.as_millis() as u64)
}

fn seconds(ms: u64) -> String {
    format!("{:.1} s", ms as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::proxy::tunnel_state::{Doing, Standing};

    const SINCE: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn up(path: Route, moves: u64, remarks: Remarks) -> TunnelState {
        Standing { took_ms: 1, since: SINCE, stub_version: "1".into() }.up(path, None, false, moves, remarks)
    }

    fn lines(told: &mut Told, state: &TunnelState) -> Vec<String> {
        told.news(state).lines
    }

    #[test]
    fn a_session_begins_and_its_usual_way_is_not_news() {
        let mut told = Told::default();
        let connecting = |attempt| {
            let doing = Doing::ReachesCoordinator;
            TunnelState::Connecting { attempt, since: SINCE, doing, why: None }
        };
        assert_eq!(told.news(&connecting(1)), News::default());
        assert_eq!(
            told.news(&up(Route::Relay, 0, Remarks::default())),
            News { begins: true, changed: true, lines: vec![] }
        );
        let direct = up(Route::Direct, 1, Remarks::default());
        assert_eq!(told.news(&direct), News { begins: false, changed: true, lines: vec![] });
        assert_eq!(told.news(&direct), News::default(), "another round trip");
        let moved = lines(&mut told, &up(Route::Relay, 2, Remarks::default()));
        assert_eq!(moved, ["moved, through the coordinator; nothing was lost"]);
    }

    #[test]
    fn what_threatens_a_session_is_told_once_and_so_is_its_end() {
        let mut told = Told::default();
        let says = |text: &str| Remarks { notice: Some(text.to_owned()), ..Remarks::default() };
        told.news(&up(Route::Relay, 0, Remarks::default()));
        let stops = up(Route::Relay, 0, says("it stops. hint: wait"));
        assert_eq!(lines(&mut told, &stops), ["up; it stops. wait"]);
        assert!(!told.news(&stops).changed);
        assert_eq!(lines(&mut told, &up(Route::Relay, 0, says("nobody follows"))), ["up; nobody follows"]);
        assert_eq!(
            lines(&mut told, &up(Route::Relay, 0, Remarks::default())),
            ["up; what threatened the session is over"]
        );
    }

    #[test]
    fn why_a_way_is_not_taken_is_told_when_that_begins_and_ends() {
        let mut told = Told::default();
        let not = |why: &str| Remarks { direct_why: Some(why.to_owned()), ..Remarks::default() };
        let alone = |why: &str| Remarks { standby_why: Some(why.to_owned()), ..Remarks::default() };
        told.news(&up(Route::Relay, 0, Remarks::default()));
        assert_eq!(
            lines(&mut told, &up(Route::Relay, 0, not("refused"))),
            ["up, not directly: refused (an attempt is under way)"]
        );
        let again = told.news(&up(Route::Relay, 0, not("silent")));
        assert!(again.changed && again.lines.is_empty(), "{again:?}");
        told.news(&up(Route::Direct, 1, Remarks::default()));
        assert_eq!(
            lines(&mut told, &up(Route::Direct, 1, alone("it is away"))),
            ["up, with no way through the coordinator behind it: it is away (an attempt is under way)"]
        );
        assert_eq!(
            lines(&mut told, &up(Route::Direct, 1, Remarks::default())),
            ["up, with a way through the coordinator again"]
        );
    }

    #[test]
    fn an_interruption_says_since_when_and_how_long_it_was() {
        let mut told = Told::default();
        let resuming = |last: Option<&str>| {
            let (why, last) = ("it broke".to_owned(), last.map(str::to_owned));
            TunnelState::Resuming { why, since: SINCE, attempt: 0, doing: None, last, retry_ms: 200, next: None }
        };
        told.news(&up(Route::Relay, 0, Remarks::default()));
        let text = "interrupted: it broke; everything waits for another connection since 1970-01-01T00:00:00Z (next attempt in 0.2 s)";
        assert_eq!(lines(&mut told, &resuming(None)), [text]);
        assert!(!told.news(&resuming(None)).changed);
        let not_direct = Remarks { direct_why: Some("refused".into()), ..Remarks::default() };
        let goes_on = lines(&mut told, &up(Route::Relay, 1, not_direct.clone()));
        assert_eq!(goes_on.len(), 2);
        told.news(&resuming(None));
        assert_eq!(lines(&mut told, &up(Route::Relay, 1, not_direct)).len(), 1, "why it does not go directly is known");
        told.news(&resuming(None));
        let goes_on = lines(&mut told, &up(Route::Relay, 1, Remarks::default()));
        assert!(
            goes_on[0].starts_with("goes on after ")
                && goes_on[0].ends_with(" s, through the coordinator; nothing was lost")
        );
        assert_eq!(
            lines(&mut told, &up(Route::Relay, 2, Remarks::default()))[0],
            "moved, through the coordinator; nothing was lost"
        );
    }

    #[test]
    fn who_waits_for_long_is_told_that_it_is_still_tried_and_less_and_less_often() {
        let mut told = Told::default();
        let refused = Some("refused. hint: wait".to_owned());
        let of = |attempt, retry_ms| TunnelState::Resuming {
            why: "it broke".to_owned(),
            // It is told with fractions of its own each time.
            since: SINCE + Duration::from_nanos(u64::from(attempt)),
            attempt,
            doing: None,
            last: refused.clone().filter(|_| (attempt, retry_ms) > (1, 0)),
            retry_ms,
            next: None,
        };
        told.news(&up(Route::Relay, 0, Remarks::default()));
        let mut said = lines(&mut told, &of(1, 0));
        for failed in 1..=20 {
            said.extend(lines(&mut told, &of(failed, 1500)));
            said.extend(lines(&mut told, &of(failed + 1, 0)));
        }
        let still = |attempts: &str| {
            format!(
                "interrupted since 1970-01-01T00:00:00Z: refused. wait ({attempts}, next in 1.5 s, and again until it is back)"
            )
        };
        assert!(said[0].ends_with("(an attempt is under way)"), "{said:?}");
        assert_eq!(said[1..], ["1 attempt", "4 attempts", "8 attempts", "16 attempts"].map(still));
    }

    #[test]
    fn why_it_is_down_is_told_once_and_programs_are_told_each_attempt() {
        let mut told = Told::default();
        let down =
            |why: &str, retry_ms| TunnelState::Waiting { why: why.to_owned(), retry_ms, next: SINCE, since: SINCE };
        let text = "down: refused (since 1970-01-01T00:00:00Z; next attempt in 0.2 s, and again until it is up)";
        assert_eq!(lines(&mut told, &down("refused", 200)), [text]);
        let again = told.news(&down("refused", 300));
        assert!(again.changed && again.lines.is_empty(), "{again:?}");
        assert_eq!(lines(&mut told, &down("silent", 300)).len(), 1);
    }
}
