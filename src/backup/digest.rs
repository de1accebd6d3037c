//! What is in a database, as numbers: rows and a digest per table, where each sequence stands.
//!
//! Runs as the dump role and calls nothing that a tenant could have defined: columns are named one by one, no value
//! is cast, and only functions of `pg_catalog` are found. A digest is the sum of the rows' hashes, so that neither the
//! order of the rows nor that of the columns matters and equal rows do not cancel each other. The hashes are those that
//! hash partitioning relies on, which PostgreSQL therefore keeps from version to version;
//! [`crate::domain::backup::MANIFEST_FORMAT`] stands for how they are combined.

use tokio_postgres::{Client, Row, SimpleQueryMessage, SimpleQueryRow};

use super::Error;
use crate::domain::backup::{SequenceRange, TableDigest};
use crate::postgres::fingerprint::fingerprint_in_txn;

/// Tables that are asked for in one round trip.
const TABLES_PER_ROUND_TRIP: usize = 64;

/// Everything that a value's text depends on is pinned. Row security would hide rows, so it must fail instead.
const SNAPSHOT_BEGIN: &str = "\
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL TimeZone = 'UTC';
SET LOCAL DateStyle = 'ISO, YMD';
SET LOCAL IntervalStyle = 'postgres';
SET LOCAL extra_float_digits = 3;
SET LOCAL bytea_output = 'hex';
SET LOCAL lc_monetary = 'C';
SET LOCAL quote_all_identifiers = off;
SET LOCAL row_security = off;
SET LOCAL statement_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;";

/// The tables whose rows `pg_dump` takes, each with the statements that digest and lock it.
///
/// A column is hashed as it is where its hash is a matter of its bytes. All others are hashed as text: the hash of an
/// enum or a `regclass` is made of OIDs, which a restore changes, and json, xml and point have none. `format` calls
/// the type's output function; a cast would call the tenant's own, if it has defined one. Generated columns are left
/// out, because they follow from the others.
///
/// Large objects count as one more table, if there are any: page by page, because one may be larger than any value. A
/// page of zeros may be stored or not.
const TABLES: &str = "
SELECT * FROM (
SELECT n.nspname, c.relname,
       format('SELECT count(*), coalesce(sum(hash_record_extended(ROW(%s), 0)), 0) FROM ONLY %I.%I',
              columns.list, n.nspname, c.relname),
       format('LOCK TABLE ONLY %I.%I IN ACCESS SHARE MODE', n.nspname, c.relname)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT string_agg(
        CASE WHEN t.typnamespace = 'pg_catalog'::regnamespace AND t.typname IN (
                      'bool', 'int2', 'int4', 'int8', 'float4', 'float8', 'numeric', 'text', 'varchar', 'bpchar',
                      'bytea', 'uuid', 'date', 'time', 'timestamp', 'timestamptz', 'jsonb')
                  AND coalesce(k.collisdeterministic, true)
             THEN format('%I', a.attname)
             ELSE format('format(''%%L'', %I)', a.attname) END,
        ', ' ORDER BY a.attname COLLATE \"C\") AS list
    FROM pg_attribute a
    JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_collation k ON k.oid = a.attcollation
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
) columns
WHERE c.relkind = 'r' AND c.relpersistence <> 't'
  AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'tenantd')
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
UNION ALL
SELECT 'pg_catalog', 'pg_largeobject',
       'SELECT (SELECT count(*) FROM pg_largeobject_metadata),
               coalesce(sum(hash_record_extended(ROW(loid::int8, pageno, rtrim(data, ''\\x00'')), 0)), 0)
        FROM pg_largeobject WHERE rtrim(data, ''\\x00'') <> ''''',
       ''
WHERE EXISTS (SELECT FROM pg_largeobject_metadata)
) AS tables (schema, name, digest, lock)
ORDER BY schema COLLATE \"C\", name COLLATE \"C\"";

/// A sequence that was never used stands at its start. Identity and serial columns have sequences, too.
const SEQUENCES: &str = "
SELECT n.nspname, c.relname, coalesce(pg_sequence_last_value(c.oid), s.seqstart)
FROM pg_sequence s
JOIN pg_class c ON c.oid = s.seqrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relpersistence <> 't'
  AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'tenantd')
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\"";

/// What is in a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    pub tables: Vec<TableDigest>,
    /// Each at one value.
    pub sequences: Vec<SequenceRange>,
    pub schema_fingerprint: String,
}

/// Counts and digests every table and reads every sequence of the database that `client` (the dump role) is connected
/// to, in one snapshot of its own.
pub async fn digests(client: &Client) -> Result<Digests, Error> {
    snapshot_begin(client).await?;
    let schema_fingerprint = fingerprint_in_txn(client).await?;
    let tables = tables_digest(client, &tables_list(client).await?).await?;
    let sequences = sequences(client).await?;
    client.batch_execute("COMMIT").await?;
    let at = |(schema, name, value)| SequenceRange { schema, name, low: Some(value), high: Some(value) };
    Ok(Digests { tables, sequences: sequences.into_iter().map(at).collect(), schema_fingerprint })
}

/// Begins the transaction in which everything else here runs.
pub(super) async fn snapshot_begin(client: &Client) -> Result<(), Error> {
    Ok(client.batch_execute(SNAPSHOT_BEGIN).await?)
}

/// A table, and how it is digested.
#[derive(Debug)]
pub(super) struct Table {
    schema: String,
    name: String,
    digest: String,
    lock: String,
}

/// Every table, by schema and name.
pub(super) async fn tables_list(client: &Client) -> Result<Vec<Table>, Error> {
    let rows = client.query(TABLES, &[]).await?;
    let table = |row: &Row| {
        Ok(Table { schema: row.try_get(0)?, name: row.try_get(1)?, digest: row.try_get(2)?, lock: row.try_get(3)? })
    };
    rows.iter().map(table).collect()
}

/// Keeps the tables as they are until the transaction's end: what alters or empties a table does not follow snapshots.
pub(super) async fn tables_lock(client: &Client, tables: &[Table]) -> Result<(), Error> {
    for tables in tables.chunks(TABLES_PER_ROUND_TRIP) {
        let statements: Vec<_> = tables.iter().map(|table| table.lock.as_str()).collect();
        client.batch_execute(&statements.join(";\n")).await?;
    }
    Ok(())
}

/// Counts and digests the tables.
pub(super) async fn tables_digest(client: &Client, tables: &[Table]) -> Result<Vec<TableDigest>, Error> {
    let mut digests = Vec::with_capacity(tables.len());
    for tables in tables.chunks(TABLES_PER_ROUND_TRIP) {
        let statements: Vec<_> = tables.iter().map(|table| table.digest.as_str()).collect();
        let messages = client.simple_query(&statements.join(";\n")).await?;
        let mut answers = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        for table in tables {
            digests.push(digest(table, answers.next())?);
        }
    }
    Ok(digests)
}

fn digest(table: &Table, answer: Option<&SimpleQueryRow>) -> Result<TableDigest, Error> {
    let (schema, name) = (table.schema.clone(), table.name.clone());
    let row_count = answer.and_then(|row| row.get(0)).and_then(|count| count.parse().ok());
    match (row_count, answer.and_then(|row| row.get(1))) {
        (Some(row_count), Some(digest)) => Ok(TableDigest { schema, name, row_count, digest: digest.to_owned() }),
        _ => Err(Error::DigestAnswer { schema, name }),
    }
}

/// Where every sequence stands now: schema, name, last value. Sequences do not follow snapshots.
pub(super) async fn sequences(client: &Client) -> Result<Vec<(String, String, i64)>, Error> {
    let rows = client.query(SEQUENCES, &[]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).collect()
}

/// Joins what was read before a dump with what was read after it. A sequence that is in only one of the two was made
/// or dropped meanwhile; the snapshot, and with it the dump, has those of the first reading.
pub(super) fn sequence_ranges(
    before: Vec<(String, String, i64)>,
    after: &[(String, String, i64)],
) -> Vec<SequenceRange> {
    let range = |(schema, name, low): (String, String, i64)| {
        let high = after.iter().find(|other| other.0 == schema && other.1 == name).map_or(low, |other| other.2);
        SequenceRange { schema, name, low: Some(low), high: Some(high) }
    };
    before.into_iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequences_range_spans_both_readings() {
        let at = |name: &str, value| ("public".to_owned(), name.to_owned(), value);
        let ranges = sequence_ranges(vec![at("a", 1), at("b", 5)], &[at("a", 9), at("new", 1)]);
        let spans: Vec<_> = ranges.iter().map(|range| (range.name.as_str(), range.low, range.high)).collect();
        assert_eq!(spans, [("a", Some(1), Some(9)), ("b", Some(5), Some(5))]);
    }
}
