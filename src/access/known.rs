//! Callers that were looked up lately, by the hash of what they present: the way that almost every call takes. What was
//! forgotten while it was being read is not kept.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::error::Error;
use super::limits::Bucket;
use super::rights::Source;
use super::usage::Counts;
use crate::accounts::Change;
use crate::domain::principal::Principal;

const CALLERS_MAX: NonZeroUsize = NonZeroUsize::new(8_192).unwrap();

/// The SHA-256 of a key, a token or a certificate.
pub(super) type Presented = [u8; 32];

/// A caller that has been let in.
#[derive(Debug)]
pub struct Caller {
    pub principal: Arc<Principal>,
    pub(super) source: Source,
    /// From then on the principal has to be worked out again.
    pub(super) until: Option<OffsetDateTime>,
    pub(super) read_at: Instant,
    pub(super) bucket: Arc<Bucket>,
    /// For keys.
    pub(super) usage: Option<Arc<Counts>>,
}

impl Caller {
    pub(super) fn is_right_at(&self, now: OffsetDateTime) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    fn concerns(&self, change: Change) -> bool {
        match (change, &self.source) {
            (Change::Key(id), Source::Key(key)) => key.id == id,
            (Change::Token(id), Source::Token { claims, .. }) => claims.token == Some(id),
            (Change::User(id), Source::Token { standing, .. }) => {
                standing.user.as_ref().is_some_and(|user| user.id == id)
            }
            _ => false,
        }
    }
}

/// A moment before a reading began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    changes: u64,
    pub(super) at: Instant,
}

#[derive(Debug)]
pub(super) struct Known(Mutex<Callers>);

/// Who was let in.
#[derive(Debug, Clone, Default)]
struct Entry {
    /// Has to be read anew when there is none.
    caller: Option<Arc<Caller>>,
    /// Something may have been announced since it was read that was not heard. It counts only while nothing can be read.
    is_doubtful: bool,
}

#[derive(Debug)]
struct Callers {
    by_hash: LruCache<Presented, Entry>,
    /// Grows with each change.
    changes: u64,
}

impl Known {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Callers { by_hash: LruCache::new(CALLERS_MAX), changes: 0 }))
    }

    fn callers(&self) -> MutexGuard<'_, Callers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A caller that was read within `age_max`, and is right at `now`.
    pub(super) fn get(&self, hash: &Presented, age_max: Duration, now: OffsetDateTime) -> Option<Arc<Caller>> {
        let mut callers = self.callers();
        let caller = callers.by_hash.get(hash).filter(|entry| !entry.is_doubtful)?.caller.as_ref()?;
        (caller.read_at.elapsed() <= age_max && caller.is_right_at(now)).then(|| Arc::clone(caller))
    }

    /// As [`Known::get`], worked out again if it is no longer right.
    pub(super) fn get_stale(
        &self,
        hash: &Presented,
        age_max: Duration,
        now: OffsetDateTime,
    ) -> Option<Result<Arc<Caller>, Error>> {
        let caller =
            self.callers().by_hash.get(hash)?.caller.clone().filter(|caller| caller.read_at.elapsed() <= age_max)?;
        if caller.is_right_at(now) {
            return Some(Ok(caller));
        }
        let again = caller.source.rights(now).map(|rights| {
            Arc::new(Caller {
                principal: Arc::new(rights.principal),
                source: caller.source.clone(),
                until: rights.until,
                read_at: caller.read_at,
                bucket: Arc::clone(&caller.bucket),
                usage: caller.usage.clone(),
            })
        });
        Some(again)
    }

    pub(super) fn before(&self) -> Before {
        Before { changes: self.callers().changes, at: Instant::now() }
    }

    /// Keeps what was read since `before`. When something was forgotten in between, only that who presents this was let
    /// in.
    pub(super) fn put(&self, hash: Presented, caller: &Arc<Caller>, before: Before) {
        let mut callers = self.callers();
        if callers.changes == before.changes {
            callers.by_hash.put(hash, Entry { caller: Some(Arc::clone(caller)), is_doubtful: false });
        } else {
            callers.by_hash.get_or_insert(hash, Entry::default);
        }
    }

    /// Whether who presents this was let in, and not refused since.
    pub(super) fn contains(&self, hash: &Presented) -> bool {
        self.callers().by_hash.contains(hash)
    }

    pub(super) fn remove(&self, hash: &Presented) {
        self.callers().by_hash.pop(hash);
    }

    pub(super) fn forget(&self, change: Change) {
        let mut callers = self.callers();
        callers.changes += 1;
        for (_, known) in &mut callers.by_hash {
            match change {
                Change::All => known.is_doubtful = true,
                change if known.caller.as_ref().is_some_and(|caller| caller.concerns(change)) => known.caller = None,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::domain::permission::Role;
    use crate::domain::principal::Scope;

    fn caller() -> Arc<Caller> {
        let principal = Principal::new("certificate:x", BTreeSet::from([Role::Viewer]), Scope::All);
        let expires_at = OffsetDateTime::UNIX_EPOCH + time::Duration::HOUR;
        Arc::new(Caller {
            principal: Arc::new(principal.clone()),
            source: Source::Certificate { principal, expires_at },
            until: None,
            read_at: Instant::now(),
            bucket: Arc::default(),
            usage: None,
        })
    }

    #[test]
    fn who_was_let_in_while_something_was_forgotten_is_read_anew_and_is_no_stranger() {
        let (known, hash, now) = (Known::new(), [7; 32], OffsetDateTime::UNIX_EPOCH);
        let before = known.before();
        known.forget(Change::All);
        known.put(hash, &caller(), before);
        assert!(known.contains(&hash) && known.get(&hash, Duration::MAX, now).is_none());
        known.put(hash, &caller(), known.before());
        assert!(known.get(&hash, Duration::MAX, now).is_some());
        // What may have been missed is read anew, unless nobody can be asked.
        known.forget(Change::All);
        assert!(known.get(&hash, Duration::MAX, now).is_none());
        assert!(known.get_stale(&hash, Duration::MAX, now).unwrap().is_ok());
        known.remove(&hash);
        assert!(!known.contains(&hash));
    }
}
