//! A backup as a value: its manifest, where its objects lie, and when a restored database equals it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::named::named;
use super::privilege::Privilege;
use super::tenant::{DatabaseName, TenantCode, TenantId};

/// The version of the manifest's format that this daemon writes.
pub const MANIFEST_FORMAT: u32 = 2;
/// The oldest that it reads. In format 1 each partition stood by itself, and digests were made in the server, by
/// queries that let a tenant's functions run: they are not made again, and only the rows are counted.
pub const MANIFEST_FORMAT_MIN: u32 = 1;

/// What a backup is, taken in the very snapshot that was dumped. Written last and signed: an archive without a
/// manifest is no backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub backup_id: Uuid,
    pub operation_id: Uuid,
    pub catalog_id: Uuid,
    pub tenant_id: TenantId,
    pub tenant_code: TenantCode,
    pub database: DatabaseName,
    #[serde(with = "time::serde::rfc3339")]
    pub snapshot_time: OffsetDateTime,
    /// As `15.18 (Debian 15.18-0+deb12u1)`, and as 150018.
    pub server_version: String,
    pub server_version_num: u32,
    pub dump_version: String,
    pub schema_version: i64,
    /// Over the whole schema; comparable within one major version of PostgreSQL.
    pub schema_fingerprint: String,
    pub encoding: String,
    pub collate: String,
    pub ctype: String,
    pub extensions: Vec<Extension>,
    pub tables: Vec<TableDigest>,
    pub sequences: Vec<SequenceRange>,
    /// Of everything that the tenant owns. Manifests of the first daemons have none.
    #[serde(default)]
    pub privileges: Option<Vec<Privilege>>,
    pub archive: Archive,
}

impl Manifest {
    /// Whether its digests can be compared with those that this daemon makes.
    pub fn has_comparable_digests(&self) -> bool {
        self.format == MANIFEST_FORMAT
    }

    /// The major version of the `pg_dump` that wrote the archive: no older `pg_restore` reads it. It is never older than
    /// the server.
    pub fn dump_major(&self) -> u32 {
        dump_major(&self.dump_version, self.server_version_num)
    }

    /// Every difference between the tables that were dumped and those found: in counts and digests, or in counts only.
    pub fn table_differences(&self, found: &[TableDigest], partitions: &[Partition]) -> Vec<Difference> {
        if self.has_comparable_digests() {
            table_differences(&self.tables, found)
        } else {
            row_count_differences(&self.tables, found, partitions)
        }
    }
}

/// The first number of `pg_dump (PostgreSQL) 15.18`.
fn dump_major(version: &str, server_version_num: u32) -> u32 {
    let number = version.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let digits = number.and_then(|number| number.split(|c: char| !c.is_ascii_digit()).next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0).max(server_version_num / 10_000)
}

named! {
    /// Where a backup stands. Only a complete one is a backup.
    BackupState, "backup state", {
        Running => "RUNNING",
        Complete => "COMPLETE",
    }
}

/// The archive as it lies in the bucket: `pg_dump --format=custom` → zstd → age.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    pub key: String,
    pub bytes: u64,
    /// Lower-case hexadecimal, of the bytes in the bucket.
    pub sha256: String,
    /// As `pg_dump` gave it.
    pub dump_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    pub name: String,
    pub version: String,
    pub schema: String,
}

/// A table's rows, counted and digested independently of their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDigest {
    pub schema: String,
    pub name: String,
    pub row_count: i64,
    pub digest: String,
}

/// A partition that is a table by itself, and the partitioned table whose the rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    pub schema: String,
    pub name: String,
    pub root_schema: String,
    pub root_name: String,
}

/// A sequence's last value, read before the dump began and after it had ended: sequences are not transactional,
/// so the restored value lies between the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceRange {
    pub schema: String,
    pub name: String,
    pub low: Option<i64>,
    pub high: Option<i64>,
}

/// Where the objects of one backup lie. Each backup has names of its own, so nothing is ever overwritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupKeys {
    pub archive: String,
    pub manifest: String,
}

impl BackupKeys {
    pub fn new(tenant: TenantId, backup: Uuid) -> Self {
        let folder = format!("tenants/{tenant}/{backup}");
        Self { archive: format!("{folder}/archive.dump.zst.age"), manifest: format!("{folder}/manifest.json") }
    }
}

/// One way in which a restored database is not what its manifest says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    #[error("the table {schema}.{name} is missing")]
    TableMissing { schema: String, name: String },
    #[error("the table {schema}.{name} is not in the manifest")]
    TableUnexpected { schema: String, name: String },
    #[error("the table {schema}.{name} has {found} rows instead of {expected}")]
    RowCount { schema: String, name: String, expected: i64, found: i64 },
    #[error("the table {schema}.{name} has as many rows, but not the same ones")]
    Digest { schema: String, name: String },
    #[error("the sequence {schema}.{name} stands at {}, outside of {} to {}", at(*.found), at(*.low), at(*.high))]
    Sequence { schema: String, name: String, found: Option<i64>, low: Option<i64>, high: Option<i64> },
    #[error("the schema's fingerprint is {found} instead of {expected}")]
    Schema { expected: String, found: String },
}

/// Where a sequence stands, in words.
fn at(value: Option<i64>) -> String {
    value.map_or("nothing".to_owned(), |value| value.to_string())
}

/// Every difference between the tables that were dumped and those found.
pub fn table_differences(expected: &[TableDigest], found: &[TableDigest]) -> Vec<Difference> {
    let same = |a: &TableDigest, b: &TableDigest| a.schema == b.schema && a.name == b.name;
    let mut differences = Vec::new();
    for table in expected {
        let (schema, name) = (table.schema.clone(), table.name.clone());
        match found.iter().find(|other| same(table, other)) {
            None => differences.push(Difference::TableMissing { schema, name }),
            Some(other) if other.row_count != table.row_count => differences.push(Difference::RowCount {
                schema,
                name,
                expected: table.row_count,
                found: other.row_count,
            }),
            Some(other) if other.digest != table.digest => differences.push(Difference::Digest { schema, name }),
            Some(_) => {}
        }
    }
    for table in found.iter().filter(|table| !expected.iter().any(|other| same(table, other))) {
        differences.push(Difference::TableUnexpected { schema: table.schema.clone(), name: table.name.clone() });
    }
    differences
}

/// As [`table_differences`], of the numbers of rows alone. `expected` may name partitions, which count as their roots,
/// and knows no partitioned table without any.
fn row_count_differences(expected: &[TableDigest], found: &[TableDigest], partitions: &[Partition]) -> Vec<Difference> {
    let mut counts: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for table in expected {
        let of = partitions.iter().find(|part| part.schema == table.schema && part.name == table.name);
        let key = of.map_or((&*table.schema, &*table.name), |part| (&*part.root_schema, &*part.root_name));
        *counts.entry(key).or_default() += table.row_count;
    }
    let counted = |(schema, name): (&str, &str), row_count| TableDigest {
        schema: schema.to_owned(),
        name: name.to_owned(),
        row_count,
        digest: String::new(),
    };
    let of_found = |table: &TableDigest| counted((&table.schema, &table.name), table.row_count);
    let is_told = |table: &&TableDigest| table.row_count > 0 || counts.contains_key(&(&*table.schema, &*table.name));
    let found: Vec<_> = found.iter().filter(is_told).map(of_found).collect();
    let expected: Vec<_> = counts.iter().map(|(key, row_count)| counted(*key, *row_count)).collect();
    table_differences(&expected, &found)
}

/// Every sequence that stands outside of its range.
pub fn sequence_differences(expected: &[SequenceRange], found: &[SequenceRange]) -> Vec<Difference> {
    let outside = |range: &SequenceRange| {
        let value = found
            .iter()
            .find(|other| other.schema == range.schema && other.name == range.name)
            .and_then(|other| other.high);
        // A sequence may run downwards, so the two ends are only two ends.
        let (low, high) = (range.low.min(range.high), range.low.max(range.high));
        (value < low || value > high).then(|| Difference::Sequence {
            schema: range.schema.clone(),
            name: range.name.clone(),
            found: value,
            low,
            high,
        })
    };
    expected.iter().filter_map(outside).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, row_count: i64, digest: &str) -> TableDigest {
        TableDigest { schema: "public".to_owned(), name: name.to_owned(), row_count, digest: digest.to_owned() }
    }

    #[test]
    fn who_wrote_an_archive_is_read_from_its_manifest() {
        for (text, server, major) in [
            ("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", 15, 15),
            ("pg_dump (PostgreSQL) 18.4", 15, 18),
            ("pg_dump (PostgreSQL) 19beta1", 16, 19),
            ("15.18", 15, 15),
            ("no number", 16, 16),
        ] {
            assert_eq!(dump_major(text, server * 10_000 + 18), major, "{text}");
        }
    }

    #[test]
    fn each_kind_of_difference_is_named() {
        let expected = [table("a", 1, "x"), table("b", 2, "y"), table("c", 3, "z")];
        let found = [table("b", 1, "y"), table("c", 3, "other"), table("d", 0, "")];
        let texts: Vec<_> = table_differences(&expected, &found).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "the table public.a is missing",
                "the table public.b has 1 rows instead of 2",
                "the table public.c has as many rows, but not the same ones",
                "the table public.d is not in the manifest",
            ]
        );
        assert!(table_differences(&expected, &expected).is_empty());
    }

    #[test]
    fn of_an_older_manifest_rows_are_counted_and_partitions_count_as_their_roots() {
        let part = |name: &str| Partition {
            schema: "public".into(),
            name: name.into(),
            root_schema: "public".into(),
            root_name: "root".into(),
        };
        let expected = [table("a", 1, "x"), table("p1", 2, "y"), table("p2", 3, "z")];
        let found = [table("a", 1, "other"), table("empty_root", 0, ""), table("root", 5, "sum")];
        let parts = [part("p1"), part("p2")];
        assert_eq!(row_count_differences(&expected, &found, &parts), []);
        let found = [table("a", 1, ""), table("root", 4, ""), table("more", 1, "")];
        let texts: Vec<_> = row_count_differences(&expected, &found, &parts).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["the table public.root has 4 rows instead of 5", "the table public.more is not in the manifest"]
        );
    }

    #[test]
    fn a_sequence_may_stand_anywhere_in_its_range() {
        let range = |low, high| SequenceRange { schema: "public".into(), name: "s".into(), low, high };
        let expected = [range(Some(5), Some(9))];
        assert!(sequence_differences(&expected, &[range(None, Some(7))]).is_empty());
        let outside = sequence_differences(&expected, &[range(None, Some(4))]);
        assert_eq!(outside.len(), 1);
        assert_eq!(outside[0].to_string(), "the sequence public.s stands at 4, outside of 5 to 9");
        assert_eq!(sequence_differences(&expected, &[]).len(), 1);
        assert!(sequence_differences(&[range(None, None)], &[range(None, None)]).is_empty());
    }
}
