//! The answer of a resolve, and the gate in front of it.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::lifecycle::TenantState;
use super::principal::Scope;
use super::tenant::{DatabaseName, NameError, TenantCode, TenantId};

/// A tenant's door in the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Gate {
    /// Callers pass.
    Open,
    /// Callers wait, for a bounded time; the operation that paused it reopens it.
    Paused { operation: Uuid },
    /// Callers are refused.
    Closed { operation: Option<Uuid> },
}

/// Where a tenant is. Credentials are not part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub tenant: TenantId,
    pub code: TenantCode,
    pub state: TenantState,
    pub tier: String,
    pub server: String,
    pub database: DatabaseName,
    /// Part of the identity row; grows when another database takes the tenant's place.
    pub generation: i64,
    pub schema_version: i64,
    pub epoch: i64,
    pub gate: Gate,
    pub suspend_reason: Option<String>,
    /// Host names that mean this tenant, in order.
    pub hosts: Vec<String>,
    /// The catalog's revision of the last change.
    pub revision: i64,
}

/// How a caller names a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    Id(TenantId),
    Code(TenantCode),
    /// Whole, in lower case, without a port.
    Host(String),
}

/// Why no tenant could be selected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    #[error("{0:?} is no tenant id; an id is a UUID")]
    Id(String),
    #[error(transparent)]
    Code(#[from] NameError),
    #[error("{0:?} is no host name")]
    Host(String),
    #[error(
        "the call names no tenant; give an id, a code, a host, or the metadata x-tenant-id (only callers with exactly one tenant in scope may leave it out)"
    )]
    Nothing,
}

impl Selector {
    pub fn id(text: &str) -> Result<Self, SelectError> {
        let id = Uuid::parse_str(text).map_err(|_| SelectError::Id(text.to_owned()))?;
        Ok(Self::Id(TenantId(id)))
    }

    pub fn code(text: &str) -> Result<Self, SelectError> {
        Ok(Self::Code(text.parse()?))
    }

    /// An id or a code.
    pub fn reference(text: &str) -> Result<Self, SelectError> {
        Self::id(text).or_else(|_| Self::code(text))
    }

    /// A host name as in a URL or a Host header.
    pub fn host(text: &str) -> Result<Self, SelectError> {
        let bad = || SelectError::Host(text.to_owned());
        let name = match text.rsplit_once(':') {
            Some((name, port)) if port.parse::<u16>().is_ok() => name,
            Some(_) => return Err(bad()),
            None => text,
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(bad());
        }
        Ok(Self::Host(name))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Code(code) => code.fmt(f),
            Self::Host(host) => host.fmt(f),
        }
    }
}

/// The tenant that a call means; the first source that is there counts: the request itself, the metadata (an id or a
/// code), the only tenant in the caller's scope. Selecting is not permission.
pub fn select(explicit: Option<Selector>, metadata: Option<&str>, scope: &Scope) -> Result<Selector, SelectError> {
    if let Some(selector) = explicit {
        return Ok(selector);
    }
    if let Some(text) = metadata {
        return Selector::reference(text);
    }
    match scope {
        Scope::Tenants(tenants) if tenants.len() == 1 => {
            tenants.first().cloned().map(Selector::Code).ok_or(SelectError::Nothing)
        }
        Scope::Tenants(_) | Scope::All => Err(SelectError::Nothing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_lose_port_case_and_final_dot() {
        let host = |text: &str| Selector::host(text).map(|selector| selector.to_string());
        assert_eq!(host("Acme.Example.COM:8443").as_deref(), Ok("acme.example.com"));
        assert_eq!(host("acme.example.com.").as_deref(), Ok("acme.example.com"));
        for bad in ["", "a..b", "a b", "acme:port", "-a.b", "a/b", "[::1]:80", "é.example.com"] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_source_counts() {
        let acme: TenantCode = "acme".parse().unwrap();
        let only = Scope::Tenants([acme.clone()].into());
        let explicit = Selector::code("beta").unwrap();
        assert_eq!(select(Some(explicit.clone()), Some("gamma"), &only), Ok(explicit));
        assert_eq!(select(None, Some("gamma"), &only), Selector::code("gamma"));
        assert_eq!(select(None, None, &only), Ok(Selector::Code(acme)));
        assert_eq!(select(None, None, &Scope::All), Err(SelectError::Nothing));
        let two = Scope::Tenants(["a1".parse().unwrap(), "a2".parse().unwrap()].into());
        assert_eq!(select(None, None, &two), Err(SelectError::Nothing));
    }

    #[test]
    fn a_reference_is_an_id_or_a_code() {
        let id = Uuid::from_u128(7);
        assert_eq!(Selector::reference(&id.to_string()), Ok(Selector::Id(TenantId(id))));
        assert_eq!(Selector::reference("acme"), Selector::code("acme"));
        assert!(Selector::reference("Acme").is_err());
    }
}
