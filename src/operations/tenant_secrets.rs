//! A tenant's secrets: made once, sealed under the tenant's own data key, opened when needed.
//! Nothing here is ever logged or returned to a caller.

use secrecy::ExposeSecret as _;

use super::{Error, Parts};
use crate::domain::tenant::{RoleName, TenantId};
use crate::router::credentials::role_field;
use crate::secrets::{Aad, BackupIdentity, password_new};

/// The name under which the catalog keeps the identity that opens the tenant's backups.
const FIELD_BACKUP_IDENTITY: &str = "backup_identity";
/// Grows when a secret is rotated.
const VERSION_FIRST: i32 = 1;

impl Parts {
    /// Makes the data key, a password for each login, and the backup identity, in one transaction. A tenant that has
    /// them keeps them.
    pub(super) async fn tenant_secrets_make(&self, tenant: TenantId, logins: &[RoleName]) -> Result<(), Error> {
        match self.catalog.tenant_data_key_get(tenant).await {
            Ok(_) => return Ok(()),
            Err(crate::catalog::Error::SecretUnknown { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let wrapped = self.envelope.data_key_new()?;
        let seal = |field: &str, plain: &[u8]| {
            self.envelope.seal(&wrapped, &Aad { tenant: tenant.0, field, version: VERSION_FIRST }, plain)
        };
        let mut sealed = Vec::new();
        for role in logins {
            let field = role_field(role);
            let ciphertext = seal(&field, password_new().expose_secret().as_bytes())?;
            sealed.push((field, ciphertext));
        }
        let identity = BackupIdentity::generate().to_secret();
        let ciphertext = seal(FIELD_BACKUP_IDENTITY, identity.expose_secret().as_bytes())?;
        sealed.push((FIELD_BACKUP_IDENTITY.to_owned(), ciphertext));
        let txn = self.catalog.begin().await?;
        self.catalog.tenant_data_key_put_in_txn(&txn, tenant, &wrapped).await?;
        for (field, ciphertext) in sealed {
            self.catalog.tenant_secret_put_in_txn(&txn, tenant, &field, VERSION_FIRST, &ciphertext).await?;
        }
        Ok(txn.commit().await?)
    }

    /// What opens the tenant's backups.
    pub(super) async fn tenant_backup_identity(&self, tenant: TenantId) -> Result<BackupIdentity, Error> {
        let plain = self.router.tenant_secret(tenant, FIELD_BACKUP_IDENTITY).await?;
        Ok(BackupIdentity::parse(&plain)?)
    }
}
