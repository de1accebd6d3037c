//! The answer of a resolve, and the gate in front of it.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::host::{HostError, OwnHosts, host_name, is_whole};
use super::lifecycle::TenantState;
use super::principal::{Principal, Scope};
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

/// How far a catalog is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub catalog_id: Uuid,
    /// The newest revision.
    pub revision: i64,
    /// Removals up to here are forgotten.
    pub compacted_revision: i64,
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
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(
        "the call names no tenant; give an id, a code, a host, or the metadata x-tenant-id (only callers with a default tenant, or with exactly one tenant in scope, may leave it out)"
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
        let name = match text.rsplit_once(':') {
            Some((name, port)) if port.parse::<u16>().is_ok() => name,
            Some(_) => return Err(HostError::Form(text.to_owned()).into()),
            None => text,
        };
        Ok(Self::Host(host_name(name)?))
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

/// Where a call says which tenant it means.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources<'a> {
    /// In the request itself.
    pub explicit: Option<Selector>,
    /// The metadata `x-tenant-id`: an id or a code.
    pub metadata: Option<&'a str>,
    /// The host that was called, with or without a port. Mostly it is the daemon's own name, and no tenant's.
    pub host: Option<&'a str>,
}

/// What a call means, as far as it can be said without asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Counts if it is a tenant's; otherwise there is nothing wrong with it.
    pub host: Option<Selector>,
    pub otherwise: Result<Selector, SelectError>,
}

/// The tenant that a call means; the first source that is there counts: the request itself, the metadata, the host that
/// was called if it is a tenant's, the caller's default tenant, the only tenant in the caller's scope. A name of the
/// daemon's own is no tenant's. Selecting is not permission.
pub fn select(sources: Sources<'_>, principal: &Principal, own: &OwnHosts) -> Choice {
    if let Some(selector) = sources.explicit {
        return Choice { host: None, otherwise: Ok(selector) };
    }
    if let Some(text) = sources.metadata {
        return Choice { host: None, otherwise: Selector::reference(text) };
    }
    let host = sources.host.and_then(|text| Selector::host(text).ok());
    let host = host.filter(|host| matches!(host, Selector::Host(name) if is_whole(name) && !own.contains(name)));
    let only = match &principal.scope {
        Scope::Tenants(tenants) if tenants.len() == 1 => tenants.first(),
        Scope::Tenants(_) | Scope::All => None,
    };
    let own = principal.default_tenant.as_ref().or(only).cloned();
    Choice { host, otherwise: own.map(Selector::Code).ok_or(SelectError::Nothing) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_one_form() {
        let host = |text: &str| Selector::host(text).map(|selector| selector.to_string());
        assert_eq!(host("Acme.Example.COM:8443").as_deref(), Ok("acme.example.com"));
        assert_eq!(host("acme.example.com.").as_deref(), Ok("acme.example.com"));
        assert_eq!(host("acme.example.com.:443").as_deref(), Ok("acme.example.com"));
        assert_eq!(host("Aciérie.example.com").as_deref(), Ok("xn--acirie-dva.example.com"));
        assert_eq!(host("XN--ACIRIE-DVA.example.com").as_deref(), Ok("xn--acirie-dva.example.com"));
        assert_eq!(host("acme。example.com").as_deref(), Ok("acme.example.com"));
        for bad in ["", ".", "a..b", "a b", "acme:port", "acme:99999", "-a.b", "a/b", "[::1]:80", "a@b.c", "xn--a.b"] {
            assert!(host(bad).is_err(), "{bad}");
        }
        assert!(host(&"a.".repeat(127)).is_ok());
        assert!(host(&"a.".repeat(128)).is_err());
    }

    fn caller(scope: Scope, default_tenant: Option<&str>) -> Principal {
        let default_tenant = default_tenant.map(|code| code.parse().unwrap());
        Principal { default_tenant, ..Principal::new("test", [].into(), scope) }
    }

    fn scope(codes: &[&str]) -> Scope {
        Scope::Tenants(codes.iter().map(|code| code.parse().unwrap()).collect())
    }

    #[test]
    fn the_first_source_counts() {
        let caller = caller(scope(&["only1"]), Some("usual"));
        let explicit = Some(Selector::code("explicit").unwrap());
        let (metadata, host) = (Some("metadata"), Some("Tenant.Example.com:7432"));
        let select = |explicit: &Option<Selector>, metadata, host| {
            select(Sources { explicit: explicit.clone(), metadata, host }, &caller, &OwnHosts::default())
        };
        // Each source in turn is left out, from the first on; what comes after does not matter while it is there.
        for (metadata, host) in [(metadata, host), (None, host), (metadata, None), (None, None)] {
            let choice = select(&explicit, metadata, host);
            assert_eq!(choice, Choice { host: None, otherwise: Selector::code("explicit") });
        }
        for host in [host, None] {
            let choice = select(&None, metadata, host);
            assert_eq!(choice, Choice { host: None, otherwise: Selector::code("metadata") });
        }
        let choice = select(&None, None, host);
        assert_eq!(choice.host, Some(Selector::Host("tenant.example.com".to_owned())));
        assert_eq!(choice.otherwise, Selector::code("usual"));
        assert_eq!(select(&None, None, None), Choice { host: None, otherwise: Selector::code("usual") });
    }

    #[test]
    fn without_a_default_the_only_tenant_counts() {
        let otherwise = |caller: &Principal| select(Sources::default(), caller, &OwnHosts::default()).otherwise;
        assert_eq!(otherwise(&caller(scope(&["acme"]), None)), Selector::code("acme"));
        assert_eq!(otherwise(&caller(scope(&["acme", "beta"]), None)), Err(SelectError::Nothing));
        assert_eq!(otherwise(&caller(scope(&[]), None)), Err(SelectError::Nothing));
        assert_eq!(otherwise(&caller(Scope::All, None)), Err(SelectError::Nothing));
        assert_eq!(otherwise(&caller(Scope::All, Some("acme"))), Selector::code("acme"));
    }

    #[test]
    fn the_name_of_an_endpoint_is_no_error() {
        let caller = caller(scope(&["acme"]), None);
        let own: OwnHosts = ["db.example.com".to_owned()].into_iter().collect();
        let select = |host| select(Sources { host: Some(host), ..Sources::default() }, &caller, &own);
        for host in ["127.0.0.1:7432", "[::1]:7432", "localhost", "localhost:7432", "db", "no host", "", "0.0.0.0:80"] {
            assert_eq!(select(host), Choice { host: None, otherwise: Selector::code("acme") }, "{host}");
        }
        for host in ["db.example.com", "DB.Example.com.:7432"] {
            assert_eq!(select(host), Choice { host: None, otherwise: Selector::code("acme") }, "{host}");
        }
        assert!(select("acme.db.example.com").host.is_some());
    }

    #[test]
    fn a_bad_reference_is_not_passed_over() {
        let caller = caller(scope(&["acme"]), None);
        let sources = Sources { metadata: Some("Not A Code"), ..Sources::default() };
        let choice = select(sources, &caller, &OwnHosts::default());
        assert!(choice.otherwise.is_err());
    }

    #[test]
    fn a_reference_is_an_id_or_a_code() {
        let id = Uuid::from_u128(7);
        assert_eq!(Selector::reference(&id.to_string()), Ok(Selector::Id(TenantId(id))));
        assert_eq!(Selector::reference("acme"), Selector::code("acme"));
        assert!(Selector::reference("Acme").is_err());
    }
}
