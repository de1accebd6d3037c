//! Statements that only read by their words, and run a tenant's own code by their names: nothing of it stays.

use tenantd::query::{Error, HARMLESS_FUNCTIONS, HARMLESS_VOLATILE};

use tenantd::proto::v1::pipeline_answer::Outcome;
use tenantd::proto::v1::{PipelineRequest, PipelineStatement, StreamQueryRequest};

use super::{ask, only, text};
use crate::harness::{Fleet, Spec, until};
use crate::tenants::{Made, Rooms};

const LEAVE: [&str; 2] = [
    "CREATE TABLE t AS SELECT 1 AS a",
    "CREATE FUNCTION leave() RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN \
        PERFORM set_config('app.kept', 'yes', false); PERFORM set_config('search_path', 'pg_catalog', false); \
        PERFORM pg_advisory_lock(42); RETURN 1; END $$",
];
const VIEW: &str = "CREATE VIEW left_by_view AS SELECT public.leave()";
const COLUMN: &str = "CREATE FUNCTION leave(t) RETURNS int LANGUAGE sql AS 'SELECT public.leave()'";
/// Of a function of PostgreSQL's own, which is called each time; what a tenant calls immutable is called once.
const CHECKED: &str = "CREATE DOMAIN checked AS int CHECK (set_config('app.kept', VALUE::text, false) <> '')";

/// What has code in it, and a read that runs it. Each is alone in a tenant's database, so that each is found for itself.
const READS: &[(&[&str], &str)] = &[
    (&[VIEW], "SELECT * FROM public.left_by_view"),
    (&[VIEW], "SELECT \"left_by_view\".* FROM \"public\".\"left_by_view\""),
    (&[COLUMN], "SELECT x.leave FROM public.t AS x"),
    (
        &[
            "CREATE FUNCTION same(int, int) RETURNS int LANGUAGE sql AS 'SELECT public.leave()'",
            "CREATE OPERATOR === (FUNCTION = same, LEFTARG = int, RIGHTARG = int)",
        ],
        "SELECT 1 === 2",
    ),
    (&["CREATE OPERATOR @@@@ (FUNCTION = pg_catalog.pg_advisory_lock, RIGHTARG = bigint)"], "SELECT @@@@ 5::bigint"),
    (&[CHECKED], "SELECT '1'::public.checked"),
    (&[CHECKED, "CREATE DOMAIN outer_one AS checked"], "SELECT '1'::public.outer_one"),
    (&[CHECKED, "CREATE TYPE single AS (a checked)"], "SELECT '(1)'::public.single"),
    (&["CREATE DOMAIN called AS int CHECK (public.leave() = 1)"], "SELECT '1'::public.called"),
    (
        &["CREATE FUNCTION upper(t) RETURNS int LANGUAGE sql AS 'SELECT public.leave()'"],
        "SELECT upper(x) FROM public.t AS x",
    ),
    (
        &[
            "CREATE FUNCTION t_text(t) RETURNS text LANGUAGE sql AS 'SELECT public.leave()::text'",
            "CREATE CAST (t AS text) WITH FUNCTION t_text(t)",
        ],
        "SELECT x::text FROM public.t AS x",
    ),
    (
        &[
            "CREATE TABLE guarded AS SELECT 1 AS a",
            "ALTER TABLE guarded ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
            "CREATE POLICY p ON guarded USING (public.leave() = 1)",
        ],
        "SELECT a FROM public.guarded",
    ),
    (&["CREATE INDEX ON t (a) WHERE public.leave() = 1"], "SELECT a FROM public.t"),
    (&["CREATE INDEX ON t ((a + public.leave()))"], "SELECT a FROM public.t"),
    (&["CREATE STATISTICS s ON (a + public.leave()) FROM t"], "SELECT a FROM public.t"),
    (
        &[
            "CREATE TABLE whole (a int) PARTITION BY RANGE (a)",
            "CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (9)",
            "CREATE INDEX ON part (a) WHERE public.leave() = 1",
        ],
        "SELECT a FROM public.whole",
    ),
    (
        &[
            "CREATE TABLE whole (a int) PARTITION BY RANGE ((a + public.leave()))",
            "CREATE TABLE part PARTITION OF whole DEFAULT",
        ],
        "SELECT a FROM public.whole WHERE a = 1",
    ),
    (&["CREATE TABLE heir (CHECK (public.leave() = 1)) INHERITS (t)"], "SELECT a FROM public.t WHERE a = 1"),
];

const STATE: &str = "SELECT coalesce(current_setting('app.kept', true), '') || '|' || current_setting('search_path') || '|' \
                     || (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())";
const CLEAN: &str = "|\"$user\", public|0";

async fn made(rooms: &Rooms, code: &str, with: &[&str]) -> Made {
    let tenant = rooms.tenant(code).await;
    for sql in LEAVE.iter().chain(with) {
        ask(rooms, &tenant, sql).await.unwrap();
    }
    tenant
}

#[tokio::test]
async fn what_a_name_runs_reaches_nobody_else() {
    let rooms = Rooms::new(Spec::default()).await;
    for (number, (with, read)) in READS.iter().enumerate() {
        let tenant = made(&rooms, &format!("t{number}"), with).await;
        // The first ones before the database was asked about the names, the last ones after.
        for round in 0..110 {
            ask(&rooms, &tenant, read).await.unwrap();
            if round % 50 == 0 || round > 105 {
                assert_eq!(only(&ask(&rooms, &tenant, STATE).await.unwrap()), text(CLEAN), "after {read}, {round}");
            }
        }
        // A new session loads what it reads.
        assert!(rooms.router.pool_evict(tenant.id));
        ask(&rooms, &tenant, read).await.unwrap();
        assert_eq!(only(&ask(&rooms, &tenant, STATE).await.unwrap()), text(CLEAN), "after {read}, anew, {with:?}");
    }
    rooms.finish().await;
}

/// A literal of a composite type is read while the statement is parsed, before anything of it is run.
#[tokio::test]
async fn what_runs_while_a_statement_is_parsed_reaches_nobody_else() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    for sql in [CHECKED, "CREATE TYPE single AS (a checked)"] {
        client.execute("acme", sql).await.unwrap();
    }
    // Not a connection's first statement, which is another way.
    assert_eq!(client.sql("acme", STATE).await, CLEAN);
    client.execute("acme", "SELECT '(1)'::public.single").await.unwrap();
    assert_eq!(client.sql("acme", STATE).await, CLEAN, "after Execute");

    let sql = "SELECT '(2)'::public.single".to_owned();
    let request = StreamQueryRequest { tenant: "acme".to_owned(), sql, ..StreamQueryRequest::default() };
    let mut parts = client.query().stream_query(request).await.unwrap().into_inner();
    while parts.message().await.unwrap().is_some() {}
    assert_eq!(client.sql("acme", STATE).await, CLEAN, "after StreamQuery");

    let sql = "SELECT '(3)'::public.single".to_owned();
    let statement = PipelineStatement { tenant: "acme".to_owned(), sql, ..PipelineStatement::default() };
    let requests = tokio_stream::iter([PipelineRequest { statements: vec![statement] }]);
    let mut answers = client.query().pipeline(requests).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().answers.remove(0);
    assert!(matches!(answer.outcome, Some(Outcome::Result(_))), "{answer:?}");
    assert!(answers.message().await.unwrap().is_none());
    assert_eq!(client.sql("acme", STATE).await, CLEAN, "after Pipeline");
    fleet.stop(daemon).await;
}

/// The first statement of a connection is not guarded, and cleaned behind instead.
#[tokio::test]
async fn what_a_first_statement_leaves_reaches_nobody_else() {
    let rooms = Rooms::new(Spec::default().setting("[router]", "connection_idle_timeout", "\"2s\"")).await;
    let acme = made(&rooms, "acme", &[VIEW, COLUMN]).await;
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

const POISON: [&str; 3] = [
    "CREATE FUNCTION poison() RETURNS int LANGUAGE plpgsql AS $$ DECLARE s text; BEGIN \
        FOR s IN SELECT name FROM pg_prepared_statements LOOP \
            EXECUTE format('DEALLOCATE %I', s); EXECUTE format('PREPARE %I AS SELECT ''poisoned''::text', s); \
        END LOOP; RETURN 1; END $$",
    "CREATE TABLE poisoned (a int DEFAULT poison())",
    "CREATE VIEW poisoning AS SELECT poison() / 1 AS a, poison() / 0 AS b",
];

#[tokio::test]
async fn statements_that_are_prepared_by_sql_reach_nobody_else() {
    let rooms = Rooms::new(Spec::default()).await;
    let tenant = made(&rooms, "acme", &POISON).await;
    for sql in ["SELECT poison()", "INSERT INTO poisoned DEFAULT VALUES"] {
        for _ in 0..3 {
            assert_eq!(only(&ask(&rooms, &tenant, "SELECT 'fine'::text").await.unwrap()), text("fine"), "after {sql}");
        }
        ask(&rooms, &tenant, sql).await.unwrap();
    }
    for sql in ["SELECT a FROM poisoning", "SELECT b FROM poisoning"] {
        for _ in 0..3 {
            assert_eq!(only(&ask(&rooms, &tenant, "SELECT 'fine'::text").await.unwrap()), text("fine"), "before {sql}");
        }
        // In its guard.
        let refused = ask(&rooms, &tenant, sql).await.unwrap_err();
        assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    }
    assert_eq!(only(&ask(&rooms, &tenant, "SELECT 'fine'::text").await.unwrap()), text("fine"));
    rooms.finish().await;
}

#[tokio::test]
async fn a_table_that_becomes_a_view_is_looked_at_at_once() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    for sql in LEAVE {
        ask(&rooms, &acme, sql).await.unwrap();
    }
    let read = "SELECT * FROM t";
    for _ in 0..105 {
        ask(&rooms, &acme, read).await.unwrap();
    }
    ask(&rooms, &acme, "ALTER TABLE t RENAME TO before").await.unwrap();
    ask(&rooms, &acme, "CREATE VIEW t AS SELECT public.leave()").await.unwrap();
    for _ in 0..3 {
        ask(&rooms, &acme, read).await.unwrap();
        let kept = "SELECT coalesce(current_setting('app.kept', true), '') AS kept";
        assert_eq!(only(&ask(&rooms, &acme, kept).await.unwrap()), text(""));
    }
    rooms.finish().await;
}

#[tokio::test]
async fn a_database_that_does_not_say_what_its_names_stand_for_keeps_its_guards() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = made(&rooms, "acme", &[VIEW]).await;
    let judge = rooms.fleet.judge(&acme.database).await;
    judge.batch_execute("REVOKE SELECT ON pg_catalog.pg_constraint FROM PUBLIC").await.unwrap();
    for _ in 0..105 {
        ask(&rooms, &acme, "SELECT * FROM left_by_view").await.unwrap();
    }
    assert_eq!(only(&ask(&rooms, &acme, STATE).await.unwrap()), text(CLEAN));
    rooms.finish().await;
}
