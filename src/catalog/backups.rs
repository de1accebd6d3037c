//! Backups, and the databases that a restore has replaced. A row in state RUNNING is no backup yet: it says which
//! objects and which upload must go when its operation fails.

use std::collections::BTreeSet;
use std::time::Duration;

use sea_query::{Asterisk, Expr, ExprTrait as _, OnConflict, Order, Query, SelectStatement};
use time::OffsetDateTime;
use tokio_postgres::Row;
use uuid::Uuid;

use super::errors::Error;
use super::fence::{claimed, fence_holds};
use super::tenants::among;
use super::{Catalog, Txn};
use crate::domain::backup::{BackupKeys, BackupState, Manifest};
use crate::domain::operation::{OperationId, OperationState};
use crate::domain::page::{Page, Paged};
use crate::domain::tenant::{DatabaseName, TenantCode, TenantId};
use crate::postgres::read::{Corrupt, Reader};
use crate::postgres::statement;

/// A backup's row.
#[derive(Debug, Clone, PartialEq)]
pub struct Backup {
    pub id: Uuid,
    pub tenant: TenantId,
    /// The tenant's code when the backup was made.
    pub tenant_code: TenantCode,
    pub operation: OperationId,
    pub state: BackupState,
    pub keys: BackupKeys,
    /// The multipart upload under way.
    pub upload_id: Option<String>,
    /// Always there when the backup is complete.
    pub manifest: Option<Manifest>,
    pub created_at: OffsetDateTime,
    pub completed_at: Option<OffsetDateTime>,
    pub verified_at: Option<OffsetDateTime>,
}

/// Which backups to list. By default all.
#[derive(Debug, Clone, Copy, Default)]
pub struct BackupFilter<'a> {
    /// Only those of these tenants.
    pub codes: Option<&'a BTreeSet<TenantCode>>,
    pub tenant: Option<TenantId>,
}

/// A backup to begin.
#[derive(Debug, Clone)]
pub struct NewBackup {
    /// A UUID of version 7.
    pub id: Uuid,
    pub tenant: TenantId,
    pub tenant_code: TenantCode,
    pub operation: OperationId,
    pub keys: BackupKeys,
}

/// A database that a restore has taken out of service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetiredDatabase {
    pub server: String,
    pub database: DatabaseName,
    pub tenant: TenantId,
    pub operation: OperationId,
    pub retired_at: OffsetDateTime,
}

impl Catalog {
    /// Begins a backup; one that has begun already is left as it is.
    pub async fn backup_insert(&self, backup: &NewBackup) -> Result<(), Error> {
        let row = [
            ("id", backup.id.into()),
            ("tenant_id", backup.tenant.0.into()),
            ("tenant_code", backup.tenant_code.as_str().into()),
            ("operation_id", backup.operation.0.into()),
            ("archive_key", backup.keys.archive.as_str().into()),
            ("manifest_key", backup.keys.manifest.as_str().into()),
        ];
        let insert =
            statement::insert("backups", row).on_conflict(OnConflict::column("id").do_nothing().to_owned()).take();
        statement::execute(&self.session().await?, &insert).await?;
        Ok(())
    }

    /// Notes the upload before its first part is sent, or that there is none any more. Only under the operation's claim:
    /// the upload of a daemon that was overtaken is not the one to be given up later.
    pub async fn backup_upload_set(
        &self,
        id: Uuid,
        upload_id: Option<&str>,
        operation: OperationId,
        fence: i64,
    ) -> Result<(), Error> {
        let update = Query::update()
            .table("backups")
            .value("upload_id", upload_id)
            .and_where(Expr::col("id").eq(id))
            .and_where(fence_holds(operation, fence))
            .take();
        claimed(statement::execute(&self.session().await?, &update).await?, operation)
    }

    /// The manifest lies in the bucket: from here on it is a backup.
    pub async fn backup_complete_in_txn(&self, txn: &Txn, id: Uuid, manifest: &Manifest) -> Result<(), Error> {
        let manifest = serde_json::to_value(manifest).map_err(|error| Corrupt {
            table: "backups",
            column: "manifest",
            id: id.to_string(),
            problem: error.to_string(),
        })?;
        let update = Query::update()
            .table("backups")
            .value("state", BackupState::Complete.name())
            .value("manifest", manifest)
            .value("upload_id", Option::<String>::None)
            .value("completed_at", Expr::current_timestamp())
            .and_where(Expr::col("id").eq(id))
            .take();
        hit(statement::execute(txn, &update).await?, id)
    }

    /// A whole verification has succeeded.
    pub async fn backup_verified_set(&self, id: Uuid) -> Result<Backup, Error> {
        let update = Query::update()
            .table("backups")
            .value("verified_at", Expr::current_timestamp())
            .and_where(Expr::col("id").eq(id))
            .returning_all()
            .take();
        let row = statement::row(&self.session().await?, &update).await?;
        row.as_ref().map_or_else(|| Err(Error::BackupUnknown { id }), read)
    }

    /// A verification has found damage: it counts as not verified, whatever was found before.
    pub async fn backup_verified_clear(&self, id: Uuid) -> Result<(), Error> {
        let never = Option::<OffsetDateTime>::None;
        let update =
            Query::update().table("backups").value("verified_at", never).and_where(Expr::col("id").eq(id)).take();
        hit(statement::execute(&self.session().await?, &update).await?, id)
    }

    /// The row alone, after its objects. A row that is gone already is fine.
    pub async fn backup_delete(&self, id: Uuid) -> Result<(), Error> {
        let delete = Query::delete().from_table("backups").and_where(Expr::col("id").eq(id)).take();
        statement::execute(&self.session().await?, &delete).await?;
        Ok(())
    }

    /// One backup, complete or not.
    pub async fn backup_get(&self, id: Uuid) -> Result<Backup, Error> {
        let select = select().and_where(Expr::col("id").eq(id)).take();
        let row = statement::row(&self.session().await?, &select).await?;
        row.as_ref().map_or_else(|| Err(Error::BackupUnknown { id }), read)
    }

    /// Complete backups, newest first.
    pub async fn backup_list(&self, page: &Page, filter: &BackupFilter<'_>) -> Result<Paged<Backup>, Error> {
        let select = select()
            .and_where(Expr::col("state").eq(BackupState::Complete.name()))
            .and_where_option(filter.codes.map(|codes| among("tenant_code", codes)))
            .and_where_option(filter.tenant.map(|tenant| Expr::col("tenant_id").eq(tenant.0)))
            .and_where_option(page.after_id()?.map(|id| Expr::col("id").lt(id)))
            .order_by("id", Order::Desc)
            .limit(page.limit())
            .take();
        let rows = statement::rows(&self.session().await?, &select).await?;
        let backups = rows.iter().map(read).collect::<Result<_, _>>()?;
        Ok(page.cut(backups, |last| last.id.to_string()))
    }

    /// Backups that are not complete and whose operation is over, oldest first: what is left of them in the bucket.
    pub async fn backup_failed(&self) -> Result<Vec<Backup>, Error> {
        let over = [OperationState::Failed, OperationState::Cancelled].map(OperationState::name);
        let over = Query::select().column("id").from("operations").and_where(Expr::col("state").is_in(over)).take();
        let select = select()
            .and_where(Expr::col("state").eq(BackupState::Running.name()))
            .and_where(Expr::col("operation_id").in_subquery(over))
            .order_by("id", Order::Asc)
            .take();
        statement::rows(&self.session().await?, &select).await?.iter().map(read).collect()
    }

    /// Notes a database that a restore has taken out of service; the same again is fine.
    pub async fn retired_database_insert_in_txn(
        &self,
        txn: &Txn,
        server: &str,
        database: &DatabaseName,
        tenant: TenantId,
        operation: OperationId,
    ) -> Result<(), Error> {
        let row = [
            ("server", server.into()),
            ("database", database.as_str().into()),
            ("tenant_id", tenant.0.into()),
            ("operation_id", operation.0.into()),
        ];
        let insert =
            statement::insert("retired_databases", row).on_conflict(OnConflict::new().do_nothing().to_owned()).take();
        statement::execute(txn, &insert).await?;
        Ok(())
    }

    /// Forgets a retired database, after it was dropped or has its place back.
    pub async fn retired_database_delete(&self, server: &str, database: &DatabaseName) -> Result<(), Error> {
        let delete = Query::delete()
            .from_table("retired_databases")
            .and_where(Expr::col("server").eq(server))
            .and_where(Expr::col("database").eq(database.as_str()))
            .take();
        statement::execute(&self.session().await?, &delete).await?;
        Ok(())
    }

    /// Every retired database, oldest first.
    pub async fn retired_database_list(&self) -> Result<Vec<RetiredDatabase>, Error> {
        self.retired_databases(retired()).await
    }

    /// Those that were retired so long ago, by an operation that has succeeded: no undo asks for them any more.
    pub async fn retired_database_due(&self, keep: Duration) -> Result<Vec<RetiredDatabase>, Error> {
        let succeeded = Query::select()
            .column("id")
            .from("operations")
            .and_where(Expr::col("state").eq(OperationState::Succeeded.name()))
            .take();
        let select = retired()
            .and_where(Expr::cust_with_values("retired_at < now() - make_interval(secs => $1)", [keep.as_secs_f64()]))
            .and_where(Expr::col("operation_id").in_subquery(succeeded))
            .take();
        self.retired_databases(select).await
    }

    async fn retired_databases(&self, select: SelectStatement) -> Result<Vec<RetiredDatabase>, Error> {
        let rows = statement::rows(&self.session().await?, &select).await?;
        rows.iter()
            .map(|row| {
                let reader = Reader { table: "retired_databases", key: "operation_id", row };
                Ok(RetiredDatabase {
                    server: reader.get("server")?,
                    database: reader.database("database")?,
                    tenant: TenantId(reader.get("tenant_id")?),
                    operation: OperationId(reader.get("operation_id")?),
                    retired_at: reader.moment("retired_at")?,
                })
            })
            .collect()
    }
}

fn retired() -> SelectStatement {
    Query::select()
        .column(Asterisk)
        .from("retired_databases")
        .order_by("retired_at", Order::Asc)
        .order_by("database", Order::Asc)
        .take()
}

fn select() -> SelectStatement {
    Query::select().column(Asterisk).from("backups").take()
}

fn hit(rows: u64, id: Uuid) -> Result<(), Error> {
    if rows == 0 { Err(Error::BackupUnknown { id }) } else { Ok(()) }
}

fn read(row: &Row) -> Result<Backup, Error> {
    let reader = Reader::new("backups", row);
    Ok(Backup {
        id: reader.get("id")?,
        tenant: TenantId(reader.get("tenant_id")?),
        tenant_code: reader.parse("tenant_code")?,
        operation: OperationId(reader.get("operation_id")?),
        state: reader.parse("state")?,
        keys: BackupKeys { archive: reader.get("archive_key")?, manifest: reader.get("manifest_key")? },
        upload_id: reader.get("upload_id")?,
        manifest: reader.json_option("manifest")?,
        created_at: reader.moment("created_at")?,
        completed_at: reader.moment_option("completed_at")?,
        verified_at: reader.moment_option("verified_at")?,
    })
}
