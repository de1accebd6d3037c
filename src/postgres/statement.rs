//! Runs statements that sea-query has built. Must not know any table.
//!
//! sea-query's values accept every column type and corrupt silently when the server chose another one, so they are
//! bound in this file only, and always together with their own types. Unsigned integers have no type that fits; the
//! one place where sea-query makes them by itself is LIMIT and OFFSET, and there they become `bigint`.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sea_query::{Expr, InsertStatement, PostgresQueryBuilder, Query, Value};
use sea_query_postgres::{PostgresBinder, PostgresValues};
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::errors::Error;

/// How long a statement's answer is waited for: longer than the server lets any of them run. Whatever stands between
/// may keep a connection open that leads nowhere.
const ANSWER_MAX: Duration = Duration::from_secs(40);

/// A session that statements run on.
pub trait Run: Sync {
    fn client(&self) -> &Client;

    fn flags(&self) -> &Flags;
}

/// What a session has to remember about its statements.
#[derive(Debug, Default)]
pub struct Flags {
    busy: AtomicBool,
    failed: AtomicBool,
}

impl Flags {
    /// A statement is under way: a session that is dropped now may not be used again.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// A statement was refused.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Keeps the flags around one statement.
    async fn around<T>(&self, statement: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Error> {
        self.within(ANSWER_MAX, statement).await
    }

    async fn within<T>(
        &self,
        answer_max: Duration,
        statement: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Error> {
        self.busy.store(true, Ordering::Relaxed);
        let Ok(answer) = timeout(answer_max, statement).await else {
            // It stays busy, and nobody else gets the session.
            self.failed.store(true, Ordering::Relaxed);
            return Err(Error::Unanswered { waited: answer_max });
        };
        self.busy.store(false, Ordering::Relaxed);
        if answer.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        answer.map_err(Error::from)
    }
}

/// An insertion of one row, each column beside its value.
pub fn insert<const N: usize>(table: &'static str, row: [(&'static str, Expr); N]) -> InsertStatement {
    let (columns, values): (Vec<_>, Vec<_>) = row.into_iter().unzip();
    // As many values as columns, so it cannot panic.
    Query::insert().into_table(table).columns(columns).values_panic(values).take()
}

/// A statement's text and its values with their types.
struct Built {
    sql: String,
    values: PostgresValues,
}

impl Built {
    fn new(statement: &impl PostgresBinder) -> Self {
        let (sql, mut values) = statement.build_postgres(PostgresQueryBuilder);
        for value in &mut values.0 {
            if let Value::BigUnsigned(Some(count)) = value.0 {
                value.0 = Value::BigInt(Some(i64::try_from(count).unwrap_or(i64::MAX)));
            }
        }
        Self { sql, values }
    }

    fn parameters(&self) -> Vec<(&(dyn ToSql + Sync), Type)> {
        self.values.as_params().into_iter().zip(self.values.as_types()).collect()
    }
}

/// Every row of the answer. One round trip.
pub fn rows<'a>(
    on: &'a impl Run,
    statement: &impl PostgresBinder,
) -> impl Future<Output = Result<Vec<Row>, Error>> + Send + 'a {
    let built = Built::new(statement);
    async move { on.flags().around(on.client().query_typed(&built.sql, &built.parameters())).await }
}

/// The answer's only row, if there is one.
pub fn row<'a>(
    on: &'a impl Run,
    statement: &impl PostgresBinder,
) -> impl Future<Output = Result<Option<Row>, Error>> + Send + 'a {
    let rows = rows(on, statement);
    async move { Ok(rows.await?.into_iter().next()) }
}

/// How many rows the statement changed.
pub fn execute<'a>(
    on: &'a impl Run,
    statement: &impl PostgresBinder,
) -> impl Future<Output = Result<u64, Error>> + Send + 'a {
    let built = Built::new(statement);
    async move { on.flags().around(on.client().execute_typed(&built.sql, &built.parameters())).await }
}

/// Statements that have no builder: BEGIN, COMMIT.
pub async fn batch(on: &impl Run, sql: &str) -> Result<(), Error> {
    on.flags().around(on.client().batch_execute(sql)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use sea_query::ExprTrait as _;

    #[tokio::test]
    async fn a_statement_that_is_never_answered_is_given_up_and_nobody_else_gets_its_session() {
        let flags = Flags::default();
        let error = flags.within(Duration::from_millis(5), std::future::pending::<Result<(), _>>()).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        assert!(flags.is_busy() && flags.has_failed());
    }

    #[test]
    fn a_limit_is_a_bigint_and_every_value_has_its_own_type() {
        let select = Query::select()
            .column("a")
            .from("t")
            .and_where(Expr::col("b").eq(7_i32))
            .and_where(Expr::col("c").eq("x"))
            .limit(10)
            .take();
        let built = Built::new(&select);
        assert_eq!(built.sql, r#"SELECT "a" FROM "t" WHERE "b" = $1 AND "c" = $2 LIMIT $3"#);
        let types: Vec<_> = built.parameters().into_iter().map(|(_, kind)| kind).collect();
        assert_eq!(types, [Type::INT4, Type::TEXT, Type::INT8]);
    }
}
