//! Why a caller is not let in.

use std::time::Duration;

use crate::domain::permission::Permission;
use crate::{accounts, catalog};

pub(super) const AUTH_DATABASE: &str = "the auth database";
pub(super) const SHARED_DATABASE: &str = "the shared database";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the call has no credentials; send the metadata \"authorization: Bearer <key or token>\", or show a client certificate"
    )]
    Missing,
    #[error("the metadata \"authorization\" is not \"Bearer <key or token>\"")]
    Malformed,
    /// Says no more to the caller: whoever guesses learns nothing. `reason` is for the daemon's own records.
    #[error("the credentials are unknown, expired or revoked")]
    Refused { reason: &'static str },
    #[error("the certificate and the bearer are not the same caller's; show one of them, or bind them to one name")]
    Mismatch,
    #[error("too many failed calls come from this address; wait")]
    TooManyFailures { retry_after: Duration },
    #[error("{whose} makes more than {calls_per_second_max} calls per second")]
    TooManyCalls { whose: Whose, calls_per_second_max: u32, retry_after: Duration },
    #[error("{principal} may not call {path}: that needs the permission {needed:?}, which none of its roles has")]
    Denied { principal: String, path: String, needed: Permission },
    #[error("{principal} has lost a right that this call has used; call again with those that are left")]
    Withdrawn { principal: String },
    #[error("there is no method {path}")]
    MethodUnknown { path: String },
    /// Logged once, when it began.
    #[error("{what} does not answer, and without it this call can neither be checked nor written down; try again")]
    Away { what: &'static str },
    #[error("credentials cannot be checked: {0}")]
    Accounts(Box<accounts::Error>),
    #[error("the tenants of a user cannot be looked up: {0}")]
    Catalog(Box<catalog::Error>),
}

/// Whose limit was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    Principal(String),
    Tenant(String),
}

impl std::fmt::Display for Whose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Principal(name) => write!(f, "the caller {name}"),
            Self::Tenant(code) => write!(f, "the tenant {code}"),
        }
    }
}

impl Error {
    pub(super) fn refused(reason: &'static str) -> Self {
        Self::Refused { reason }
    }

    /// Why somebody was turned away, if that is what has happened: for the audit log.
    pub fn denial(&self) -> Option<&'static str> {
        match self {
            Self::Missing => Some("no credentials"),
            Self::Malformed => Some("the credentials cannot be read"),
            Self::Refused { reason } => Some(reason),
            Self::Mismatch => Some("the certificate and the bearer are not the same caller's"),
            Self::TooManyFailures { .. } => Some("too many failed calls from this address"),
            Self::Denied { .. } => Some("no role has the permission"),
            Self::Withdrawn { .. } => Some("a right was taken away while the call went on"),
            Self::TooManyCalls { .. }
            | Self::MethodUnknown { .. }
            | Self::Away { .. }
            | Self::Accounts(_)
            | Self::Catalog(_) => None,
        }
    }

    /// Whether the databases behind the answer did not answer.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Away { .. } => true,
            Self::Accounts(error) => error.is_away(),
            Self::Catalog(error) => error.is_away(),
            _ => false,
        }
    }

    /// Of what is away, only which part it is.
    pub(super) fn into_away(self) -> Self {
        let what = match self {
            Self::Away { what } => what,
            Self::Catalog(_) => SHARED_DATABASE,
            _ => AUTH_DATABASE,
        };
        Self::Away { what }
    }

    /// Whether a row cannot be used as it is.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Accounts(error) => matches!(**error, accounts::Error::Corrupt(_)),
            Self::Catalog(error) => matches!(**error, catalog::Error::Corrupt(_)),
            _ => false,
        }
    }
}

impl From<accounts::Error> for Error {
    fn from(error: accounts::Error) -> Self {
        Self::Accounts(Box::new(error))
    }
}

impl From<catalog::Error> for Error {
    fn from(error: catalog::Error) -> Self {
        Self::Catalog(Box::new(error))
    }
}
