//! A plain read on its way: sent with its first poll, answered in its turn.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;
use tokio_postgres::{Client, Statement};

use super::job::{BYTES_MAX, Job};
use crate::proto::v1;
use crate::query::error::Error;
use crate::query::execute::{guarded, rows_max};
use crate::query::harmless::Reading;
use crate::query::parameter::{Parameter, parameters};
use crate::query::rows::{Bounds, Fetched, query};

/// A plain read that is prepared on the lease's connection.
pub(super) struct Plain {
    pub(super) statement: Statement,
    pub(super) columns: Vec<v1::Column>,
    pub(super) reading: Reading,
}

pub(super) type Flying<'a> = Pin<Box<dyn Future<Output = Result<Fetched, Error>> + Send + 'a>>;

/// A plain read on its way.
pub(super) struct Flight<'a> {
    pub(super) job: Job,
    pub(super) plain: Arc<Plain>,
    pub(super) sent_at: Instant,
    pub(super) result: Flying<'a>,
}

impl<'a> Flight<'a> {
    /// Sends it.
    pub(super) fn begin(cx: &mut Context<'_>, client: &'a Client, plain: Arc<Plain>, job: Job) -> Self {
        let mut result = flying(client, &plain, &job);
        let result = match result.as_mut().poll(cx) {
            Poll::Ready(result) => Box::pin(std::future::ready(result)),
            Poll::Pending => result,
        };
        Self { job, plain, sent_at: Instant::now(), result }
    }

    /// Whether what it changes is refused.
    pub(super) fn is_guarded(&self) -> bool {
        self.job.user.is_some() || self.plain.reading != Reading::AsIs
    }

    pub(super) fn response(&self, rows: Fetched) -> v1::ExecuteResponse {
        let columns = if self.job.statement.omit_columns { Vec::new() } else { self.plain.columns.clone() };
        let row_count = i64::try_from(rows.count).unwrap_or(i64::MAX);
        v1::ExecuteResponse { columns, rows: rows.rows, row_count }
    }
}

/// A plain read, not yet sent.
fn flying<'a>(client: &'a Client, plain: &Arc<Plain>, job: &Job) -> Flying<'a> {
    let plain = Arc::clone(plain);
    let user = job.user;
    let checked: Result<(Vec<Parameter>, Bounds), Error> =
        parameters(plain.statement.params(), &job.statement.parameters).and_then(|values| {
            Ok((values, Bounds { rows_max: rows_max(job.statement.max_rows)?, bytes_max: BYTES_MAX }))
        });
    Box::pin(async move {
        let (values, bounds) = checked?;
        match (user, plain.reading) {
            (None, Reading::AsIs) => query(client, &plain.statement, &values, bounds).await,
            (user, _guarded) => guarded(client, &plain.statement, &values, bounds, user).await,
        }
    })
}
