//! The states of a tenant and the one table of what may follow what. Nothing else decides a transition;
//! the catalog applies it in one transaction.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a tenant stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TenantState {
    Provisioning,
    Active,
    Maintenance,
    Suspended,
    Deleted,
    Purged,
    Failed,
}

/// A change of state, named by its verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transition {
    Activate,
    EnterMaintenance,
    ExitMaintenance,
    Suspend,
    Resume,
    Delete,
    Undelete,
    Purge,
    Fail,
}

/// A transition that the table does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a tenant in state {state} cannot {verb}; that needs one of {}", join(.allowed))]
pub struct IllegalTransition {
    pub state: TenantState,
    pub verb: &'static str,
    pub allowed: Vec<TenantState>,
}

fn join(states: &[TenantState]) -> String {
    states.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl TenantState {
    pub const ALL: [Self; 7] = [
        Self::Provisioning,
        Self::Active,
        Self::Maintenance,
        Self::Suspended,
        Self::Deleted,
        Self::Purged,
        Self::Failed,
    ];

    /// States in which the tenant's database is there to be migrated.
    pub const MIGRATABLE: [Self; 3] = [Self::Active, Self::Maintenance, Self::Suspended];

    /// As stored in the catalog and shown to people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Provisioning => "PROVISIONING",
            Self::Active => "ACTIVE",
            Self::Maintenance => "MAINTENANCE",
            Self::Suspended => "SUSPENDED",
            Self::Deleted => "DELETED",
            Self::Purged => "PURGED",
            Self::Failed => "FAILED",
        }
    }

    /// The state after `transition`, or what would have been needed.
    pub fn after(self, transition: Transition) -> Result<Self, IllegalTransition> {
        let (verb, from, to) = transition.rule();
        if from.contains(&self) {
            return Ok(to);
        }
        Err(IllegalTransition { state: self, verb, allowed: from.to_vec() })
    }
}

impl Transition {
    /// The verb, the states that it may start from, and the state that it ends in.
    fn rule(self) -> (&'static str, &'static [TenantState], TenantState) {
        use TenantState::{Active, Deleted, Failed, Maintenance, Provisioning, Purged, Suspended};
        match self {
            Self::Activate => ("be activated", &[Provisioning], Active),
            Self::EnterMaintenance => ("enter maintenance", &[Active], Maintenance),
            Self::ExitMaintenance => ("exit maintenance", &[Maintenance], Active),
            Self::Suspend => ("be suspended", &[Active], Suspended),
            Self::Resume => ("be resumed", &[Suspended], Active),
            Self::Delete => ("be deleted", &[Active, Suspended, Failed], Deleted),
            Self::Undelete => ("be undeleted", &[Deleted], Active),
            Self::Purge => ("be purged", &[Deleted], Purged),
            Self::Fail => ("fail", &[Provisioning, Active, Maintenance, Suspended, Deleted], Failed),
        }
    }
}

impl fmt::Display for TenantState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A state's name that is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no tenant state")]
pub struct UnknownState(String);

impl FromStr for TenantState {
    type Err = UnknownState;

    fn from_str(name: &str) -> Result<Self, UnknownState> {
        Self::ALL.into_iter().find(|state| state.name() == name).ok_or_else(|| UnknownState(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_would_be_allowed() {
        let refusal = TenantState::Suspended.after(Transition::Suspend).unwrap_err();
        assert_eq!(refusal.allowed, [TenantState::Active]);
        assert_eq!(refusal.to_string(), "a tenant in state SUSPENDED cannot be suspended; that needs one of ACTIVE");
    }

    #[test]
    fn purged_is_the_end() {
        let all = [
            Transition::Activate,
            Transition::EnterMaintenance,
            Transition::ExitMaintenance,
            Transition::Suspend,
            Transition::Resume,
            Transition::Delete,
            Transition::Undelete,
            Transition::Purge,
            Transition::Fail,
        ];
        assert!(all.into_iter().all(|transition| TenantState::Purged.after(transition).is_err()));
    }

    #[test]
    fn names_read_back() {
        for state in TenantState::ALL {
            assert_eq!(state.name().parse(), Ok(state));
        }
    }
}
