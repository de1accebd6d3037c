//! The routes as a sequence of revisions: all of them page by page, what changed since a revision, and a session that
//! hears of each change. Must not know who follows it.
//!
//! Revisions commit in the order of their numbers, so whoever has seen revision n has seen everything up to n. Between
//! two reads a tenant may move to a higher revision; then it comes again later, and is never missed.

use std::collections::BTreeSet;
use std::time::Duration;

use sea_query::{Expr, ExprTrait as _, OnConflict, Order, Query};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_postgres::Notification;

use super::credentials::{TenantSecret, tenant_secrets};
use super::errors::Error;
use super::tenants::{among, read, select};
use super::{CHANNEL, Catalog, Txn};
use crate::domain::lifecycle::TenantState;
use crate::domain::route::{Position, Route};
use crate::domain::tenant::{TenantCode, TenantId};
use crate::postgres::read::{Corrupt, Reader};
use crate::postgres::sessions::Dedicated;
use crate::postgres::statement::{self, Run};

/// Routes that are read at once.
const PAGE: u64 = 1_000;
/// Removals of so many revisions are kept.
const REMOVALS_KEPT: i64 = 100_000;
/// How long a session that follows the catalog waits for an answer before it counts as lost.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(2_500);

/// What became of one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteChange {
    /// It is new, or something about it is.
    Set(Box<Route>),
    /// It is purged, or never came to be.
    Removed { tenant: TenantId, code: TenantCode, revision: i64 },
}

impl RouteChange {
    pub fn revision(&self) -> i64 {
        match self {
            Self::Set(route) => route.revision,
            Self::Removed { revision, .. } => *revision,
        }
    }

    pub fn code(&self) -> &TenantCode {
        match self {
            Self::Set(route) => &route.code,
            Self::Removed { code, .. } => code,
        }
    }
}

/// Some changes, in the order of their revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteChanges {
    pub changes: Vec<RouteChange>,
    /// Everything up to here is among them, or was before.
    pub upto: i64,
    /// There are more.
    pub is_cut: bool,
}

impl Catalog {
    pub async fn position(&self) -> Result<Position, Error> {
        position(&self.session().await?).await
    }

    /// The next routes by id, of these codes or of all; empty after the last. Purged tenants have none.
    pub async fn routes_page(
        &self,
        after: Option<TenantId>,
        codes: Option<&BTreeSet<TenantCode>>,
    ) -> Result<Vec<Route>, Error> {
        routes_page(&self.session().await?, after, codes).await
    }

    /// What changed after a revision of this catalog, oldest first.
    ///
    /// # Errors
    /// [`Error::RevisionUnknown`] for one that lies too far back, or ahead of the catalog.
    pub async fn routes_since(&self, revision: i64) -> Result<RouteChanges, Error> {
        routes_since(&self.session().await?, revision).await
    }

    /// A session of its own that hears of each revision.
    pub async fn follow(&self) -> Result<Follower, Error> {
        let mut session = self.sessions.dedicated().await?;
        statement::batch(&session, &format!("LISTEN {CHANNEL}")).await?;
        let notifications = session.notifications();
        Ok(Follower { session, notifications })
    }

    /// Forgets removals up to a revision; whoever has seen less has to read everything anew.
    pub async fn removals_compact_in_txn(&self, txn: &Txn, revision: i64) -> Result<(), Error> {
        removals_compact(txn, revision).await
    }
}

/// A session that hears of each revision. It is lost when an answer fails or takes too long.
#[derive(Debug)]
pub struct Follower {
    session: Dedicated,
    notifications: Option<mpsc::Receiver<Notification>>,
}

impl Follower {
    /// Resolves when something has changed; false when the session has ended.
    pub async fn changed(&mut self) -> bool {
        let Some(notifications) = &mut self.notifications else { return false };
        let is_alive = notifications.recv().await.is_some();
        // One read answers all that are there.
        while notifications.try_recv().is_ok() {}
        is_alive
    }

    pub async fn position(&self) -> Result<Position, Error> {
        in_time(position(&self.session)).await
    }

    /// As [`Catalog::routes_page`].
    pub async fn routes_page(&self, after: Option<TenantId>) -> Result<Vec<Route>, Error> {
        in_time(routes_page(&self.session, after, None)).await
    }

    /// The routes of these tenants, but for those that have none.
    pub async fn routes_of(&self, tenants: &[TenantId]) -> Result<Vec<Route>, Error> {
        let of = select()
            .and_where(Expr::col("state").ne(TenantState::Purged.name()))
            .and_where(Expr::col("id").is_in(tenants.iter().map(|tenant| tenant.0)))
            .take();
        let rows = in_time(async { Ok(statement::rows(&self.session, &of).await?) }).await?;
        rows.iter().map(|row| Ok(read(row)?.into_route())).collect()
    }

    /// These secrets, an older version before a newer one; without those that are not there.
    pub async fn tenant_secrets(&self, fields: &[(TenantId, String)]) -> Result<Vec<TenantSecret>, Error> {
        in_time(tenant_secrets(&self.session, fields)).await
    }

    /// As [`Catalog::routes_since`].
    pub async fn routes_since(&self, revision: i64) -> Result<RouteChanges, Error> {
        in_time(routes_since(&self.session, revision)).await
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(ANSWER_TIMEOUT, answer).await.unwrap_or(Err(Error::Silent { waited: ANSWER_TIMEOUT }))
}

async fn position(on: &impl Run) -> Result<Position, Error> {
    let select = Query::select().columns(["catalog_id", "revision", "compacted_revision"]).from("catalog_meta").take();
    let row = statement::row(on, &select).await?.ok_or_else(|| Corrupt {
        table: "catalog_meta",
        column: "singleton",
        id: "the only row".to_owned(),
        problem: "it is missing".to_owned(),
    })?;
    Ok(Position {
        catalog_id: row.try_get("catalog_id")?,
        revision: row.try_get("revision")?,
        compacted_revision: row.try_get("compacted_revision")?,
    })
}

async fn routes_page(
    on: &impl Run,
    after: Option<TenantId>,
    codes: Option<&BTreeSet<TenantCode>>,
) -> Result<Vec<Route>, Error> {
    let mut page = select()
        .and_where(Expr::col("state").ne(TenantState::Purged.name()))
        .order_by("id", Order::Asc)
        .limit(PAGE)
        .take();
    if let Some(after) = after {
        page.and_where(Expr::col("id").gt(after.0));
    }
    if let Some(codes) = codes {
        page.and_where(among("code", codes));
    }
    statement::rows(on, &page).await?.iter().map(|row| Ok(read(row)?.into_route())).collect()
}

async fn routes_since(on: &impl Run, revision: i64) -> Result<RouteChanges, Error> {
    // The position first: everything up to it is committed, whatever happens between this read and the next ones.
    let position = position(on).await?;
    if revision < position.compacted_revision || revision > position.revision {
        return Err(Error::RevisionUnknown { revision, position });
    }
    let mut upto = position.revision;
    if revision == upto {
        return Ok(RouteChanges { changes: Vec::new(), upto, is_cut: false });
    }
    let mut changes = Vec::new();
    let tenants = select()
        .and_where(Expr::col("revision").gt(revision))
        .and_where(Expr::col("revision").lte(upto))
        .order_by("revision", Order::Asc)
        .limit(PAGE)
        .take();
    for row in statement::rows(on, &tenants).await? {
        let tenant = read(&row)?;
        changes.push(if tenant.state == TenantState::Purged {
            RouteChange::Removed { tenant: tenant.id, code: tenant.code, revision: tenant.revision }
        } else {
            RouteChange::Set(Box::new(tenant.into_route()))
        });
    }
    let mut is_cut = cut(&changes, &mut upto);
    let removed = Query::select()
        .columns(["tenant_id", "code", "revision"])
        .from("tenant_removals")
        .and_where(Expr::col("revision").gt(revision))
        .and_where(Expr::col("revision").lte(upto))
        .order_by("revision", Order::Asc)
        .limit(PAGE)
        .take();
    let mut removals = Vec::new();
    for row in statement::rows(on, &removed).await? {
        let reader = Reader { table: "tenant_removals", key: "tenant_id", row: &row };
        let (tenant, revision) = (TenantId(reader.get("tenant_id")?), reader.get("revision")?);
        removals.push(RouteChange::Removed { tenant, code: reader.parse("code")?, revision });
    }
    is_cut |= cut(&removals, &mut upto);
    changes.append(&mut removals);
    changes.retain(|change| change.revision() <= upto);
    changes.sort_by_key(RouteChange::revision);
    Ok(RouteChanges { changes, upto, is_cut })
}

/// Ends at the last change of a page that is full.
fn cut(page: &[RouteChange], upto: &mut i64) -> bool {
    match page.last() {
        Some(last) if page.len() as u64 >= PAGE => {
            *upto = last.revision();
            true
        }
        _ => false,
    }
}

/// Notes that the tenant's row goes, with the revision that says so.
pub(super) async fn removal_insert(txn: &Txn, tenant: TenantId, code: &TenantCode, revision: i64) -> Result<(), Error> {
    let row = [("tenant_id", tenant.0.into()), ("code", code.as_str().into()), ("revision", revision.into())];
    let insert = statement::insert("tenant_removals", row)
        .on_conflict(OnConflict::column("tenant_id").update_columns(["code", "revision"]).to_owned())
        .take();
    statement::execute(txn, &insert).await?;
    removals_compact(txn, revision - REMOVALS_KEPT).await
}

async fn removals_compact(txn: &Txn, revision: i64) -> Result<(), Error> {
    let delete = Query::delete().from_table("tenant_removals").and_where(Expr::col("revision").lte(revision)).take();
    if statement::execute(txn, &delete).await? > 0 {
        let update = Query::update()
            .table("catalog_meta")
            .value("compacted_revision", revision)
            .and_where(Expr::col("compacted_revision").lt(revision))
            .take();
        statement::execute(txn, &update).await?;
    }
    Ok(())
}
