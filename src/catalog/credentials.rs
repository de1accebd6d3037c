//! What is sealed: a tenant's wrapped data key, and its passwords and identities as ciphertext. Nothing here can be
//! opened without the key-encryption key, which the catalog never sees.

use sea_query::{Expr, ExprTrait as _, OnConflict, Order, Query, SelectStatement};

use super::errors::Error;
use super::{Catalog, Txn};
use crate::domain::tenant::TenantId;
use crate::postgres::statement::{self, Run};

/// One sealed value. `version` is part of what it is sealed with.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    pub version: i32,
    pub ciphertext: Vec<u8>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("version", &self.version).finish_non_exhaustive()
    }
}

impl Catalog {
    /// Stores the tenant's data key, unless it has one, and answers with the one that it has then: a key under which
    /// something is sealed is never replaced.
    pub async fn tenant_data_key_put_in_txn(
        &self,
        txn: &Txn,
        tenant: TenantId,
        wrapped_key: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let row = [("tenant_id", tenant.0.into()), ("wrapped_key", wrapped_key.into())];
        let insert = statement::insert("tenant_data_keys", row)
            // An update to the same value, because only then there is a row to return.
            .on_conflict(
                OnConflict::column("tenant_id").value("tenant_id", Expr::cust("excluded.tenant_id")).to_owned(),
            )
            .returning_col("wrapped_key")
            .take();
        match statement::row(txn, &insert).await? {
            Some(row) => Ok(row.try_get("wrapped_key")?),
            None => Err(unknown(tenant, "data_key")),
        }
    }

    /// The tenant's data key as it was stored: wrapped.
    pub async fn tenant_data_key_get(&self, tenant: TenantId) -> Result<Vec<u8>, Error> {
        let select = Query::select()
            .column("wrapped_key")
            .from("tenant_data_keys")
            .and_where(Expr::col("tenant_id").eq(tenant.0))
            .take();
        match statement::row(&self.session().await?, &select).await? {
            Some(row) => Ok(row.try_get("wrapped_key")?),
            None => Err(unknown(tenant, "data_key")),
        }
    }

    /// Stores one version of a secret. The same version again replaces it: a repeated step has made a new password.
    pub async fn tenant_secret_put_in_txn(
        &self,
        txn: &Txn,
        tenant: TenantId,
        field: &str,
        version: i32,
        ciphertext: &[u8],
    ) -> Result<(), Error> {
        let row = [
            ("tenant_id", tenant.0.into()),
            ("field", field.into()),
            ("version", version.into()),
            ("ciphertext", ciphertext.into()),
        ];
        let insert = statement::insert("tenant_secrets", row)
            .on_conflict(OnConflict::columns(["tenant_id", "field", "version"]).update_column("ciphertext").to_owned())
            .take();
        statement::execute(txn, &insert).await?;
        Ok(())
    }

    /// The newest version of a secret, and the tenant's data key as it was stored: wrapped.
    pub async fn tenant_secret_get(&self, tenant: TenantId, field: &str) -> Result<(Secret, Vec<u8>), Error> {
        let select = sealed(&["version", "ciphertext", "wrapped_key"])
            .and_where(Expr::col(("tenant_secrets", "tenant_id")).eq(tenant.0))
            .and_where(Expr::col("field").eq(field))
            .order_by("version", Order::Desc)
            .limit(1)
            .take();
        match statement::row(&self.session().await?, &select).await? {
            Some(row) => {
                let secret = Secret { version: row.try_get("version")?, ciphertext: row.try_get("ciphertext")? };
                Ok((secret, row.try_get("wrapped_key")?))
            }
            None => Err(unknown(tenant, field)),
        }
    }
}

/// Secrets beside the keys that they are sealed under.
fn sealed(columns: &[&'static str]) -> SelectStatement {
    let of_same_tenant = Expr::col(("tenant_data_keys", "tenant_id")).equals(("tenant_secrets", "tenant_id"));
    Query::select()
        .columns(columns.iter().copied())
        .from("tenant_secrets")
        .inner_join("tenant_data_keys", of_same_tenant)
        .take()
}

/// One of a tenant's secrets, with the key that it is sealed under.
#[derive(Debug)]
pub struct TenantSecret {
    pub tenant: TenantId,
    pub field: String,
    pub secret: Secret,
    pub wrapped_key: Vec<u8>,
}

/// The newest version of each of these secrets, as far as they are there.
pub(super) async fn tenant_secrets(on: &impl Run, fields: &[(TenantId, String)]) -> Result<Vec<TenantSecret>, Error> {
    let select = sealed(&["field", "version", "ciphertext", "wrapped_key"])
        .column(("tenant_secrets", "tenant_id"))
        .and_where(Expr::col(("tenant_secrets", "tenant_id")).is_in(fields.iter().map(|(tenant, _)| tenant.0)))
        .and_where(Expr::col("field").is_in(fields.iter().map(|(_, field)| field.as_str())))
        .order_by("version", Order::Asc)
        .take();
    let read = |row: &tokio_postgres::Row| {
        Ok(TenantSecret {
            tenant: TenantId(row.try_get("tenant_id")?),
            field: row.try_get("field")?,
            secret: Secret { version: row.try_get("version")?, ciphertext: row.try_get("ciphertext")? },
            wrapped_key: row.try_get("wrapped_key")?,
        })
    };
    statement::rows(on, &select).await?.iter().map(read).collect()
}

fn unknown(tenant: TenantId, field: &str) -> Error {
    Error::SecretUnknown { tenant, field: field.to_owned() }
}
