//! How plain reads run. A statement whose words only read may still run a tenant's own code: a view may call
//! `set_config`, and so may a policy, a domain's check, an operator, a cast, a function in the place of a column. So a
//! plain read is guarded: BEGIN READ ONLY travels before it and a ROLLBACK behind it, in one flight, and nothing of a
//! session survives that but advisory locks, which are let go of there too. So is its preparation, in which literals are
//! read and the checks of domains in them run. A connection's first statement is not prepared, and what is left of it but
//! for its transaction is cleaned behind it, which most such sessions never need.
//!
//! That code may also write, and then the statement is no plain read, whatever its words say: PostgreSQL refuses the
//! write in the guard, and the statement is run anew as one that changes things. So it is at once from then on, for
//! [`CHECK_AGE_MAX`] each time. What the guard cannot see is lost in it: a notification, and a write whose refusal the
//! code itself catches.
//!
//! What is read often goes without the guard once the database has said that none of the statement's names stands for
//! such a thing. The answer counts for [`CHECK_AGE_MAX`], and no longer than until the tenant sends what may define
//! something. What remains is within one tenant, and in the hands of who may replace its tables: by a direct client,
//! another daemon or a function, a table may become such a view, whose code runs without the guard for so long. It may
//! leave to the next callers of the same tenant's connection settings and locks, and other statements in the place of
//! the daemon's own; a connection's next cleaning finds those, and ends it.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::try_join;
use lru::LruCache;
use tokio::time::Instant;

use super::error::Error;
use super::session::{Session, refused_or};
use super::statement::{Analysis, analysis};
use crate::domain::tenant::TenantId;
use crate::router::Residue;

/// Statements whose words are remembered, and up to which length.
const STATEMENTS_MAX: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();
const STATEMENT_BYTES_MAX: usize = 8 << 10;
/// Answers of databases that are remembered.
const CHECKS_MAX: NonZeroUsize = NonZeroUsize::new(1 << 15).unwrap();
/// Tenants of which it is remembered when they defined something.
const DEFINED_MAX: NonZeroUsize = NonZeroUsize::new(1 << 14).unwrap();
/// Uses before a database is asked: the question costs as much as some hundred guards.
const USES_BEFORE_CHECK: u32 = 100;
/// What it is asked in: a database that has too much to look at for so long keeps its guards.
const CHECK_BEGIN: &str = "BEGIN READ ONLY; SET LOCAL statement_timeout = '1s'";
/// A read that takes no longer is quick.
pub(super) const QUICK_MAX: Duration = Duration::from_millis(10);
/// How long an answer counts.
const CHECK_AGE_MAX: Duration = Duration::from_mins(1);

/// Whether a name of `$1` stands for something with a tenant's code behind it, or something has some that needs no name:
/// an operator, a cast, a domain's check (which may be in a type of another name, such as a table's rows), or what
/// PostgreSQL works out when it loads a table, one of its partitions or of its heirs: predicates and expressions of
/// indexes, statistics and partition keys, and checks. Languages 12
/// and 13 are PostgreSQL's own and C, which tenants cannot write functions in; those of PostgreSQL's own functions that
/// may do anything (`pg_advisory_lock`, `set_config`) count as a tenant's code where an operator or a check calls them.
const CHECK: &str = "SELECT EXISTS (\
        SELECT FROM pg_catalog.pg_class WHERE relname OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.name[]) \
        AND oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid \
        AND (relkind OPERATOR(pg_catalog.=) 'v'::pg_catalog.\"char\" OR relrowsecurity)) \
    OR EXISTS (\
        SELECT FROM pg_catalog.pg_proc p WHERE proname OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.name[]) \
        AND oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid \
        AND (prolang OPERATOR(pg_catalog.>) 13::pg_catalog.oid \
             OR prokind OPERATOR(pg_catalog.=) 'a'::pg_catalog.\"char\")) \
    OR EXISTS (\
        SELECT FROM pg_catalog.pg_constraint c CROSS JOIN LATERAL \
        pg_catalog.regexp_matches(c.conbin::pg_catalog.text, ':(?:op)?funcid ([0-9]+)', 'g') AS called (function) \
        JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) called.function[1]::pg_catalog.oid \
        WHERE c.contypid OPERATOR(pg_catalog.<>) 0::pg_catalog.oid \
        AND (p.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid \
             OR p.provolatile OPERATOR(pg_catalog.=) 'v'::pg_catalog.\"char\")) \
    OR EXISTS (\
        SELECT FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_proc p \
        ON p.oid OPERATOR(pg_catalog.=) o.oprcode::pg_catalog.oid \
        WHERE o.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid \
        AND (p.prolang OPERATOR(pg_catalog.>) 13::pg_catalog.oid \
             OR p.provolatile OPERATOR(pg_catalog.=) 'v'::pg_catalog.\"char\")) \
    OR EXISTS (\
        SELECT FROM pg_catalog.pg_cast c JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) c.castfunc \
        WHERE c.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid \
        AND (p.prolang OPERATOR(pg_catalog.>) 13::pg_catalog.oid \
             OR p.provolatile OPERATOR(pg_catalog.=) 'v'::pg_catalog.\"char\")) \
    OR EXISTS (\
        WITH RECURSIVE kin (own, other) AS (\
            SELECT inhrelid, inhparent FROM pg_catalog.pg_inherits \
            UNION ALL SELECT inhparent, inhrelid FROM pg_catalog.pg_inherits), \
        involved (relation) AS (\
            SELECT oid FROM pg_catalog.pg_class WHERE relname OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.name[]) \
            AND oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid \
            UNION SELECT other FROM involved JOIN kin ON own OPERATOR(pg_catalog.=) relation), \
        folded (relation, tree) AS (\
            SELECT indrelid, indexprs::pg_catalog.text FROM pg_catalog.pg_index \
            UNION ALL SELECT indrelid, indpred::pg_catalog.text FROM pg_catalog.pg_index \
            UNION ALL SELECT stxrelid, stxexprs::pg_catalog.text FROM pg_catalog.pg_statistic_ext \
            UNION ALL SELECT partrelid, partexprs::pg_catalog.text FROM pg_catalog.pg_partitioned_table \
            UNION ALL SELECT conrelid, conbin::pg_catalog.text FROM pg_catalog.pg_constraint) \
        SELECT FROM involved JOIN folded ON folded.relation OPERATOR(pg_catalog.=) involved.relation \
        CROSS JOIN LATERAL \
        pg_catalog.regexp_matches(folded.tree, ':(?:op)?funcid ([0-9]+)', 'g') AS called (function) \
        JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) called.function[1]::pg_catalog.oid \
        WHERE p.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid \
        OR p.provolatile OPERATOR(pg_catalog.=) 'v'::pg_catalog.\"char\")";

/// What is known of statements, over all tenants.
#[derive(Debug)]
pub(super) struct Statements {
    known: Mutex<LruCache<Box<str>, Arc<Known>>>,
    checks: Mutex<Checks>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Checks {
    /// By tenant and statement.
    of: LruCache<(TenantId, u64), Check>,
    /// When tenants ran last what may define something, of those who did so lately.
    defined: LruCache<TenantId, Instant>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Check {
    /// How the statement is sent in the tenant's database, and when that was found out.
    answer: Option<(Reading, Instant)>,
    /// Since it was asked.
    uses: u32,
    /// Whether the statement was quick when it ran last without a guard.
    is_quick: bool,
}

/// How a plain read is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// In PostgreSQL's implicit transaction.
    AsIs,
    /// Between BEGIN READ ONLY and ROLLBACK.
    Guarded,
    /// As what changes things: it tried to, in the guard.
    Changes,
}

impl Checks {
    /// What is known of the statement, and the answer as long as it counts.
    fn known(&mut self, key: (TenantId, u64)) -> Option<(Check, Option<Reading>)> {
        let check = *self.of.get(&key)?;
        let counts = |asked: Instant| {
            asked.elapsed() <= CHECK_AGE_MAX && self.defined.peek(&key.0).is_none_or(|defined| *defined < asked)
        };
        Some((check, check.answer.filter(|(_, asked)| counts(*asked)).map(|(reading, _)| reading)))
    }
}

/// A statement's analysis under a number of its own.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) number: u64,
    pub(super) sql: Box<str>,
    pub(super) analysis: Analysis,
}

impl Default for Statements {
    fn default() -> Self {
        Self {
            known: Mutex::new(LruCache::new(STATEMENTS_MAX)),
            checks: Mutex::new(Checks { of: LruCache::new(CHECKS_MAX), defined: LruCache::new(DEFINED_MAX) }),
            next: AtomicU64::new(0),
        }
    }
}

impl Statements {
    fn checks(&self) -> MutexGuard<'_, Checks> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The statement's analysis.
    ///
    /// # Errors
    /// When it is refused.
    pub(super) fn known(&self, sql: &str) -> Result<Arc<Known>, Error> {
        let is_kept = sql.len() <= STATEMENT_BYTES_MAX;
        if is_kept && let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(sql) {
            return Ok(Arc::clone(known));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let known = Arc::new(Known { number, sql: sql.into(), analysis: analysis(sql)? });
        if is_kept {
            self.known.lock().unwrap_or_else(PoisonError::into_inner).put(sql.into(), Arc::clone(&known));
        }
        Ok(known)
    }

    /// Whether a statement is a plain read that needs no guard in the tenant's database, and was quick the last time.
    pub(super) fn is_quick(&self, tenant: TenantId, known: &Known) -> bool {
        if known.analysis.residue != Residue::Nothing {
            return false;
        }
        let found = self.checks().known((tenant, known.number));
        found.is_some_and(|(check, reading)| reading == Some(Reading::AsIs) && check.is_quick)
    }

    /// Whether the statement, which only reads by its words, changes things in the tenant's database.
    pub(super) fn changes(&self, tenant: TenantId, known: &Known) -> bool {
        let found = self.checks().known((tenant, known.number));
        found.is_some_and(|(_, reading)| reading == Some(Reading::Changes))
    }

    /// It tried to.
    pub(super) fn changed(&self, tenant: TenantId, known: &Known) {
        self.answered((tenant, known.number), Reading::Changes, Instant::now());
    }

    /// A session of the tenant's has run what may define something, and gives back so much of that.
    pub(super) fn ran(&self, tenant: Option<TenantId>, residue: Residue) {
        if let (Some(tenant), Residue::Anything) = (tenant, residue) {
            self.checks().defined.put(tenant, Instant::now());
        }
    }

    /// How long a read without a guard took.
    pub(super) fn took(&self, tenant: TenantId, known: &Known, time: Duration) {
        let mut checks = self.checks();
        if let Some(check) = checks.of.get_mut(&(tenant, known.number)) {
            check.is_quick = time <= QUICK_MAX;
        }
    }

    /// How a plain read is sent on this session, which runs nothing; asks its database when that pays.
    pub(super) async fn reading(&self, session: &mut Session, known: &Known) -> Result<Reading, Error> {
        // In the daemon's own databases nobody has code of its own.
        let Some(tenant) = session.tenant() else { return Ok(Reading::AsIs) };
        let key = (tenant, known.number);
        let is_due = {
            let mut checks = self.checks();
            if let Some((_, Some(reading))) = checks.known(key) {
                return Ok(reading);
            }
            let check = checks.of.get_or_insert_mut(key, Check::default);
            check.uses += 1;
            check.uses > USES_BEFORE_CHECK
        };
        if !is_due {
            return Ok(Reading::Guarded);
        }
        Box::pin(self.reading_asked(session, key, known)).await
    }

    async fn reading_asked(
        &self,
        session: &mut Session,
        key: (TenantId, u64),
        known: &Known,
    ) -> Result<Reading, Error> {
        let asked = Instant::now();
        // Whatever becomes of the question and of who asks it, nobody else asks it meanwhile.
        self.answered(key, Reading::Guarded, asked);
        match refused_or(is_harmful(session, known).await)? {
            Ok(true) => Ok(Reading::Guarded),
            Ok(false) => {
                self.answered(key, Reading::AsIs, asked);
                Ok(Reading::AsIs)
            }
            Err(error) => {
                tracing::debug!(%error, "whether a read needs its guard is not known");
                Ok(Reading::Guarded)
            }
        }
    }

    fn answered(&self, key: (TenantId, u64), reading: Reading, asked: Instant) {
        let mut checks = self.checks();
        let check = checks.of.get_or_insert_mut(key, Check::default);
        (check.answer, check.uses) = (Some((reading, asked)), 0);
    }
}

/// Whether something with a tenant's code behind it may run in the statement. Leaves the session as it was.
async fn is_harmful(session: &mut Session, known: &Known) -> Result<bool, Error> {
    let question = session.prepare(CHECK).await?;
    let client = session.client();
    let begin = async { Ok(client.batch_execute(CHECK_BEGIN).await?) };
    let ask = async { refused_or(Ok(client.query_one(&question, &[&known.analysis.names]).await?)) };
    let end = async { Ok(client.batch_execute("ROLLBACK").await?) };
    let ((), row, ()) = try_join!(begin, ask, end)?;
    Ok(row?.try_get(0)?)
}
