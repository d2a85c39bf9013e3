//! Words about ways and times, as `up` and both `status` commands say them.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::lifeline::Route;

/// The way that bytes take, and its length.
pub fn path_text(path: Route, round_trip_ms: Option<f64>) -> String {
    let way = match path {
        Route::Relay => "through the coordinator",
        Route::Direct => "directly",
    };
    round_trip_ms.map_or_else(|| way.to_owned(), |ms| format!("{way}, {ms:.1} ms there and back"))
}

/// A time to the second; fractions help nobody.
pub fn second(time: OffsetDateTime) -> String {
    time.replace_nanosecond(0).unwrap_or(time).format(&Rfc3339).unwrap_or_default()
}

/// When the next attempt is; without a time, and when it is past, the attempt is under way.
pub fn next_attempt(next: Option<OffsetDateTime>) -> String {
    let wait = next.map(|next| (next - OffsetDateTime::now_utc()).as_seconds_f64());
    match wait {
        Some(wait) if wait > 0.0 => format!("next attempt in {wait:.1} s"),
        _ => "an attempt is under way".to_owned(),
    }
}

/// A reason within a line that says more: its hint loses the mark of one.
pub fn within_line(why: &str) -> String {
    why.replace("hint: ", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short_and_what_is_past_is_under_way() {
        let time = OffsetDateTime::UNIX_EPOCH + std::time::Duration::from_millis(1500);
        assert_eq!(second(time), "1970-01-01T00:00:01Z");
        assert_eq!(next_attempt(Some(time)), "an attempt is under way");
        assert_eq!(next_attempt(None), "an attempt is under way");
        let later = OffsetDateTime::now_utc() + std::time::Duration::from_secs(3600);
        assert!(next_attempt(Some(later)).starts_with("next attempt in 3"));
    }
}
