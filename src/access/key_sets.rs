//! The public keys of one issuer: a JSON Web Key Set from a URL or a file, read when it is first needed, again when it
//! is old, and again for a key that is not in it, but not often. While the issuer is away the old set serves, for a
//! bounded time.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::error::Error;
use super::fetch::Fetch;
use super::limits::{Bucket, Rate};
use crate::config::KeysFrom;

const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const SET_BYTES_MAX: usize = 256 << 10;
const KEYS_MAX: usize = 64;
/// What is away when there are no keys.
const ISSUER: &str = "the issuer's set of keys";
/// How long an old set serves while the issuer does not answer.
const STALE_MAX: Duration = Duration::from_hours(1);
/// Readings because of keys that are not there, and after a failure: a few at once, then one in ten seconds.
const READ_RATE: Rate = Rate { interval: Duration::from_secs(10), burst: 3 };

/// One issuer's keys.
#[derive(Debug)]
pub(super) struct KeySet {
    issuer: String,
    from: From,
    age_max: Duration,
    known: Mutex<Known>,
    /// One reads; the others wait for it.
    turn: tokio::sync::Mutex<()>,
    attempts: Bucket,
}

#[derive(Debug)]
enum From {
    Url(Box<Fetch>),
    File(PathBuf),
}

#[derive(Debug, Default)]
struct Known {
    keys: Arc<Vec<Key>>,
    read_at: Option<Instant>,
    is_failing: bool,
}

/// A key that can check signatures.
#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Option<KeyAlgorithm>,
    decoding: Arc<DecodingKey>,
}

impl Key {
    fn fits(&self, algorithm: Algorithm) -> bool {
        self.decoding.family() == algorithm.family()
            && self.algorithm.is_none_or(|only| only == KeyAlgorithm::from(algorithm))
    }
}

impl KeySet {
    /// # Errors
    /// What is wrong with the roots that the address is to be checked with.
    pub(super) fn new(issuer: &str, from: &KeysFrom, age_max: Duration) -> Result<Self, String> {
        let from = match from {
            KeysFrom::Url { url, ca_file } => From::Url(Box::new(Fetch::new(url, ca_file.as_deref())?)),
            KeysFrom::File(file) => From::File(file.clone()),
        };
        Ok(Self {
            issuer: issuer.to_owned(),
            from,
            age_max,
            known: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            attempts: Bucket::default(),
        })
    }

    /// The key that a token names, for this algorithm. A token that names none is taken only if there is one key that
    /// fits.
    pub(super) async fn key(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Arc<DecodingKey>, Error> {
        let asked_at = Instant::now();
        let (keys, age) = self.current(asked_at);
        let found = find(&keys, id, algorithm);
        match (found, age) {
            (Some(key), Some(age)) if age <= self.age_max => return Ok(key),
            _ => {}
        }
        self.read(asked_at).await;
        let (keys, age) = self.current(Instant::now());
        match age {
            None => Err(Error::Away { what: ISSUER }),
            Some(age) if age > self.age_max + STALE_MAX => Err(Error::Away { what: ISSUER }),
            Some(_) => find(&keys, id, algorithm).ok_or(Error::refused("no key of the issuer fits")),
        }
    }

    fn current(&self, now: Instant) -> (Arc<Vec<Key>>, Option<Duration>) {
        let known = self.known();
        (Arc::clone(&known.keys), known.read_at.map(|at| now.saturating_duration_since(at)))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the set again, unless somebody has since `asked_at`, or it was tried too often.
    async fn read(&self, asked_at: Instant) {
        let _turn = self.turn.lock().await;
        if self.known().read_at.is_some_and(|at| at >= asked_at) || self.attempts.take(READ_RATE).is_err() {
            return;
        }
        let began_at = Instant::now();
        let text = timeout(FETCH_TIMEOUT, self.text()).await.unwrap_or_else(|_| Err("it takes too long".to_owned()));
        let read = text.and_then(|text| parse(&text));
        let mut known = self.known();
        match read {
            Ok(keys) => {
                if known.is_failing {
                    tracing::info!(issuer = self.issuer, "the issuer's keys can be read again");
                }
                *known = Known { keys: Arc::new(keys), read_at: Some(began_at), is_failing: false };
            }
            Err(problem) => {
                if !known.is_failing {
                    tracing::warn!(
                        issuer = self.issuer,
                        problem,
                        "the issuer's keys cannot be read; those that are known serve for a while"
                    );
                }
                known.is_failing = true;
            }
        }
    }

    async fn text(&self) -> Result<Vec<u8>, String> {
        match &self.from {
            From::Url(fetch) => fetch.get(SET_BYTES_MAX).await,
            From::File(file) => tokio::fs::read(file).await.map_err(|error| error.to_string()),
        }
    }
}

fn find(keys: &[Key], id: Option<&str>, algorithm: Algorithm) -> Option<Arc<DecodingKey>> {
    let mut fitting = keys.iter().filter(|key| key.fits(algorithm) && (id.is_none() || key.id.as_deref() == id));
    let found = fitting.next()?;
    if id.is_none() && fitting.next().is_some() {
        return None;
    }
    Some(Arc::clone(&found.decoding))
}

/// The keys that can be used; kinds that are not known here, secrets, and keys for other purposes are passed over.
fn parse(text: &[u8]) -> Result<Vec<Key>, String> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(text).map_err(|error| format!("it is no key set: {error}"))?;
    let keys: Vec<Key> = set.keys.into_iter().filter_map(usable).take(KEYS_MAX).collect();
    if keys.is_empty() { Err("no key in it can be used".to_owned()) } else { Ok(keys) }
}

fn usable(key: serde_json::Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(key).ok()?;
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return None;
    }
    let decoding = DecodingKey::from_jwk(&jwk).ok()?;
    // A secret in a public set would let everybody sign.
    if decoding.family() == AlgorithmFamily::Hmac {
        return None;
    }
    Some(Key { id: jwk.common.key_id, algorithm: jwk.common.key_algorithm, decoding: Arc::new(decoding) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EC: &str = r#""kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM""#;

    #[test]
    fn only_public_keys_for_signatures_are_taken() {
        let set = format!(
            r#"{{"keys":[{{{EC},"kid":"a","use":"sig"}},{{{EC},"kid":"b","use":"enc"}},{{"kty":"oct","kid":"c","k":"c2VjcmV0"}},{{"kty":"new","kid":"d"}},7,{{{EC},"kid":"e","alg":"ES384"}}]}}"#
        );
        let keys = parse(set.as_bytes()).unwrap();
        let ids: Vec<_> = keys.iter().filter_map(|key| key.id.as_deref()).collect();
        assert_eq!(ids, ["a", "e"]);
        assert!(find(&keys, Some("a"), Algorithm::ES256).is_some());
        assert!(find(&keys, Some("a"), Algorithm::RS256).is_none());
        assert!(find(&keys, Some("a"), Algorithm::HS256).is_none());
        assert!(find(&keys, Some("e"), Algorithm::ES256).is_none());
        assert!(find(&keys, Some("x"), Algorithm::ES256).is_none());
        assert!(find(&keys, None, Algorithm::ES256).is_some());
        for bad in ["", "[]", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_without_a_key_id_is_taken_only_where_one_key_fits() {
        let set = format!(r#"{{"keys":[{{{EC},"kid":"a"}},{{{EC},"kid":"b"}}]}}"#);
        let keys = parse(set.as_bytes()).unwrap();
        assert!(find(&keys, None, Algorithm::ES256).is_none());
        assert!(find(&keys, Some("b"), Algorithm::ES256).is_some());
    }
}
