//! Operations: created once per request id, one at a time per tenant, claimed by one daemon at a time.
//!
//! A claim is a lease and a fence. The fence grows with every claim, and whoever writes for an operation names the
//! fence of its claim: with an old one nothing is written, and the answer is [`Error::ClaimLost`].

use std::collections::BTreeSet;
use std::time::Duration;

use sea_query::{
    Asterisk, Expr, ExprTrait as _, LockBehavior, LockType, OnConflict, Order, Query, SelectStatement, UpdateStatement,
};
use serde_json::Value;
use time::OffsetDateTime;
use tokio_postgres::Row;
use uuid::Uuid;

use super::errors::Error;
use super::exclusion::{self, Beside};
use super::fence::claimed;
use super::steps::{self, OperationStep};
use super::tenants::among;
use super::{Catalog, Txn};
use crate::domain::operation::{OperationId, OperationKind, OperationState};
use crate::domain::page::{Page, Paged};
use crate::domain::tenant::{TenantCode, TenantId};
use crate::postgres::read::Reader;
use crate::postgres::statement::{self, Run};

/// The channel on which the id of each new operation is announced.
pub const OPERATIONS_CHANNEL: &str = "tenantd_operations";

/// An operation's row with its steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    pub id: OperationId,
    pub kind: OperationKind,
    pub tenant: Option<TenantId>,
    pub tenant_code: Option<TenantCode>,
    pub request_id: Uuid,
    pub created_by: String,
    pub input: Value,
    pub state: OperationState,
    pub result: Option<Value>,
    pub error: Option<Value>,
    pub fence: i64,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
    pub ended_at: Option<OffsetDateTime>,
    /// In order; empty in lists.
    pub steps: Vec<OperationStep>,
}

/// An operation to create.
#[derive(Debug, Clone)]
pub struct NewOperation<'a> {
    /// A UUID of version 7.
    pub id: OperationId,
    pub kind: OperationKind,
    /// Operations on one tenant exclude each other.
    pub tenant: Option<TenantId>,
    pub tenant_code: Option<TenantCode>,
    /// The client's idempotency key.
    pub request_id: Uuid,
    /// Tells a repeated request from another one under the same key.
    pub request_hash: &'a [u8],
    pub created_by: &'a str,
    pub input: Value,
    pub steps: &'a [&'a str],
}

/// What became of a creation.
#[derive(Debug, Clone, PartialEq)]
pub enum Created {
    New(Operation),
    /// The same request was made before; nothing was written.
    Earlier(Operation),
}

impl Created {
    pub fn into_operation(self) -> Operation {
        match self {
            Self::New(operation) | Self::Earlier(operation) => operation,
        }
    }
}

/// An operation in this daemon's hands.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedOperation {
    pub operation: Operation,
    /// To be named in every write.
    pub fence: i64,
    /// The daemon whose lease ran out: its sessions must be gone from the servers before anything is done.
    pub owner_before: Option<Uuid>,
}

/// Servers on which a daemon that is gone may still have sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains {
    pub daemon: Uuid,
    /// By their names in the catalog.
    pub servers: Vec<String>,
}

/// How a claim is given back.
#[derive(Debug, Clone, Copy, Default)]
pub struct Release<'a> {
    /// The step that was begun under this claim; that does not count as an attempt.
    pub begun: Option<i32>,
    /// Nobody takes it before.
    pub pause: Duration,
    /// A step, and why it is tried again.
    pub waits: Option<(i32, &'a str)>,
}

/// How an operation ends.
#[derive(Debug, Clone)]
pub struct OperationEnd {
    pub state: OperationState,
    pub result: Option<Value>,
    pub error: Option<Value>,
}

/// Which operations to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct OperationFilter<'a> {
    /// Only those on these tenants, and none on the fleet.
    pub codes: Option<&'a BTreeSet<TenantCode>>,
    pub tenant: Option<TenantId>,
    pub kind: Option<OperationKind>,
    pub state: Option<OperationState>,
}

impl Catalog {
    /// Creates an operation with its steps, or finds the one that the same request created.
    ///
    /// Of two that meet, the second waits until the first's transaction has ended. A tenant that a rollout is migrating
    /// is refused to whatever cannot go beside that, and the transaction is of no use then.
    pub async fn operation_create_in_txn(&self, txn: &Txn, new: &NewOperation<'_>) -> Result<Created, Error> {
        // A holder may end between the refused insertion and the look-up; then the insertion is worth another try.
        for _attempt in 0..5 {
            if let Some(earlier) = earlier(txn, new.request_id, new.request_hash).await? {
                return Ok(Created::Earlier(earlier));
            }
            if let Some(row) = statement::row(txn, &insertion(new)).await? {
                let beside = if new.kind.is_beside_migrations() { Beside::Rollouts } else { Beside::Nothing };
                if let Some(tenant) = new.tenant
                    && let Some(id) = exclusion::migrating(txn, tenant, beside, None).await?
                {
                    return Err(Error::OperationConflict { id, kind: OperationKind::MigrateFleet });
                }
                let mut operation = read(&row)?;
                if !new.steps.is_empty() {
                    statement::execute(txn, &steps::insertion(new.id, new.steps)).await?;
                    operation.steps = steps::of(txn, new.id).await?;
                }
                return Ok(Created::New(operation));
            }
            if let Some(holder) = holder(txn, new.tenant).await? {
                return Err(Error::OperationConflict { id: holder.id, kind: holder.kind });
            }
        }
        Err(Error::OperationContended { request_id: new.request_id })
    }

    /// Claims the oldest operation that nobody drives: a new one, one that was released, or one whose lease ran out.
    /// Those of the kinds `but_not` are left to others; what a daemon had that remains on a server, for later, unless it
    /// is about a tenant on another one.
    pub async fn operation_claim(
        &self,
        instance: Uuid,
        lease: Duration,
        but_not: &[OperationKind],
        remains: &[Remains],
    ) -> Result<Option<ClaimedOperation>, Error> {
        let mut due = Query::select()
            .column("id")
            .from("operations")
            .and_where(due())
            .and_where(Expr::col("kind").is_not_in(but_not.iter().map(|kind| kind.name())))
            .take();
        for remains in remains {
            let others = Expr::col("lease_owner").is_null().or(Expr::col("lease_owner").ne(remains.daemon));
            let elsewhere = Query::select()
                .column("id")
                .from("tenants")
                .and_where(Expr::col("server").is_not_in(remains.servers.iter().map(String::as_str)))
                .take();
            due.and_where(others.or(Expr::col("tenant_id").in_subquery(elsewhere)));
        }
        let due = due
            .order_by("created_at", Order::Asc)
            .limit(1)
            .lock_with_behavior(LockType::Update, LockBehavior::SkipLocked)
            .take();
        let update = Query::update()
            .table("operations")
            .value("state", OperationState::Running.name())
            // The right-hand sides are the old row's values.
            .value("lease_owner_before", Expr::col("lease_owner"))
            .value("lease_owner", instance)
            .value("lease_until", lease_end(lease))
            .value("fence", Expr::col("fence").add(1_i64))
            .value("updated_at", Expr::current_timestamp())
            .and_where(Expr::col("id").eq(due))
            .returning_all()
            .take();
        let txn = self.begin().await?;
        let Some(row) = statement::row(&txn, &update).await? else { return Ok(None) };
        let mut operation = read(&row)?;
        operation.steps = steps::of(&txn, operation.id).await?;
        txn.commit().await?;
        let owner_before: Option<Uuid> = Reader::new("operations", &row).get("lease_owner_before")?;
        let owner_before = owner_before.filter(|owner| *owner != instance);
        Ok(Some(ClaimedOperation { fence: operation.fence, operation, owner_before }))
    }

    /// Daemons whose lease ran out while they drove something. Their sessions may still hold locks that keep an
    /// operation from being claimed, so they are ended before [`Catalog::operation_claim`].
    pub async fn operation_owners_expired(&self) -> Result<Vec<Uuid>, Error> {
        let select = Query::select()
            .distinct()
            .column("lease_owner")
            .from("operations")
            .and_where(due())
            .and_where(Expr::col("lease_owner").is_not_null())
            .take();
        let rows = statement::rows(&self.session().await?, &select).await?;
        Ok(rows.iter().map(|row| row.try_get("lease_owner")).collect::<Result<_, _>>()?)
    }

    /// Renews the lease. False when the claim was lost.
    pub async fn operation_heartbeat(&self, id: OperationId, fence: i64, lease: Duration) -> Result<bool, Error> {
        let update = fenced(id, fence).value("lease_until", lease_end(lease)).take();
        Ok(statement::execute(&self.session().await?, &update).await? > 0)
    }

    /// Gives the claim back, so that another daemon takes over at once, or after a pause. The fence stays, and the next
    /// claim raises it.
    pub async fn operation_release(&self, id: OperationId, fence: i64, release: &Release<'_>) -> Result<(), Error> {
        let update = fenced(id, fence)
            .value("lease_owner", Option::<Uuid>::None)
            .value("lease_until", lease_end(release.pause))
            .take();
        let txn = self.begin().await?;
        claimed(statement::execute(&txn, &update).await?, id)?;
        if let Some(ordinal) = release.begun {
            statement::execute(&txn, &steps::pardon(id, ordinal)).await?;
        }
        if let Some((ordinal, what_for)) = release.waits {
            statement::execute(&txn, &steps::detail_set(id, ordinal, what_for)).await?;
        }
        Ok(txn.commit().await?)
    }

    /// Ends the operation, and with it the claim. One statement.
    pub async fn operation_end(&self, id: OperationId, fence: i64, end: &OperationEnd) -> Result<(), Error> {
        claimed(statement::execute(&self.session().await?, &ending(id, fence, end)).await?, id)
    }

    /// As [`Catalog::operation_end`], together with what else the last step writes.
    pub async fn operation_end_in_txn(
        &self,
        txn: &Txn,
        id: OperationId,
        fence: i64,
        end: &OperationEnd,
    ) -> Result<(), Error> {
        claimed(statement::execute(txn, &ending(id, fence, end)).await?, id)
    }

    /// Fails unless the claim still holds; its row is locked, so that no other claim begins before the transaction ends.
    pub async fn operation_claim_check_in_txn(&self, txn: &Txn, id: OperationId, fence: i64) -> Result<(), Error> {
        let select = Query::select()
            .column("id")
            .from("operations")
            .and_where(Expr::col("id").eq(id.0))
            .and_where(Expr::col("fence").eq(fence))
            .lock_exclusive()
            .take();
        claimed(statement::rows(txn, &select).await?.len() as u64, id)
    }

    /// The operation failed and is about to be undone, by whoever holds it then. One statement.
    pub async fn operation_fail(&self, id: OperationId, fence: i64, error: &Value) -> Result<(), Error> {
        let update = fenced(id, fence).value("error", error.clone()).take();
        claimed(statement::execute(&self.session().await?, &update).await?, id)
    }

    /// The operation with its steps, its row locked until the transaction ends.
    pub async fn operation_lock_in_txn(&self, txn: &Txn, id: OperationId) -> Result<Operation, Error> {
        let select = select().and_where(Expr::col("id").eq(id.0)).lock_exclusive().take();
        let row = statement::row(txn, &select).await?.ok_or(Error::OperationUnknown { id })?;
        Ok(Operation { steps: steps::of(txn, id).await?, ..read(&row)? })
    }

    /// A stuck operation is due again, and goes on being undone. `error` is why.
    pub async fn operation_go_on_in_txn(&self, txn: &Txn, id: OperationId, error: &Value) -> Result<Operation, Error> {
        let update =
            unstuck(id, OperationState::Running, error).value("ended_at", Option::<OffsetDateTime>::None).take();
        self.unstick(txn, id, &update).await
    }

    /// A stuck operation has failed, and lets go of its tenant.
    pub async fn operation_abandon_in_txn(
        &self,
        txn: &Txn,
        id: OperationId,
        error: &Value,
    ) -> Result<Operation, Error> {
        let update = unstuck(id, OperationState::Failed, error).value("ended_at", Expr::current_timestamp()).take();
        self.unstick(txn, id, &update).await
    }

    async fn unstick(&self, txn: &Txn, id: OperationId, update: &UpdateStatement) -> Result<Operation, Error> {
        let row = statement::row(txn, update).await?.ok_or(Error::OperationUnknown { id })?;
        Ok(Operation { steps: steps::of(txn, id).await?, ..read(&row)? })
    }

    /// The operation that the same request created earlier, if it did.
    pub async fn operation_by_request(&self, request_id: Uuid, hash: &[u8]) -> Result<Option<Operation>, Error> {
        earlier(&self.session().await?, request_id, hash).await
    }

    /// The operation that keeps others from the tenant.
    pub async fn operation_on_tenant(&self, tenant: TenantId) -> Result<Option<Operation>, Error> {
        holder(&self.session().await?, Some(tenant)).await
    }

    /// One operation with its steps.
    pub async fn operation_get(&self, id: OperationId) -> Result<Operation, Error> {
        let session = self.session().await?;
        let select = select().and_where(Expr::col("id").eq(id.0)).take();
        let row = statement::row(&session, &select).await?.ok_or(Error::OperationUnknown { id })?;
        Ok(Operation { steps: steps::of(&session, id).await?, ..read(&row)? })
    }

    /// Operations without their steps, newest first.
    pub async fn operation_list(&self, page: &Page, filter: &OperationFilter<'_>) -> Result<Paged<Operation>, Error> {
        let select = select()
            .and_where_option(filter.codes.map(|codes| among("tenant_code", codes)))
            .and_where_option(filter.tenant.map(|tenant| Expr::col("tenant_id").eq(tenant.0)))
            .and_where_option(filter.kind.map(|kind| Expr::col("kind").eq(kind.name())))
            .and_where_option(filter.state.map(|state| Expr::col("state").eq(state.name())))
            .and_where_option(page.after_id()?.map(|id| Expr::col("id").lt(id)))
            .order_by("id", Order::Desc)
            .limit(page.limit())
            .take();
        let rows = statement::rows(&self.session().await?, &select).await?;
        let operations = rows.iter().map(read).collect::<Result<_, _>>()?;
        Ok(page.cut(operations, |last| last.id.to_string()))
    }

    /// Operations that have not ended, those that are stuck left out.
    pub async fn operations_active_count(&self) -> Result<i64, Error> {
        let active = [OperationState::Pending.name(), OperationState::Running.name()];
        let select = Query::select()
            .expr(Expr::col("id").count())
            .from("operations")
            .and_where(Expr::col("state").is_in(active))
            .take();
        let row = statement::row(&self.session().await?, &select).await?;
        Ok(row.map_or(Ok(0), |row| row.try_get(0))?)
    }
}

fn fenced(id: OperationId, fence: i64) -> UpdateStatement {
    Query::update()
        .table("operations")
        .value("updated_at", Expr::current_timestamp())
        .and_where(Expr::col("id").eq(id.0))
        .and_where(Expr::col("fence").eq(fence))
        .and_where(Expr::col("state").eq(OperationState::Running.name()))
        .take()
}

fn ending(id: OperationId, fence: i64, end: &OperationEnd) -> UpdateStatement {
    fenced(id, fence)
        .value("state", end.state.name())
        .value("result", end.result.clone())
        .value("error", end.error.clone())
        .value("lease_owner", Option::<Uuid>::None)
        .value("lease_until", Option::<OffsetDateTime>::None)
        .value("ended_at", Expr::current_timestamp())
        .take()
}

fn unstuck(id: OperationId, state: OperationState, error: &Value) -> UpdateStatement {
    Query::update()
        .table("operations")
        .value("state", state.name())
        .value("error", error.clone())
        .value("updated_at", Expr::current_timestamp())
        .and_where(Expr::col("id").eq(id.0))
        .and_where(Expr::col("state").eq(OperationState::Stuck.name()))
        .returning_all()
        .take()
}

/// Nobody drives it: new, released, or its lease ran out.
fn due() -> Expr {
    let lapsed = Expr::col("lease_until").is_null().or(Expr::col("lease_until").lt(Expr::current_timestamp()));
    let state = |state: OperationState| Expr::col("state").eq(state.name());
    state(OperationState::Pending).or(state(OperationState::Running).and(lapsed))
}

fn lease_end(lease: Duration) -> Expr {
    Expr::cust_with_values("now() + make_interval(secs => $1)", [lease.as_secs_f64()])
}

fn select() -> SelectStatement {
    Query::select().column(Asterisk).from("operations").take()
}

fn insertion(new: &NewOperation<'_>) -> sea_query::InsertStatement {
    statement::insert(
        "operations",
        [
            ("id", new.id.0.into()),
            ("kind", new.kind.name().into()),
            ("tenant_id", new.tenant.map(|tenant| tenant.0).into()),
            ("tenant_code", new.tenant_code.as_ref().map(TenantCode::as_str).into()),
            ("request_id", new.request_id.into()),
            ("request_hash", new.request_hash.into()),
            ("created_by", new.created_by.into()),
            ("input", new.input.clone().into()),
        ],
    )
    .on_conflict(OnConflict::new().do_nothing().to_owned())
    .returning(
        Query::returning()
            .exprs([Expr::col(Asterisk), Expr::cust_with_values("pg_notify($1, id::text)", [OPERATIONS_CHANNEL])]),
    )
    .take()
}

/// The operation that the same request created.
async fn earlier(on: &impl Run, request_id: Uuid, request_hash: &[u8]) -> Result<Option<Operation>, Error> {
    let select = select().and_where(Expr::col("request_id").eq(request_id)).take();
    let Some(row) = statement::row(on, &select).await? else { return Ok(None) };
    if Reader::new("operations", &row).get::<&[u8]>("request_hash")? != request_hash {
        return Err(Error::RequestIdReused { request_id });
    }
    let operation = read(&row)?;
    Ok(Some(Operation { steps: steps::of(on, operation.id).await?, ..operation }))
}

/// One operation, without its steps.
pub(super) async fn operation(on: &impl Run, id: OperationId) -> Result<Operation, Error> {
    let row = statement::row(on, &select().and_where(Expr::col("id").eq(id.0)).take()).await?;
    read(&row.ok_or(Error::OperationUnknown { id })?)
}

/// The operation that keeps others from the tenant.
pub(super) async fn holder(on: &impl Run, tenant: Option<TenantId>) -> Result<Option<Operation>, Error> {
    let Some(tenant) = tenant else { return Ok(None) };
    let states = [OperationState::Pending, OperationState::Running, OperationState::Stuck];
    let select = select()
        .and_where(Expr::col("tenant_id").eq(tenant.0))
        .and_where(Expr::col("state").is_in(states.map(OperationState::name)))
        .take();
    statement::row(on, &select).await?.as_ref().map(read).transpose()
}

fn read(row: &Row) -> Result<Operation, Error> {
    let reader = Reader::new("operations", row);
    Ok(Operation {
        id: OperationId(reader.get("id")?),
        kind: reader.parse("kind")?,
        tenant: reader.get::<Option<Uuid>>("tenant_id")?.map(TenantId),
        tenant_code: reader.parse_option("tenant_code")?,
        request_id: reader.get("request_id")?,
        created_by: reader.get("created_by")?,
        input: reader.get("input")?,
        state: reader.parse("state")?,
        result: reader.get("result")?,
        error: reader.get("error")?,
        fence: reader.get("fence")?,
        created_at: reader.moment("created_at")?,
        updated_at: reader.moment("updated_at")?,
        ended_at: reader.moment_option("ended_at")?,
        steps: Vec::new(),
    })
}
