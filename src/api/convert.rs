//! Between the domain's values and the protobuf messages. Nothing here decides anything.

use prost_types::{ListValue, Struct, Timestamp, Value as ProstValue, value::Kind};
use serde_json::Value;
use time::OffsetDateTime;
use tonic::Status;
use uuid::Uuid;

use super::status::{self, BadField};
use crate::accounts::ApiKey;
use crate::catalog::{Backup, Operation, OperationStep, Rollout, RolloutTarget, Tenant, TenantRef};
use crate::domain::backup::TableDigest;
use crate::domain::lifecycle::TenantState;
use crate::domain::migration::{RolloutState, TargetState};
use crate::domain::operation::{OperationState, StepState};
use crate::domain::page::Page;
use crate::domain::principal::Scope;
use crate::domain::tenant::TenantId;
use crate::operations::{Failure, Request};
use crate::proto::v1;

pub(super) fn timestamp(moment: OffsetDateTime) -> Timestamp {
    Timestamp { seconds: moment.unix_timestamp(), nanos: i32::try_from(moment.nanosecond()).unwrap_or_default() }
}

pub(super) fn moment(timestamp: Timestamp) -> Option<OffsetDateTime> {
    let nanoseconds = i128::from(timestamp.seconds) * 1_000_000_000 + i128::from(timestamp.nanos);
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()
}

/// A page as it is asked for.
pub(super) fn page(size: i32, token: String) -> Result<Page, Status> {
    if size < 0 {
        return Err(status::invalid(vec![("page_size", format!("{size} is negative"))]));
    }
    Ok(Page { size: size.into(), after: (!token.is_empty()).then_some(token) })
}

/// What one page may take, so that it fits into the 4 MiB that clients take if they are not told otherwise.
const PAGE_BYTES_MAX: usize = 3 << 20;

/// A page's messages and the token of the next page: as many as fit, and at least one.
pub(super) fn page_cut<M: prost::Message>(
    mut messages: Vec<M>,
    next: Option<String>,
    token: impl Fn(&M) -> String,
) -> (Vec<M>, String) {
    let count = page_cut_at(&messages);
    if count >= messages.len() {
        return (messages, next.unwrap_or_default());
    }
    messages.truncate(count);
    let next = messages.last().map(token).unwrap_or_default();
    (messages, next)
}

/// How many of these messages fit into one page, and at least one.
pub(super) fn page_cut_at<M: prost::Message>(messages: &[M]) -> usize {
    let mut bytes = 0;
    let fits = messages.iter().take_while(|message| {
        bytes += message.encoded_len();
        bytes <= PAGE_BYTES_MAX
    });
    fits.count().max(1)
}

/// What every mutation says about itself.
pub(super) fn request(caller: String, request_id: &str, validate_only: bool) -> Result<Request, Status> {
    Ok(Request { request_id: self::request_id(request_id)?, validate_only, caller })
}

/// The client's idempotency key; none when it is empty.
pub(super) fn request_id(text: &str) -> Result<Option<Uuid>, Status> {
    if text.is_empty() { Ok(None) } else { uuid("request_id", text).map(Some) }
}

pub(super) fn uuid(field: &'static str, text: &str) -> Result<Uuid, Status> {
    let bad = |_| -> BadField { (field, format!("{text:?} is no UUID")) };
    text.parse().map_err(|error: uuid::Error| status::invalid(vec![bad(error)]))
}

/// A tenant's id or code. A text that is neither names no tenant.
pub(super) fn tenant_ref(text: &str) -> Result<TenantRef, Status> {
    if text.is_empty() {
        return Err(status::invalid(vec![("tenant", "a tenant's id or code is needed".to_owned())]));
    }
    match text.parse::<Uuid>() {
        Ok(id) => Ok(TenantRef::Id(TenantId(id))),
        Err(_) => text
            .parse()
            .map(TenantRef::Code)
            .map_err(|error: crate::domain::tenant::NameError| status::invalid(vec![("tenant", error.to_string())])),
    }
}

/// Where a statement runs.
pub(super) fn target(number: i32) -> Result<v1::Target, Status> {
    v1::Target::try_from(number).map_err(|_unknown| status::invalid(vec![("target", format!("{number} is no target"))]))
}

pub(super) fn isolation_level(number: i32) -> Result<v1::IsolationLevel, Status> {
    v1::IsolationLevel::try_from(number)
        .map_err(|_unknown| status::invalid(vec![("isolation_level", format!("{number} is no isolation level"))]))
}

pub(super) fn tenant(tenant: Tenant) -> v1::Tenant {
    v1::Tenant {
        tenant_id: tenant.id.to_string(),
        code: tenant.code.into(),
        name: tenant.name,
        state: tenant_state(tenant.state).into(),
        tier: tenant.tier,
        server: tenant.server,
        database: tenant.database.into(),
        epoch: tenant.epoch,
        schema_version: tenant.schema_version,
        hosts: tenant.hosts,
        legal_name: tenant.legal_name.unwrap_or_default(),
        siret: tenant.siret.unwrap_or_default(),
        vat_number: tenant.vat_number.unwrap_or_default(),
        create_time: Some(timestamp(tenant.created_at)),
        update_time: Some(timestamp(tenant.updated_at)),
        suspend_reason: tenant.suspend_reason.unwrap_or_default(),
        etag: tenant.revision.to_string(),
    }
}

pub(super) fn tenant_state(state: TenantState) -> v1::TenantState {
    match state {
        TenantState::Provisioning => v1::TenantState::Provisioning,
        TenantState::Active => v1::TenantState::Active,
        TenantState::Maintenance => v1::TenantState::Maintenance,
        TenantState::Suspended => v1::TenantState::Suspended,
        TenantState::Deleted => v1::TenantState::Deleted,
        TenantState::Purged => v1::TenantState::Purged,
        TenantState::Failed => v1::TenantState::Failed,
    }
}

/// The state to filter by; none when it is not set.
pub(super) fn tenant_state_of(number: i32) -> Result<Option<TenantState>, Status> {
    let state = match v1::TenantState::try_from(number) {
        Ok(v1::TenantState::Unspecified) => return Ok(None),
        Ok(v1::TenantState::Provisioning) => TenantState::Provisioning,
        Ok(v1::TenantState::Active) => TenantState::Active,
        Ok(v1::TenantState::Maintenance) => TenantState::Maintenance,
        Ok(v1::TenantState::Suspended) => TenantState::Suspended,
        Ok(v1::TenantState::Deleted) => TenantState::Deleted,
        Ok(v1::TenantState::Purged) => TenantState::Purged,
        Ok(v1::TenantState::Failed) => TenantState::Failed,
        Err(_) => return Err(status::invalid(vec![("state", format!("{number} is no state"))])),
    };
    Ok(Some(state))
}

pub(super) fn operation(operation: Operation) -> v1::Operation {
    let failure = operation.error.as_ref().map(Failure::read);
    v1::Operation {
        operation_id: operation.id.to_string(),
        kind: operation.kind.to_string(),
        tenant_id: operation.tenant.map(|id| id.to_string()).unwrap_or_default(),
        tenant_code: operation.tenant_code.map(String::from).unwrap_or_default(),
        request_id: operation.request_id.to_string(),
        state: operation_state(operation.state).into(),
        steps: operation.steps.into_iter().map(step).collect(),
        result: operation.result.and_then(object),
        error: failure.map(|Failure { reason, message, step, .. }| v1::OperationError { reason, message, step }),
        create_time: Some(timestamp(operation.created_at)),
        end_time: operation.ended_at.map(timestamp),
        created_by: operation.created_by,
    }
}

fn operation_state(state: OperationState) -> v1::OperationState {
    match state {
        OperationState::Pending => v1::OperationState::Pending,
        OperationState::Running => v1::OperationState::Running,
        OperationState::Succeeded => v1::OperationState::Succeeded,
        OperationState::Failed => v1::OperationState::Failed,
        OperationState::Cancelled => v1::OperationState::Cancelled,
        OperationState::Stuck => v1::OperationState::Stuck,
    }
}

/// The state to filter by; none when it is not set.
pub(super) fn operation_state_of(number: i32) -> Result<Option<OperationState>, Status> {
    let state = match v1::OperationState::try_from(number) {
        Ok(v1::OperationState::Unspecified) => return Ok(None),
        Ok(v1::OperationState::Pending) => OperationState::Pending,
        Ok(v1::OperationState::Running) => OperationState::Running,
        Ok(v1::OperationState::Succeeded) => OperationState::Succeeded,
        Ok(v1::OperationState::Failed) => OperationState::Failed,
        Ok(v1::OperationState::Cancelled) => OperationState::Cancelled,
        Ok(v1::OperationState::Stuck) => OperationState::Stuck,
        Err(_) => return Err(status::invalid(vec![("state", format!("{number} is no state"))])),
    };
    Ok(Some(state))
}

fn step(step: OperationStep) -> v1::OperationStep {
    let state = match step.state {
        StepState::Pending => v1::OperationStepState::Pending,
        StepState::Running => v1::OperationStepState::Running,
        StepState::Done => v1::OperationStepState::Done,
        StepState::Undoing => v1::OperationStepState::Undoing,
        StepState::Undone => v1::OperationStepState::Undone,
        StepState::Failed => v1::OperationStepState::Failed,
    };
    v1::OperationStep {
        name: step.name,
        state: state.into(),
        attempts: step.attempts,
        start_time: step.started_at.map(timestamp),
        end_time: step.ended_at.map(timestamp),
        detail: step.detail,
    }
}

/// A JSON object as a protobuf struct; anything else is no result.
fn object(value: Value) -> Option<Struct> {
    let Value::Object(fields) = value else { return None };
    Some(Struct { fields: fields.into_iter().map(|(name, value)| (name, json(value))).collect() })
}

fn json(value: Value) -> ProstValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(yes) => Kind::BoolValue(yes),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => Kind::ListValue(ListValue { values: values.into_iter().map(json).collect() }),
        Value::Object(fields) => {
            Kind::StructValue(Struct { fields: fields.into_iter().map(|(name, value)| (name, json(value))).collect() })
        }
    };
    ProstValue { kind: Some(kind) }
}

pub(super) fn rollout(rollout: Rollout, counts: v1::RolloutCounts) -> v1::Rollout {
    let state = match rollout.state {
        RolloutState::Running => v1::RolloutState::Running,
        RolloutState::Stuck => v1::RolloutState::Stuck,
        RolloutState::Succeeded => v1::RolloutState::Succeeded,
        RolloutState::Partial => v1::RolloutState::Partial,
        RolloutState::Halted => v1::RolloutState::Halted,
        RolloutState::Failed => v1::RolloutState::Failed,
    };
    v1::Rollout {
        rollout_id: rollout.id.to_string(),
        state: state.into(),
        target_version: rollout.target_version,
        directory_hash: rollout.directory_hash,
        counts: Some(counts),
        targets: Vec::new(),
        create_time: Some(timestamp(rollout.created_at)),
        end_time: rollout.ended_at.map(timestamp),
        max_failures: rollout.failures_max,
        pause: rollout.pause,
        error: rollout.error.unwrap_or_default(),
    }
}

pub(super) fn rollout_target(target: RolloutTarget) -> v1::RolloutTarget {
    let state = match target.state {
        TargetState::Pending => v1::RolloutTargetState::Pending,
        TargetState::Running => v1::RolloutTargetState::Running,
        TargetState::Migrated => v1::RolloutTargetState::Migrated,
        TargetState::Failed => v1::RolloutTargetState::Failed,
        TargetState::Skipped => v1::RolloutTargetState::Skipped,
        TargetState::Ahead => v1::RolloutTargetState::Ahead,
        TargetState::Current => v1::RolloutTargetState::Current,
    };
    v1::RolloutTarget {
        tenant_id: target.tenant.to_string(),
        code: target.code.into(),
        state: state.into(),
        from_version: target.from_version,
        to_version: target.to_version.unwrap_or(target.from_version),
        applied: target.applied,
        error: target.error.unwrap_or_default(),
        sqlstate: target.sqlstate.unwrap_or_default(),
        start_time: target.started_at.map(timestamp),
        end_time: target.ended_at.map(timestamp),
    }
}

/// A backup without its tables.
pub(super) fn backup(backup: &Backup, bucket: &str) -> v1::Backup {
    let manifest = backup.manifest.as_ref();
    let text = |of: fn(&crate::domain::backup::Manifest) -> &str| manifest.map(of).unwrap_or_default().to_owned();
    let bytes = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    v1::Backup {
        backup_id: backup.id.to_string(),
        tenant_id: backup.tenant.to_string(),
        tenant_code: backup.tenant_code.to_string(),
        operation_id: backup.operation.to_string(),
        snapshot_time: manifest.map(|manifest| timestamp(manifest.snapshot_time)),
        end_time: backup.completed_at.map(timestamp),
        bucket: bucket.to_owned(),
        archive_key: backup.keys.archive.clone(),
        manifest_key: backup.keys.manifest.clone(),
        archive_bytes: manifest.map_or(0, |manifest| bytes(manifest.archive.bytes)),
        dump_bytes: manifest.map_or(0, |manifest| bytes(manifest.archive.dump_bytes)),
        sha256: text(|manifest| &manifest.archive.sha256),
        schema_version: manifest.map_or(0, |manifest| manifest.schema_version),
        server_version: text(|manifest| &manifest.server_version),
        dump_version: text(|manifest| &manifest.dump_version),
        row_count: manifest.map_or(0, |manifest| manifest.tables.iter().map(|table| table.row_count).sum()),
        tables: Vec::new(),
        verify_time: backup.verified_at.map(timestamp),
    }
}

pub(super) fn backup_table(table: &TableDigest) -> v1::BackupTable {
    v1::BackupTable {
        schema: table.schema.clone(),
        name: table.name.clone(),
        row_count: table.row_count,
        digest: table.digest.clone(),
    }
}

pub(super) fn api_key(key: ApiKey) -> v1::ApiKey {
    v1::ApiKey {
        api_key_id: key.id.to_string(),
        name: key.name,
        roles: key.roles.iter().map(ToString::to_string).collect(),
        tenants: match key.scope {
            Scope::All => Vec::new(),
            Scope::Tenants(tenants) => tenants.into_iter().map(String::from).collect(),
        },
        create_time: Some(timestamp(key.created_at)),
        expire_time: key.expires_at.map(timestamp),
        revoke_time: key.revoked_at.map(timestamp),
        last_use_time: key.last_used_at.map(timestamp),
        default_tenant: key.default_tenant.map(String::from).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn moments_read_back() {
        let now = OffsetDateTime::from_unix_timestamp_nanos(1_795_225_466_123_456_789).unwrap();
        assert_eq!(moment(timestamp(now)), Some(now));
    }

    #[test]
    fn a_page_has_as_many_as_fit_and_at_least_one() {
        let tenant = |length: usize| v1::Tenant { code: "x".repeat(length), ..v1::Tenant::default() };
        let cut = |lengths: &[usize]| {
            let tenants = lengths.iter().map(|length| tenant(*length)).collect();
            let (kept, next) = page_cut(tenants, Some("next".to_owned()), |last| last.code.len().to_string());
            (kept.len(), next)
        };
        assert_eq!(cut(&[1, 2, 3]), (3, "next".to_owned()));
        assert_eq!(cut(&[2 << 20, 1 << 10, 1 << 20, 1]), (2, "1024".to_owned()));
        assert_eq!(cut(&[5 << 20, 1]), (1, (5 << 20).to_string()));
        assert_eq!(cut(&[]), (0, "next".to_owned()));
    }

    #[test]
    fn filters_read_back() {
        for state in TenantState::ALL {
            assert_eq!(tenant_state_of(tenant_state(state).into()).unwrap(), Some(state));
        }
        for state in OperationState::ALL {
            assert_eq!(operation_state_of(operation_state(*state).into()).unwrap(), Some(*state));
        }
        assert!(tenant_state_of(99).is_err() && operation_state_of(99).is_err());
    }

    #[test]
    fn a_result_keeps_its_shape() {
        let result = object(json!({"backup_id": "b", "rows": 7, "tables": ["a"], "nested": {"ok": true}})).unwrap();
        assert_eq!(result.fields["rows"].kind, Some(Kind::NumberValue(7.0)));
        assert_eq!(result.fields["backup_id"].kind, Some(Kind::StringValue("b".to_owned())));
        assert_eq!(object(json!(3)), None);
    }
}
