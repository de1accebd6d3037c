//! Statements of tenants, whose types the driver looks up: each that it does not know, and those that it is made of, one
//! within the other. Its futures nest as deep as the types do, and so does whatever walks through a type, to the end of
//! the stack. How deep that is a tenant decides, and where its search path comes before PostgreSQL's own schema, even
//! whether there is an end. So nobody else prepares a tenant's statement.
//!
//! Always holds: a look-up waits for at most [`WAITS_MAX`] answers, and so nests no deeper; a type that is given out is
//! at most [`DEPTH_MAX`] deep; and what was looked up for a statement that is refused is forgotten, so that the next
//! one's types are not built on it.

use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use tokio_postgres::types::{BorrowToSql, Field, Kind, Type};
use tokio_postgres::{Client, Column, RowStream, Statement};

/// How often a statement's look-ups may wait: once for each level and more often for each type beside others, of which a
/// table may have hundreds. A level takes less than 4 KiB of stack without optimization, and a thread has 16 MiB.
const WAITS_MAX: usize = 2_000;
/// Types within each other, as an array of a domain of a row.
const DEPTH_MAX: usize = 64;

/// Why a statement was not prepared.
#[derive(Debug, thiserror::Error)]
pub enum Unprepared {
    #[error(transparent)]
    Driver(#[from] tokio_postgres::Error),
    /// The session is not to be used again.
    #[error("the types of its parameters or columns are more than {DEPTH_MAX} deep within each other, or too many")]
    TypesMax,
}

/// Prepares a statement.
pub async fn prepare(client: &Client, sql: &str) -> Result<Statement, Unprepared> {
    let statement = looked_up(client, client.prepare(sql)).await?;
    let columns = statement.columns().iter().map(Column::type_);
    checked(client, statement.params().iter().chain(columns))?;
    Ok(statement)
}

/// Runs a statement without preparing it. Its columns are [`checked`] when they are known, which is with a row.
pub async fn query_typed<P: BorrowToSql>(
    client: &Client,
    sql: &str,
    parameters: impl IntoIterator<Item = (P, Type)>,
) -> Result<RowStream, Unprepared> {
    looked_up(client, client.query_typed_raw(sql, parameters)).await
}

/// Refuses types that are too deep.
pub fn checked<'a>(client: &Client, types: impl Iterator<Item = &'a Type>) -> Result<(), Unprepared> {
    if is_shallow(types) {
        return Ok(());
    }
    client.clear_type_cache();
    Err(Unprepared::TypesMax)
}

async fn looked_up<T>(
    client: &Client,
    looking: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Unprepared> {
    let found = bounded(looking).await;
    if !matches!(found, Some(Ok(_))) {
        client.clear_type_cache();
    }
    Ok(found.ok_or(Unprepared::TypesMax)??)
}

/// `None` when it waits too often.
async fn bounded<T>(looking: impl Future<Output = T>) -> Option<T> {
    let (mut looking, mut waits_left) = (pin!(looking), WAITS_MAX);
    poll_fn(move |cx| match looking.as_mut().poll(cx) {
        Poll::Ready(found) => Poll::Ready(Some(found)),
        Poll::Pending if waits_left == 0 => Poll::Ready(None),
        Poll::Pending => {
            waits_left -= 1;
            Poll::Pending
        }
    })
    .await
}

/// The types that this one is made of.
fn parts(of: &Type) -> impl Iterator<Item = &Type> {
    let (inner, fields) = match of.kind() {
        Kind::Domain(inner) | Kind::Array(inner) | Kind::Range(inner) | Kind::Multirange(inner) => {
            (Some(inner), &[][..])
        }
        Kind::Composite(fields) => (None, fields.as_slice()),
        _scalar => (None, &[][..]),
    };
    inner.into_iter().chain(fields.iter().map(Field::type_))
}

/// One level after the other, and each type once in it, however many others are made of it. A type is told by its place
/// in memory: what its number says is the tenant's.
fn is_shallow<'a>(types: impl Iterator<Item = &'a Type>) -> bool {
    // Most are PostgreSQL's own, and made of nothing.
    let mut level: Vec<&Type> = types.filter(|ty| parts(ty).next().is_some()).collect();
    for _ in 0..DEPTH_MAX {
        if level.is_empty() {
            return true;
        }
        let mut seen = HashSet::new();
        level = level.into_iter().flat_map(parts).filter(|part| seen.insert(std::ptr::from_ref(part.kind()))).collect();
    }
    level.is_empty()
}

/// The type, and each that it is made of. One that is made of others comes once, however many are made of it.
pub fn within(of: &Type) -> impl Iterator<Item = &Type> {
    let (mut seen, mut rest) = (HashSet::new(), vec![of]);
    std::iter::from_fn(move || {
        let next = rest.pop()?;
        // Those that are made of nothing may share their place.
        let mut is_first = |part: &&Type| parts(part).next().is_none() || seen.insert(std::ptr::from_ref(part.kind()));
        let mut inner: Vec<_> = parts(next).filter(&mut is_first).collect();
        inner.reverse();
        rest.append(&mut inner);
        Some(next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_of(kind: Kind) -> Type {
        Type::new("t".to_owned(), 70_000, kind, "public".to_owned())
    }

    fn domains(depth: usize) -> Type {
        (0..depth).fold(Type::INT4, |inner, _| made_of(Kind::Domain(inner)))
    }

    #[test]
    fn depth_is_measured_and_not_how_many_ways_lead_there() {
        let is = |ty: &Type| is_shallow([ty].into_iter());
        assert!(is(&Type::INT4) && is(&Type::INT4_ARRAY) && is(&domains(DEPTH_MAX - 1)));
        assert!(!is(&domains(DEPTH_MAX + 1)) && !is(&domains(2_000)));
        // As many ways to its innermost as there are numbers of 60 bits.
        let twice = |inner: Type| {
            made_of(Kind::Composite(["a", "b"].map(|name| Field::new(name.to_owned(), inner.clone())).into()))
        };
        let wide = (0..60).fold(Type::INT4, |inner, _| twice(inner));
        assert!(is(&wide));
        assert_eq!(within(&wide).count(), 60 + 2);
    }

    #[tokio::test]
    async fn who_waits_for_ever_is_given_up() {
        let endless = poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert_eq!(bounded(endless).await, None);
        assert_eq!(bounded(async { 1 }).await, Some(1));
    }
}
