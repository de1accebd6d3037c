//! Denials in the audit log. The first of a kind is appended before its answer is given; its repetitions are counted,
//! and appended as one row when the minute is over. So a flood of bad keys fills neither the table nor the memory, and
//! none of its calls is left out of the count. Nor can whoever has no key at all hide with one what callers are denied
//! who have one: nobody's denials have a part of their own.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::limits::{Bucket, Rate};
use super::outage::Outage;
use crate::accounts::{Accounts, AuditEvent, Outcome};

pub(super) const WINDOW: Duration = Duration::from_mins(1);
/// Kinds that are told apart within a minute; the rest is counted together.
const KINDS_MAX: usize = 256;
/// Of these, nobody's.
const NOBODYS_KINDS_MAX: usize = KINDS_MAX / 2;
/// Rows that are appended while their callers wait.
const APPEND_RATE: Rate = Rate { interval: Duration::from_millis(100), burst: 50 };
/// How long a caller waits for its denial to be written down.
const APPEND_MAX: Duration = Duration::from_secs(2);
/// Tenants that a row names.
const TENANTS_MAX: usize = 16;
/// Of a text that a caller chose.
const CHARACTERS_MAX: usize = 200;
/// Who is nobody.
const NOBODY: &str = "unauthenticated";
const OTHERS: &str = "others";

/// A call that was refused.
#[derive(Debug, Clone)]
pub struct Denial<'a> {
    /// `None`: nobody who is known.
    pub principal: Option<&'a str>,
    pub user: Option<Uuid>,
    /// As `/tenantd.v1.TenantService/GetTenant`.
    pub path: &'a str,
    pub reason: &'a str,
    /// Whose tenant the caller may not reach, as the caller named it.
    pub tenant: Option<String>,
    pub address: Option<IpAddr>,
    pub user_agent: Option<&'a str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    principal: String,
    user: Option<Uuid>,
    action: String,
    reason: String,
    address: Option<IpAddr>,
}

/// The first denial of its kind.
#[derive(Debug)]
pub(super) struct First {
    kind: Kind,
    calls: Calls,
    user_agent: Option<String>,
}

#[derive(Debug, Clone, Default)]
struct Calls {
    count: u64,
    /// Some of those that were named.
    tenants: BTreeSet<String>,
}

impl Calls {
    fn add(&mut self, other: Self) {
        self.count += other.count;
        for tenant in other.tenants {
            if self.tenants.len() < TENANTS_MAX {
                self.tenants.insert(tenant);
            }
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Denials {
    /// Calls of each kind that are not in the log yet.
    counts: Mutex<HashMap<Kind, Calls>>,
    appends: Bucket,
    nobodys_appends: Bucket,
}

impl Denials {
    fn counts(&self) -> MutexGuard<'_, HashMap<Kind, Calls>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be written down at once; otherwise the denial is counted.
    pub(super) fn note(&self, denial: &Denial<'_>) -> Option<First> {
        let (kind, tenants) = (kind(denial), denial.tenant.as_deref().map(short).into_iter().collect());
        let calls = Calls { count: 1, tenants };
        self.is_first(&kind, &calls).then(|| First { user_agent: denial.user_agent.map(short), kind, calls })
    }

    /// Writes it down. What cannot be written down is counted.
    pub(super) async fn append(&self, first: First, accounts: &Accounts, outage: &Outage) {
        let event = AuditEvent { user_agent: first.user_agent, ..event(&first.kind, &first.calls) };
        if outage.ask(APPEND_MAX, accounts.audit_append(&[event])).await.is_err() {
            self.counts().entry(first.kind).or_default().add(first.calls);
        }
    }

    /// Whether the kind is new and may be appended at once; otherwise it is counted.
    fn is_first(&self, kind: &Kind, calls: &Calls) -> bool {
        let mut counts = self.counts();
        if let Some(counted) = counts.get_mut(kind) {
            counted.add(calls.clone());
            return false;
        }
        let is_nobodys = |kind: &Kind| kind.principal == NOBODY;
        let is_one = is_nobodys(kind);
        if counts.len() >= KINDS_MAX
            || (is_one && counts.keys().filter(|kind| is_nobodys(kind)).count() >= NOBODYS_KINDS_MAX)
        {
            counts.entry(others()).or_default().add(calls.clone());
            return false;
        }
        let appends = if is_one { &self.nobodys_appends } else { &self.appends };
        let is_now = appends.take(APPEND_RATE).is_ok();
        counts.insert(kind.clone(), if is_now { Calls::default() } else { calls.clone() });
        is_now
    }

    /// Appends what was counted. What cannot be appended is counted on.
    pub(super) async fn flush(&self, accounts: &Accounts) {
        let counted: Vec<(Kind, Calls)> = self.counts().drain().filter(|(_, calls)| calls.count > 0).collect();
        if counted.is_empty() {
            return;
        }
        let events: Vec<AuditEvent> = counted.iter().map(|(kind, calls)| event(kind, calls)).collect();
        let Err(error) = accounts.audit_append(&events).await else { return };
        let calls: u64 = counted.iter().map(|(_, calls)| calls.count).sum();
        tracing::warn!(%error, calls, "denials could not be written to the audit log yet");
        let mut counts = self.counts();
        for (kind, calls) in counted {
            let place = if counts.len() < KINDS_MAX { kind } else { others() };
            counts.entry(place).or_default().add(calls);
        }
    }
}

fn kind(denial: &Denial<'_>) -> Kind {
    let path = denial.path.strip_prefix("/tenantd.v1.").unwrap_or(denial.path);
    Kind {
        principal: denial.principal.unwrap_or(NOBODY).to_owned(),
        user: denial.user,
        // Whoever is nobody could name a thousand methods.
        action: if denial.principal.is_some() { short(path) } else { "authenticate".to_owned() },
        reason: denial.reason.to_owned(),
        address: denial.address,
    }
}

fn short(text: &str) -> String {
    text.chars().take(CHARACTERS_MAX).filter(|c| !c.is_control()).collect()
}

fn others() -> Kind {
    Kind { principal: OTHERS.to_owned(), user: None, action: OTHERS.to_owned(), reason: String::new(), address: None }
}

fn event(kind: &Kind, calls: &Calls) -> AuditEvent {
    AuditEvent {
        occurred_at: OffsetDateTime::now_utc(),
        principal: kind.principal.clone(),
        user: kind.user,
        tenant: None,
        action: kind.action.clone(),
        resource_type: "",
        resource_id: String::new(),
        outcome: Outcome::Denied,
        request_id: None,
        address: kind.address,
        user_agent: None,
        details: json!({ "reason": kind.reason, "calls": calls.count, "tenants": calls.tenants }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(principal: &str) -> Denial<'_> {
        Denial {
            principal: Some(principal),
            user: None,
            path: "/tenantd.v1.TenantService/GetTenant",
            reason: "PERMISSION_DENIED",
            tenant: Some("acme".to_owned()),
            address: None,
            user_agent: None,
        }
    }

    #[test]
    fn the_first_of_a_kind_is_written_and_the_rest_is_counted() {
        let denials = Denials::default();
        let one = kind(&denial("api-key:ci"));
        assert_eq!(one.action, "TenantService/GetTenant");
        assert!(denials.note(&denial("api-key:ci")).is_some());
        for number in 0..100 {
            let again = Denial { tenant: Some(format!("t{number}")), ..denial("api-key:ci") };
            assert!(denials.note(&again).is_none());
        }
        let counts = denials.counts();
        assert_eq!((counts[&one].count, counts[&one].tenants.len()), (100, TENANTS_MAX));
    }

    #[test]
    fn a_flood_is_bounded_and_counted_whole() {
        let denials = Denials::default();
        let names: Vec<String> = (0..1_000).map(|number| format!("p{number}")).collect();
        let written = names.iter().filter(|name| denials.note(&denial(name)).is_some()).count() as u64;
        assert!(written < 100);
        assert!(denials.counts().len() <= KINDS_MAX + 1);
        assert_eq!(written + denials.counts().values().map(|calls| calls.count).sum::<u64>(), 1_000);
    }

    #[test]
    fn a_flood_of_nobodys_hides_no_callers_denials() {
        let denials = Denials::default();
        let nobodys = |number: u32| Denial { principal: None, address: Some(IpAddr::V4(number.into())), ..denial("") };
        for number in 0..10_000 {
            drop(denials.note(&nobodys(number)));
        }
        let caller = denial("api-key:stolen");
        assert!(denials.note(&caller).is_some(), "it is written at once");
        assert!(denials.note(&caller).is_none());
        assert_eq!(denials.counts()[&kind(&caller)].count, 1);
    }
}
