//! Which steps each kind of operation has, and what it leaves when it has succeeded.

use serde_json::Value;

use super::step::{Run, Step};
use super::{backup, create_tenant, migrate_fleet, restore_as_new, restore_in_place, suspend_tenant};
use crate::domain::operation::OperationKind;

/// In order; their number and names never change for a kind once operations of it exist.
pub(super) fn steps(kind: OperationKind) -> &'static [Step] {
    match kind {
        OperationKind::CreateTenant => create_tenant::STEPS,
        OperationKind::SuspendTenant => suspend_tenant::SUSPEND_STEPS,
        OperationKind::ResumeTenant => suspend_tenant::RESUME_STEPS,
        OperationKind::MigrateFleet => migrate_fleet::STEPS,
        OperationKind::Backup => backup::STEPS,
        OperationKind::RestoreInPlace => restore_in_place::STEPS,
        OperationKind::RestoreAsNew => restore_as_new::STEPS,
    }
}

pub(super) fn step_names(kind: OperationKind) -> Vec<&'static str> {
    steps(kind).iter().map(|step| step.name).collect()
}

/// What callers get: the output of the step that made the thing.
pub(super) fn result(run: &Run) -> Value {
    let step = match run.operation.kind {
        OperationKind::CreateTenant | OperationKind::RestoreAsNew => "activate",
        OperationKind::SuspendTenant => "close",
        OperationKind::ResumeTenant => "open",
        OperationKind::MigrateFleet => "finish",
        OperationKind::Backup => "complete",
        OperationKind::RestoreInPlace => "record",
    };
    run.outputs.get(step).cloned().unwrap_or_default()
}
