//! One statement whose rows travel as their reader takes them: a portal is asked for one batch when there is room for
//! it, so that neither the daemon nor the connection holds more than that.

use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_postgres::{RowStream, Transaction};
use uuid::Uuid;

use super::Queries;
use super::error::Error;
use super::execute::user_set;
use super::parameter::parameters;
use super::rows::{columns, decoded};
use super::session::{Session, rest_end};
use crate::proto::v1::stream_query_response::Part;
use crate::proto::v1::{self, StreamQueryResponse};
use crate::router::Residue;

/// Rows of a batch when the caller does not say.
const BATCH_ROWS_DEFAULT: i32 = 1_000;
/// The most rows of a batch that a caller may ask for.
const BATCH_ROWS_MAX: i32 = 10_000;
/// A batch with so many bytes of values ends.
const BATCH_BYTES: usize = 256 << 10;

/// A statement to run.
#[derive(Debug, Clone)]
pub struct StreamQuery {
    pub sql: String,
    pub parameters: Vec<v1::Value>,
    /// At most 10,000; 0 means 1,000.
    pub batch_rows: i32,
    /// Seen as `app.current_user_id` while the statement runs.
    pub user: Option<Uuid>,
}

impl Queries {
    /// Sends header, batches and trailer, commits before the trailer, and gives the session back. A reader that goes
    /// away ends it, and so does one that takes nothing for too long; the transaction is rolled back then.
    pub async fn stream<E: Send>(
        &self,
        mut session: Session,
        input: &StreamQuery,
        parts: &mpsc::Sender<Result<StreamQueryResponse, E>>,
    ) -> Result<(), Error> {
        let started = Instant::now();
        let known = match self.0.statements.known(&input.sql).and_then(|known| batch_rows(input).map(|_rows| known)) {
            Ok(known) if !known.analysis.is_cursor => known,
            Ok(_cursor) => {
                session.release(Residue::Nothing);
                let reason = "the rows of this call come from a cursor of its own; send the query itself";
                return Err(Error::Refused { word: "a statement about a cursor", reason });
            }
            Err(error) => {
                session.release(Residue::Nothing);
                return Err(error);
            }
        };
        let mut residue = known.analysis.residue;
        if session.tenant().is_some_and(|tenant| self.0.statements.changes(tenant, &known)) {
            residue = Residue::Session;
        }
        let mut reader = Reader { parts, idle_max: self.0.live.current().query.stream_idle_max, has_header: false };
        let mut ended = attempt(&mut session, input, residue, &mut reader).await;
        if let Err(End::Refused(error)) = &ended
            && error.is_stale_statement()
        {
            // Nothing was sent yet.
            session.statements_forget();
            ended = attempt(&mut session, input, residue, &mut reader).await;
        }
        if let (Residue::Nothing, Err(End::Refused(error)), Some(tenant)) = (residue, &ended, session.tenant())
            && error.is_read_only()
        {
            // It only reads by its words. Nothing of it has stayed; what was sent cannot be taken back.
            self.0.statements.changed(tenant, &known);
            if reader.has_header {
                ended = Err(End::Refused(Error::WroteLate));
            } else {
                residue = Residue::Session;
                ended = attempt(&mut session, input, residue, &mut reader).await;
            }
        }
        self.0.statements.ran(session.tenant(), residue);
        self.tell_if_slow(&session, &input.sql, started.elapsed());
        match ended {
            Ok(()) => {
                session.release(residue);
                Ok(())
            }
            Err(End::Refused(error)) => {
                let error = session.told(error);
                session.release(residue);
                Err(error)
            }
            Err(End::Broken(error)) => Err(session.told(error)),
        }
    }
}

fn batch_rows(input: &StreamQuery) -> Result<i32, Error> {
    match input.batch_rows {
        0 => Ok(BATCH_ROWS_DEFAULT),
        rows @ 1..=BATCH_ROWS_MAX => Ok(rows),
        requested => Err(Error::BatchRows { requested }),
    }
}

/// How it ended before its end.
enum End {
    /// The session is outside a transaction and runs nothing.
    Refused(Error),
    /// The session is not to be used again.
    Broken(Error),
}

impl<T: Into<Error>> From<T> for End {
    fn from(error: T) -> Self {
        let error = error.into();
        if error.ends_session() { Self::Broken(error) } else { Self::Refused(error) }
    }
}

/// Whoever takes the parts.
struct Reader<'a, E> {
    parts: &'a mpsc::Sender<Result<StreamQueryResponse, E>>,
    idle_max: Duration,
    /// The header was sent.
    has_header: bool,
}

impl<'a, E: Send> Reader<'a, E> {
    /// Waits for room for one part.
    async fn room(&self) -> Result<mpsc::Permit<'a, Result<StreamQueryResponse, E>>, Error> {
        match timeout(self.idle_max, self.parts.reserve()).await {
            Ok(Ok(room)) => Ok(room),
            Ok(Err(_closed)) => Err(Error::CallerGone),
            Err(_elapsed) => Err(Error::CallerSilent { idle_max: self.idle_max }),
        }
    }

    async fn send(&self, part: Part) -> Result<(), Error> {
        self.room().await?.send(Ok(StreamQueryResponse { part: Some(part) }));
        Ok(())
    }
}

async fn attempt<E: Send>(
    session: &mut Session,
    input: &StreamQuery,
    residue: Residue,
    reader: &mut Reader<'_, E>,
) -> Result<(), End> {
    let statement = match residue {
        Residue::Nothing => session.prepare_guarded(&input.sql).await?,
        _ => session.prepare(&input.sql).await?,
    };
    let columns = columns(statement.columns()).map_err(End::Refused)?;
    let values = parameters(statement.params(), &input.parameters).map_err(End::Refused)?;
    let is_plain = residue == Residue::Nothing;
    let transaction = session.client_mut().build_transaction().read_only(is_plain).start().await?;
    let result = async {
        if let Some(user) = input.user {
            transaction.batch_execute(&user_set(user)).await?;
        }
        let values: Vec<&(dyn postgres_types::ToSql + Sync)> =
            values.iter().map(|value| value as &(dyn postgres_types::ToSql + Sync)).collect();
        let portal = transaction.bind(&statement, &values).await?;
        let has_columns = !columns.is_empty();
        let first = first_fetch(&transaction, &portal, input).await?;
        let mut header = Some(Part::Header(v1::StreamQueryHeader { columns }));
        // Whether a plain read is one is seen by its first rows.
        if !is_plain && let Some(header) = header.take() {
            reader.send(header).await?;
            reader.has_header = true;
        }
        let (mut rows_sent, mut stream) = (0, Box::pin(first));
        loop {
            rows_sent += batches(stream.as_mut(), reader, &mut header).await?;
            if let Some(affected) = stream.rows_affected() {
                return Ok(if has_columns { rows_sent } else { affected });
            }
            stream = Box::pin(transaction.query_portal_raw(&portal, batch_rows(input)?).await?);
        }
    }
    .await;
    let row_count = match result {
        Ok(row_count) => row_count,
        Err(error @ (Error::Sql(_) | Error::BatchRows { .. })) => {
            transaction.rollback().await.map_err(|error| End::Broken(error.into()))?;
            if is_plain {
                rest_end(session.client()).await.map_err(End::Broken)?;
            }
            return Err(End::Refused(error));
        }
        // Rows may still be on their way; the end of the session is a rollback.
        Err(error) => return Err(End::Broken(error)),
    };
    if is_plain {
        // A plain read has nothing to be committed, and what else its names may have done is undone.
        transaction.rollback().await?;
        rest_end(session.client()).await?;
    } else {
        transaction.commit().await?;
    }
    let row_count = i64::try_from(row_count).unwrap_or(i64::MAX);
    // It is committed, and a reader who has gone does not want to know.
    let _told = reader.send(Part::Trailer(v1::StreamQueryTrailer { row_count })).await;
    Ok(())
}

async fn first_fetch(
    transaction: &Transaction<'_>,
    portal: &tokio_postgres::Portal,
    input: &StreamQuery,
) -> Result<RowStream, Error> {
    Ok(transaction.query_portal_raw(portal, batch_rows(input)?).await?)
}

/// Sends the rows of one fetch, behind the header unless that was sent, and counts them. A row is read from the server
/// only when there is room for its batch.
async fn batches<E: Send>(
    mut stream: Pin<&mut RowStream>,
    reader: &mut Reader<'_, E>,
    header: &mut Option<Part>,
) -> Result<u64, Error> {
    let mut count = 0;
    loop {
        let mut room = Some(reader.room().await?);
        let (mut rows, mut bytes, mut is_over) = (Vec::new(), 0, false);
        while bytes < BATCH_BYTES {
            let next = {
                let mut gone = pin!(reader.parts.closed());
                tokio::select! {
                    biased;
                    next = stream.try_next() => next?,
                    () = &mut gone => return Err(Error::CallerGone),
                }
            };
            let Some(row) = next else {
                is_over = true;
                break;
            };
            rows.push(decoded(&row, &mut bytes)?);
        }
        count += u64::try_from(rows.len()).unwrap_or(u64::MAX);
        let batch = (!rows.is_empty()).then_some(Part::Batch(v1::StreamQueryBatch { rows }));
        reader.has_header = true;
        for part in header.take().into_iter().chain(batch) {
            let room = match room.take() {
                Some(room) => room,
                None => reader.room().await?,
            };
            room.send(Ok(StreamQueryResponse { part: Some(part) }));
        }
        if is_over {
            return Ok(count);
        }
    }
}
