//! A tenant's secrets, opened: sealed in the catalog under the tenant's own data key, in clear only here and with
//! whoever logs in.

use secrecy::SecretString;
use uuid::Uuid;

use super::error::Error;
use super::{Router, Shared};
use crate::catalog::Catalog;
use crate::config::RoleLogin;
use crate::domain::route::Route;
use crate::domain::tenant::{RoleName, TenantId, TenantRole};
use crate::secrets::{Aad, Envelope};

/// Under which field the catalog keeps a login role's password.
pub fn role_field(role: &RoleName) -> String {
    format!("role:{role}")
}

impl Router {
    /// One of the tenant's secrets, opened.
    pub async fn tenant_secret(&self, tenant: TenantId, field: &str) -> Result<SecretString, Error> {
        secret(&self.0.shared.catalog, &self.0.shared.envelope, tenant, field).await
    }

    /// How to log in as one of the tenant's roles, by the role's name.
    pub async fn tenant_login(&self, tenant: TenantId, role: &RoleName) -> Result<RoleLogin, Error> {
        let password = self.tenant_secret(tenant, &role_field(role)).await?;
        Ok(RoleLogin { role: role.clone(), password })
    }

    /// How to log in at the end of a route.
    pub async fn route_login(&self, route: &Route, role: TenantRole) -> Result<RoleLogin, Error> {
        self.0.shared.route_login(route, role).await
    }

    /// The name of one of the tenant's roles.
    pub fn route_role(&self, route: &Route, role: TenantRole) -> Result<RoleName, Error> {
        self.0.shared.role(route, role)
    }
}

impl Shared {
    pub(super) async fn route_login(&self, route: &Route, role: TenantRole) -> Result<RoleLogin, Error> {
        let role = self.role(route, role)?;
        let password = secret(&self.catalog, &self.envelope, route.tenant, &role_field(&role)).await?;
        Ok(RoleLogin { role, password })
    }

    fn role(&self, route: &Route, role: TenantRole) -> Result<RoleName, Error> {
        let named = self.naming.tenant_role(&route.code, role);
        named.map_err(|source| Error::Role { tenant: route.code.clone(), source })
    }

    pub(super) async fn catalog_id(&self) -> Result<Uuid, Error> {
        self.catalog_id.get_or_try_init(|| async { Ok(self.catalog.id().await?) }).await.copied()
    }
}

async fn secret(catalog: &Catalog, envelope: &Envelope, tenant: TenantId, field: &str) -> Result<SecretString, Error> {
    let wrapped_key = catalog.tenant_data_key_get(tenant).await?;
    let sealed = catalog.tenant_secret_get(tenant, field).await?;
    let aad = Aad { tenant: tenant.0, field, version: sealed.version };
    let failed = |source| Error::Secret { tenant, field: field.to_owned(), source };
    let plain = envelope.open(&wrapped_key, &aad, &sealed.ciphertext).map_err(failed)?;
    let text = std::str::from_utf8(&plain).map_err(|_not_utf8| failed(crate::secrets::Error::Open))?;
    Ok(text.into())
}
