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
    /// The sessions without which a daemon has no share of the budget; they have places of their own.
    Share,
}

impl Lane {
    pub const ALL: [Self; 6] =
        [Self::Tenant, Self::Catalog, Self::Administration, Self::Migration, Self::Backup, Self::Share];

    /// The narrowest of the nested limits that the lane is under.
    pub(super) fn level(self) -> usize {
        match self {
            Self::Tenant => 0,
            Self::Migration | Self::Backup => 1,
            Self::Administration => 2,
            Self::Catalog | Self::Share => 3,
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
            Self::Share => "the share of the budget",
        })
    }
}
