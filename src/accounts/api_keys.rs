//! API keys: found by the hash of what a caller presents. A revoked key's row stays, for the record.

use std::collections::BTreeSet;

use sea_query::{Asterisk, Expr, ExprTrait as _, Order, Query, ReturningClause, SelectStatement};
use time::OffsetDateTime;
use tokio_postgres::Row;
use uuid::Uuid;

use super::Accounts;
use super::errors::{Error, sound};
use crate::domain::page::{BadToken, Page, Paged};
use crate::domain::permission::Role;
use crate::domain::principal::Scope;
use crate::domain::tenant::TenantCode;
use crate::postgres::read::{Corrupt, Reader};
use crate::postgres::statement::{self, Run};
use crate::secrets::ApiKeyHash;

/// A key's row, without its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    pub id: Uuid,
    pub name: String,
    pub roles: BTreeSet<Role>,
    pub scope: Scope,
    pub default_tenant: Option<TenantCode>,
    pub created_by: String,
    pub created_at: OffsetDateTime,
    /// `None`: never.
    pub expires_at: Option<OffsetDateTime>,
    pub revoked_at: Option<OffsetDateTime>,
    pub last_used_at: Option<OffsetDateTime>,
}

/// A key to note.
#[derive(Debug, Clone)]
pub struct NewApiKey<'a> {
    /// A UUID of any version.
    pub id: Uuid,
    pub name: &'a str,
    pub hash: ApiKeyHash,
    pub roles: &'a BTreeSet<Role>,
    pub scope: &'a Scope,
    pub default_tenant: Option<&'a TenantCode>,
    pub created_by: &'a str,
    pub expires_at: Option<OffsetDateTime>,
}

impl Accounts {
    pub async fn api_key_insert(&self, key: &NewApiKey<'_>) -> Result<ApiKey, Error> {
        let txn = self.begin().await?;
        insert(&txn, key).await?;
        let inserted = by_id(&txn, key.id).await?;
        txn.commit().await?;
        Ok(inserted)
    }

    /// Inserts an admin's key, unless there is a usable one for all tenants already. Of two daemons that start at the
    /// same moment, one gets `None`.
    pub async fn api_key_insert_first_admin(
        &self,
        key: &NewApiKey<'_>,
        now: OffsetDateTime,
    ) -> Result<Option<ApiKey>, Error> {
        let txn = self.begin().await?;
        // Readers and `touch` go on; whoever else inserts waits.
        statement::batch(&txn, "LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE").await?;
        if admin_exists(&txn, now).await? {
            return Ok(None);
        }
        insert(&txn, key).await?;
        let inserted = by_id(&txn, key.id).await?;
        txn.commit().await?;
        Ok(Some(inserted))
    }

    /// The key that a caller presents, if there is such a one. Expired and revoked keys are found as well.
    pub async fn api_key_by_hash(&self, hash: &ApiKeyHash) -> Result<Option<ApiKey>, Error> {
        let select = select().and_where(Expr::col("key_hash").eq(hash.0.as_slice())).take();
        let row = statement::row(&self.session().await?, &select).await?;
        Ok(row.as_ref().map(read).transpose()?)
    }

    pub async fn api_key_get(&self, id: Uuid) -> Result<ApiKey, Error> {
        by_id(&self.session().await?, id).await
    }

    /// Keys, newest first, the revoked ones as well, and without those whose rows are damaged. Their ids do not say when they were made: clients may choose them.
    pub async fn api_key_list(&self, page: &Page) -> Result<Paged<ApiKey>, Error> {
        let session = self.session().await?;
        let mut select =
            select().order_by("created_at", Order::Desc).order_by("id", Order::Desc).limit(page.limit()).take();
        if let Some(id) = page.after_id()? {
            let last = Query::select().column("id").from("api_keys").and_where(Expr::col("id").eq(id)).take();
            if statement::row(&session, &last).await?.is_none() {
                return Err(BadToken(id.to_string()).into());
            }
            // Compared where it is, since not every moment that a row may have can be read and written.
            select.and_where(Expr::cust_with_values(
                "(created_at, id) < (SELECT last.created_at, last.id FROM api_keys AS last WHERE last.id = $1)",
                [id],
            ));
        }
        let rows = statement::rows(&session, &select).await?;
        let Paged { rows, next } = page.cut(rows, |last| last.try_get::<_, Uuid>("id").unwrap_or_default().to_string());
        Ok(Paged { rows: sound(rows.iter().map(read)), next })
    }

    /// Ends a key. One that was revoked before keeps its first time.
    pub async fn api_key_revoke(&self, id: Uuid) -> Result<ApiKey, Error> {
        let update = Query::update()
            .table("api_keys")
            .value("revoked_at", Expr::cust("coalesce(revoked_at, now())"))
            .and_where(Expr::col("id").eq(id))
            .returning(returning())
            .take();
        let row = statement::row(&self.session().await?, &update).await?;
        let revoked = row.as_ref().map(read).transpose()?;
        revoked.ok_or(Error::ApiKeyUnknown { id })
    }

    /// Whether any key can administrate the whole fleet at `now`: one that is limited to tenants makes no keys.
    pub async fn admin_key_exists(&self, now: OffsetDateTime) -> Result<bool, Error> {
        admin_exists(&self.session().await?, now).await
    }
}

async fn insert(on: &impl Run, key: &NewApiKey<'_>) -> Result<(), Error> {
    let row = [
        ("id", key.id.into()),
        ("name", key.name.into()),
        ("key_hash", key.hash.0.as_slice().into()),
        ("all_tenants", matches!(key.scope, Scope::All).into()),
        ("default_tenant", key.default_tenant.map(TenantCode::as_str).into()),
        ("created_by", key.created_by.into()),
        ("expires_at", key.expires_at.into()),
    ];
    statement::execute(on, &statement::insert("api_keys", row)).await?;
    for role in key.roles {
        let row = [("api_key_id", key.id.into()), ("role", role.name().into())];
        statement::execute(on, &statement::insert("api_key_roles", row)).await?;
    }
    if let Scope::Tenants(tenants) = key.scope {
        for tenant in tenants {
            let row = [("api_key_id", key.id.into()), ("tenant_code", tenant.as_str().into())];
            statement::execute(on, &statement::insert("api_key_tenants", row)).await?;
        }
    }
    Ok(())
}

async fn by_id(on: &impl Run, id: Uuid) -> Result<ApiKey, Error> {
    let row = statement::row(on, &select().and_where(Expr::col("id").eq(id)).take()).await?;
    let found = row.as_ref().map(read).transpose()?;
    found.ok_or(Error::ApiKeyUnknown { id })
}

async fn admin_exists(on: &impl Run, now: OffsetDateTime) -> Result<bool, Error> {
    let admins = Query::select()
        .column("api_key_id")
        .from("api_key_roles")
        .and_where(Expr::col("role").eq(Role::Admin.name()))
        .take();
    let select = Query::select()
        .column("id")
        .from("api_keys")
        .and_where(Expr::col("id").in_subquery(admins))
        .and_where(Expr::col("all_tenants").eq(true))
        .and_where(Expr::col("revoked_at").is_null())
        .and_where(Expr::col("expires_at").is_null().or(Expr::col("expires_at").gt(now)))
        .limit(1)
        .take();
    Ok(statement::row(on, &select).await?.is_some())
}

/// A key's roles and tenants, as columns that [`read`] takes.
const ROLES: &str = "ARRAY(SELECT role FROM api_key_roles AS r WHERE r.api_key_id = api_keys.id) AS roles";
const TENANTS: &str = "ARRAY(SELECT tenant_code FROM api_key_tenants AS t WHERE t.api_key_id = api_keys.id) AS tenants";

fn select() -> SelectStatement {
    Query::select().column(Asterisk).expr(Expr::cust(ROLES)).expr(Expr::cust(TENANTS)).from("api_keys").take()
}

fn returning() -> ReturningClause {
    Query::returning().exprs([Expr::col(Asterisk), Expr::cust(ROLES), Expr::cust(TENANTS)])
}

fn read(row: &Row) -> Result<ApiKey, Corrupt> {
    let reader = Reader::new("api_keys", row);
    let scope = if reader.get("all_tenants")? {
        Scope::All
    } else {
        Scope::Tenants(reader.parse_all::<TenantCode, _>("tenants")?)
    };
    Ok(ApiKey {
        id: reader.get("id")?,
        name: reader.get("name")?,
        roles: reader.parse_all::<Role, _>("roles")?,
        scope,
        default_tenant: reader.parse_option("default_tenant")?,
        created_by: reader.get("created_by")?,
        created_at: reader.moment("created_at")?,
        expires_at: reader.expiry("expires_at")?,
        revoked_at: reader.moment_option("revoked_at")?,
        last_used_at: reader.moment_option("last_used_at")?,
    })
}
