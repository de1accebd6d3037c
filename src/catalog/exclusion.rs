//! Migrations and other operations on one tenant exclude each other, under the lock of the tenant's row: whoever begins
//! locks it, looks for the other, and writes what the other will find, in one transaction. A rollout names many tenants,
//! which is why the operations' own index cannot do this.

use sea_query::{Expr, ExprTrait as _, Query};

use super::Txn;
use super::errors::Error;
use super::tenants::tenant_lock;
use crate::domain::migration::TargetState;
use crate::domain::operation::{OperationId, OperationState};
use crate::domain::route::Gate;
use crate::domain::tenant::TenantId;
use crate::postgres::statement;

/// What may go on in a tenant's database beside what begins there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// What moves the tenant's door, or takes its database away.
    Nothing,
    /// Rollouts, unless they pause their tenants.
    Rollouts,
    /// Backups as well.
    All,
}

/// The rollout beside which nobody may begin: one that is migrating the tenant at this moment, or has left it paused.
/// No other one begins before the transaction has ended. `but_not` is the one that asks.
pub(super) async fn migrating(
    txn: &Txn,
    tenant: TenantId,
    beside: Beside,
    but_not: Option<OperationId>,
) -> Result<Option<OperationId>, Error> {
    let gate = match tenant_lock(txn, tenant).await {
        // A tenant that is gone is nobody's.
        Err(Error::TenantUnknown { .. }) => return Ok(None),
        row => row?.gate,
    };
    if let Gate::Paused { operation } = gate
        && Some(OperationId(operation)) != but_not
    {
        return Ok(Some(OperationId(operation)));
    }
    let live = [OperationState::Pending, OperationState::Running].map(OperationState::name);
    let pausing = (beside != Beside::Nothing).then(|| Expr::col(("rollouts", "pause")).eq(true));
    let select = Query::select()
        .column(("operations", "id"))
        .from("rollout_targets")
        .inner_join("rollouts", Expr::col(("rollouts", "id")).equals(("rollout_targets", "rollout_id")))
        .inner_join("operations", Expr::col(("operations", "id")).equals(("rollouts", "id")))
        .and_where(Expr::col(("rollout_targets", "tenant_id")).eq(tenant.0))
        .and_where(Expr::col(("rollout_targets", "state")).eq(TargetState::Running.name()))
        .and_where(Expr::col(("operations", "state")).is_in(live))
        .and_where_option(pausing)
        .and_where_option(but_not.map(|id| Expr::col(("operations", "id")).ne(id.0)))
        .limit(1)
        .take();
    let row = statement::row(txn, &select).await?;
    row.map(|row| Ok(OperationId(row.try_get("id")?))).transpose()
}
