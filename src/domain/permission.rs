//! Roles and what each may do. The table from RPC methods to permissions is `access`'s.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a caller is, to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Viewer,
    Resolver,
    Migrator,
    Backup,
    Operator,
    Admin,
    /// A person of some tenants: reaches them, and does not see how one logs in.
    User,
}

/// What a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Nothing but being authenticated.
    Authenticated,
    /// See tenants, operations, rollouts, backups.
    View,
    /// Resolve a tenant, and run SQL as its role.
    Reach,
    /// See a tenant's password.
    SeeCredentials,
    Migrate,
    /// Make and verify backups.
    Backup,
    /// Create, suspend, restore.
    Operate,
    /// Keys.
    Administrate,
}

impl Role {
    pub const ALL: [Self; 7] =
        [Self::Viewer, Self::Resolver, Self::Migrator, Self::Backup, Self::Operator, Self::Admin, Self::User];

    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Resolver => "resolver",
            Self::Migrator => "migrator",
            Self::Backup => "backup",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::User => "user",
        }
    }

    /// Whether the role has the permission.
    pub fn grants(self, permission: Permission) -> bool {
        use Permission::{Administrate, Authenticated, Backup, Migrate, Operate, Reach, SeeCredentials, View};
        let granted: &[Permission] = match self {
            Self::Viewer => &[View],
            Self::Resolver => &[Reach, SeeCredentials],
            Self::Migrator => &[View, Migrate],
            Self::Backup => &[View, Backup],
            Self::Operator => &[View, Migrate, Backup, Operate],
            Self::User => &[Reach],
            Self::Admin => &[View, Reach, SeeCredentials, Migrate, Backup, Operate, Administrate],
        };
        permission == Authenticated || granted.contains(&permission)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A role's name that is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role; the roles are viewer, resolver, user, migrator, backup, operator, admin")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Self, UnknownRole> {
        Self::ALL.into_iter().find(|role| role.name() == name).ok_or_else(|| UnknownRole(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_admin_handles_keys() {
        let holders: Vec<_> = Role::ALL.into_iter().filter(|role| role.grants(Permission::Administrate)).collect();
        assert_eq!(holders, [Role::Admin]);
    }

    #[test]
    fn names_read_back() {
        for role in Role::ALL {
            assert_eq!(role.name().parse(), Ok(role));
        }
    }
}
