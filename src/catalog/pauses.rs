//! Tenants that a rollout has paused. The gate says whose pause it is, and the rollout's target which logins it locked.
//!
//! Always holds: the logins are noted together with the gate, before any of them is locked, and only with a claim that
//! holds; the gate opens after they are unlocked.

use sea_query::{Expr, ExprTrait as _, Order, Query, SelectStatement};

use super::errors::Error;
use super::fence::{claimed, fence_holds};
use super::tenants::tenant_lock;
use super::{Catalog, Txn};
use crate::domain::migration::TargetState;
use crate::domain::operation::OperationId;
use crate::domain::route::Gate;
use crate::domain::tenant::{TenantId, TenantRole};
use crate::postgres::read::{Corrupt, Reader};
use crate::postgres::statement::{self, Run};

/// A tenant that is paused by a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PausedTarget {
    pub tenant: TenantId,
    /// Where the target stands in the rollout.
    pub state: TargetState,
    /// Those that the rollout locked, to be unlocked before the gate opens.
    pub logins: Vec<TenantRole>,
}

impl Catalog {
    /// Pauses the tenant, and notes the logins that are about to be locked for it. A tenant that the rollout has paused
    /// before keeps what was noted then.
    pub async fn target_pause(
        &self,
        rollout: OperationId,
        fence: i64,
        tenant: TenantId,
        logins: &[TenantRole],
    ) -> Result<(), Error> {
        let txn = self.begin().await?;
        self.operation_claim_check_in_txn(&txn, rollout, fence).await?;
        let gate = Gate::Paused { operation: rollout.0 };
        if tenant_lock(&txn, tenant).await?.gate == gate {
            return Ok(());
        }
        let logins = serde_json::to_value(logins).map_err(|error| Corrupt {
            table: "rollout_targets",
            column: "locked_logins",
            id: tenant.to_string(),
            problem: error.to_string(),
        })?;
        let update = Query::update()
            .table("rollout_targets")
            .value("locked_logins", logins)
            .and_where(Expr::col("rollout_id").eq(rollout.0))
            .and_where(Expr::col("tenant_id").eq(tenant.0))
            .and_where(fence_holds(rollout, fence))
            .take();
        claimed(statement::execute(&txn, &update).await?, rollout)?;
        self.gate_set_in_txn(&txn, tenant, gate, rollout).await?;
        Ok(txn.commit().await?)
    }

    /// Opens the gate, if it is the rollout that has paused it.
    pub async fn target_unpause(&self, rollout: OperationId, fence: i64, tenant: TenantId) -> Result<(), Error> {
        let txn = self.begin().await?;
        self.operation_claim_check_in_txn(&txn, rollout, fence).await?;
        if tenant_lock(&txn, tenant).await?.gate == (Gate::Paused { operation: rollout.0 }) {
            self.gate_set_in_txn(&txn, tenant, Gate::Open, rollout).await?;
        }
        Ok(txn.commit().await?)
    }

    /// The tenant's pause, if it is by this rollout.
    pub async fn target_paused(&self, rollout: OperationId, tenant: TenantId) -> Result<Option<PausedTarget>, Error> {
        let select = select(rollout).and_where(Expr::col(("tenants", "id")).eq(tenant.0)).take();
        Ok(read(&self.session().await?, &select).await?.pop())
    }

    /// Every tenant that this rollout has paused, by id.
    pub async fn targets_paused(&self, rollout: OperationId) -> Result<Vec<PausedTarget>, Error> {
        read(&self.session().await?, &select(rollout)).await
    }

    /// As [`Catalog::targets_paused`].
    pub async fn targets_paused_in_txn(&self, txn: &Txn, rollout: OperationId) -> Result<Vec<PausedTarget>, Error> {
        read(txn, &select(rollout)).await
    }
}

fn select(rollout: OperationId) -> SelectStatement {
    Query::select()
        .column(("rollout_targets", "tenant_id"))
        .column(("rollout_targets", "state"))
        .column(("rollout_targets", "locked_logins"))
        .from("rollout_targets")
        .inner_join("tenants", Expr::col(("tenants", "id")).equals(("rollout_targets", "tenant_id")))
        .and_where(Expr::col(("rollout_targets", "rollout_id")).eq(rollout.0))
        .and_where(Expr::col(("tenants", "gate")).eq("PAUSED"))
        .and_where(Expr::col(("tenants", "gate_operation")).eq(rollout.0))
        .order_by(("tenants", "id"), Order::Asc)
        .take()
}

async fn read(on: &impl Run, select: &SelectStatement) -> Result<Vec<PausedTarget>, Error> {
    let rows = statement::rows(on, select).await?;
    rows.iter()
        .map(|row| {
            let reader = Reader { table: "rollout_targets", key: "tenant_id", row };
            let (tenant, state) = (TenantId(reader.get("tenant_id")?), reader.parse("state")?);
            Ok(PausedTarget { tenant, state, logins: reader.json("locked_logins")? })
        })
        .collect()
}
