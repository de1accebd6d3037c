//! `authorization: Bearer tnd_…` to a principal.
//!
//! A key is looked up by its hash, so that comparing takes no secret's time. What was found is kept for a few seconds;
//! expiry is checked at every call, and a revocation by this daemon counts at once.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use super::error::Error;
use super::table::permission;
use crate::accounts::{Accounts, ApiKey};
use crate::domain::principal::Principal;
use crate::secrets::{ApiKeyHash, ApiKeySecret};
use crate::shutdown::Tasks;

/// How long another daemon's revocation may go unnoticed.
const KEY_AGE_MAX: Duration = Duration::from_secs(5);
const KEYS_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// A key's last use is noted no more often.
const TOUCH_INTERVAL: Duration = Duration::from_mins(1);
/// No key is longer; whatever is, is not even hashed.
const KEY_BYTES_MAX: usize = 128;
/// Callers whose keys fall on the same lane ask the auth database one after the other.
const LANES: usize = 16;

/// Who is who. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Access(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    accounts: Accounts,
    tasks: Tasks,
    known: Mutex<Known>,
    lanes: [tokio::sync::Mutex<()>; LANES],
}

#[derive(Debug)]
struct Known {
    keys: LruCache<ApiKeyHash, (Arc<ApiKey>, Instant)>,
    /// Grows with each revocation: what was read before is not kept.
    revocations: u64,
}

impl Access {
    pub fn new(accounts: Accounts, tasks: &Tasks) -> Self {
        let known = Known { keys: LruCache::new(KEYS_MAX), revocations: 0 };
        let lanes = std::array::from_fn(|_| tokio::sync::Mutex::default());
        Self(Arc::new(Inner { accounts, tasks: tasks.clone(), known: Mutex::new(known), lanes }))
    }

    /// Whose call it is; `header` is the metadata `authorization`.
    pub async fn authenticate(&self, header: Option<&str>) -> Result<Arc<Principal>, Error> {
        let hash = ApiKeySecret::hash(bearer(header)?);
        let now = OffsetDateTime::now_utc();
        let key = match self.0.cached(&hash) {
            Some(key) => key,
            None => self.0.read(hash, now).await?,
        };
        usable(&key, now)?;
        Ok(Arc::new(Principal::new(format!("api-key:{}", key.name), key.roles.clone(), key.scope.clone())))
    }

    /// Whether the principal may call the method at `path` (as `/tenantd.v1.TenantService/GetTenant`).
    pub fn authorize(&self, principal: &Principal, path: &str) -> Result<(), Error> {
        let needed = permission(path).ok_or_else(|| Error::MethodUnknown { path: path.to_owned() })?;
        if principal.may(needed) {
            return Ok(());
        }
        Err(Error::Denied { principal: principal.name.clone(), path: path.to_owned(), needed })
    }

    /// Makes a revocation count from now on.
    pub fn key_forget(&self, id: Uuid) {
        let mut known = self.0.known();
        known.revocations += 1;
        let hashes: Vec<_> = known.keys.iter().filter(|(_, (key, _))| key.id == id).map(|(hash, _)| *hash).collect();
        for hash in hashes {
            known.keys.pop(&hash);
        }
    }
}

impl Inner {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cached(&self, hash: &ApiKeyHash) -> Option<Arc<ApiKey>> {
        let mut known = self.known();
        let (key, read_at) = known.keys.get(hash)?;
        (read_at.elapsed() <= KEY_AGE_MAX).then(|| Arc::clone(key))
    }

    async fn read(&self, hash: ApiKeyHash, now: OffsetDateTime) -> Result<Arc<ApiKey>, Error> {
        let _turn = self.lanes[usize::from(hash.0[0]) % LANES].lock().await;
        if let Some(key) = self.cached(&hash) {
            return Ok(key);
        }
        let (revocations, read_at) = (self.known().revocations, Instant::now());
        let key = Arc::new(self.accounts.api_key_by_hash(&hash).await?.ok_or(Error::KeyRefused)?);
        {
            let mut known = self.known();
            if known.revocations == revocations {
                known.keys.put(hash, (Arc::clone(&key), read_at));
            }
        }
        if usable(&key, now).is_ok() && key.last_used_at.is_none_or(|last| now - last > TOUCH_INTERVAL) {
            let (accounts, id) = (self.accounts.clone(), key.id);
            self.tasks.spawn("api key touch", async move {
                if let Err(error) = accounts.api_key_touch(id, now).await {
                    tracing::debug!(%error, "a key's last use could not be noted");
                }
            });
        }
        Ok(key)
    }
}

/// The key in the header.
fn bearer(header: Option<&str>) -> Result<&str, Error> {
    let (scheme, key) = header.ok_or(Error::Missing)?.split_once(' ').ok_or(Error::Malformed)?;
    let key = key.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(Error::Malformed);
    }
    Ok(key)
}

fn usable(key: &ApiKey, now: OffsetDateTime) -> Result<(), Error> {
    let is_expired = key.expires_at.is_some_and(|at| at <= now);
    if key.revoked_at.is_some() || is_expired { Err(Error::KeyRefused) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::principal::Scope;

    #[test]
    fn only_a_bearer_has_a_key() {
        assert_eq!(bearer(Some("Bearer tnd_x")).ok(), Some("tnd_x"));
        assert_eq!(bearer(Some("bearer  tnd_x ")).ok(), Some("tnd_x"));
        assert!(matches!(bearer(None), Err(Error::Missing)));
        for header in ["", "tnd_x", "Basic tnd_x", "Bearer ", &format!("Bearer {}", "x".repeat(200))] {
            assert!(matches!(bearer(Some(header)), Err(Error::Malformed)), "{header}");
        }
    }

    #[test]
    fn a_key_ends_at_its_time() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let key = |expires_at, revoked_at| ApiKey {
            id: Uuid::nil(),
            name: "ci".to_owned(),
            roles: [].into(),
            scope: Scope::All,
            created_by: String::new(),
            created_at: now,
            expires_at,
            revoked_at,
            last_used_at: None,
        };
        assert!(usable(&key(None, None), now).is_ok());
        assert!(usable(&key(Some(now + Duration::from_secs(1)), None), now).is_ok());
        assert!(usable(&key(Some(now), None), now).is_err());
        assert!(usable(&key(None, Some(now)), now).is_err());
    }
}
