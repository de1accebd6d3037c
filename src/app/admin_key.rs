//! The first admin key, written to a file that only its owner can read. The file is written before the key is
//! stored: a daemon that dies between the two finds the file at its next start and stores the key in it.

use std::path::Path;

use secrecy::ExposeSecret as _;
use time::OffsetDateTime;
use uuid::Uuid;

use super::error::Error;
use crate::accounts::{Accounts, NewApiKey};
use crate::config::write_private;
use crate::domain::permission::Role;
use crate::domain::principal::Scope;
use crate::secrets::ApiKeySecret;

/// What was done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminKey {
    Written,
    Exists,
}

/// Makes the key only while no admin key exists.
pub(super) async fn ensure(accounts: &Accounts, file: &Path) -> Result<AdminKey, Error> {
    let now = OffsetDateTime::now_utc();
    if accounts.admin_key_exists(now).await? {
        return Ok(AdminKey::Exists);
    }
    let hash = match std::fs::read_to_string(file) {
        Ok(text) => ApiKeySecret::hash(text.trim()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let (secret, hash) = ApiKeySecret::new();
            let line = format!("{}\n", secret.expose_secret());
            write_private(file, &line).map_err(|source| Error::file(file, source))?;
            hash
        }
        Err(source) => return Err(Error::file(file, source)),
    };
    let key = NewApiKey {
        id: Uuid::now_v7(),
        name: "first-admin",
        hash,
        roles: &[Role::Admin].into(),
        scope: &Scope::All,
        default_tenant: None,
        created_by: "serve",
        expires_at: None,
    };
    if accounts.api_key_insert_first_admin(&key, now).await?.is_some() {
        return Ok(AdminKey::Written);
    }
    // Another daemon was first: what is in the file opens nothing.
    std::fs::remove_file(file).map_err(|source| Error::file(file, source))?;
    Ok(AdminKey::Exists)
}
