//! A tenant's secrets, opened: sealed in the catalog under the tenant's own data key, in clear only here and with
//! whoever logs in.
//!
//! What pools log in with is kept sealed, for every tenant that the catalog's feed brings: so a tenant's first caller
//! waits for no question to the catalog, and can be served while that is away. It counts for the epoch in which it was
//! read: a rotation begins another one. Operations always ask the catalog.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use secrecy::SecretString;
use uuid::Uuid;

use super::error::Error;
use super::{Router, Shared};
use crate::catalog::{self, Catalog, Follower, Secret};
use crate::config::RoleLogin;
use crate::domain::route::Route;
use crate::domain::tenant::{RoleName, TenantId, TenantRole};
use crate::secrets::{Aad, Envelope};

/// Secrets that are kept, sealed; the least recently used make room.
const KEPT_MAX: NonZeroUsize = NonZeroUsize::new(1 << 16).unwrap();

/// Under which field the catalog keeps a login role's password.
pub fn role_field(role: &RoleName) -> String {
    format!("role:{role}")
}

/// The passwords that pools log in with, sealed.
#[derive(Debug)]
pub(super) struct Kept(Mutex<LruCache<(TenantId, RoleName), Entry>>);

#[derive(Debug, Clone)]
struct Entry {
    epoch: i64,
    sealed: Arc<Sealed>,
}

/// A secret with the key that it is sealed under, which is wrapped itself.
#[derive(Debug)]
struct Sealed {
    wrapped_key: Vec<u8>,
    secret: Secret,
}

impl Default for Kept {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(KEPT_MAX)))
    }
}

impl Kept {
    fn entries(&self) -> MutexGuard<'_, LruCache<(TenantId, RoleName), Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Router {
    /// One of the tenant's secrets, opened.
    pub async fn tenant_secret(&self, tenant: TenantId, field: &str) -> Result<SecretString, Error> {
        let sealed = read(&self.0.shared.catalog, tenant, field).await?;
        open(&self.0.shared.envelope, tenant, field, &sealed)
    }

    /// How to log in as one of the tenant's roles, by the role's name.
    pub async fn tenant_login(&self, tenant: TenantId, role: &RoleName) -> Result<RoleLogin, Error> {
        let password = self.tenant_secret(tenant, &role_field(role)).await?;
        Ok(RoleLogin { role: role.clone(), password })
    }

    /// How to log in at the end of a route.
    pub async fn route_login(&self, route: &Route, role: TenantRole) -> Result<RoleLogin, Error> {
        self.tenant_login(route.tenant, &self.0.shared.role(route, role)?).await
    }

    /// As [`Router::route_login`], from memory when it was asked for before in the route's epoch.
    pub async fn route_login_kept(&self, route: &Route, role: TenantRole) -> Result<RoleLogin, Error> {
        self.0.shared.route_login(route, role).await
    }

    /// The name of one of the tenant's roles.
    pub fn route_role(&self, route: &Route, role: TenantRole) -> Result<RoleName, Error> {
        self.0.shared.role(route, role)
    }
}

impl Shared {
    /// Reads the logins of these routes' pools, as far as those that are kept are of another epoch.
    pub(super) async fn logins_keep(
        &self,
        follower: &Follower,
        routes: impl Iterator<Item = &Route>,
    ) -> Result<(), catalog::Error> {
        let mut wanted = HashMap::new();
        {
            let entries = self.kept.entries();
            for route in routes {
                // A code that no role can be named after has no pool either.
                let Ok(role) = self.role(route, TenantRole::Router) else { continue };
                let kept = entries.peek(&(route.tenant, role.clone()));
                if kept.is_none_or(|kept| kept.epoch < route.epoch) {
                    wanted.insert((route.tenant, role_field(&role)), (role, route.epoch));
                }
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let fields: Vec<_> = wanted.keys().cloned().collect();
        let secrets = follower.tenant_secrets(&fields).await?;
        let mut entries = self.kept.entries();
        for found in secrets {
            let Some((role, epoch)) = wanted.get(&(found.tenant, found.field)) else { continue };
            let key = (found.tenant, role.clone());
            // A pool may have asked since, for a newer one.
            if entries.peek(&key).is_none_or(|kept| kept.epoch <= *epoch) {
                let sealed = Arc::new(Sealed { wrapped_key: found.wrapped_key, secret: found.secret });
                entries.put(key, Entry { epoch: *epoch, sealed });
            }
        }
        Ok(())
    }

    pub(super) async fn route_login(&self, route: &Route, role: TenantRole) -> Result<RoleLogin, Error> {
        let role = self.role(route, role)?;
        let field = role_field(&role);
        let sealed = self.sealed(route, &role, &field).await?;
        let password = open(&self.envelope, route.tenant, &field, &sealed)?;
        Ok(RoleLogin { role, password })
    }

    /// The server refused the password: the catalog may have another by now.
    pub(super) fn login_forget(&self, route: &Route, role: TenantRole) {
        if let Ok(role) = self.role(route, role) {
            self.kept.entries().pop(&(route.tenant, role));
        }
    }

    async fn sealed(&self, route: &Route, role: &RoleName, field: &str) -> Result<Arc<Sealed>, Error> {
        let key = (route.tenant, role.clone());
        let kept = self.kept.entries().get(&key).cloned();
        if let Some(kept) = &kept
            && kept.epoch == route.epoch
        {
            return Ok(Arc::clone(&kept.sealed));
        }
        match (read(&self.catalog, route.tenant, field).await, kept) {
            (Ok(sealed), _) => {
                let sealed = Arc::new(sealed);
                let entry = Entry { epoch: route.epoch, sealed: Arc::clone(&sealed) };
                self.kept.entries().put(key, entry);
                Ok(sealed)
            }
            // Better than nothing: most epochs begin for another reason.
            (Err(error), Some(kept)) if error.is_away() => Ok(kept.sealed),
            (Err(error), _) if error.is_away() => Err(Error::CatalogAway { cause: error.to_string() }),
            (Err(error), _) => Err(error.into()),
        }
    }

    fn role(&self, route: &Route, role: TenantRole) -> Result<RoleName, Error> {
        let named = self.naming.tenant_role(&route.code, role);
        named.map_err(|source| Error::Role { tenant: route.code.clone(), source })
    }

    pub(super) async fn catalog_id(&self) -> Result<Uuid, Error> {
        self.catalog_id.get_or_try_init(|| async { Ok(self.catalog.id().await?) }).await.copied()
    }
}

async fn read(catalog: &Catalog, tenant: TenantId, field: &str) -> Result<Sealed, catalog::Error> {
    let (secret, wrapped_key) = catalog.tenant_secret_get(tenant, field).await?;
    Ok(Sealed { wrapped_key, secret })
}

fn open(envelope: &Envelope, tenant: TenantId, field: &str, sealed: &Sealed) -> Result<SecretString, Error> {
    let aad = Aad { tenant: tenant.0, field, version: sealed.secret.version };
    let failed = |source| Error::Secret { tenant, field: field.to_owned(), source };
    let plain = envelope.open(&sealed.wrapped_key, &aad, &sealed.secret.ciphertext).map_err(failed)?;
    let text = std::str::from_utf8(&plain).map_err(|_not_utf8| failed(crate::secrets::Error::Open))?;
    Ok(text.into())
}
