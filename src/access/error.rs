//! Why a caller is not let in.

use crate::accounts;
use crate::domain::permission::Permission;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the call has no key; send the metadata \"authorization: Bearer <key>\"")]
    Missing,
    #[error("the metadata \"authorization\" is not \"Bearer <key>\"")]
    Malformed,
    /// Says no more: whoever guesses learns nothing.
    #[error("the key is unknown, expired or revoked")]
    KeyRefused,
    #[error("{principal} may not call {path}: that needs the permission {needed:?}, which none of its roles has")]
    Denied { principal: String, path: String, needed: Permission },
    #[error("there is no method {path}")]
    MethodUnknown { path: String },
    #[error("keys cannot be checked at the moment: {0}")]
    Accounts(Box<accounts::Error>),
}

impl From<accounts::Error> for Error {
    fn from(error: accounts::Error) -> Self {
        Self::Accounts(Box::new(error))
    }
}
