//! One value for "these files, as they were then": SHA-256 over the versions, names and checksums of the history's rows,
//! or of the files that would have made them. The catalog keeps it per tenant, so that a file that was edited, removed or
//! put below the newest version is noticed without a connection to any tenant.

use std::collections::BTreeMap;

use refinery_core::Migration;
use sha2::{Digest as _, Sha256};

use crate::domain::migration::MigrationFile;

/// Grows row by row, in the order of versions.
#[derive(Debug, Clone, Default)]
pub(super) struct FilesHash(Sha256);

impl FilesHash {
    pub(super) fn add(&mut self, version: i64, name: &str, checksum: u64) {
        self.0.update(version.to_be_bytes());
        self.0.update((name.len() as u64).to_be_bytes());
        self.0.update(name);
        self.0.update(checksum.to_be_bytes());
    }

    /// As if the file had been applied now.
    pub(super) fn add_file(&mut self, file: &MigrationFile) {
        // What is no migration for refinery is never applied; any value will do that no row has.
        let checksum = Migration::unapplied(&file.file_name(), &file.sql).map_or(0, |migration| migration.checksum());
        self.add(file.version, &file.name, checksum);
    }

    /// In hexadecimal.
    pub(super) fn value(&self) -> String {
        hex::encode(self.0.clone().finalize())
    }
}

/// What the catalog says of a tenant that got all of a directory's files up to its version.
#[derive(Debug, Clone)]
pub struct FilesHashes {
    by_version: BTreeMap<i64, String>,
}

impl FilesHashes {
    /// `files` are in the order of their versions.
    pub fn of(files: &[MigrationFile]) -> Self {
        let mut hash = FilesHash::default();
        let mut by_version = BTreeMap::from([(0, hash.value())]);
        for file in files {
            hash.add_file(file);
            by_version.insert(file.version, hash.value());
        }
        Self { by_version }
    }

    /// For a tenant at `version`.
    pub fn up_to(&self, version: i64) -> &str {
        self.by_version.range(..=version.max(0)).next_back().map_or("", |(_, hash)| hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(files: &[(i64, &str, &str)]) -> FilesHashes {
        let file = |&(version, name, sql): &(i64, &str, &str)| MigrationFile {
            version,
            name: name.to_owned(),
            sql: sql.to_owned(),
        };
        FilesHashes::of(&files.iter().map(file).collect::<Vec<_>>())
    }

    #[test]
    fn each_file_up_to_the_version_counts_with_its_version_its_name_and_its_text() {
        let (a, b) = ((1, "a", "SELECT 1;"), (3, "b", "SELECT 2;"));
        let usual = hashes(&[a, b]);
        assert_eq!(usual.up_to(1), hashes(&[a]).up_to(1));
        assert_eq!(usual.up_to(2), usual.up_to(1));
        assert_eq!(usual.up_to(9), usual.up_to(3));
        assert_eq!(usual.up_to(0), hashes(&[]).up_to(0));
        assert_ne!(usual.up_to(0), usual.up_to(1));
        let others = [[a, (3, "b", "SELECT 3;")], [a, (3, "bb", "SELECT 2;")], [(2, "a", "SELECT 1;"), b]];
        for other in others {
            assert_ne!(usual.up_to(3), hashes(&other).up_to(3), "{other:?}");
        }
        assert_ne!(usual.up_to(3), hashes(&[a, (2, "between", "SELECT 1;"), b]).up_to(3));
        assert_ne!(usual.up_to(3), hashes(&[b]).up_to(3));
    }
}
