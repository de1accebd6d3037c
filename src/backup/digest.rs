//! What is in a database, as numbers: rows and a digest per table, where each sequence stands.
//!
//! Runs as the dump role, which may read every tenant's rows, so no statement here lets PostgreSQL plan over a tenant's
//! relation: planning alone calls the tenant's functions, in the expressions of indexes, of statistics and of checks.
//! Rows come from `COPY table TO STDOUT`, which is not planned and calls the types' output functions and nothing else,
//! and those no tenant can define; they are hashed by [`RowSum`]. Everything else reads the catalogs of PostgreSQL.

use std::pin::pin;

use futures_util::TryStreamExt as _;
use tokio_postgres::{Client, Row, SimpleQueryMessage};

use super::Error;
use super::row_sum::RowSum;
use super::sequences::{Sequence, sequences};
use crate::domain::backup::{Partition, SequenceRange, TableDigest};
use crate::postgres::fingerprint::fingerprint_in_txn;

/// Tables that are locked in one round trip.
const TABLES_PER_ROUND_TRIP: usize = 64;

/// Everything that a value's text depends on is pinned. Row security would hide rows, so it must fail instead. None of
/// this takes the transaction's snapshot. What asks the catalogs ends within the statement's time.
const TXN_BEGIN: &str = "\
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL TimeZone = 'UTC';
SET LOCAL DateStyle = 'ISO, YMD';
SET LOCAL IntervalStyle = 'postgres';
SET LOCAL extra_float_digits = 3;
SET LOCAL bytea_output = 'hex';
SET LOCAL xmlbinary = 'base64';
SET LOCAL lc_monetary = 'C';
SET LOCAL quote_all_identifiers = off;
SET LOCAL row_security = off;
SET LOCAL statement_timeout = '10min';
SET LOCAL idle_in_transaction_session_timeout = 0;";

/// Rows take as long as they take: who reads them sets the pace, and nothing of the tenant's runs.
const ROWS_BEGIN: &str = "SET LOCAL statement_timeout = 0";
const ROWS_END: &str = "SET LOCAL statement_timeout = '10min'";

/// Every table, by the name under which its rows are counted: a partition's are its root's, because a restore may put
/// a row into another one. Bytes are taken as they are stored, whatever the database's encoding. Generated columns are
/// left out, because they follow from the others; a table without any column is copied without a list.
///
/// A name is looked up as `COPY` would, which follows no snapshot: what it finds has to be this table.
const TABLES: &str = "
SELECT c.oid, s.nspname, r.relname, n.nspname, c.relname,
       format('LOCK TABLE ONLY %I.%I IN ACCESS SHARE MODE', n.nspname, c.relname),
       CASE c.relkind WHEN 'r' THEN
           format('COPY %I.%I %s TO STDOUT (ENCODING ''SQL_ASCII'')', n.nspname, c.relname, columns.list) END,
       coalesce(to_regclass(format('%I.%I', n.nspname, c.relname)) = c.oid, false)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class r ON r.oid = coalesce(pg_partition_root(c.oid), c.oid)
JOIN pg_namespace s ON s.oid = r.relnamespace
CROSS JOIN LATERAL (
    SELECT '(' || string_agg(format('%I', a.attname), ', ' ORDER BY a.attname COLLATE \"C\") || ')' AS list
    FROM pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
) columns
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
  AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'tenantd')
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY s.nspname COLLATE \"C\", r.relname COLLATE \"C\", n.nspname COLLATE \"C\", c.relname COLLATE \"C\"";

/// Large objects count as one more table, if there are any: page by page, because one may be larger than any value. A
/// page of zeros may be stored or not. No tenant can give an index, a check or statistics to a catalog, so this query
/// may be planned; its hashes are those that hash partitioning relies on, which PostgreSQL keeps from version to version.
const LARGE_OBJECTS: &str = "
SELECT (SELECT count(*) FROM pg_largeobject_metadata),
       coalesce(sum(hash_record_extended(ROW(loid::int8, pageno, rtrim(data, '\\x00')), 0)), 0)
FROM pg_largeobject WHERE rtrim(data, '\\x00') <> ''";

/// What is in a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    pub tables: Vec<TableDigest>,
    /// Tables whose rows are counted as another one's.
    pub partitions: Vec<Partition>,
    /// Each at one value.
    pub sequences: Vec<SequenceRange>,
    pub schema_fingerprint: String,
}

/// Counts and digests every table and reads every sequence of the database that `client` (the dump role) is connected
/// to, in one snapshot of its own. Nobody may alter the tables meanwhile.
pub async fn digests(client: &Client) -> Result<Digests, Error> {
    txn_begin(client).await?;
    let schema_fingerprint = fingerprint_in_txn(client).await?;
    let listed = tables_list(client).await?;
    let sequences = sequences(client).await?;
    let tables = tables_digest(client, &listed).await?;
    client.batch_execute("COMMIT").await?;
    let partitions = listed.iter().filter_map(Table::as_partition).collect();
    let sequences = sequences.into_iter().map(Sequence::at).collect();
    Ok(Digests { tables, partitions, sequences, schema_fingerprint })
}

/// Begins the transaction in which everything else here runs, and takes no snapshot yet.
pub(super) async fn txn_begin(client: &Client) -> Result<(), Error> {
    Ok(client.batch_execute(TXN_BEGIN).await?)
}

/// A table, and how it is locked and read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    oid: u32,
    /// Schema and name of the table whose the rows are: itself, or the root of its partitions.
    root: (String, String),
    name: (String, String),
    lock: String,
    /// Only a partitioned table has no rows of its own.
    copy: Option<String>,
    is_found_by_name: bool,
}

impl Table {
    fn read(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            oid: row.try_get(0)?,
            root: (row.try_get(1)?, row.try_get(2)?),
            name: (row.try_get(3)?, row.try_get(4)?),
            lock: row.try_get(5)?,
            copy: row.try_get(6)?,
            is_found_by_name: row.try_get(7)?,
        })
    }

    /// Whether its name means this table now, whatever the snapshot says.
    pub(super) fn is_found_by_name(&self) -> bool {
        self.is_found_by_name
    }

    fn as_partition(&self) -> Option<Partition> {
        let (schema, name) = self.name.clone();
        let (root_schema, root_name) = self.root.clone();
        (self.name != self.root).then_some(Partition { schema, name, root_schema, root_name })
    }
}

/// Every table; those of one root stand together.
pub(super) async fn tables_list(client: &Client) -> Result<Vec<Table>, Error> {
    client.query(TABLES, &[]).await?.iter().map(Table::read).collect()
}

/// Keeps the tables as they are until the transaction's end. Takes no snapshot.
pub(super) async fn tables_lock(client: &Client, tables: &[Table]) -> Result<(), Error> {
    for tables in tables.chunks(TABLES_PER_ROUND_TRIP) {
        let statements: Vec<_> = tables.iter().map(|table| table.lock.as_str()).collect();
        client.batch_execute(&statements.join(";\n")).await?;
    }
    Ok(())
}

/// Counts and digests the tables, each by itself or with all partitions of its root.
pub(super) async fn tables_digest(client: &Client, tables: &[Table]) -> Result<Vec<TableDigest>, Error> {
    client.batch_execute(ROWS_BEGIN).await?;
    let mut digests = Vec::new();
    for of_one_root in tables.chunk_by(|one, other| one.root == other.root) {
        let mut sum = RowSum::default();
        for copy in of_one_root.iter().filter_map(|table| table.copy.as_deref()) {
            copy_out(client, copy, |bytes| sum.add(bytes)).await?;
        }
        let Some((schema, name)) = of_one_root.first().map(|table| table.root.clone()) else { continue };
        match sum.finish() {
            Some((row_count, digest)) => digests.push(TableDigest { schema, name, row_count, digest }),
            None => return Err(Error::DigestAnswer { schema, name }),
        }
    }
    digests.extend(large_objects(client).await?);
    client.batch_execute(ROWS_END).await?;
    digests.sort_by(|one, other| (&one.schema, &one.name).cmp(&(&other.schema, &other.name)));
    Ok(digests)
}

/// Hands on what the server writes, as it comes; it waits for whoever takes it.
pub(super) async fn copy_out(client: &Client, copy: &str, mut take: impl FnMut(&[u8])) -> Result<(), Error> {
    let mut rows = pin!(client.copy_out(copy).await?);
    while let Some(bytes) = rows.try_next().await? {
        take(&bytes);
    }
    Ok(())
}

async fn large_objects(client: &Client) -> Result<Option<TableDigest>, Error> {
    let (schema, name) = ("pg_catalog".to_owned(), "pg_largeobject".to_owned());
    let messages = client.simple_query(LARGE_OBJECTS).await?;
    let answer = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok().zip(row.get(1)),
        _ => None,
    });
    let Some((row_count, digest)) = answer else { return Err(Error::DigestAnswer { schema, name }) };
    Ok((row_count > 0_i64).then(|| TableDigest { schema, name, row_count, digest: digest.to_owned() }))
}
