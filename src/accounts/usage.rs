//! How often keys are used, and when last.

use sea_query::{Expr, ExprTrait as _, Func, OnConflict, Query};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Accounts;
use super::errors::Error;
use crate::postgres::statement;

/// Calls of one key that were not yet noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyUsage {
    pub key: Uuid,
    pub calls: u64,
    /// Of these, answered with an error.
    pub failures: u64,
}

impl Accounts {
    /// Adds to the day of `now`, by UTC, and notes the last use; an older one never replaces a newer. Keys that are
    /// gone are passed over.
    pub async fn api_key_usage_add(&self, used: &[KeyUsage], now: OffsetDateTime) -> Result<(), Error> {
        let txn = self.begin().await?;
        for usage in used {
            let touch = Query::update()
                .table("api_keys")
                .value("last_used_at", Func::greatest([Expr::col("last_used_at"), now.into()]))
                .and_where(Expr::col("id").eq(usage.key))
                .take();
            if statement::execute(&txn, &touch).await? == 0 {
                continue;
            }
            let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            let row = [
                ("api_key_id", usage.key.into()),
                ("day", now.date().into()),
                ("calls", count(usage.calls).into()),
                ("failures", count(usage.failures).into()),
            ];
            let mut add = OnConflict::columns(["api_key_id", "day"]);
            add.value("calls", Expr::cust("api_key_usage.calls + excluded.calls"));
            add.value("failures", Expr::cust("api_key_usage.failures + excluded.failures"));
            let insert = statement::insert("api_key_usage", row).on_conflict(add).take();
            statement::execute(&txn, &insert).await?;
        }
        txn.commit().await?;
        Ok(())
    }
}
