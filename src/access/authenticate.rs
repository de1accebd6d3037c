//! From what a caller presents (a key, a token, a certificate) to who it is.
//!
//! Almost every call finds its caller in memory. The others are read one after the other, so that a thousand calls with
//! one new key ask once. While the auth database is away, callers that are known go on for a bounded time, and others
//! are told to come back.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use super::certificates::Certificates;
use super::denials::{self, Denial, Denials};
use super::error::{AUTH_DATABASE, Error, SHARED_DATABASE, Whose};
use super::known::{Caller, Known, Presented};
use super::limits::{Bucket, Buckets, Rate};
use super::news;
use super::outage::Outage;
use super::rights::{Claims, Source};
use super::table::permission;
use super::tokens::Tokens;
use super::usage::{self, Usage};
use crate::accounts::{Accounts, AuditEvent, Change, Standing};
use crate::catalog::Catalog;
use crate::config::{AccessConfig, Live};
use crate::domain::principal::Principal;
use crate::domain::route::Route;
use crate::domain::tenant::{TenantCode, TenantId};
use crate::secrets::ApiKeyHash;
use crate::shutdown::Tasks;

/// How long a change may go unnoticed that nobody announced.
const AGE_MAX: Duration = Duration::from_secs(5);
/// How long who is known goes on while another call asks for it.
const ASKING_MAX: Duration = Duration::from_secs(2);
/// How long the last writing down may take, when the daemon goes down.
const FLUSH_MAX: Duration = Duration::from_secs(3);
/// How long who is known goes on while the auth database is away.
const STALE_MAX: Duration = Duration::from_mins(15);
/// The daemon goes down.
const DOWN: Error = Error::Away { what: "the daemon" };
/// No key or token is longer; whatever is, is not even hashed.
const BEARER_BYTES_MAX: usize = 8 << 10;
/// Begins every API key.
const KEY_PREFIX: &str = "tnd_";
/// Callers whose credentials fall on the same lane ask the auth database one after the other.
const LANES: usize = 16;
const PRINCIPALS_MAX: NonZeroUsize = NonZeroUsize::new(8_192).unwrap();
const TENANTS_MAX: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();
const ADDRESSES_MAX: NonZeroUsize = NonZeroUsize::new(8_192).unwrap();
/// Calls with credentials that nobody has, per address: a mistyped key is no attack, and a search is slow.
const FAILURE_RATE: Rate = Rate { interval: Duration::from_millis(500), burst: 50 };

/// Who is who. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Access(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tasks: Tasks,
    live: Live,
    accounts: Accounts,
    catalog: Catalog,
    tokens: Tokens,
    certificates: Certificates,
    known: Known,
    lanes: [tokio::sync::Mutex<()>; LANES],
    outage: Outage,
    shared_outage: Outage,
    principals: Buckets<String>,
    tenants: Buckets<TenantId>,
    failures: Buckets<IpAddr>,
    usage: Usage,
    denials: Denials,
}

/// What came with a call.
#[derive(Debug, Clone, Copy, Default)]
pub struct Credentials<'a> {
    /// The metadata `authorization`.
    pub header: Option<&'a str>,
    /// The client's certificate, in DER, checked by the listener.
    pub certificate: Option<&'a [u8]>,
    pub address: Option<IpAddr>,
}

impl Access {
    /// # Errors
    /// What is wrong with the roots that an issuer is to be checked with.
    pub fn new(
        config: &AccessConfig,
        live: Live,
        accounts: Accounts,
        catalog: Catalog,
        tasks: &Tasks,
    ) -> Result<Self, String> {
        let access = Self(Arc::new(Inner {
            tokens: Tokens::new(&config.issuers)?,
            certificates: Certificates::new(&config.certificates),
            tasks: tasks.clone(),
            live,
            accounts,
            catalog,
            known: Known::new(),
            lanes: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            outage: Outage::of(AUTH_DATABASE),
            shared_outage: Outage::of(SHARED_DATABASE),
            principals: Buckets::new(PRINCIPALS_MAX),
            tenants: Buckets::new(TENANTS_MAX),
            failures: Buckets::new(ADDRESSES_MAX),
            usage: Usage::default(),
            denials: Denials::default(),
        }));
        access.start(tasks);
        Ok(access)
    }

    fn start(&self, tasks: &Tasks) {
        let (inner, token) = (Arc::clone(&self.0), tasks.token().clone());
        tasks.keep("changes of rights", move || {
            let (inner, token) = (Arc::clone(&inner), token.clone());
            async move { news::listen(&inner.accounts, &inner.known, &token).await }
        });
        let (inner, token) = (Arc::clone(&self.0), tasks.token().clone());
        tasks.spawn("use of keys", async move {
            while token.run_until_cancelled(sleep(usage::FLUSH_INTERVAL)).await.is_some() {
                inner.usage.flush(&inner.accounts).await;
            }
        });
        let (inner, token) = (Arc::clone(&self.0), tasks.token().clone());
        tasks.spawn("audit of denials", async move {
            while token.run_until_cancelled(sleep(denials::WINDOW)).await.is_some() {
                inner.denials.flush(&inner.accounts).await;
            }
        });
    }

    /// Writes down what was only counted; for the time when no call comes any more, and before the accounts are closed.
    pub async fn flush(&self) {
        let flushed = async {
            self.0.usage.flush(&self.0.accounts).await;
            self.0.denials.flush(&self.0.accounts).await;
        };
        if tokio::time::timeout(FLUSH_MAX, flushed).await.is_err() {
            tracing::warn!("the auth database is too slow to be told who was refused and which keys were used of late");
        }
    }

    /// Whose call it is. A certificate that the configuration knows needs no bearer; with both, both must be the same
    /// caller's. A certificate that it does not know says nothing.
    pub async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Arc<Caller>, Error> {
        let now = OffsetDateTime::now_utc();
        let certified = match credentials.certificate {
            Some(der) => self.0.certified(der, now)?,
            None => None,
        };
        match (credentials.header, certified) {
            (None, Some(caller)) => Ok(caller),
            (None, None) if credentials.certificate.is_some() => {
                Err(Error::refused("the certificate names nobody who is known"))
            }
            (None, None) => Err(Error::Missing),
            (Some(header), certified) => {
                let caller = self.0.bearer(header, credentials.address, now).await?;
                match certified {
                    Some(other) if other.principal.name != caller.principal.name => Err(Error::Mismatch),
                    _ => Ok(caller),
                }
            }
        }
    }

    /// Whether the principal may call the method at `path` (as `/tenantd.v1.TenantService/GetTenant`).
    pub fn authorize(&self, principal: &Principal, path: &str) -> Result<(), Error> {
        let needed = permission(path).ok_or_else(|| Error::MethodUnknown { path: path.to_owned() })?;
        if principal.may(needed) {
            return Ok(());
        }
        Err(Error::Denied { principal: principal.name.clone(), path: path.to_owned(), needed })
    }

    /// Counts a call of the caller's, for its key and against its limit.
    pub fn count(&self, caller: &Caller) -> Result<(), Error> {
        let calls_per_second_max = self.0.live.current().callers.calls_per_second_max;
        if let Some(usage) = &caller.usage {
            usage.call();
        }
        caller.bucket.take(Rate::per_second(calls_per_second_max)).map_err(|retry_after| Error::TooManyCalls {
            whose: Whose::Principal(caller.principal.name.clone()),
            calls_per_second_max,
            retry_after,
        })
    }

    /// Counts a call that was answered with an error.
    pub fn count_failure(&self, caller: &Caller) {
        if let Some(usage) = &caller.usage {
            usage.failure();
        }
    }

    /// Counts a call to a tenant against the limit of the tenant's tier; of one that the configuration no longer has,
    /// against the lowest that it has.
    pub fn count_tenant(&self, route: &Route) -> Result<(), Error> {
        let limits = self.0.live.current();
        let lowest = || limits.tiers.values().min_by_key(|tier| tier.calls_per_second_max);
        let Some(tier) = limits.tiers.get(&route.tier).or_else(lowest) else { return Ok(()) };
        let calls_per_second_max = tier.calls_per_second_max;
        let bucket = self.0.tenants.of(route.tenant);
        bucket.take(Rate::per_second(calls_per_second_max)).map_err(|retry_after| Error::TooManyCalls {
            whose: Whose::Tenant(route.code.to_string()),
            calls_per_second_max,
            retry_after,
        })
    }

    /// Writes a refusal down before its answer is given, or counts it. Whoever does not wait for the answer was refused
    /// as well.
    pub async fn denied(&self, denial: &Denial<'_>) {
        let Some(first) = self.0.denials.note(denial) else { return };
        let inner = Arc::clone(&self.0);
        let written = self.0.tasks.spawn("audit of a denial", async move {
            inner.denials.append(first, &inner.accounts, &inner.outage).await;
        });
        if let Err(error) = written.await {
            tracing::error!(%error, "a denial was not written down");
        }
    }

    /// Writes down that something is about to be done, or credentials to be shown. Without that it may not be.
    pub async fn record(&self, event: AuditEvent) -> Result<(), Error> {
        self.0.outage.ask(ASKING_MAX, self.0.accounts.audit_append(&[event])).await
    }

    /// Makes a change of somebody's rights count from now on.
    pub fn forget(&self, change: Change) {
        self.0.known.forget(change);
    }
}

impl Inner {
    fn certified(&self, der: &[u8], now: OffsetDateTime) -> Result<Option<Arc<Caller>>, Error> {
        let hash: Presented = Sha256::digest(der).into();
        // The table never changes while the daemon runs.
        if let Some(caller) = self.known.get(&hash, Duration::MAX, now) {
            return Ok(Some(caller));
        }
        let before = self.known.before();
        let Some(source) = self.certificates.source(der)? else { return Ok(None) };
        let caller = self.caller(source, now, before.at)?;
        self.known.put(hash, &caller, before);
        Ok(Some(caller))
    }

    async fn bearer(
        self: &Arc<Self>,
        header: &str,
        from: Option<IpAddr>,
        now: OffsetDateTime,
    ) -> Result<Arc<Caller>, Error> {
        let text = bearer(header)?;
        let hash: Presented = Sha256::digest(text.as_bytes()).into();
        if let Some(caller) = self.known.get(&hash, AGE_MAX, now) {
            return Ok(caller);
        }
        // Rare, and goes on when its caller goes away: a guess fails for whoever hangs up as well, and what an issuer or
        // the database has been asked is known to the next one.
        let (inner, text) = (Arc::clone(self), text.to_owned());
        let asked = self.tasks.spawn("authentication", async move {
            let asked = inner.bearer_unknown(&text, hash, from, now);
            inner.tasks.token().run_until_cancelled(asked).await.unwrap_or(Err(DOWN))
        });
        asked.await.unwrap_or(Err(DOWN))
    }

    async fn bearer_unknown(
        &self,
        text: &str,
        hash: Presented,
        from: Option<IpAddr>,
        now: OffsetDateTime,
    ) -> Result<Arc<Caller>, Error> {
        let read = async {
            if text.starts_with(KEY_PREFIX) {
                return self.in_turn(hash, from, now, None).await;
            }
            // Before its turn: whoever waits for an issuer's keys keeps no other caller waiting.
            self.may_fail(&hash, from)?;
            let claims = self.tokens.verify(text, now).await?;
            self.in_turn(hash, from, now, Some(claims)).await
        };
        match read.await {
            Err(error) if error.is_away() => {
                self.known.get_stale(&hash, STALE_MAX, now).unwrap_or_else(|| Err(error.into_away()))
            }
            Err(error @ Error::TooManyFailures { .. }) => Err(error),
            Err(error) => {
                if let Some(failures) = self.failures_of(&hash, from) {
                    // Whether there was one to take counts with the next call.
                    let _taken = failures.take(FAILURE_RATE);
                }
                self.known.remove(&hash);
                Err(error)
            }
            Ok(caller) => Ok(caller),
        }
    }

    /// Reads who it is, one caller of a lane after the other: the key's, or whom the claims are about.
    async fn in_turn(
        &self,
        hash: Presented,
        from: Option<IpAddr>,
        now: OffsetDateTime,
        claims: Option<Claims>,
    ) -> Result<Arc<Caller>, Error> {
        let lane = &self.lanes[usize::from(hash[0]) % LANES];
        let _turn = match lane.try_lock() {
            Ok(turn) => turn,
            Err(_asked_already) => match self.known.get(&hash, AGE_MAX + ASKING_MAX, now) {
                Some(caller) => return Ok(caller),
                None => lane.lock().await,
            },
        };
        if let Some(caller) = self.known.get(&hash, AGE_MAX, now) {
            return Ok(caller);
        }
        self.may_fail(&hash, from)?;
        let before = self.known.before();
        let caller = self.caller(self.source(hash, claims).await?, now, before.at)?;
        self.known.put(hash, &caller, before);
        Ok(caller)
    }

    /// The failures that count for who presents this. Who was let in before is no guesser.
    fn failures_of(&self, hash: &Presented, from: Option<IpAddr>) -> Option<Arc<Bucket>> {
        let from = from.filter(|_| !self.known.contains(hash))?;
        Some(self.failures.of(network(from)))
    }

    fn may_fail(&self, hash: &Presented, from: Option<IpAddr>) -> Result<(), Error> {
        match self.failures_of(hash, from).and_then(|failures| failures.empty_for(FAILURE_RATE)) {
            Some(retry_after) => Err(Error::TooManyFailures { retry_after }),
            None => Ok(()),
        }
    }

    /// Everything there is to know about whose key it is, or whom the claims are about.
    async fn source(&self, hash: Presented, claims: Option<Claims>) -> Result<Source, Error> {
        let Some(claims) = claims else {
            let key = self.outage.ask(ASKING_MAX, self.accounts.api_key_by_hash(&ApiKeyHash(hash))).await;
            let key = key.map_err(damaged)?;
            return Ok(Source::Key(key.ok_or(Error::refused("the key is unknown"))?));
        };
        let begun = Instant::now();
        let standing = self.accounts.standing(claims.token, &claims.subject, claims.session.as_deref());
        let standing = self.outage.ask(ASKING_MAX, standing).await.map_err(damaged)?;
        let codes = self.codes(&standing, ASKING_MAX.saturating_sub(begun.elapsed())).await.map_err(damaged)?;
        Ok(Source::Token { claims, standing, codes })
    }

    /// The codes of the tenants in which a user has a role.
    async fn codes(&self, standing: &Standing, time_max: Duration) -> Result<BTreeMap<TenantId, TenantCode>, Error> {
        let granted = standing.user.iter().flat_map(|user| &user.grants).map(|grant| grant.tenant);
        let ids: Vec<TenantId> = granted.collect();
        if ids.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.shared_outage.ask(time_max, self.catalog.tenant_codes(&ids)).await
    }

    fn caller(&self, source: Source, now: OffsetDateTime, read_at: Instant) -> Result<Arc<Caller>, Error> {
        let rights = source.rights(now)?;
        let usage = match &source {
            Source::Key(key) => Some(self.usage.of(key.id)),
            Source::Token { .. } | Source::Certificate { .. } => None,
        };
        Ok(Arc::new(Caller {
            bucket: self.principals.of(rights.principal.name.clone()),
            principal: Arc::new(rights.principal),
            source,
            until: rights.until,
            read_at,
            usage,
        }))
    }
}

/// Who has a damaged row is refused for that, and nobody else is.
fn damaged(error: Error) -> Error {
    if !error.is_damage() {
        return error;
    }
    tracing::error!(%error, "a caller is refused, because what is known of it is damaged");
    Error::refused("what is known of the caller is damaged")
}

/// The key or token in the header.
fn bearer(header: &str) -> Result<&str, Error> {
    let (scheme, text) = header.split_once(' ').ok_or(Error::Malformed)?;
    let text = text.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || text.is_empty() || text.len() > BEARER_BYTES_MAX {
        return Err(Error::Malformed);
    }
    Ok(text)
}

/// What one guesser has: an address, or the network that one household gets.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_has_credentials() {
        assert_eq!(bearer("Bearer tnd_x").ok(), Some("tnd_x"));
        assert_eq!(bearer("bearer  tnd_x ").ok(), Some("tnd_x"));
        for header in ["", "tnd_x", "Basic tnd_x", "Bearer ", &format!("Bearer {}", "x".repeat(9_000))] {
            assert!(matches!(bearer(header), Err(Error::Malformed)), "{header}");
        }
    }

    #[test]
    fn a_household_is_one_guesser() {
        let network = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
