//! The harness itself: a fleet without a daemon has what the rooms need, and its end leaves nothing on the server.

use crate::harness::{Fleet, Spec, machine};

#[tokio::test]
async fn a_fleet_has_databases_a_bucket_and_a_catalog_and_its_end_leaves_nothing() {
    let fleet = Fleet::new(Spec::default()).await;
    let tasks = fleet.tasks();
    let server = fleet.server(&tasks);
    let catalog = fleet.catalog(&server).await;
    let before = fleet.inventory().await;
    fleet.store().put("a/key", "a value".into()).await.unwrap();
    fleet.judge("postgres").await.batch_execute(&format!("CREATE ROLE {}_stray", fleet.naming.prefix())).await.unwrap();
    let left = fleet.inventory().await.since(&before);
    let expected = [format!("Role {}_stray", fleet.naming.prefix()), "Object a/key".to_owned()];
    assert_eq!(left.more, expected.into());
    assert!(!left.is_empty());
    let prefix = fleet.naming.prefix().to_owned();
    catalog.close();
    fleet.finish().await;
    let query = "SELECT count(*) FROM (SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles) AS n
        WHERE datname LIKE $1";
    let judge = machine().judge("postgres").await;
    assert_eq!(judge.query_one(query, &[&format!("{prefix}\\_%")]).await.unwrap().get::<_, i64>(0), 0);
}

/// A fleet that logs one warning.
async fn loud() -> Fleet {
    let fleet = Fleet::new(Spec::default()).await;
    fleet.tasks().spawn("warner", async { tracing::warn!("the test's own warning") }).await.unwrap();
    fleet
}

#[tokio::test]
async fn a_warning_is_charged_to_its_own_fleet() {
    let (quiet, loud) = (Fleet::new(Spec::default()).await, loud().await);
    quiet.finish().await;
    loud.expect_log("the test's own warning");
    loud.finish().await;
}

#[tokio::test]
#[should_panic(expected = "unexpected lines")]
async fn a_warning_that_nobody_declared_fails_its_fleet() {
    loud().await.finish().await;
}

#[tokio::test]
#[should_panic(expected = "no line had")]
async fn a_declared_line_must_come() {
    let fleet = Fleet::new(Spec::default()).await;
    fleet.expect_log("a line that never comes");
    fleet.finish().await;
}
