//! How a command fails: a sentence, what to do, and an exit code that a script can use.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::queue;
use crate::wire::{Refusal, RefusalCode};

/// Something went wrong.
pub const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
pub const USAGE: u8 = 2;
/// The other side is not there: nothing is up, no coordinator, no stub.
pub const UNAVAILABLE: u8 = 3;
/// It was refused: not declared, not allowed.
pub const REFUSED: u8 = 4;

/// A signal ended it before it was done: 128 and the number of SIGINT, as shells say it.
pub const INTERRUPTED: u8 = 130;

/// Nobody reads its output any more: 128 and the number of SIGPIPE, as shells say it.
#[cfg(any(feature = "proxy", feature = "stub"))]
pub const UNREAD: u8 = 141;

/// The table of exit codes, for `--help`.
pub const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not up or not reachable, \
    4 refused, 130 interrupted. `exec` passes the command's own code on; 125 is a failure of nexus-proxy, 126 a program that cannot be \
    executed, 127 one that does not exist, 128+N a signal N.";

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What happened and why; after `hint:` what to do. Nothing is said when it is empty.
    pub message: String,
}

impl Failure {
    /// A failure with its exit code.
    pub fn new(code: u8, message: impl std::fmt::Display) -> Failure {
        Failure { code, message: message.to_string() }
    }

    /// One of which nothing is said: who reads has gone, and wants no more.
    #[cfg(any(feature = "proxy", feature = "stub"))]
    pub fn unread() -> Failure {
        Failure::new(UNREAD, "")
    }

    /// What happened, and what to do.
    fn parts(&self) -> (&str, Option<&str>) {
        match self.message.split_once("hint: ") {
            Some((what, hint)) => (what.trim_end().trim_end_matches(['.', ';']), Some(hint)),
            None => (self.message.as_str(), None),
        }
    }

    /// As programs read it.
    pub fn json(&self) -> Value {
        let (what, hint) = self.parts();
        json!({"exit_code": self.code, "message": what, "hint": hint})
    }

    /// The other way.
    #[cfg(feature = "proxy")]
    pub fn from_json(error: &Value) -> Option<Failure> {
        let what = error["message"].as_str()?;
        let message = error["hint"].as_str().map_or_else(|| what.to_owned(), |hint| format!("{what}. hint: {hint}"));
        Some(Failure { code: error["exit_code"].as_u64()?.try_into().ok()?, message })
    }

    /// Prints it to standard error and gives the exit code, also where that takes nothing.
    pub fn report(self, json: bool) -> ExitCode {
        let (what, hint) = self.parts();
        if what.is_empty() {
            return ExitCode::from(self.code);
        }
        let text = if json {
            format!("{}\n", json!({"error": self.json()}))
        } else {
            use owo_colors::OwoColorize;
            let hint = hint.map(|hint| format!("{} {hint}\n", "hint:".cyan().bold())).unwrap_or_default();
            format!("{} {what}\n{hint}", "error:".red().bold())
        };
        queue::say_error(text.as_bytes());
        ExitCode::from(self.code)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let code = match refusal.code {
            RefusalCode::Unavailable => UNAVAILABLE,
            RefusalCode::NotDeclared | RefusalCode::Denied | RefusalCode::Misdirected => REFUSED,
            RefusalCode::InvalidArguments => USAGE,
            _ => FAILED,
        };
        Failure { code, message: refusal.message }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::new(FAILED, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "proxy")]
    #[test]
    fn what_programs_read_is_the_same_failure() {
        for message in ["it failed", "it failed. hint: try again", "it failed: a. hint: try b; or c"] {
            let failure = Failure::new(REFUSED, message);
            let read = Failure::from_json(&failure.json()).unwrap();
            assert_eq!((read.code, read.message.as_str()), (failure.code, message));
        }
        for broken in [json!({}), json!({"message": "a"}), json!({"message": "a", "exit_code": 256})] {
            assert!(Failure::from_json(&broken).is_none(), "{broken}");
        }
    }
}
