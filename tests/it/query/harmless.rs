//! Statements that only read by their words, and run a tenant's own code by their names: nothing of it stays.

use super::{ask, only, text};
use crate::harness::Spec;
use crate::tenants::Rooms;

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

#[tokio::test]
async fn what_a_name_runs_reaches_nobody_else() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    for sql in MADE {
        ask(&rooms, &acme, sql).await.unwrap();
    }
    let reads = [
        "SELECT * FROM public.left_by_view",
        "SELECT x.leave FROM public.t AS x",
        "SELECT 1 OPERATOR(public.===) 2",
        "SELECT CAST('1' AS public.left_by_check)",
        "SELECT \"left_by_view\".* FROM \"public\".\"left_by_view\"",
        "SELECT upper(x) FROM public.t AS x",
    ];
    let state = "SELECT coalesce(current_setting('app.kept', true), '') || '|' || current_setting('search_path') || '|' \
                 || (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())";
    let clean = text("|\"$user\", public|0");
    for sql in reads {
        // The first ones before the database was asked about the names, the last ones after.
        for round in 0..110 {
            ask(&rooms, &acme, sql).await.unwrap();
            if round % 50 == 0 || round > 105 {
                assert_eq!(only(&ask(&rooms, &acme, state).await.unwrap()), clean, "after {sql}, {round}");
            }
        }
    }
    rooms.finish().await;
}
