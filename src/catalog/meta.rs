//! The catalog's identity, its revision counter, and the servers that it knows.

use sea_query::{Expr, ExprTrait as _, OnConflict, Query, Returning};
use uuid::Uuid;

use super::errors::Error;
use super::{CHANNEL, Catalog, Txn};
use crate::postgres::read::Corrupt;
use crate::postgres::statement;

impl Catalog {
    /// The catalog's id, which every identity row and every manifest carries.
    pub async fn id(&self) -> Result<Uuid, Error> {
        let session = self.session().await?;
        let row = statement::row(&session, &Query::select().column("catalog_id").from("catalog_meta").take()).await?;
        Ok(meta(row)?.try_get("catalog_id")?)
    }

    /// The newest revision.
    pub async fn revision(&self) -> Result<i64, Error> {
        let session = self.session().await?;
        let row = statement::row(&session, &Query::select().column("revision").from("catalog_meta").take()).await?;
        Ok(meta(row)?.try_get("revision")?)
    }

    /// Makes a server known, or notes its new address.
    pub async fn server_register(&self, name: &str, host: &str, port: u16) -> Result<(), Error> {
        let row = [("name", name.into()), ("host", host.into()), ("port", i32::from(port).into())];
        let insert = statement::insert("servers", row)
            .on_conflict(OnConflict::column("name").update_columns(["host", "port"]).to_owned())
            .take();
        statement::execute(&self.session().await?, &insert).await?;
        Ok(())
    }
}

/// Takes the next revision, whose row stays locked until the transaction ends, and announces it when it commits.
pub(super) async fn revision_next(txn: &Txn) -> Result<i64, Error> {
    let announce = Expr::cust_with_values("pg_notify($1, revision::text)", [CHANNEL]);
    let update = Query::update()
        .table("catalog_meta")
        .value("revision", Expr::col("revision").add(1_i64))
        .returning(Returning::new().exprs([Expr::col("revision"), announce]))
        .take();
    Ok(meta(statement::row(txn, &update).await?)?.try_get(0)?)
}

fn meta(row: Option<tokio_postgres::Row>) -> Result<tokio_postgres::Row, Corrupt> {
    row.ok_or_else(|| Corrupt {
        table: "catalog_meta",
        column: "singleton",
        id: "the only row".to_owned(),
        problem: "it is missing".to_owned(),
    })
}
