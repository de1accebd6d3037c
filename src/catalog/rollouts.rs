//! Fleet migrations as they are persisted: the files' texts, the failure budget, the outcome. Targets have a file of
//! their own.

use sea_query::{Expr, ExprTrait as _, Order, Query, SelectStatement};
use time::OffsetDateTime;
use tokio_postgres::Row;

use super::errors::Error;
use super::fence::{claimed, fence_holds};
use super::targets::{self, NewTarget};
use super::{Catalog, Txn};
use crate::domain::migration::{MigrationFile, RolloutState, TargetState};
use crate::domain::operation::{OperationId, OperationState};
use crate::domain::page::{Page, Paged};
use crate::postgres::read::{Corrupt, Reader};
use crate::postgres::statement;

/// A rollout's row, without its files' texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    /// Also the id of the operation that drives it.
    pub id: OperationId,
    pub directory_hash: String,
    pub target_version: i64,
    /// How many tenants may fail before no further one is begun.
    pub failures_max: i32,
    /// Each tenant is paused while it is migrated.
    pub pause: bool,
    pub state: RolloutState,
    pub error: Option<String>,
    pub created_at: OffsetDateTime,
    pub ended_at: Option<OffsetDateTime>,
}

/// A rollout to create, after its operation and in the same transaction.
#[derive(Debug, Clone)]
pub struct NewRollout<'a> {
    pub id: OperationId,
    pub files: &'a [MigrationFile],
    pub directory_hash: &'a str,
    pub target_version: i64,
    pub failures_max: i32,
    pub pause: bool,
    pub targets: &'a [NewTarget],
}

const COLUMNS: [&str; 8] =
    ["id", "directory_hash", "target_version", "failures_max", "pause", "error", "created_at", "ended_at"];

impl Catalog {
    pub async fn rollout_create_in_txn(&self, txn: &Txn, new: &NewRollout<'_>) -> Result<(), Error> {
        let files = serde_json::to_value(new.files).map_err(|error| Corrupt {
            table: "rollouts",
            column: "files",
            id: new.id.to_string(),
            problem: error.to_string(),
        })?;
        let row = [
            ("id", new.id.0.into()),
            ("files", files.into()),
            ("directory_hash", new.directory_hash.into()),
            ("target_version", new.target_version.into()),
            ("failures_max", new.failures_max.into()),
            ("pause", new.pause.into()),
        ];
        statement::execute(txn, &statement::insert("rollouts", row)).await?;
        for chunk in new.targets.chunks(targets::CHUNK) {
            statement::execute(txn, &targets::insertion(new.id, chunk)).await?;
        }
        Ok(())
    }

    pub async fn rollout_get(&self, id: OperationId) -> Result<Rollout, Error> {
        let select = selection().and_where(Expr::col("id").eq(id.0)).take();
        let row = statement::row(&self.session().await?, &select).await?;
        row.as_ref().map_or_else(|| Err(Error::RolloutUnknown { id }), read)
    }

    /// The texts that the rollout applies, as they were when it was created.
    pub async fn rollout_files(&self, id: OperationId) -> Result<Vec<MigrationFile>, Error> {
        let select =
            Query::select().columns(["id", "files"]).from("rollouts").and_where(Expr::col("id").eq(id.0)).take();
        let row = statement::row(&self.session().await?, &select).await?.ok_or(Error::RolloutUnknown { id })?;
        Ok(Reader::new("rollouts", &row).json("files")?)
    }

    /// Rollouts, newest first.
    pub async fn rollout_list(&self, page: &Page) -> Result<Paged<Rollout>, Error> {
        let select = selection()
            .and_where_option(page.after_id()?.map(|id| Expr::col("id").lt(id)))
            .order_by("id", Order::Desc)
            .limit(page.limit())
            .take();
        let rows = statement::rows(&self.session().await?, &select).await?;
        let rollouts = rows.iter().map(read).collect::<Result<_, _>>()?;
        Ok(page.cut(rollouts, |last| last.id.to_string()))
    }

    /// Notes how the rollout ended. One statement; the same end again is fine.
    pub async fn rollout_end(
        &self,
        id: OperationId,
        fence: i64,
        state: RolloutState,
        error: Option<&str>,
    ) -> Result<(), Error> {
        let update = Query::update()
            .table("rollouts")
            .value("state", state.name())
            .value("error", error)
            .value("ended_at", Expr::current_timestamp())
            .and_where(Expr::col("id").eq(id.0))
            .and_where(fence_holds(id, fence))
            .take();
        claimed(statement::execute(&self.session().await?, &update).await?, id)
    }
}

impl Catalog {
    /// The rollout's operation was given up while it was stuck; what it had begun and not ended has failed.
    pub async fn rollout_abandon_in_txn(&self, txn: &Txn, id: OperationId, reason: &str) -> Result<(), Error> {
        let update = Query::update()
            .table("rollouts")
            .value("state", RolloutState::Failed.name())
            .value("error", reason)
            .value("ended_at", Expr::current_timestamp())
            .and_where(Expr::col("id").eq(id.0))
            .take();
        statement::execute(txn, &update).await?;
        for (open, ended) in [(TargetState::Running, TargetState::Failed), (TargetState::Pending, TargetState::Skipped)]
        {
            let update = Query::update()
                .table("rollout_targets")
                .value("state", ended.name())
                .value("error", reason)
                .value("ended_at", Expr::current_timestamp())
                .and_where(Expr::col("rollout_id").eq(id.0))
                .and_where(Expr::col("state").eq(open.name()))
                .take();
            statement::execute(txn, &update).await?;
        }
        Ok(())
    }
}

/// Rollouts; one that runs, and whose operation is stuck, is stuck.
fn selection() -> SelectStatement {
    let stuck = Query::select()
        .expr(Expr::val(1_i32))
        .from("operations")
        .and_where(Expr::col(("operations", "id")).equals(("rollouts", "id")))
        .and_where(Expr::col(("operations", "state")).eq(OperationState::Stuck.name()))
        .and_where(Expr::col(("rollouts", "state")).eq(RolloutState::Running.name()))
        .take();
    let state = Expr::case(Expr::exists(stuck), RolloutState::Stuck.name()).finally(Expr::col(("rollouts", "state")));
    Query::select().columns(COLUMNS).expr_as(state, "state").from("rollouts").take()
}

fn read(row: &Row) -> Result<Rollout, Error> {
    let reader = Reader::new("rollouts", row);
    Ok(Rollout {
        id: OperationId(reader.get("id")?),
        directory_hash: reader.get("directory_hash")?,
        target_version: reader.get("target_version")?,
        failures_max: reader.get("failures_max")?,
        pause: reader.get("pause")?,
        state: reader.parse("state")?,
        error: reader.get("error")?,
        created_at: reader.moment("created_at")?,
        ended_at: reader.moment_option("ended_at")?,
    })
}
