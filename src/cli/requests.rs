//! The forwards that an `up` has from the beginning: where they come from, and which of them a refusal may end it for.

use serde_json::json;

use super::output::Output;
use super::proxy::show_forward;
use super::way::within_line;
use crate::role::proxy::daemon::Daemon;
use crate::role::proxy::forwards::{ForwardRequest, Refused};
use crate::service::dial::Place;
use crate::wire::Refusal;

/// The forwards that an `up` has from the beginning.
pub struct Requests {
    /// Its own, which go to the program that takes over: those from the command line, then what was handed to this one.
    pub own: Vec<ForwardRequest>,
    /// How many of its own are from the command line.
    given: usize,
    /// Those of the configuration, which the program that takes over reads itself.
    pub configured: Vec<ForwardRequest>,
}

impl Requests {
    /// Those that are `given` on the command line, and those of the configuration.
    pub fn new(given: Vec<ForwardRequest>, configured: Vec<ForwardRequest>) -> Requests {
        Requests { given: given.len(), own: given, configured }
    }

    /// All of them.
    pub fn all(&self) -> Vec<ForwardRequest> {
        [&self.own[..], &self.configured].concat()
    }

    /// Adds those that listen in `place`: on the laptop they can at once, and in the workspace when there is a session. In the
    /// first life of this program a refusal of what it was asked for ends what has begun. What was another program's, or went on
    /// in an earlier life of this one, may be refused for a moment: that ends nothing.
    pub async fn add(&self, place: Place, daemon: &Daemon, is_first: bool, output: Output) -> Result<(), Refusal> {
        let all = self.own.iter().chain(&self.configured).enumerate();
        for (index, request) in all.filter(|(_, request)| request.kind.listens() == place) {
            let (is_own, is_handed) = (index < self.own.len(), (self.given..self.own.len()).contains(&index));
            let begins = is_first && !is_handed && request.at.is_none();
            let refused = if begins { Refused::Ends } else { Refused::Waits };
            let added = match is_own {
                true => daemon.forwards().add_own(request, refused).await,
                false => daemon.forwards().add(request, refused).await,
            };
            let error = match added {
                Ok(status) => {
                    show_forward(output, &status);
                    // There is no session yet: that the tunnel is down is no refusal of the port.
                    daemon.forwards().refusal(status.id)
                }
                Err(refusal) if refused == Refused::Ends => return Err(refusal),
                Err(refusal) => Some(refusal.message),
            };
            if let Some(error) = error.filter(|_| refused == Refused::Waits) {
                let text = format!("{} {}: {}", request.kind.flag(), request.spec, within_line(&error));
                let json = json!({"event": "forward_refused", "forward": request, "error": error});
                output.line("forward", &text, &json);
            }
        }
        Ok(())
    }
}
