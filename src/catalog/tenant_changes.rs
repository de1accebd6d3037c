//! Changes of tenants. Each locks the tenant's row, takes the next revision, and is announced when its transaction
//! commits. States change only along the domain's table. A transaction changes one tenant, or locks all that it
//! will change, by id, before it changes the first: two others could wait for each other.

use sea_query::{Expr, ExprTrait as _, OnConflict, Query, UpdateStatement};

use super::errors::Error;
use super::meta::revision_next;
use super::routes::removal_insert;
use super::tenants::{NewLicense, NewTenant, Tenant, TenantRef, read, returning, tenant_find, tenant_lock};
use super::{Catalog, Txn};
use crate::domain::lifecycle::{TenantState, Transition};
use crate::domain::operation::OperationId;
use crate::domain::route::Gate;
use crate::domain::tenant::TenantId;
use crate::postgres::{self, statement};

/// A tenant's schema, as the catalog keeps it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TenantSchema<'a> {
    /// The newest migration that was applied; 0 for none.
    pub version: i64,
    pub fingerprint: Option<&'a str>,
    /// Of the files that were applied, as `migrator` makes it; none when it is not known.
    pub files_hash: Option<&'a str>,
}

impl Catalog {
    /// The tenant, its row locked until the transaction ends.
    pub async fn tenant_lock_in_txn(&self, txn: &Txn, id: TenantId) -> Result<Tenant, Error> {
        tenant_lock(txn, id).await
    }

    /// Takes the code, the database's name and the hosts for a new tenant in state PROVISIONING. Of two that reserve
    /// the same code at the same moment, the second waits for the first, and then gets [`Error::TenantExists`].
    pub async fn tenant_reserve_in_txn(&self, txn: &Txn, tenant: &NewTenant) -> Result<Tenant, Error> {
        let revision = revision_next(txn).await?;
        let insert = statement::insert(
            "tenants",
            [
                ("id", tenant.id.0.into()),
                ("code", tenant.code.as_str().into()),
                ("name", tenant.name.as_str().into()),
                ("legal_name", tenant.legal_name.clone().into()),
                ("siret", tenant.siret.clone().into()),
                ("vat_number", tenant.vat_number.clone().into()),
                ("tier", tenant.tier.as_str().into()),
                ("server", tenant.server.as_str().into()),
                ("database", tenant.database.as_str().into()),
                ("state", TenantState::Provisioning.name().into()),
                ("revision", revision.into()),
            ],
        )
        .on_conflict(OnConflict::new().do_nothing().to_owned())
        .take();
        let inserted = statement::execute(txn, &insert).await.map_err(|error| server_unknown(error, &tenant.server))?;
        if inserted == 0 {
            return Err(taken(txn, tenant).await?);
        }
        for host in &tenant.hosts {
            host_insert(txn, tenant.id, host).await?;
        }
        let found = tenant_find(txn, &TenantRef::Id(tenant.id)).await?;
        found.ok_or_else(|| Error::TenantUnknown { tenant: tenant.id.to_string() })
    }

    /// Undoes a reservation: the row with everything that belongs to it. A tenant that is gone already is fine.
    pub async fn tenant_delete_in_txn(&self, txn: &Txn, id: TenantId) -> Result<(), Error> {
        let tenant = match tenant_lock(txn, id).await {
            Ok(locked) => locked,
            Err(Error::TenantUnknown { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let revision = revision_next(txn).await?;
        removal_insert(txn, id, &tenant.code, revision).await?;
        let delete = Query::delete().from_table("tenants").and_where(Expr::col("id").eq(id.0)).take();
        statement::execute(txn, &delete).await?;
        Ok(())
    }

    /// Changes the state along the domain's table, and answers with the tenant as it is then.
    pub async fn tenant_transition_in_txn(
        &self,
        txn: &Txn,
        id: TenantId,
        transition: Transition,
    ) -> Result<Tenant, Error> {
        let state = tenant_lock(txn, id).await?.state.after(transition)?;
        change(txn, id, |update| update.value("state", state.name())).await
    }

    /// Why the tenant is suspended; `None` when it no longer is.
    pub async fn tenant_suspend_reason_set_in_txn(
        &self,
        txn: &Txn,
        id: TenantId,
        reason: Option<&str>,
    ) -> Result<Tenant, Error> {
        change(txn, id, |update| update.value("suspend_reason", reason)).await
    }

    /// Sets the gate for the operation `by`. A tenant that another operation has paused is left as it is:
    /// [`Error::GateHeld`].
    pub async fn gate_set_in_txn(&self, txn: &Txn, id: TenantId, gate: Gate, by: OperationId) -> Result<Tenant, Error> {
        if let Gate::Paused { operation } = tenant_lock(txn, id).await?.gate
            && operation != by.0
        {
            return Err(Error::GateHeld { tenant: id, operation });
        }
        let (name, operation) = match gate {
            Gate::Open => ("OPEN", None),
            Gate::Paused { operation } => ("PAUSED", Some(operation)),
            Gate::Closed { operation } => ("CLOSED", operation),
        };
        change(txn, id, |update| update.value("gate", name).value("gate_operation", operation)).await
    }

    /// Notes what a migration or a restore has made of the schema. The epoch grows, unless nothing has changed.
    pub async fn tenant_schema_set(&self, id: TenantId, schema: &TenantSchema<'_>) -> Result<Tenant, Error> {
        let txn = self.begin().await?;
        let tenant = self.tenant_schema_set_in_txn(&txn, id, schema).await?;
        txn.commit().await?;
        Ok(tenant)
    }

    /// As [`Catalog::tenant_schema_set`].
    pub async fn tenant_schema_set_in_txn(
        &self,
        txn: &Txn,
        id: TenantId,
        schema: &TenantSchema<'_>,
    ) -> Result<Tenant, Error> {
        let tenant = tenant_lock(txn, id).await?;
        let TenantSchema { version, fingerprint, files_hash } = *schema;
        let is_same = tenant.schema_version == version && tenant.schema_fingerprint.as_deref() == fingerprint;
        if is_same && tenant.schema_files_hash.as_deref() == files_hash {
            return Ok(tenant);
        }
        change(txn, id, |update| {
            let update = if is_same { update } else { epoch_next(update) };
            update
                .value("schema_version", version)
                .value("schema_fingerprint", fingerprint)
                .value("schema_files_hash", files_hash)
        })
        .await
    }

    /// Notes that another database has taken the tenant's place. The epoch grows.
    pub async fn tenant_generation_set_in_txn(
        &self,
        txn: &Txn,
        id: TenantId,
        generation: i64,
    ) -> Result<Tenant, Error> {
        change(txn, id, |update| epoch_next(update).value("generation", generation)).await
    }

    /// Has every connection to the tenant dropped.
    pub async fn tenant_epoch_bump_in_txn(&self, txn: &Txn, id: TenantId) -> Result<Tenant, Error> {
        change(txn, id, epoch_next).await
    }

    /// Lets the host, whole and in its one form, resolve to the tenant.
    pub async fn tenant_host_add_in_txn(&self, txn: &Txn, id: TenantId, host: &str) -> Result<Tenant, Error> {
        let tenant = tenant_lock(txn, id).await?;
        if tenant.hosts.iter().any(|known| known == host) {
            return Ok(tenant);
        }
        // The counter before the host, as in a reservation.
        change(txn, id, |update| update).await?;
        host_insert(txn, id, host).await?;
        tenant_lock(txn, id).await
    }

    /// Takes the host from the tenant.
    pub async fn tenant_host_remove_in_txn(&self, txn: &Txn, id: TenantId, host: &str) -> Result<Tenant, Error> {
        let tenant = tenant_lock(txn, id).await?;
        if !tenant.hosts.iter().any(|known| known == host) {
            return Ok(tenant);
        }
        change(txn, id, |update| update).await?;
        let delete = Query::delete()
            .from_table("hosts")
            .and_where(Expr::col("host").eq(host))
            .and_where(Expr::col("tenant_id").eq(id.0))
            .take();
        statement::execute(txn, &delete).await?;
        tenant_lock(txn, id).await
    }

    /// Gives the tenant a license; the same id again is the same license.
    pub async fn license_put_in_txn(&self, txn: &Txn, tenant: TenantId, license: &NewLicense) -> Result<(), Error> {
        let insert = statement::insert(
            "licenses",
            [
                ("id", license.id.into()),
                ("tenant_id", tenant.0.into()),
                ("license_key", license.license_key.as_str().into()),
                ("tier", license.tier.as_str().into()),
                ("users_max", license.users_max.into()),
                ("sites_max", license.sites_max.into()),
                ("valid_from", license.valid_from.into()),
                ("valid_until", license.valid_until.into()),
            ],
        )
        .on_conflict(OnConflict::column("id").do_nothing().to_owned())
        .take();
        statement::execute(txn, &insert).await?;
        Ok(())
    }

    /// Gives the tenant its primary site, unless it has one.
    pub async fn site_primary_put_in_txn(
        &self,
        txn: &Txn,
        tenant: TenantId,
        id: uuid::Uuid,
        name: &str,
    ) -> Result<(), Error> {
        let row = [
            ("id", id.into()),
            ("tenant_id", tenant.0.into()),
            ("code", "main".into()),
            ("name", name.into()),
            ("is_primary", true.into()),
        ];
        let insert = statement::insert("sites", row).on_conflict(OnConflict::new().do_nothing().to_owned()).take();
        statement::execute(txn, &insert).await?;
        Ok(())
    }
}

/// Applies `set` to the tenant's row together with the next revision, and answers with the tenant as it is then.
async fn change(
    txn: &Txn,
    id: TenantId,
    set: impl FnOnce(&mut UpdateStatement) -> &mut UpdateStatement + Send,
) -> Result<Tenant, Error> {
    // The tenant before the counter, everywhere: two transactions then never wait for each other in a circle.
    tenant_lock(txn, id).await?;
    let revision = revision_next(txn).await?;
    let mut update = Query::update()
        .table("tenants")
        .value("revision", revision)
        .value("updated_at", Expr::current_timestamp())
        .and_where(Expr::col("id").eq(id.0))
        .returning(returning())
        .take();
    set(&mut update);
    let row = statement::row(txn, &update).await?;
    row.as_ref().map_or_else(|| Err(Error::TenantUnknown { tenant: id.to_string() }), read)
}

fn epoch_next(update: &mut UpdateStatement) -> &mut UpdateStatement {
    update.value("epoch", Expr::col("epoch").add(1_i64))
}

async fn host_insert(txn: &Txn, tenant: TenantId, host: &str) -> Result<(), Error> {
    if host.is_empty() || host.chars().any(|c| c.is_ascii_uppercase() || c.is_whitespace() || c == ':' || c == '/') {
        return Err(Error::HostInvalid(host.to_owned()));
    }
    let insert = statement::insert("hosts", [("host", host.into()), ("tenant_id", tenant.0.into())])
        .on_conflict(OnConflict::column("host").do_nothing().to_owned())
        .take();
    if statement::execute(txn, &insert).await? == 0 {
        return Err(Error::HostTaken { host: host.to_owned() });
    }
    Ok(())
}

/// Which of the new tenant's names another one has.
async fn taken(txn: &Txn, tenant: &NewTenant) -> Result<Error, Error> {
    let found = tenant_find(txn, &TenantRef::Code(tenant.code.clone())).await?;
    Ok(found.map_or_else(
        || Error::DatabaseTaken { server: tenant.server.clone(), database: tenant.database.to_string() },
        |other| Error::TenantExists { code: other.code, id: other.id, state: other.state },
    ))
}

fn server_unknown(error: postgres::Error, server: &str) -> Error {
    match error.as_db_error().and_then(|error| error.constraint()) {
        Some("tenants_server_known") => Error::ServerUnknown { server: server.to_owned() },
        _ => Error::Statement(error),
    }
}
