//! What each daemon may have of each server's budget. Must not know how it is divided.

use sea_query::{Asterisk, Expr, ExprTrait as _, LockType, Order, Query, SelectStatement};
use tokio_postgres::Row;
use uuid::Uuid;

use super::errors::Error;
use super::{Catalog, Txn};
use crate::domain::share::{InstanceName, Part};
use crate::postgres::read::{Corrupt, Reader};
use crate::postgres::statement;

/// One daemon's share of one server's budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    pub instance: InstanceName,
    /// One run of the daemon.
    pub daemon: Uuid,
    /// The session on the server that stands for it.
    pub anchor: Uuid,
    pub part: Part,
}

impl Catalog {
    /// The shares of a server, by the daemons' names. Nobody else may change one before the transaction has ended.
    pub async fn shares_lock_in_txn(&self, txn: &Txn, server: &str) -> Result<Vec<Share>, Error> {
        // Whoever only refers to the server is not kept waiting.
        let lock = Query::select()
            .column("name")
            .from("servers")
            .and_where(Expr::col("name").eq(server))
            .lock(LockType::NoKeyUpdate)
            .take();
        if statement::row(txn, &lock).await?.is_none() {
            return Err(Error::ServerUnknown { server: server.to_owned() });
        }
        read(&statement::rows(txn, &select(server)).await?)
    }

    /// The shares of a server at this moment, by the daemons' names.
    pub async fn shares(&self, server: &str) -> Result<Vec<Share>, Error> {
        read(&statement::rows(&self.session().await?, &select(server)).await?)
    }

    /// A new share, in a transaction that holds the server's lock.
    pub async fn share_put_in_txn(&self, txn: &Txn, server: &str, share: &Share) -> Result<(), Error> {
        let insert = statement::insert(
            "budget_shares",
            [
                ("server", server.into()),
                ("instance", share.instance.as_str().into()),
                ("daemon", share.daemon.into()),
                ("anchor", share.anchor.into()),
                ("connections_max", integer(share.part.connections_max).into()),
                ("connections_reserved", integer(share.part.connections_reserved).into()),
                ("held", integer(share.part.held).into()),
            ],
        );
        statement::execute(txn, &insert).await?;
        Ok(())
    }

    /// Writes whatever has changed about a share, in a transaction that holds the server's lock.
    pub async fn share_set_in_txn(&self, txn: &Txn, server: &str, share: &Share) -> Result<(), Error> {
        let update = Query::update()
            .table("budget_shares")
            .value("daemon", share.daemon)
            .value("anchor", share.anchor)
            .value("connections_max", integer(share.part.connections_max))
            .value("connections_reserved", integer(share.part.connections_reserved))
            .value("held", integer(share.part.held))
            .and_where(Expr::col("server").eq(server))
            .and_where(Expr::col("instance").eq(share.instance.as_str()))
            .take();
        statement::execute(txn, &update).await?;
        Ok(())
    }

    /// Puts `successor` or nothing in the place of a daemon that is gone, in a transaction that holds the server's lock.
    /// Answers whether it did: a daemon that has shown itself since its share was read has another anchor.
    pub async fn share_replace_in_txn(
        &self,
        txn: &Txn,
        server: &str,
        gone: &Share,
        successor: Option<&Share>,
    ) -> Result<bool, Error> {
        let is_the_one = Expr::col("server")
            .eq(server)
            .and(Expr::col("instance").eq(gone.instance.as_str()))
            .and(Expr::col("anchor").eq(gone.anchor));
        let count = match successor {
            None => {
                statement::execute(txn, &Query::delete().from_table("budget_shares").and_where(is_the_one).take())
                    .await?
            }
            Some(own) => {
                let update = Query::update()
                    .table("budget_shares")
                    .value("daemon", own.daemon)
                    .value("anchor", own.anchor)
                    .value("since", Expr::current_timestamp())
                    .and_where(is_the_one)
                    .take();
                statement::execute(txn, &update).await?
            }
        };
        Ok(count > 0)
    }

    /// Gives back what a run of a daemon holds, on every server.
    pub async fn shares_leave(&self, daemon: Uuid) -> Result<(), Error> {
        let delete = Query::delete().from_table("budget_shares").and_where(Expr::col("daemon").eq(daemon)).take();
        statement::execute(&self.session().await?, &delete).await?;
        Ok(())
    }
}

fn select(server: &str) -> SelectStatement {
    Query::select()
        .column(Asterisk)
        .from("budget_shares")
        .and_where(Expr::col("server").eq(server))
        .order_by("instance", Order::Asc)
        .take()
}

fn integer(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn read(rows: &[Row]) -> Result<Vec<Share>, Error> {
    let share = |row: &Row| {
        let reader = Reader { table: "budget_shares", key: "anchor", row };
        let count = |column| reader.get::<i32>(column).map(|count| u32::try_from(count).unwrap_or_default());
        Ok(Share {
            instance: reader.parse("instance")?,
            daemon: reader.get("daemon")?,
            anchor: reader.get("anchor")?,
            part: Part {
                connections_max: count("connections_max")?,
                connections_reserved: count("connections_reserved")?,
                held: count("held")?,
            },
        })
    };
    Ok(rows.iter().map(share).collect::<Result<_, Corrupt>>()?)
}
