//! What a person who started `up` is told of the tunnel as it changes: each thing once, since when, why, and what is next.

use std::time::Duration;

use time::OffsetDateTime;

use super::way::{next_attempt, path_text, second, within_line};
use crate::lifeline::Route;
use crate::role::proxy::tunnel_state::{Remarks, TunnelState};

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
        last: Option<String>,
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
            TunnelState::Resuming { last, .. } => Said::Resuming { last: last.clone() },
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
            TunnelState::Resuming { why, since, last, retry_ms, .. } => {
                self.gone = Some(*since);
                let last = last.as_deref().map(|last| format!("; {}", within_line(last))).unwrap_or_default();
                let next = if *retry_ms > 0 { format!(", tried in {}", seconds(*retry_ms)) } else { String::new() };
                let since = second(*since);
                news.lines.push(format!(
                    "interrupted: {why}; everything waits for another connection since {since}{next}{last}"
                ));
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
    lines
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
    fn why_a_way_is_not_taken_is_told_when_that_begins() {
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
    }

    #[test]
    fn an_interruption_says_since_when_and_how_long_it_was() {
        let mut told = Told::default();
        let resuming = |last: Option<&str>| {
            let (why, last) = ("it broke".to_owned(), last.map(str::to_owned));
            TunnelState::Resuming { why, since: SINCE, attempt: 1, last, retry_ms: 200, next: None }
        };
        told.news(&up(Route::Relay, 0, Remarks::default()));
        let text =
            "interrupted: it broke; everything waits for another connection since 1970-01-01T00:00:00Z, tried in 0.2 s";
        assert_eq!(lines(&mut told, &resuming(None)), [text]);
        assert!(!told.news(&resuming(None)).changed);
        assert_eq!(lines(&mut told, &resuming(Some("refused"))), [format!("{text}; refused")]);
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
