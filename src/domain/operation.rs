//! Operations as values: kinds, states, steps. The engine that drives them is `operations`.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::named::named;

/// An operation's id (UUID version 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(pub Uuid);

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

named! {
    /// What an operation does.
    OperationKind, "operation kind", {
        CreateTenant => "create_tenant",
        SuspendTenant => "suspend_tenant",
        ResumeTenant => "resume_tenant",
        MigrateFleet => "migrate_fleet",
        Backup => "backup",
        RestoreInPlace => "restore_in_place",
        RestoreAsNew => "restore_as_new",
    }
}

impl OperationKind {
    /// Whether the tenant may be migrated meanwhile, by a rollout that does not pause it.
    pub fn is_beside_migrations(self) -> bool {
        matches!(self, Self::Backup | Self::MigrateFleet)
    }

    /// Whether it makes the tenant that it is about.
    pub fn makes_tenant(self) -> bool {
        matches!(self, Self::CreateTenant | Self::RestoreAsNew)
    }
}

named! {
    /// Where an operation stands.
    OperationState, "operation state", {
        Pending => "PENDING",
        Running => "RUNNING",
        Succeeded => "SUCCEEDED",
        Failed => "FAILED",
        Cancelled => "CANCELLED",
        Stuck => "STUCK",
    }
}

impl OperationState {
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Stuck)
    }
}

named! {
    /// Where a step stands.
    StepState, "step state", {
        Pending => "PENDING",
        Running => "RUNNING",
        Done => "DONE",
        Undoing => "UNDOING",
        Undone => "UNDONE",
        Failed => "FAILED",
    }
}
