//! An operation's steps. Each change is one UPDATE of one row, and nothing is written without the claim's fence.

use sea_query::{Asterisk, Expr, ExprTrait as _, InsertStatement, Order, Query, UpdateStatement};
use serde_json::Value;
use time::OffsetDateTime;

use super::Catalog;
use super::errors::Error;
use super::fence::{claimed, fence_holds};
use crate::domain::operation::{OperationId, StepState};
use crate::postgres::read::Reader;
use crate::postgres::statement::{self, Run};

/// One persisted step.
#[derive(Debug, Clone, PartialEq)]
pub struct OperationStep {
    pub ordinal: i32,
    pub name: String,
    pub state: StepState,
    /// How often the step was begun, by any daemon, and not given back.
    pub attempts: i32,
    /// What later steps and the undo need to know.
    pub output: Option<Value>,
    /// For people.
    pub detail: String,
    pub started_at: Option<OffsetDateTime>,
    pub ended_at: Option<OffsetDateTime>,
}

impl Catalog {
    /// The step is about to act.
    pub async fn step_begin(&self, id: OperationId, fence: i64, ordinal: i32) -> Result<(), Error> {
        self.step(id, fence, ordinal, StepState::Running, |update| {
            update
                .value("attempts", Expr::col("attempts").add(1_i32))
                .value("started_at", Expr::current_timestamp())
                .value("ended_at", Option::<OffsetDateTime>::None)
        })
        .await
    }

    /// The running step gets on, which makes the present beginning its first: it is not given up for having been begun
    /// often.
    pub async fn step_attempts_reset(&self, id: OperationId, fence: i64, ordinal: i32) -> Result<(), Error> {
        self.step(id, fence, ordinal, StepState::Running, |update| update.value("attempts", 1_i32)).await
    }

    /// The step has acted.
    pub async fn step_end(
        &self,
        id: OperationId,
        fence: i64,
        ordinal: i32,
        output: Value,
        detail: &str,
    ) -> Result<(), Error> {
        self.step(id, fence, ordinal, StepState::Done, |update| ended(update, detail).value("output", output)).await
    }

    /// The step has failed; whatever it did is still to be undone.
    pub async fn step_fail(&self, id: OperationId, fence: i64, ordinal: i32, detail: &str) -> Result<(), Error> {
        self.step(id, fence, ordinal, StepState::Failed, |update| ended(update, detail)).await
    }

    /// What the step did is about to be undone.
    pub async fn step_undo_begin(&self, id: OperationId, fence: i64, ordinal: i32) -> Result<(), Error> {
        self.step(id, fence, ordinal, StepState::Undoing, |update| update).await
    }

    /// What the step did is undone. The detail of a failed step is kept: it says why all of this happened.
    pub async fn step_undo_end(&self, id: OperationId, fence: i64, ordinal: i32) -> Result<(), Error> {
        self.step(id, fence, ordinal, StepState::Undone, |update| update.value("ended_at", Expr::current_timestamp()))
            .await
    }

    async fn step(
        &self,
        id: OperationId,
        fence: i64,
        ordinal: i32,
        state: StepState,
        set: impl FnOnce(&mut UpdateStatement) -> &mut UpdateStatement + Send,
    ) -> Result<(), Error> {
        let mut update = one(id, ordinal).value("state", state.name()).and_where(fence_holds(id, fence)).take();
        set(&mut update);
        claimed(statement::execute(&self.session().await?, &update).await?, id)
    }
}

fn ended<'a>(update: &'a mut UpdateStatement, detail: &str) -> &'a mut UpdateStatement {
    update.value("detail", detail).value("ended_at", Expr::current_timestamp())
}

/// Takes back that the step was begun: nobody died in it.
pub(super) fn pardon(id: OperationId, ordinal: i32) -> UpdateStatement {
    one(id, ordinal)
        .value("attempts", Expr::col("attempts").sub(1_i32))
        .and_where(Expr::col("state").eq(StepState::Running.name()))
        .and_where(Expr::col("attempts").gt(0_i32))
        .take()
}

/// What people see of the step.
pub(super) fn detail_set(id: OperationId, ordinal: i32, detail: &str) -> UpdateStatement {
    one(id, ordinal).value("detail", detail).take()
}

fn one(id: OperationId, ordinal: i32) -> UpdateStatement {
    Query::update()
        .table("operation_steps")
        .and_where(Expr::col("operation_id").eq(id.0))
        .and_where(Expr::col("ordinal").eq(ordinal))
        .take()
}

/// The rows of a new operation's steps.
pub(super) fn insertion(id: OperationId, names: &[&str]) -> InsertStatement {
    let mut insert = Query::insert().into_table("operation_steps").columns(["operation_id", "ordinal", "name"]).take();
    for (ordinal, name) in (0_i32..).zip(names) {
        insert.values_panic([id.0.into(), ordinal.into(), (*name).into()]);
    }
    insert
}

/// The steps in order.
pub(super) async fn of(on: &impl Run, id: OperationId) -> Result<Vec<OperationStep>, Error> {
    let select = Query::select()
        .column(Asterisk)
        .from("operation_steps")
        .and_where(Expr::col("operation_id").eq(id.0))
        .order_by("ordinal", Order::Asc)
        .take();
    let rows = statement::rows(on, &select).await?;
    rows.iter()
        .map(|row| {
            let reader = Reader { table: "operation_steps", key: "operation_id", row };
            Ok(OperationStep {
                ordinal: reader.get("ordinal")?,
                name: reader.get("name")?,
                state: reader.parse("state")?,
                attempts: reader.get("attempts")?,
                output: reader.get("output")?,
                detail: reader.get("detail")?,
                started_at: reader.moment_option("started_at")?,
                ended_at: reader.moment_option("ended_at")?,
            })
        })
        .collect()
}
