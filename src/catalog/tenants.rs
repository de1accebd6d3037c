//! Tenants as they are: lookups by id, code and host, and lists. Changes are in `tenant_changes`.

use std::collections::{BTreeMap, BTreeSet};

use sea_query::{Asterisk, Expr, ExprTrait as _, Order, Query, ReturningClause, SelectStatement};
use serde_json::Value;
use time::{Date, OffsetDateTime};
use tokio_postgres::Row;
use uuid::Uuid;

use super::Catalog;
use super::errors::Error;
use crate::domain::lifecycle::TenantState;
use crate::domain::page::{BadToken, Page, Paged};
use crate::domain::route::{Gate, Route};
use crate::domain::tenant::{DatabaseName, TenantCode, TenantId};
use crate::postgres::read::{Corrupt, Reader};
use crate::postgres::statement::{self, Run};

/// A tenant's row, with its hosts.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenant {
    pub id: TenantId,
    pub code: TenantCode,
    pub name: String,
    pub legal_name: Option<String>,
    pub siret: Option<String>,
    pub vat_number: Option<String>,
    pub address: Option<Value>,
    pub contact: Option<Value>,
    pub settings: Value,
    pub flags: Value,
    pub tier: String,
    pub tier_overrides: Value,
    pub state: TenantState,
    pub suspend_reason: Option<String>,
    pub server: String,
    pub database: DatabaseName,
    pub generation: i64,
    pub schema_version: i64,
    pub schema_fingerprint: Option<String>,
    /// Of the files that were applied up to the version; none when it is not known.
    pub schema_files_hash: Option<String>,
    pub epoch: i64,
    pub gate: Gate,
    /// In order.
    pub hosts: Vec<String>,
    /// The catalog's revision of the last change; the etag.
    pub revision: i64,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
}

impl Tenant {
    pub fn route(&self) -> Route {
        self.clone().into_route()
    }

    pub fn into_route(self) -> Route {
        Route {
            tenant: self.id,
            code: self.code,
            state: self.state,
            tier: self.tier,
            server: self.server,
            database: self.database,
            generation: self.generation,
            schema_version: self.schema_version,
            epoch: self.epoch,
            gate: self.gate,
            suspend_reason: self.suspend_reason,
            hosts: self.hosts,
            revision: self.revision,
        }
    }
}

/// Which tenant. A code never means a purged tenant, because another may have it by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantRef {
    Id(TenantId),
    Code(TenantCode),
}

impl std::fmt::Display for TenantRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Code(code) => code.fmt(f),
        }
    }
}

/// A tenant to reserve.
#[derive(Debug, Clone)]
pub struct NewTenant {
    pub id: TenantId,
    pub code: TenantCode,
    pub name: String,
    pub legal_name: Option<String>,
    pub siret: Option<String>,
    pub vat_number: Option<String>,
    pub tier: String,
    pub server: String,
    pub database: DatabaseName,
    /// Whole host names in lower case, each of which resolves to this tenant alone.
    pub hosts: Vec<String>,
}

/// A tenant's license.
#[derive(Debug, Clone)]
pub struct NewLicense {
    pub id: Uuid,
    pub license_key: String,
    pub tier: String,
    pub users_max: i64,
    pub sites_max: i64,
    pub valid_from: Date,
    pub valid_until: Option<Date>,
}

/// Which tenants to list. By default all that are not purged.
#[derive(Debug, Clone, Copy, Default)]
pub struct TenantFilter<'a> {
    pub state: Option<TenantState>,
    /// Only these. Whoever may see only some hears of no others by the pages' tokens either.
    pub codes: Option<&'a BTreeSet<TenantCode>>,
}

impl Catalog {
    pub async fn tenant_get(&self, tenant: &TenantRef) -> Result<Tenant, Error> {
        let found = tenant_find(&self.session().await?, tenant).await?;
        found.ok_or_else(|| Error::TenantUnknown { tenant: tenant.to_string() })
    }

    /// The tenant that a host name resolves to; `host` is whole, in lower case and without a port.
    pub async fn tenant_by_host(&self, host: &str) -> Result<Tenant, Error> {
        let of_host = Query::select().column("tenant_id").from("hosts").and_where(Expr::col("host").eq(host)).take();
        let select = select().and_where(Expr::col("id").in_subquery(of_host)).take();
        let row = statement::row(&self.session().await?, &select).await?;
        row.as_ref().map_or_else(|| Err(Error::TenantUnknown { tenant: host.to_owned() }), read)
    }

    /// The codes of those of these tenants that are there.
    pub async fn tenant_codes(&self, ids: &[TenantId]) -> Result<BTreeMap<TenantId, TenantCode>, Error> {
        if ids.is_empty() {
            return Ok(BTreeMap::new());
        }
        let select = Query::select()
            .columns(["id", "code"])
            .from("tenants")
            .and_where(Expr::col("id").is_in(ids.iter().map(|id| id.0)))
            .and_where(not_purged())
            .take();
        let rows = statement::rows(&self.session().await?, &select).await?;
        let pair = |row| {
            let reader = Reader::new("tenants", row);
            Ok::<_, Corrupt>((TenantId(reader.get("id")?), reader.parse("code")?))
        };
        let tell =
            |error: Corrupt| tracing::error!(%error, "a tenant is reached by no user, because its row is damaged");
        Ok(rows.iter().filter_map(|row| pair(row).map_err(tell).ok()).collect())
    }

    /// Those of these codes that tenants have.
    pub async fn tenant_codes_known(&self, codes: &BTreeSet<TenantCode>) -> Result<BTreeSet<TenantCode>, Error> {
        let select = Query::select()
            .columns(["id", "code"])
            .from("tenants")
            .and_where(among("code", codes))
            .and_where(not_purged())
            .take();
        let rows = statement::rows(&self.session().await?, &select).await?;
        rows.iter().map(|row| Ok(Reader::new("tenants", row).parse("code")?)).collect()
    }

    /// Tenants by code.
    pub async fn tenant_list(&self, page: &Page, filter: &TenantFilter<'_>) -> Result<Paged<Tenant>, Error> {
        let of_state = filter.state.map_or_else(not_purged, |state| Expr::col("state").eq(state.name()));
        // Codes are unique but for purged tenants, which is why the id belongs to the key.
        let mut select = select()
            .and_where(of_state)
            .and_where_option(filter.codes.map(|codes| among("code", codes)))
            .order_by("code", Order::Asc)
            .order_by("id", Order::Asc)
            .limit(page.limit())
            .take();
        if let Some(token) = &page.after {
            let bad = || BadToken(token.clone());
            let (code, id) = token.split_once('.').ok_or_else(bad)?;
            let id: Uuid = id.parse().map_err(|_| bad())?;
            let key = Expr::tuple([Expr::col("code"), Expr::col("id")]);
            select.and_where(key.gt(Expr::tuple([code.into(), id.into()])));
        }
        let rows = statement::rows(&self.session().await?, &select).await?;
        let tenants = rows.iter().map(read).collect::<Result<_, _>>()?;
        Ok(page.cut(tenants, |last| format!("{}.{}", last.code, last.id)))
    }

    /// Every tenant that is not purged: what a router that starts reads.
    pub async fn tenant_all(&self) -> Result<Vec<Tenant>, Error> {
        let select = select().and_where(not_purged()).order_by("code", Order::Asc).take();
        statement::rows(&self.session().await?, &select).await?.iter().map(read).collect()
    }
}

/// The rows of these tenants, by the column that has the code.
pub(super) fn among(column: &'static str, codes: &BTreeSet<TenantCode>) -> Expr {
    Expr::col(column).is_in(codes.iter().map(TenantCode::as_str))
}

/// The tenant as the caller's transaction sees it.
pub(super) async fn tenant_find(on: &impl Run, tenant: &TenantRef) -> Result<Option<Tenant>, Error> {
    let select = match tenant {
        TenantRef::Id(id) => select().and_where(Expr::col("id").eq(id.0)).take(),
        TenantRef::Code(code) => select().and_where(Expr::col("code").eq(code.as_str())).and_where(not_purged()).take(),
    };
    statement::row(on, &select).await?.as_ref().map(read).transpose()
}

/// The tenant, its row locked until the transaction ends.
pub(super) async fn tenant_lock(on: &impl Run, id: TenantId) -> Result<Tenant, Error> {
    let select = select().and_where(Expr::col("id").eq(id.0)).lock_exclusive().take();
    let row = statement::row(on, &select).await?;
    row.as_ref().map_or_else(|| Err(Error::TenantUnknown { tenant: id.to_string() }), read)
}

fn not_purged() -> Expr {
    Expr::col("state").ne(TenantState::Purged.name())
}

/// A tenant's hosts, as a column that [`read`] takes.
const HOSTS: &str = "ARRAY(SELECT host FROM hosts WHERE hosts.tenant_id = tenants.id ORDER BY host) AS hosts";

/// Every column that [`read`] takes.
pub(super) fn select() -> SelectStatement {
    Query::select().column(Asterisk).expr(Expr::cust(HOSTS)).from("tenants").take()
}

/// A changed tenant, whole.
pub(super) fn returning() -> ReturningClause {
    Query::returning().exprs([Expr::col(Asterisk), Expr::cust(HOSTS)])
}

pub(super) fn read(row: &Row) -> Result<Tenant, Error> {
    let reader = Reader::new("tenants", row);
    Ok(Tenant {
        id: TenantId(reader.get("id")?),
        code: reader.parse("code")?,
        name: reader.get("name")?,
        legal_name: reader.get("legal_name")?,
        siret: reader.get("siret")?,
        vat_number: reader.get("vat_number")?,
        address: reader.get("address")?,
        contact: reader.get("contact")?,
        settings: reader.get("settings")?,
        flags: reader.get("flags")?,
        tier: reader.get("tier")?,
        tier_overrides: reader.get("tier_overrides")?,
        state: reader.parse("state")?,
        suspend_reason: reader.get("suspend_reason")?,
        server: reader.get("server")?,
        database: reader.database("database")?,
        generation: reader.get("generation")?,
        schema_version: reader.get("schema_version")?,
        schema_fingerprint: reader.get("schema_fingerprint")?,
        schema_files_hash: reader.get("schema_files_hash")?,
        epoch: reader.get("epoch")?,
        gate: gate(&reader)?,
        hosts: reader.get("hosts")?,
        revision: reader.get("revision")?,
        created_at: reader.moment("created_at")?,
        updated_at: reader.moment("updated_at")?,
    })
}

fn gate(reader: &Reader<'_>) -> Result<Gate, Corrupt> {
    let operation: Option<Uuid> = reader.get("gate_operation")?;
    match (reader.get::<&str>("gate")?, operation) {
        ("OPEN", None) => Ok(Gate::Open),
        ("PAUSED", Some(operation)) => Ok(Gate::Paused { operation }),
        ("CLOSED", operation) => Ok(Gate::Closed { operation }),
        (name, operation) => {
            Err(reader.corrupt("gate", &format!("{name:?} with the operation {operation:?} is no gate")))
        }
    }
}
