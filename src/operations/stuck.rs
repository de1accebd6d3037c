//! What a person does about an operation that could not be undone: has it go on, or gives it up. What is given up stays
//! as it is on the server and in the bucket; the tenant is let go of, in a state from which its life goes on.

use super::error::BadField;
use super::submit::Request;
use super::{Error, Failure, Operations};
use crate::catalog::{Operation, Tenant, Txn};
use crate::domain::lifecycle::{TenantState, Transition};
use crate::domain::operation::{OperationId, OperationKind, OperationState, StepState};
use crate::domain::route::Gate;
use crate::domain::tenant::{TenantId, database_under_construction};
use crate::postgres::roles::TenantRoles;

/// What becomes of a stuck operation, unless it is dropped.
#[derive(Debug)]
pub struct Settling {
    operation: Operation,
    /// None when there is nothing to do: it was only to be validated, or the same request has done it.
    txn: Option<Txn>,
}

impl Settling {
    /// Whether anything is done when it is settled.
    pub fn is_new(&self) -> bool {
        self.txn.is_some()
    }
}

/// What a stuck operation's row says: which step could not be undone and why, what to do, and why it was being undone.
pub(super) fn record(id: OperationId, failure: &Failure, cause: Option<&serde_json::Value>) -> serde_json::Value {
    let message = format!(
        "{}; when that is mended, have the undoing go on with \"tenantd operation retry {id}\", or leave everything as it is with \"tenantd operation abandon {id} --reason …\"",
        failure.message
    );
    let cause = cause.map(|record| Box::new(Failure::read(record)));
    Failure { message, cause, ..failure.clone() }.to_record()
}

impl Operations {
    /// The operation will go on being undone.
    pub async fn retry(&self, request: &Request, id: OperationId) -> Result<Settling, Error> {
        let txn = self.parts.catalog.begin().await?;
        let stuck = match self.stuck(&txn, request, id).await? {
            Stuck::Settled(operation) => return Ok(Settling { operation, txn: None }),
            Stuck::Yes(stuck) => stuck,
        };
        let failure = stuck.error.as_ref().map(Failure::read).unwrap_or_default();
        let why = failure.cause.as_deref().cloned().unwrap_or(failure);
        let why = Failure { settled_by: request.request_id, ..why };
        let operation = self.parts.catalog.operation_go_on_in_txn(&txn, id, &why.to_record()).await?;
        Ok(Settling { operation, txn: (!request.validate_only).then_some(txn) })
    }

    /// The operation will have failed, whatever it has left.
    pub async fn abandon(&self, request: &Request, id: OperationId, reason: &str) -> Result<Settling, Error> {
        if reason.trim().is_empty() {
            return Err(Error::Invalid(vec![BadField::new("reason", "giving an operation up needs one")]));
        }
        let txn = self.parts.catalog.begin().await?;
        let stuck = match self.stuck(&txn, request, id).await? {
            Stuck::Settled(operation) => return Ok(Settling { operation, txn: None }),
            Stuck::Yes(stuck) => stuck,
        };
        let left = self.let_go(&txn, &stuck, reason).await?;
        let failure = stuck.error.as_ref().map(Failure::read).unwrap_or_default();
        let because = failure.cause.as_ref().map(|cause| format!(" (at the step {}: {})", cause.step, cause.message));
        let message = format!(
            "given up by {}: {reason}. It had failed{} and was not undone to the end. {left}",
            request.caller,
            because.unwrap_or_default()
        );
        let failure = Failure { message, settled_by: request.request_id, ..failure };
        let operation = self.parts.catalog.operation_abandon_in_txn(&txn, id, &failure.to_record()).await?;
        Ok(Settling { operation, txn: (!request.validate_only).then_some(txn) })
    }

    /// Makes it so.
    pub async fn settle(&self, settling: Settling) -> Result<Operation, Error> {
        let Settling { operation, txn } = settling;
        if let Some(txn) = txn {
            txn.commit().await?;
            if let Some(tenant) = operation.tenant {
                self.parts.router.route_forget(tenant);
            }
            // Nobody may be listening, which is fine.
            drop(self.changed.send(operation.id));
            self.wake.notify_one();
        }
        Ok(operation)
    }

    /// The operation, locked, if it is stuck.
    async fn stuck(&self, txn: &Txn, request: &Request, id: OperationId) -> Result<Stuck, Error> {
        let operation = self.parts.catalog.operation_lock_in_txn(txn, id).await?;
        let settled_by = operation.error.as_ref().and_then(|record| {
            let failure = Failure::read(record);
            failure.settled_by.or(failure.cause.and_then(|cause| cause.settled_by))
        });
        if request.request_id.is_some_and(|request| settled_by == Some(request)) {
            return Ok(Stuck::Settled(operation));
        }
        match operation.state {
            OperationState::Stuck => Ok(Stuck::Yes(operation)),
            state => Err(Error::NotStuck { id, state }),
        }
    }

    /// Brings the tenant into a state from which its life goes on. Answers with what is left, for people.
    async fn let_go(&self, txn: &Txn, operation: &Operation, reason: &str) -> Result<String, Error> {
        let catalog = &self.parts.catalog;
        let is_left = |state| !matches!(state, StepState::Pending | StepState::Undone);
        let steps = operation.steps.iter().filter(|step| is_left(step.state)).map(|step| step.name.as_str());
        let left = format!("Left as they are: what the steps {} did", steps.collect::<Vec<_>>().join(", "));
        if operation.kind == OperationKind::MigrateFleet {
            catalog.rollout_abandon_in_txn(txn, operation.id, reason).await?;
            let closed = self.paused_close(txn, operation, reason).await?;
            return Ok(if closed.is_empty() {
                format!("{left}.")
            } else {
                format!("{left}. Suspended, because they were paused and could not be opened: {closed}; resume them.")
            });
        }
        let Some(tenant) = self.tenant_locked(txn, operation.tenant).await? else { return Ok(format!("{left}.")) };
        match operation.kind {
            OperationKind::CreateTenant | OperationKind::RestoreAsNew if tenant.state == TenantState::Provisioning => {
                catalog.tenant_delete_in_txn(txn, tenant.id).await?;
                let roles = TenantRoles::new(&self.parts.config.naming, &tenant.code)?.all();
                let roles = roles.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let new = database_under_construction(operation.id.0);
                let (code, server, database) = (&tenant.code, &tenant.server, &tenant.database);
                Ok(format!(
                    "{left}. The code {code} is free; on the server {server} there may be the roles {roles} and the databases {new} and {database}: drop them before the code is used again."
                ))
            }
            OperationKind::RestoreInPlace if tenant.gate == (Gate::Paused { operation: operation.id.0 }) => {
                let why = format!("the restore {} was given up: {reason}", operation.id);
                self.tenant_close(txn, &tenant, &why, operation.id).await?;
                Ok(format!(
                    "{left}. The tenant {} is suspended; find out which database has its name, and resume it.",
                    tenant.code
                ))
            }
            _ => Ok(format!("{left}. The tenant {} is {}.", tenant.code, tenant.state)),
        }
    }

    /// Suspends the tenants that the rollout has left paused, and names them.
    async fn paused_close(&self, txn: &Txn, operation: &Operation, reason: &str) -> Result<String, Error> {
        let mut tenants = Vec::new();
        // All before the first is changed: whoever changes one takes the counter of revisions after it.
        for paused in self.parts.catalog.targets_paused_in_txn(txn, operation.id).await? {
            tenants.push(self.parts.catalog.tenant_lock_in_txn(txn, paused.tenant).await?);
        }
        let why = format!("the rollout {} was given up: {reason}", operation.id);
        for tenant in &tenants {
            self.tenant_close(txn, tenant, &why, operation.id).await?;
        }
        Ok(tenants.iter().map(|tenant| tenant.code.as_str()).collect::<Vec<_>>().join(", "))
    }

    async fn tenant_locked(&self, txn: &Txn, tenant: Option<TenantId>) -> Result<Option<Tenant>, Error> {
        let Some(tenant) = tenant else { return Ok(None) };
        match self.parts.catalog.tenant_lock_in_txn(txn, tenant).await {
            Ok(tenant) => Ok(Some(tenant)),
            Err(crate::catalog::Error::TenantUnknown { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Nobody gets in until somebody has looked.
    async fn tenant_close(&self, txn: &Txn, tenant: &Tenant, why: &str, by: OperationId) -> Result<(), Error> {
        let catalog = &self.parts.catalog;
        if tenant.state == TenantState::Active {
            catalog.tenant_transition_in_txn(txn, tenant.id, Transition::Suspend).await?;
        }
        catalog.tenant_suspend_reason_set_in_txn(txn, tenant.id, Some(why)).await?;
        catalog.gate_set_in_txn(txn, tenant.id, Gate::Closed { operation: None }, by).await?;
        Ok(())
    }
}

enum Stuck {
    Yes(Operation),
    /// By the same request, earlier.
    Settled(Operation),
}
