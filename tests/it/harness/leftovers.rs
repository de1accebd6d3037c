//! Everything that a fleet has anywhere: databases and roles on the server, rows in every table of its two catalogs,
//! objects and unfinished uploads in its bucket, files in its spool. What an operation leaves is the difference of two
//! inventories, listed and counted; a new table or a new kind of object cannot be forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use super::fleet::Fleet;

/// What there is, by name; rows by table and number, because their keys say little.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    named: BTreeSet<(Kind, String)>,
    rows: BTreeMap<String, i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Database,
    Role,
    Object,
    Upload,
    SpoolFile,
}

/// Tables that remember what was tried; rows in them are no leftovers.
const HISTORY: &[&str] = &[
    "shared.operations",
    "shared.operation_steps",
    "shared.rollouts",
    "shared.rollout_targets",
    "shared.tenant_removals",
    "auth.api_key_usage",
    "auth.audit_log",
];
/// Rows that only say when something was last used.
const CACHES: &[&str] = &["auth.api_keys"];

/// What there is now and was not before, or the other way round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    pub more: BTreeSet<String>,
    pub fewer: BTreeSet<String>,
    /// By kind and by table, the history included.
    pub counts: BTreeMap<String, i64>,
}

impl Inventory {
    pub async fn take(fleet: &Fleet) -> Self {
        let mut all = Self::default();
        all.on_server(fleet).await;
        for (short, database) in [("shared", fleet.naming.shared_database()), ("auth", fleet.naming.auth_database())] {
            all.tables(fleet, short, database.as_str()).await;
        }
        let store = fleet.store();
        all.add(Kind::Object, store.list("").await.unwrap().into_iter().map(|(key, _)| key));
        let uploads = store.uploads_list("").await.unwrap().expect("the S3 server lists uploads");
        all.add(Kind::Upload, uploads.into_iter().map(|(key, upload)| format!("{key} {upload:?}")));
        let mut files = Vec::new();
        walk(&fleet.dir.join("spool"), &mut files);
        all.add(Kind::SpoolFile, files);
        all
    }

    fn add(&mut self, kind: Kind, names: impl IntoIterator<Item = String>) {
        self.named.extend(names.into_iter().map(|name| (kind, name)));
    }

    /// The names of the databases and of the roles.
    pub fn databases_and_roles(&self) -> (Vec<String>, Vec<String>) {
        let of = |wanted: Kind| {
            self.named.iter().filter(|(kind, _)| *kind == wanted).map(|(_, name)| name.clone()).collect()
        };
        (of(Kind::Database), of(Kind::Role))
    }

    /// By the fleet's prefix, and by the ids of its operations, whatever state those are in.
    async fn on_server(&mut self, fleet: &Fleet) {
        let judge = fleet.judge(fleet.naming.shared_database().as_str()).await;
        let own = |name: &str| name.starts_with(&format!("{}_", fleet.naming.prefix()));
        let migrated: bool = judge.query_one("SELECT to_regclass('operations') IS NOT NULL", &[]).await.unwrap().get(0);
        let query = if migrated { "SELECT id FROM operations" } else { "SELECT gen_random_uuid() LIMIT 0" };
        let operations: Vec<uuid::Uuid> = judge.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        let by_operation = |name: &str| operations.iter().any(|id| name.contains(&id.simple().to_string()));
        for (kind, query) in [
            (Kind::Database, "SELECT datname::text FROM pg_database"),
            (Kind::Role, "SELECT rolname::text FROM pg_roles"),
        ] {
            let names = judge.query(query, &[]).await.unwrap().into_iter().map(|row| row.get::<_, String>(0));
            self.add(kind, names.filter(|name| own(name) || by_operation(name)));
        }
    }

    async fn tables(&mut self, fleet: &Fleet, short: &str, database: &str) {
        let judge = fleet.judge(database).await;
        let query = "SELECT format('%I.%I', n.nspname, c.relname), c.relname::text
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname = 'public'";
        for row in judge.query(query, &[]).await.unwrap() {
            let (quoted, name): (String, String) = (row.get(0), row.get(1));
            let count = judge.query_one(&format!("SELECT count(*) FROM {quoted}"), &[]).await.unwrap().get(0);
            self.rows.insert(format!("{short}.{name}"), count);
        }
    }

    /// What has come and gone since `before`.
    pub fn since(&self, before: &Self) -> Leftovers {
        let mut left = Leftovers::default();
        let named = |(kind, name): &(Kind, String)| format!("{kind:?} {name}");
        for item in self.named.difference(&before.named) {
            left.more.insert(named(item));
            *left.counts.entry(format!("{:?}", item.0)).or_default() += 1;
        }
        for item in before.named.difference(&self.named) {
            left.fewer.insert(named(item));
            *left.counts.entry(format!("{:?}", item.0)).or_default() -= 1;
        }
        for table in self.rows.keys().filter(|table| !CACHES.contains(&table.as_str())) {
            let grown = self.rows[table] - before.rows.get(table).copied().unwrap_or(0);
            if grown != 0 {
                left.counts.insert(table.clone(), grown);
            }
        }
        left
    }
}

impl Leftovers {
    /// Nothing but the record of what was tried.
    pub fn is_empty(&self) -> bool {
        self.counts.keys().all(|table| HISTORY.contains(&table.as_str()))
    }

    /// The counts without the record of what was tried.
    pub fn lasting(&self) -> BTreeMap<String, i64> {
        self.counts
            .iter()
            .filter(|(table, _)| !HISTORY.contains(&table.as_str()))
            .map(|(t, n)| (t.clone(), *n))
            .collect()
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.more.iter().try_for_each(|item| writeln!(f, "  + {item}"))?;
        self.fewer.iter().try_for_each(|item| writeln!(f, "  - {item}"))?;
        self.lasting().iter().try_for_each(|(what, count)| writeln!(f, "  {count:+} {what}"))
    }
}

fn walk(folder: &Path, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            walk(&entry.path(), files);
        } else {
            files.push(entry.path().display().to_string());
        }
    }
}
