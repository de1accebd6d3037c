//! Migrations and other operations on one tenant exclude each other, under the lock of the tenant's row: whoever begins
//! locks it, looks for the other, and writes what the other will find, in one transaction. A rollout names many tenants,
//! which is why the operations' own index cannot do this.

use sea_query::{Expr, ExprTrait as _, Query};

use super::Txn;
use super::errors::Error;
use crate::domain::migration::TargetState;
use crate::domain::operation::{OperationId, OperationState};
use crate::domain::tenant::TenantId;
use crate::postgres::statement;

/// The live rollout that is migrating the tenant at this moment; none begins before the transaction has ended.
pub(super) async fn migrating(txn: &Txn, tenant: TenantId) -> Result<Option<OperationId>, Error> {
    // A tenant that is gone is nobody's.
    let lock =
        Query::select().column("id").from("tenants").and_where(Expr::col("id").eq(tenant.0)).lock_exclusive().take();
    statement::execute(txn, &lock).await?;
    let live = [OperationState::Pending, OperationState::Running].map(OperationState::name);
    let select = Query::select()
        .column(("operations", "id"))
        .from("rollout_targets")
        .inner_join("operations", Expr::col(("operations", "id")).equals(("rollout_targets", "rollout_id")))
        .and_where(Expr::col(("rollout_targets", "tenant_id")).eq(tenant.0))
        .and_where(Expr::col(("rollout_targets", "state")).eq(TargetState::Running.name()))
        .and_where(Expr::col(("operations", "state")).is_in(live))
        .limit(1)
        .take();
    let row = statement::row(txn, &select).await?;
    row.map(|row| Ok(OperationId(row.try_get("id")?))).transpose()
}
