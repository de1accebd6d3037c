//! One tenant in one rollout. Each change is one UPDATE of one row, and nothing is written without the claim's fence.

use std::collections::BTreeMap;

use sea_query::{Asterisk, Expr, ExprTrait as _, InsertStatement, Order, Query, UpdateStatement};
use time::OffsetDateTime;
use tokio_postgres::Row;

use super::Catalog;
use super::errors::Error;
use super::exclusion::{self, Beside};
use super::fence::{claimed, fence_holds};
use super::operations::{Operation, holder, operation};
use super::tenants::{Tenant, tenant_lock};
use crate::domain::lifecycle::TenantState;
use crate::domain::migration::TargetState;
use crate::domain::operation::OperationId;
use crate::domain::page::{Page, Paged};
use crate::domain::tenant::{TenantCode, TenantId};
use crate::postgres::read::Reader;
use crate::postgres::statement;

/// Rows of one INSERT: five values each, far from the protocol's 65,535.
pub(super) const CHUNK: usize = 1_000;

/// One tenant's row in a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutTarget {
    pub tenant: TenantId,
    pub code: TenantCode,
    pub state: TargetState,
    pub from_version: i64,
    pub to_version: Option<i64>,
    /// Migrations that this rollout applied.
    pub applied: i32,
    pub error: Option<String>,
    pub sqlstate: Option<String>,
    pub started_at: Option<OffsetDateTime>,
    pub ended_at: Option<OffsetDateTime>,
}

/// A target to create; PENDING, CURRENT or AHEAD as the catalog knows the tenant.
#[derive(Debug, Clone)]
pub struct NewTarget {
    pub tenant: TenantId,
    pub code: TenantCode,
    pub state: TargetState,
    pub from_version: i64,
}

/// What became of a target.
#[derive(Debug, Clone, Default)]
pub struct TargetOutcome {
    pub to_version: Option<i64>,
    pub applied: i32,
    pub error: Option<String>,
    pub sqlstate: Option<String>,
}

/// Whether a target could begin. Unless it has, nothing was written.
#[derive(Debug, Clone, PartialEq)]
pub enum TargetBegun {
    /// The target and its tenant, as they are now. Until the target ends, no operation begins on the tenant that cannot
    /// go beside a migration.
    Begun(Box<(RolloutTarget, Tenant)>),
    /// This operation works on the tenant.
    Held(Box<Operation>),
    /// The tenant is in no state in which its database can be migrated.
    Unfit(TenantState),
    /// The tenant's row is gone: its creation was undone.
    Gone,
}

impl Catalog {
    /// The tenant's migration is about to begin, unless another operation has the tenant beside which it may not go. A
    /// target begins at the version that its tenant has at that moment.
    pub async fn target_begin(
        &self,
        rollout: OperationId,
        fence: i64,
        tenant: TenantId,
        beside: Beside,
    ) -> Result<TargetBegun, Error> {
        let txn = self.begin().await?;
        let row = match tenant_lock(&txn, tenant).await {
            Err(Error::TenantUnknown { .. }) => return Ok(TargetBegun::Gone),
            row => row?,
        };
        let holder = holder(&txn, Some(tenant)).await?;
        if let Some(holder) = holder.filter(|holder| beside != Beside::All || !holder.kind.is_beside_migrations()) {
            return Ok(TargetBegun::Held(Box::new(holder)));
        }
        if let Some(other) = exclusion::migrating(&txn, tenant, beside, Some(rollout)).await? {
            return Ok(TargetBegun::Held(Box::new(operation(&txn, other).await?)));
        }
        if !TenantState::MIGRATABLE.contains(&row.state) {
            return Ok(TargetBegun::Unfit(row.state));
        }
        let is_new = Expr::col("state").eq(TargetState::Pending.name());
        let from = Expr::case(is_new, row.schema_version).finally(Expr::col("from_version"));
        let update = one(rollout, fence, tenant, TargetState::Running)
            .value("from_version", from)
            .value("started_at", Expr::current_timestamp())
            .value("ended_at", Option::<OffsetDateTime>::None)
            .returning_all()
            .take();
        let updated = statement::row(&txn, &update).await?.ok_or(Error::ClaimLost { id: rollout })?;
        let target = read(&updated)?;
        txn.commit().await?;
        Ok(TargetBegun::Begun(Box::new((target, row))))
    }

    /// The tenant's migration has ended.
    pub async fn target_end(
        &self,
        rollout: OperationId,
        fence: i64,
        tenant: TenantId,
        state: TargetState,
        outcome: &TargetOutcome,
    ) -> Result<(), Error> {
        let update = one(rollout, fence, tenant, state)
            .value("to_version", outcome.to_version)
            .value("applied", outcome.applied)
            .value("error", outcome.error.as_deref())
            .value("sqlstate", outcome.sqlstate.as_deref())
            .value("ended_at", Expr::current_timestamp())
            .take();
        claimed(statement::execute(&self.session().await?, &update).await?, rollout)
    }

    /// Targets that have not ended, by code. Those that a daemon left behind in the middle are first: what they hold
    /// is known to be begun.
    pub async fn targets_next(&self, rollout: OperationId, count_max: u64) -> Result<Vec<RolloutTarget>, Error> {
        let open = [TargetState::Pending, TargetState::Running].map(TargetState::name);
        let select = Query::select()
            .column(Asterisk)
            .from("rollout_targets")
            .and_where(Expr::col("rollout_id").eq(rollout.0))
            .and_where(Expr::col("state").is_in(open))
            // "RUNNING" after "PENDING" in the alphabet.
            .order_by("state", Order::Desc)
            .order_by("code", Order::Asc)
            .limit(count_max)
            .take();
        statement::rows(&self.session().await?, &select).await?.iter().map(read).collect()
    }

    /// Ends whatever has not ended: what was begun has failed for this reason, the rest is not begun.
    pub async fn targets_give_up(&self, rollout: OperationId, fence: i64, reason: &str) -> Result<(), Error> {
        let update = Query::update()
            .table("rollout_targets")
            .value("state", TargetState::Failed.name())
            .value("error", reason)
            .value("ended_at", Expr::current_timestamp())
            .and_where(Expr::col("rollout_id").eq(rollout.0))
            .and_where(Expr::col("state").eq(TargetState::Running.name()))
            .and_where(fence_holds(rollout, fence))
            .take();
        statement::execute(&self.session().await?, &update).await?;
        self.targets_skip(rollout, fence, reason).await.map(drop)
    }

    /// Ends every target that has not begun, and says how many those were.
    pub async fn targets_skip(&self, rollout: OperationId, fence: i64, reason: &str) -> Result<u64, Error> {
        let update = Query::update()
            .table("rollout_targets")
            .value("state", TargetState::Skipped.name())
            .value("error", reason)
            .value("ended_at", Expr::current_timestamp())
            .and_where(Expr::col("rollout_id").eq(rollout.0))
            .and_where(Expr::col("state").eq(TargetState::Pending.name()))
            .and_where(fence_holds(rollout, fence))
            .take();
        let session = self.session().await?;
        let skipped = statement::execute(&session, &update).await?;
        if skipped == 0 {
            // Nothing was left to skip, or the claim is lost.
            let select = Query::select().expr(fence_holds(rollout, fence)).take();
            let holds = statement::row(&session, &select).await?.map(|row| row.try_get(0)).transpose()?;
            claimed(u64::from(holds == Some(true)), rollout)?;
        }
        Ok(skipped)
    }

    /// A page of a rollout's targets, by code.
    pub async fn targets_page(&self, rollout: OperationId, page: &Page) -> Result<Paged<RolloutTarget>, Error> {
        let select = Query::select()
            .column(Asterisk)
            .from("rollout_targets")
            .and_where(Expr::col("rollout_id").eq(rollout.0))
            .and_where_option(page.after.as_ref().map(|code| Expr::col("code").gt(code.as_str())))
            .order_by("code", Order::Asc)
            .limit(page.limit())
            .take();
        let rows = statement::rows(&self.session().await?, &select).await?;
        let targets = rows.iter().map(read).collect::<Result<_, _>>()?;
        Ok(page.cut(targets, |last| last.code.to_string()))
    }

    /// All targets of a rollout, by code.
    pub async fn targets_list(&self, rollout: OperationId) -> Result<Vec<RolloutTarget>, Error> {
        let select = Query::select()
            .column(Asterisk)
            .from("rollout_targets")
            .and_where(Expr::col("rollout_id").eq(rollout.0))
            .order_by("code", Order::Asc)
            .take();
        statement::rows(&self.session().await?, &select).await?.iter().map(read).collect()
    }

    /// How many targets are in each state, as `domain::migration::rollout_outcome` takes it.
    pub async fn targets_count(&self, rollout: OperationId) -> Result<BTreeMap<&'static str, i64>, Error> {
        let select = Query::select()
            .column("rollout_id")
            .column("state")
            .expr_as(Expr::col("tenant_id").count(), "count")
            .from("rollout_targets")
            .and_where(Expr::col("rollout_id").eq(rollout.0))
            .group_by_columns(["rollout_id", "state"])
            .take();
        let rows = statement::rows(&self.session().await?, &select).await?;
        rows.iter()
            .map(|row| {
                let reader = Reader { table: "rollout_targets", key: "rollout_id", row };
                Ok((reader.parse::<TargetState>("state")?.name(), reader.get("count")?))
            })
            .collect()
    }
}

fn one(rollout: OperationId, fence: i64, tenant: TenantId, state: TargetState) -> UpdateStatement {
    Query::update()
        .table("rollout_targets")
        .value("state", state.name())
        .and_where(Expr::col("rollout_id").eq(rollout.0))
        .and_where(Expr::col("tenant_id").eq(tenant.0))
        .and_where(fence_holds(rollout, fence))
        .take()
}

/// The rows of a new rollout's targets.
pub(super) fn insertion(rollout: OperationId, targets: &[NewTarget]) -> InsertStatement {
    let columns = ["rollout_id", "tenant_id", "code", "state", "from_version"];
    let mut insert = Query::insert().into_table("rollout_targets").columns(columns).take();
    for target in targets {
        insert.values_panic([
            rollout.0.into(),
            target.tenant.0.into(),
            target.code.as_str().into(),
            target.state.name().into(),
            target.from_version.into(),
        ]);
    }
    insert
}

fn read(row: &Row) -> Result<RolloutTarget, Error> {
    let reader = Reader { table: "rollout_targets", key: "rollout_id", row };
    Ok(RolloutTarget {
        tenant: TenantId(reader.get("tenant_id")?),
        code: reader.parse("code")?,
        state: reader.parse("state")?,
        from_version: reader.get("from_version")?,
        to_version: reader.get("to_version")?,
        applied: reader.get("applied")?,
        error: reader.get("error")?,
        sqlstate: reader.get("sqlstate")?,
        started_at: reader.moment_option("started_at")?,
        ended_at: reader.moment_option("ended_at")?,
    })
}
