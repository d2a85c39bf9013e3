//! Output on standard output: aligned lines for people, JSON lines for programs.

use owo_colors::OwoColorize;
use serde_json::Value;

use super::queue;

/// So many of something, in words: `1 session`, `2 sessions`.
#[cfg(any(feature = "proxy", feature = "stub"))]
pub fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Where a command's output goes.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    /// Output as `--json` says.
    pub fn new(json: bool) -> Output {
        Output { json }
    }

    /// Whether programs read it.
    #[cfg(any(feature = "proxy", feature = "stub"))]
    pub fn is_json(self) -> bool {
        self.json
    }

    /// A line: `label  text`, or the JSON object `value`. A reader that is gone is no error. It stays one line, whatever
    /// a peer has put into the text: a second one would look like ours.
    pub fn line(self, label: &str, text: &str, value: &Value) {
        let text = text.replace('\n', " ");
        let line = if self.json { format!("{value}\n") } else { format!("  {:<12} {text}\n", label.bold()) };
        queue::say(line.as_bytes());
    }

    /// A text as it is, or the JSON object `value`.
    pub fn plain(self, text: &str, value: &Value) {
        let text = if self.json { format!("{value}\n") } else { format!("{text}\n") };
        queue::say(text.as_bytes());
    }
}
