//! The rotation of authorities, in three steps that each can be the last for a while: the next one is published, it begins
//! to sign, the former one is retired. Members are served all the while. Refuses a step that a member is not ready for, and
//! says which, unless it is told to go on.
//!
//! Whoever is not ready is not lost: each authority vouches for the one after it, so a member that comes back after two
//! rotations at the most finds the way by itself. Going on early costs it an attempt; waiting costs nothing.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use time::OffsetDateTime;

use super::authority::{self, AuthorityError};
use super::authority_store::{AuthorityRecord, MemberRecord};
use super::registry::Registry;
use super::rules::{Fault, internal, refuse, unix};
use super::store::moment;
use crate::identity::certificate::chain_pem;
use crate::identity::{Authority, KeyPin};
use crate::wire::{Refusal, RefusalCode};

/// Members that a refusal names; the others are counted.
const MAX_NAMED: usize = 10;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// There is a next authority, and members are told of it.
    Published,
    /// It signs.
    Switched,
    /// The one before it is believed no more.
    Retired,
}

/// When a step may be taken though members are not ready for it.
#[derive(Debug, Clone, Default)]
pub struct Patience {
    /// The next authority signs when it has been published for so long.
    pub overlap: Option<Duration>,
    /// At once.
    pub force: bool,
}

/// What an authority does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    /// It is published, and will sign.
    Next,
    /// It signs.
    Signs,
    /// It did, and is still believed.
    Former,
}

/// How things stand.
#[derive(Debug, Clone, Serialize)]
pub struct Rotation {
    /// Those in force, newest first.
    pub authorities: Vec<InForce>,
    /// The step that comes next.
    pub next: Step,
    /// Members that are not ready for it.
    pub waiting: Vec<Waiting>,
}

/// An authority in force.
#[derive(Debug, Clone, Serialize)]
pub struct InForce {
    /// What it does.
    pub duty: Duty,
    /// Its key.
    pub pin: KeyPin,
    /// Since when members are told of it.
    #[serde(with = "time::serde::rfc3339")]
    pub published: OffsetDateTime,
    /// Since when it signs, or when it began to.
    #[serde(with = "time::serde::rfc3339::option")]
    pub signs: Option<OffsetDateTime>,
}

/// A member that is not ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// `device` or `workspace`.
    pub what: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.what, self.name)
    }
}

impl From<AuthorityError> for Fault {
    fn from(error: AuthorityError) -> Fault {
        Fault::new(error.to_string())
    }
}

impl Registry {
    /// Takes the next step of a rotation, the first of one if none is under way. What serves notices by itself.
    pub async fn rotate(&self, patience: &Patience, now: SystemTime) -> Result<Step, Refusal> {
        let mut change = self.store().begin().await.map_err(internal)?;
        let records = change.authorities().await.map_err(internal)?;
        let members = change.members().await.map_err(internal)?;
        let dir = self.store().dir();
        authority::tidy(dir, &records).map_err(internal)?;
        let (step, waiting) = plan(&records, &members, unix(now));
        if !waiting.is_empty() && !patience.is_over(step, &records, unix(now)) {
            return refuse(RefusalCode::Unavailable, not_ready(step, &waiting));
        }
        let pin = match step {
            Step::Published => {
                let signing = authority::from_records(dir, &records).map_err(internal)?;
                let record = publish(signing.signing(), dir, now).map_err(internal)?;
                change.put_authority(&record).await.map_err(internal)?;
                record.pin
            }
            Step::Switched => {
                let next = find(&records, Duty::Next)?;
                // Without its key nothing could be signed any more.
                let key = authority::key(dir, next).map_err(internal)?;
                key.ok_or_else(|| internal("the key of the next authority, next.key, is missing"))?;
                change.sign_with(next, unix(now)).await.map_err(internal)?;
                next
            }
            Step::Retired => {
                let former = find(&records, Duty::Former)?;
                change.retire_authority(former, unix(now)).await.map_err(internal)?;
                former
            }
        };
        change.commit().await.map_err(internal)?;
        tracing::info!(target: "audit", event = "authority", ?step, %pin, not_ready = waiting.len());
        let mut change = self.store().begin().await.map_err(internal)?;
        let records = change.authorities().await.map_err(internal)?;
        authority::tidy(dir, &records).map_err(internal)?;
        self.reload(now).await.map_err(internal)?;
        Ok(step)
    }

    /// How things stand.
    pub async fn rotation(&self, now: SystemTime) -> Result<Rotation, Refusal> {
        let records = self.store().authorities().await.map_err(internal)?;
        let members = self.store().members().await.map_err(internal)?;
        let (next, waiting) = plan(&records, &members, unix(now));
        let in_force = |record: &AuthorityRecord| InForce {
            duty: duty(&records, record),
            pin: record.pin,
            published: moment(record.published),
            signs: record.signs.map(moment),
        };
        Ok(Rotation { authorities: authority::in_force(&records).map(in_force).collect(), next, waiting })
    }
}

impl Patience {
    fn is_over(&self, step: Step, records: &[AuthorityRecord], now: i64) -> bool {
        let overlap = self.overlap.map(|overlap| i64::try_from(overlap.as_secs()).unwrap_or(i64::MAX));
        let newest = authority::in_force(records).next();
        let is_over = || match (step, overlap, newest) {
            (Step::Switched, Some(overlap), Some(next)) => now >= next.published.saturating_add(overlap),
            _ => false,
        };
        self.force || is_over()
    }
}

/// The next step, and the members that are not ready for it.
fn plan(records: &[AuthorityRecord], members: &[MemberRecord], now: i64) -> (Step, Vec<Waiting>) {
    let has = |wanted| authority::in_force(records).find(|record| duty(records, record) == wanted);
    let not = |ready: &dyn Fn(&MemberRecord) -> bool| {
        let waiting = members.iter().filter(|member| !ready(member));
        waiting.map(|member| Waiting { what: member.what.clone(), name: member.name.clone() }).collect()
    };
    if let Some(next) = has(Duty::Next) {
        return (Step::Switched, not(&|member| member.trusts == Some(next.pin)));
    }
    match (has(Duty::Former), has(Duty::Signs)) {
        (Some(_), Some(signs)) => {
            let is_new = |member: &MemberRecord| member.authority == Some(signs.pin);
            // One whose certificate has ended needs another in any case.
            let has_ended = |member: &MemberRecord| member.ends.is_some_and(|ends| ends <= now);
            (Step::Retired, not(&|member| is_new(member) || has_ended(member)))
        }
        _ => (Step::Published, Vec::new()),
    }
}

fn duty(records: &[AuthorityRecord], record: &AuthorityRecord) -> Duty {
    match authority::signing(records) {
        Some(signing) if signing.pin == record.pin => Duty::Signs,
        _ if record.signs.is_some() => Duty::Former,
        _ => Duty::Next,
    }
}

fn find(records: &[AuthorityRecord], wanted: Duty) -> Result<KeyPin, Refusal> {
    let found = authority::in_force(records).find(|record| duty(records, record) == wanted);
    found.map(|record| record.pin).ok_or_else(|| internal("the authorities changed under a rotation"))
}

/// A next authority, whose key is kept, and for which the one that signs vouches.
fn publish(signing: &Authority, dir: &Path, now: SystemTime) -> Result<AuthorityRecord, AuthorityError> {
    let next = Authority::create(signing.domain().clone(), now)?;
    let crossed = chain_pem(&[signing.vouch(&next, now)?]);
    authority::keep_next(dir, &next)?;
    Ok(AuthorityRecord {
        pin: next.trust().ca_pin(),
        certificate: next.trust().to_pem(),
        crossed: Some(crossed),
        published: unix(now),
        signs: None,
        retired: None,
    })
}

/// The first of them by name, and how many more there are.
fn named(waiting: &[Waiting]) -> String {
    let named: Vec<String> = waiting.iter().take(MAX_NAMED).map(Waiting::to_string).collect();
    let more = match waiting.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    format!("{}{more}", named.join(", "))
}

fn not_ready(step: Step, waiting: &[Waiting]) -> String {
    let who = named(waiting);
    match step {
        Step::Retired => format!(
            "certificates by the former authority are still in use: {who}. hint: who is connected renews within a minute or \
             two, and the certificate of who is not ends by itself; --force refuses them until they have renewed, which they \
             do by themselves"
        ),
        Step::Published | Step::Switched => format!(
            "the next authority is not known yet to {who}. hint: who is connected learns of it within a minute or two; revoke \
             or remove who is gone; --overlap 7d waits no longer than that for the others, --force not at all: whoever is \
             away follows when it comes back"
        ),
    }
}

impl Rotation {
    /// Whom the next step waits for, and what they lack.
    pub fn waits_for(&self) -> String {
        let lack = match self.next {
            Step::Published | Step::Switched => "to know the next authority",
            Step::Retired => "to have a certificate by the one that signs",
        };
        let members = if self.waiting.len() == 1 { "1 member" } else { &format!("{} members", self.waiting.len()) };
        format!("{members} {lack}: {}", named(&self.waiting))
    }
}

/// For `show`: what an operator waits for, or does next.
impl fmt::Display for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for authority in &self.authorities {
            let duty = match authority.duty {
                Duty::Next => "next",
                Duty::Signs => "signs",
                Duty::Former => "former",
            };
            writeln!(f, "{duty:<8} {}", authority.pin)?;
        }
        let (done, step) = match self.next {
            Step::Published => return write!(f, "no rotation is under way"),
            Step::Switched => ("know the next authority", "lets it sign"),
            Step::Retired => ("have a certificate by the one that signs", "retires the former one"),
        };
        if self.waiting.is_empty() {
            return write!(f, "all members {done}: `nexus-coordinator authority rotate` {step}");
        }
        writeln!(f, "not all members {done}. Those that do not:")?;
        let names: Vec<String> = self.waiting.iter().map(|waiting| format!("  {waiting}")).collect();
        write!(f, "{}", names.join("\n"))
    }
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
