//! What connections are for. Lanes share a server's budget; how much each may use of it is [`super::budget`]'s.

use std::fmt;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// The router's pools.
    Tenant,
    /// The shared and the auth database.
    Catalog,
    /// Databases, roles, drains.
    Administration,
    Migration,
    Backup,
}

impl Lane {
    pub const ALL: [Self; 5] = [Self::Tenant, Self::Catalog, Self::Administration, Self::Migration, Self::Backup];

    /// The narrowest of the nested limits that the lane is under.
    pub(super) fn level(self) -> usize {
        match self {
            Self::Tenant => 0,
            Self::Migration | Self::Backup => 1,
            Self::Administration => 2,
            Self::Catalog => 3,
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tenant => "tenants",
            Self::Catalog => "the catalog",
            Self::Administration => "administration",
            Self::Migration => "migrations",
            Self::Backup => "backups",
        })
    }
}
