//! Statements that only read by their words, and run a tenant's own code by their names: nothing of it stays.

use tenantd::query::{HARMLESS_FUNCTIONS, HARMLESS_VOLATILE};

use super::{ask, only, text};
use crate::harness::{Spec, until};
use crate::tenants::{Made, Rooms};

const MADE: &[&str] = &[
    "CREATE TABLE t AS SELECT 1 AS a",
    "CREATE FUNCTION leave() RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN \
        PERFORM set_config('app.kept', 'yes', false); PERFORM set_config('search_path', 'pg_catalog', false); \
        PERFORM pg_advisory_lock(42); RETURN 1; END $$",
    "CREATE FUNCTION leave(t) RETURNS int LANGUAGE sql AS 'SELECT public.leave()'",
    "CREATE FUNCTION leave(int, int) RETURNS int LANGUAGE sql AS 'SELECT public.leave()'",
    "CREATE VIEW left_by_view AS SELECT public.leave()",
    "CREATE OPERATOR === (FUNCTION = leave, LEFTARG = int, RIGHTARG = int)",
    "CREATE DOMAIN left_by_check AS int CHECK (public.leave() = 1)",
    "CREATE FUNCTION upper(t) RETURNS int LANGUAGE sql AS 'SELECT public.leave()'",
];

const STATE: &str = "SELECT coalesce(current_setting('app.kept', true), '') || '|' || current_setting('search_path') || '|' \
                     || (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())";
const CLEAN: &str = "|\"$user\", public|0";

async fn acme(rooms: &Rooms) -> Made {
    let acme = rooms.tenant("acme").await;
    for sql in MADE {
        ask(rooms, &acme, sql).await.unwrap();
    }
    acme
}

#[tokio::test]
async fn what_a_name_runs_reaches_nobody_else() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = acme(&rooms).await;
    let reads = [
        "SELECT * FROM public.left_by_view",
        "SELECT x.leave FROM public.t AS x",
        "SELECT 1 OPERATOR(public.===) 2",
        "SELECT CAST('1' AS public.left_by_check)",
        "SELECT \"left_by_view\".* FROM \"public\".\"left_by_view\"",
        "SELECT upper(x) FROM public.t AS x",
    ];
    for sql in reads {
        // The first ones before the database was asked about the names, the last ones after.
        for round in 0..110 {
            ask(&rooms, &acme, sql).await.unwrap();
            if round % 50 == 0 || round > 105 {
                assert_eq!(only(&ask(&rooms, &acme, STATE).await.unwrap()), text(CLEAN), "after {sql}, {round}");
            }
        }
    }
    rooms.finish().await;
}

/// The first statement of a connection is not guarded, and cleaned behind instead.
#[tokio::test]
async fn what_a_first_statement_leaves_reaches_nobody_else() {
    let rooms = Rooms::new(Spec::default().setting("[router]", "connection_idle_timeout", "\"2s\"")).await;
    let acme = acme(&rooms).await;
    let judge = rooms.fleet.judge(&acme.database).await;
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    for sql in ["SELECT * FROM public.left_by_view", "SELECT x.leave FROM public.t AS x"] {
        // Whoever comes next has a clean session.
        assert!(rooms.router.pool_evict(acme.id));
        ask(&rooms, &acme, sql).await.unwrap();
        assert_eq!(only(&ask(&rooms, &acme, STATE).await.unwrap()), text(CLEAN), "after {sql}");
        // And when nobody comes, its locks do not last.
        assert!(rooms.router.pool_evict(acme.id));
        ask(&rooms, &acme, sql).await.unwrap();
        let held: i64 = judge.query_one(locks, &[]).await.unwrap().get(0);
        assert!(held <= 1);
        until("the lock is let go of", async || {
            let held: i64 = judge.query_one(locks, &[]).await.unwrap().get(0);
            (held == 0).then_some(())
        })
        .await;
    }
    rooms.finish().await;
}

#[tokio::test]
async fn functions_that_are_called_harmless_change_nothing() {
    let rooms = Rooms::new(Spec::default()).await;
    let judge = rooms.fleet.judge("postgres").await;
    let volatile = "SELECT DISTINCT proname::text FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace \
                    AND proname = ANY ($1) AND provolatile = 'v'";
    for row in judge.query(volatile, &[&HARMLESS_FUNCTIONS]).await.unwrap() {
        let name: String = row.get(0);
        assert!(HARMLESS_VOLATILE.contains(&name.as_str()), "{name} is volatile");
    }
    let known = "SELECT count(DISTINCT proname) FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace \
                 AND proname = ANY ($1)";
    let known: i64 = judge.query_one(known, &[&HARMLESS_FUNCTIONS]).await.unwrap().get(0);
    // Newer servers know some that older ones do not.
    assert!(HARMLESS_FUNCTIONS.len() - usize::try_from(known).unwrap() <= 3, "{known} are known here");
    rooms.finish().await;
}
