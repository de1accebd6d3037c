//! Migrations as values: a file's name, its version, and where a rollout and each of its targets stand.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::named::named;

/// One file of a migration directory that has passed the gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationFile {
    pub version: i64,
    /// The part of the file name between `V<version>__` and `.sql`.
    pub name: String,
    pub sql: String,
}

impl MigrationFile {
    pub fn file_name(&self) -> String {
        format!("V{}__{}.sql", self.version, self.name)
    }
}

/// What one tenant needs of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Current,
    Behind,
    /// The tenant has versions that the directory does not: reported, never changed.
    Ahead,
}

/// Where a tenant at `version` stands against a directory whose newest version is `target`.
pub fn standing(version: i64, target: i64) -> Standing {
    match version.cmp(&target) {
        std::cmp::Ordering::Less => Standing::Behind,
        std::cmp::Ordering::Equal => Standing::Current,
        std::cmp::Ordering::Greater => Standing::Ahead,
    }
}

named! {
    /// Where a rollout stands.
    RolloutState, "rollout state", {
        Running => "RUNNING",
        // Its operation needs help; said of one that is persisted as running.
        Stuck => "STUCK",
        Succeeded => "SUCCEEDED",
        Partial => "PARTIAL",
        Halted => "HALTED",
        Failed => "FAILED",
    }
}

named! {
    /// Where one tenant stands in a rollout.
    TargetState, "rollout target state", {
        Pending => "PENDING",
        Running => "RUNNING",
        Migrated => "MIGRATED",
        Failed => "FAILED",
        Skipped => "SKIPPED",
        Ahead => "AHEAD",
        Current => "CURRENT",
    }
}

/// How a rollout ends, from the states that its targets ended in. One whose tenant went away while it was being made is
/// skipped, and no failure.
pub fn rollout_outcome(counts: &BTreeMap<&'static str, i64>, failures_max: i64) -> RolloutState {
    let of = |state: TargetState| counts.get(state.name()).copied().unwrap_or(0);
    let failed = of(TargetState::Failed);
    if failed > failures_max {
        RolloutState::Halted
    } else if failed > 0 {
        RolloutState::Partial
    } else {
        RolloutState::Succeeded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_within_the_budget_are_partial_and_beyond_it_halt() {
        let counts = |failed, skipped| BTreeMap::from([("MIGRATED", 3), ("FAILED", failed), ("SKIPPED", skipped)]);
        assert_eq!(rollout_outcome(&counts(0, 0), 0), RolloutState::Succeeded);
        assert_eq!(rollout_outcome(&counts(1, 0), 1), RolloutState::Partial);
        assert_eq!(rollout_outcome(&counts(1, 0), 0), RolloutState::Halted);
        assert_eq!(rollout_outcome(&counts(1, 4), 0), RolloutState::Halted);
        assert_eq!(rollout_outcome(&counts(0, 1), 0), RolloutState::Succeeded);
    }
}
