//! A backup beside those who alter tables: it sees what they leave, whole, and they get their turn.

use std::time::{Duration, Instant};

use tenantd::backup::Error;

use super::place::Place;
use crate::harness::{Spec, until};

/// Waits until a session of `role` waits for a lock on the table t.
async fn waits(place: &Place, role: &str) {
    let judge = place.fleet.judge(place.database.as_str()).await;
    let query = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE relation = 't'::regclass AND NOT granted AND usename = $1";
    until("somebody waits for the table", || async {
        (judge.query_one(query, &[&role]).await.unwrap().get::<_, i64>(0) > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_truncated_or_rewritten_while_a_backup_begins_is_not_empty() {
    let rewrites = [
        ("TRUNCATE t; INSERT INTO t SELECT generate_series(1, 5000)", 5_000),
        ("ALTER TABLE t ALTER a TYPE numeric", 100),
        ("DROP TABLE t; CREATE TABLE t AS SELECT generate_series(1, 70) AS a", 70),
    ];
    for (rewrite, rows) in rewrites {
        let place = Place::new(Spec::default()).await;
        place.run("CREATE TABLE t AS SELECT generate_series(1, 100) AS a").await;
        let session = place.session(&place.database, &place.login).await;
        session.batch_execute(&format!("BEGIN; {rewrite}")).await.unwrap();
        let committing = async {
            waits(&place, place.server.dump().role.as_str()).await;
            session.batch_execute("COMMIT").await.unwrap();
        };
        let (dumped, ()) = tokio::join!(place.dump(place.backup(), async |_upload| Ok(())), committing);
        let manifest = dumped.unwrap();
        assert_eq!(manifest.tables[0].row_count, rows, "{rewrite}");
        super::restored_is_what_was_dumped(&place, &manifest).await;
        place.finish().await;
    }
}

#[tokio::test]
async fn who_alters_a_table_between_the_snapshots_lock_and_the_dumps_gets_his_turn() {
    let place = Place::new(Spec::default()).await;
    place.run("CREATE TABLE t AS SELECT generate_series(1, 100) AS a").await;
    let altering = place.session(&place.database, &place.login).await;
    let begun = Instant::now();
    let altered = tokio::sync::OnceCell::new();
    let (ready, alter) = (tokio::sync::Notify::new(), async {
        altering.batch_execute("ALTER TABLE t ADD COLUMN b int DEFAULT 1").await.unwrap();
        altered.set(begun.elapsed()).unwrap();
    });
    let alter = async {
        ready.notified().await;
        alter.await;
    };
    // The snapshot's session has its lock by then, and `pg_dump` has not begun.
    let dumping = place.dump(place.backup(), async |_upload| {
        ready.notify_one();
        waits(&place, place.login.role.as_str()).await;
        Ok(())
    });
    let (dumped, ()) = tokio::join!(dumping, alter);
    let manifest = dumped.unwrap();
    assert!(*altered.get().unwrap() < Duration::from_secs(20), "{altered:?}");
    assert_eq!(manifest.tables, place.tables(&place.database).await, "the table as it was altered");
    super::restored_is_what_was_dumped(&place, &manifest).await;
    place.finish().await;
}

#[tokio::test]
async fn a_table_that_is_never_given_fails_the_backup_and_nobody_waits_behind_it_for_long() {
    let place = Place::new(Spec::default().setting("[backup]", "stall_timeout", "\"3s\"")).await;
    place.run("CREATE TABLE s (a int); CREATE TABLE t (a int)").await;
    let holder = place.session(&place.database, &place.login).await;
    holder.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
    let longest = async {
        waits(&place, place.server.dump().role.as_str()).await;
        let begun = Instant::now();
        place.run("ALTER TABLE s ADD COLUMN b int").await;
        begun.elapsed()
    };
    let (dumped, longest) = tokio::join!(place.dump(place.backup(), async |_upload| Ok(())), longest);
    let error = dumped.unwrap_err();
    assert!(error.is_retryable() && matches!(error, Error::Postgres(_)), "{error}");
    assert!(longest < Duration::from_secs(8), "{longest:?}");
    assert_eq!(place.in_bucket().await, Vec::<String>::new());
    place.finish().await;
}

#[tokio::test]
async fn no_schema_changes_its_name_under_a_dump() {
    let place = Place::new(Spec::default()).await;
    place.run("CREATE SCHEMA s; CREATE SEQUENCE s.q; SELECT nextval('s.q'); CREATE TABLE s.t AS SELECT 1 AS a").await;
    let renaming = place.session(&place.database, &place.login).await;
    renaming.batch_execute("SET lock_timeout = '200ms'").await.unwrap();
    // The snapshot is taken by then, and `pg_dump` has not begun.
    let manifest = place
        .dump(place.backup(), async |_upload| {
            for change in ["ALTER SCHEMA s RENAME TO gone", "DROP SCHEMA s CASCADE"] {
                let refused = renaming.batch_execute(change).await.unwrap_err();
                assert_eq!(refused.code().unwrap().code(), "55P03", "{change}: {refused}");
            }
            Ok(())
        })
        .await
        .unwrap();
    renaming.batch_execute("SET lock_timeout = '10s'; ALTER SCHEMA s RENAME TO later").await.unwrap();
    super::restored_is_what_was_dumped(&place, &manifest).await;
    place.finish().await;
}
