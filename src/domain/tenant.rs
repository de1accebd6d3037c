//! A tenant's names. Each is parsed once into a type that cannot hold a bad value, so that whoever gets a
//! `DatabaseName` or a `RoleName` may quote it into SQL without another look.
//!
//! Codes never contain `__`, and role suffixes begin with it: no tenant's role can be another tenant's name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// PostgreSQL's limit for identifiers (`NAMEDATALEN` - 1), in bytes.
pub const IDENTIFIER_BYTES_MAX: usize = 63;
/// The longest code, whatever the prefix.
pub const CODE_BYTES_MAX: usize = 40;
/// The longest suffix of a role that is derived from a tenant's database name.
const ROLE_SUFFIX_BYTES_MAX: usize = 4;

/// Codes that would read as something else: the daemon's own databases, PostgreSQL's, and common host names.
const RESERVED_CODES: &[&str] = &[
    "admin",
    "all",
    "api",
    "auth",
    "catalog",
    "console",
    "default",
    "health",
    "localhost",
    "metrics",
    "none",
    "null",
    "postgres",
    "public",
    "root",
    "shared",
    "system",
    "template0",
    "template1",
    "tenantd",
    "test",
    "www",
];

/// Why a name was refused; the text says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a tenant's code may not be empty")]
    CodeEmpty,
    #[error("the code {code:?} has {bytes} bytes, and at most {max} fit beside the prefix {prefix:?}")]
    CodeTooLong { code: String, bytes: usize, max: usize, prefix: String },
    #[error(
        "the code {code:?} has {character:?} in it: only lower-case letters a-z, digits and underscores are allowed"
    )]
    CodeCharacter { code: String, character: char },
    #[error("the code {code:?} must begin with a lower-case letter")]
    CodeStart { code: String },
    #[error("the code {code:?} has a doubled or a trailing underscore, which is kept for role names")]
    CodeUnderscore { code: String },
    #[error("the code {code:?} is reserved; choose another")]
    CodeReserved { code: String },
    #[error(
        "the prefix {prefix:?} must be 1 to {max} lower-case letters, digits and single underscores, beginning with a letter and not ending in an underscore"
    )]
    Prefix { prefix: String, max: usize },
    #[error("{name:?} is no usable identifier: 1 to 63 bytes without a NUL are")]
    Identifier { name: String },
}

/// A tenant's id, made by the daemon (UUID version 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TenantId(pub Uuid);

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A tenant's code: `[a-z][a-z0-9_]*`, single underscores, at most [`CODE_BYTES_MAX`] bytes, not reserved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantCode(String);

impl TenantCode {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TenantCode {
    type Err = NameError;

    fn from_str(code: &str) -> Result<Self, NameError> {
        let owned = || code.to_owned();
        let Some(first) = code.chars().next() else { return Err(NameError::CodeEmpty) };
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if let Some(character) = code.chars().find(|c| !allowed(*c)) {
            return Err(NameError::CodeCharacter { code: owned(), character });
        }
        if code.len() > CODE_BYTES_MAX {
            return Err(NameError::CodeTooLong {
                code: owned(),
                bytes: code.len(),
                max: CODE_BYTES_MAX,
                prefix: String::new(),
            });
        }
        if !first.is_ascii_lowercase() {
            return Err(NameError::CodeStart { code: owned() });
        }
        if code.contains("__") || code.ends_with('_') {
            return Err(NameError::CodeUnderscore { code: owned() });
        }
        if RESERVED_CODES.contains(&code) {
            return Err(NameError::CodeReserved { code: owned() });
        }
        Ok(Self(owned()))
    }
}

impl TryFrom<String> for TenantCode {
    type Error = NameError;

    fn try_from(code: String) -> Result<Self, NameError> {
        code.parse()
    }
}

impl From<TenantCode> for String {
    fn from(code: TenantCode) -> Self {
        code.0
    }
}

impl fmt::Display for TenantCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A quoted identifier, for SQL text: doubled quotes, wrapped in quotes.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Takes any name that PostgreSQL takes: 1 to 63 bytes without a NUL.
            pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
                let name = name.into();
                if name.is_empty() || name.len() > IDENTIFIER_BYTES_MAX || name.contains('\0') {
                    return Err(NameError::Identifier { name });
                }
                Ok(Self(name))
            }

            /// A name that nothing has, for values that are shown and never used.
            pub fn stand_in() -> Self {
                Self("-".to_owned())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// For SQL text.
            pub fn quoted(&self) -> String {
                quote(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identifier! {
    /// The name of a database.
    DatabaseName
}
identifier! {
    /// The name of a role.
    RoleName
}

/// A tenant's roles. All but the owner can log in, and act as the owner (the reader only reads).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantRole {
    /// `NOLOGIN`; owns what is in the database.
    Owner,
    /// The router's pools.
    Router,
    /// Direct clients, first of two.
    DirectA,
    /// Direct clients, second of two.
    DirectB,
    /// Migrations and restores.
    Migrator,
    /// Reads only.
    Reader,
}

impl TenantRole {
    pub const ALL: [Self; 6] = [Self::Owner, Self::Router, Self::DirectA, Self::DirectB, Self::Migrator, Self::Reader];
    /// The login roles, in the order in which they are made.
    pub const LOGINS: [Self; 5] = [Self::Router, Self::DirectA, Self::DirectB, Self::Migrator, Self::Reader];
    /// The logins of the tenant's own programs: locked while its gate is paused or it is suspended.
    pub const DIRECT: [Self; 3] = [Self::DirectA, Self::DirectB, Self::Reader];
    /// All by which callers get at the tenant's data: not the migrator.
    pub const CALLERS: [Self; 4] = [Self::Router, Self::DirectA, Self::DirectB, Self::Reader];
    /// The logins that the daemon uses itself.
    pub const DAEMONS: [Self; 2] = [Self::Router, Self::Migrator];

    /// As stored in the catalog.
    pub fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Router => "router",
            Self::DirectA => "direct_a",
            Self::DirectB => "direct_b",
            Self::Migrator => "migrator",
            Self::Reader => "reader",
        }
    }

    /// How the names of such roles end.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Owner => "",
            Self::Router => "__r",
            Self::DirectA => "__a",
            Self::DirectB => "__b",
            Self::Migrator => "__m",
            Self::Reader => "__ro",
        }
    }
}

/// How databases and roles are named: everything begins with the fleet's prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Naming {
    prefix: String,
}

impl Naming {
    /// Leaves at least 20 bytes for codes, as the sample ERP asks.
    const PREFIX_BYTES_MAX: usize = IDENTIFIER_BYTES_MAX - ROLE_SUFFIX_BYTES_MAX - 1 - 20;

    pub fn new(prefix: &str) -> Result<Self, NameError> {
        let good = prefix.len() <= Self::PREFIX_BYTES_MAX
            && prefix.starts_with(|c: char| c.is_ascii_lowercase())
            && prefix.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && !prefix.contains("__")
            && !prefix.ends_with('_')
            && !prefix.starts_with("pg_");
        if !good {
            return Err(NameError::Prefix { prefix: prefix.to_owned(), max: Self::PREFIX_BYTES_MAX });
        }
        Ok(Self { prefix: prefix.to_owned() })
    }

    /// A prefix for values that are checked and never used.
    pub fn stand_in() -> Self {
        Self { prefix: "x".to_owned() }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Bytes that a code may have beside this prefix.
    pub fn code_bytes_max(&self) -> usize {
        (IDENTIFIER_BYTES_MAX - ROLE_SUFFIX_BYTES_MAX - 1 - self.prefix.len()).min(CODE_BYTES_MAX)
    }

    pub fn shared_database(&self) -> DatabaseName {
        DatabaseName(format!("{}_shared", self.prefix))
    }

    pub fn auth_database(&self) -> DatabaseName {
        DatabaseName(format!("{}_auth", self.prefix))
    }

    /// The role that may read the tenants' part of the shared database.
    pub fn shared_readers(&self) -> RoleName {
        RoleName(format!("{}__shared", self.prefix))
    }

    /// The database of a new tenant.
    pub fn tenant_database(&self, code: &TenantCode) -> Result<DatabaseName, NameError> {
        let max = self.code_bytes_max();
        if code.0.len() > max {
            return Err(NameError::CodeTooLong {
                code: code.0.clone(),
                bytes: code.0.len(),
                max,
                prefix: self.prefix.clone(),
            });
        }
        Ok(DatabaseName(format!("{}_{}", self.prefix, code.0)))
    }

    /// A tenant's role. Roles keep the name that the tenant was created with.
    pub fn tenant_role(&self, code: &TenantCode, role: TenantRole) -> Result<RoleName, NameError> {
        let database = self.tenant_database(code)?;
        Ok(RoleName(format!("{}{}", database.0, role.suffix())))
    }
}

impl TryFrom<String> for Naming {
    type Error = NameError;

    fn try_from(prefix: String) -> Result<Self, NameError> {
        Self::new(&prefix)
    }
}

impl From<Naming> for String {
    fn from(naming: Naming) -> Self {
        naming.prefix
    }
}

/// The name under which an operation fills a database that is not yet in service.
pub fn database_under_construction(operation: Uuid) -> DatabaseName {
    DatabaseName(format!("tenantd_new_{}", operation.simple()))
}

/// Where sessions go that belong to no database in particular.
pub fn maintenance_database() -> DatabaseName {
    DatabaseName("postgres".to_owned())
}

/// The name that a database keeps after a restore has replaced it.
pub fn database_replaced(operation: Uuid) -> DatabaseName {
    DatabaseName(format!("tenantd_old_{}", operation.simple()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bad_codes_are_refused_with_the_reason() {
        let refusal = |code: &str| code.parse::<TenantCode>().unwrap_err().to_string();
        assert!(refusal("ac'me").contains("'\\''"), "{}", refusal("ac'me"));
        assert!(refusal("ac me").contains("' '"));
        assert!(refusal("Acme").contains("lower-case"));
        assert!(refusal(&"a".repeat(64)).contains("64 bytes"));
        assert!(refusal("postgres").contains("reserved"));
        assert!(refusal("a__b").contains("underscore"));
        assert!(refusal("a_").contains("underscore"));
        assert!(refusal("1a").contains("begin with"));
        assert!(refusal("").contains("empty"));
        assert!(refusal("é").contains("lower-case letters a-z"));
    }

    #[test]
    fn derived_names_are_the_seeds() {
        let naming = Naming::new("erp_topsteel").unwrap();
        let acme = "acme".parse().unwrap();
        assert_eq!(naming.tenant_database(&acme).unwrap().as_str(), "erp_topsteel_acme");
        assert_eq!(naming.tenant_role(&acme, TenantRole::Migrator).unwrap().as_str(), "erp_topsteel_acme__m");
        assert_eq!(naming.shared_database().as_str(), "erp_topsteel_shared");
    }

    #[test]
    fn quotes_are_doubled() {
        assert_eq!(DatabaseName::new("a\"b").unwrap().quoted(), "\"a\"\"b\"");
    }

    proptest! {
        #[test]
        fn every_name_of_every_tenant_fits_and_none_is_shared(a in "[a-z][a-z0-9_]{0,39}", b in "[a-z][a-z0-9_]{0,39}", prefix in "[a-z][a-z0-9_]{0,37}") {
            let (Ok(naming), Ok(a), Ok(b)) = (Naming::new(&prefix), a.parse::<TenantCode>(), b.parse::<TenantCode>()) else { return Ok(()) };
            let names = |code: &TenantCode| -> Option<Vec<String>> {
                let all = TenantRole::LOGINS.iter().chain([&TenantRole::Owner]);
                all.map(|role| naming.tenant_role(code, *role).ok().map(String::from)).collect()
            };
            let (Some(of_a), Some(of_b)) = (names(&a), names(&b)) else { return Ok(()) };
            for name in of_a.iter().chain(&of_b) {
                prop_assert!(name.len() <= IDENTIFIER_BYTES_MAX);
            }
            prop_assert!(a == b || of_a.iter().all(|name| !of_b.contains(name)));
        }
    }
}
