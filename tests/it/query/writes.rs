//! Statements that only read by their words, and write by their names: what they write is there.

use std::time::Duration;

use tenantd::proto::v1::pipeline_answer::Outcome;
use tenantd::proto::v1::stream_query_response::Part;
use tenantd::proto::v1::{EvictPoolRequest, ExecuteRequest, PipelineRequest, PipelineStatement, StreamQueryRequest};
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::harness::{Client, Daemon, Fleet, Spec};

const WRITERS: [&str; 11] = [
    "CREATE TABLE log (at timestamptz DEFAULT now())",
    "CREATE FUNCTION log_it() RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO log DEFAULT VALUES; RETURN 1; END $$",
    "CREATE VIEW logging AS SELECT log_it() AS x",
    "CREATE SEQUENCE made",
    "CREATE VIEW numbering AS SELECT nextval('made') AS x",
    "CREATE VIEW late AS SELECT CASE WHEN n = 2500 THEN log_it() ELSE 0 END AS x FROM generate_series(1, 3000) AS n",
    "CREATE VIEW many AS SELECT log_it() AS x FROM generate_series(1, 1500)",
    "CREATE FUNCTION failing() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('made'); RAISE 'no'; END $$",
    "CREATE VIEW doomed AS SELECT failing() AS x",
    "CREATE DOMAIN logged AS int CHECK (log_it() = 1)",
    "CREATE TYPE single AS (a logged)",
];

async fn fleet() -> (Fleet, Daemon) {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    for sql in WRITERS {
        daemon.client.execute("acme", sql).await.unwrap();
    }
    (fleet, daemon)
}

/// Rows that were written since the last time.
async fn written(client: &Client) -> String {
    client.sql("acme", "WITH gone AS (DELETE FROM log RETURNING 1) SELECT count(*)::text FROM gone").await
}

async fn streamed(client: &Client, sql: &str) -> Result<i64, Status> {
    let request =
        StreamQueryRequest { tenant: "acme".to_owned(), sql: sql.to_owned(), ..StreamQueryRequest::default() };
    let mut parts = client.query().stream_query(request).await?.into_inner();
    let mut kinds = String::new();
    while let Some(response) = parts.message().await? {
        match response.part.unwrap() {
            Part::Header(_) => kinds.push('h'),
            Part::Batch(_) => kinds.push('b'),
            Part::Trailer(trailer) => {
                assert!(kinds.starts_with("hb") && !kinds[1..].contains('h'), "{kinds}");
                return Ok(trailer.row_count);
            }
        }
    }
    panic!("no trailer");
}

#[tokio::test]
async fn what_a_view_writes_is_there_after_each_call() {
    let (fleet, daemon) = fleet().await;
    let client = &daemon.client;
    for round in 1..=5 {
        assert_eq!(client.sql("acme", "SELECT x FROM logging").await, "1");
        assert_eq!(client.sql("acme", "SELECT x FROM numbering").await, round.to_string());
        client.execute("acme", &format!("SELECT '({round})'::single")).await.unwrap();
        let user = ExecuteRequest {
            tenant: "acme".to_owned(),
            sql: "SELECT x, current_setting('app.current_user_id') FROM logging".to_owned(),
            user_id: Uuid::new_v4().to_string(),
            ..ExecuteRequest::default()
        };
        let answer = client.query().execute(user).await.unwrap().into_inner();
        assert_eq!(answer.row_count, 1);
    }
    let count: i32 = written(client).await.parse().unwrap();
    // A domain's check may run both when its literal is read and when it is planned.
    assert!(count >= 15, "{count}");
    for _ in 0..5 {
        assert_eq!(streamed(client, "SELECT x FROM logging").await.unwrap(), 1);
        assert_eq!(streamed(client, "SELECT x FROM numbering").await.unwrap(), 1);
    }
    assert_eq!(written(client).await, "5");
    assert_eq!(client.sql("acme", "SELECT x FROM numbering").await, "11");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn the_first_statement_on_a_connection_runs_once_and_changes_nothing_when_it_is_refused() {
    let (fleet, daemon) = fleet().await;
    let client = &daemon.client;
    let made = async || client.sql("acme", "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM made").await;
    for is_new in [true, false] {
        let prepare = async || {
            if is_new {
                let (tenant, reason) = ("acme".to_owned(), "a new connection".to_owned());
                let request = EvictPoolRequest { tenant, reason, ..EvictPoolRequest::default() };
                client.router().evict_pool(request).await.unwrap();
            }
        };
        prepare().await;
        let refusal = client.execute("acme", "SELECT * FROM many").await.unwrap_err();
        assert_eq!(refusal.code(), Code::OutOfRange, "{refusal:?}");
        assert_eq!(written(client).await, "0", "new: {is_new}");
        let before: i64 = made().await.parse().unwrap();
        prepare().await;
        let refusal = client.execute("acme", "SELECT * FROM doomed").await.unwrap_err();
        assert!(refusal.message().contains("no"), "{refusal:?}");
        assert_eq!(made().await, (before + 1).to_string(), "new: {is_new}");
    }
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_stream_that_writes_after_its_header_fails_once_and_then_is_known() {
    let (fleet, daemon) = fleet().await;
    let client = &daemon.client;
    let refused = streamed(client, "SELECT x FROM late").await.unwrap_err();
    let details = refused.get_error_details();
    assert_eq!(refused.code(), Code::Aborted, "{refused:?}");
    assert!(details.retry_info().is_some(), "{refused:?}");
    assert_eq!(written(client).await, "0");
    assert_eq!(streamed(client, "SELECT x FROM late").await.unwrap(), 3_000);
    assert_eq!(written(client).await, "1");
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_view_writes_in_a_pipeline_is_there_and_nobody_behind_it_waits_for_ever() {
    let (fleet, daemon) = fleet().await;
    let client = &daemon.client;
    let statement = |id: u64, sql: &str| PipelineStatement {
        id,
        tenant: "acme".to_owned(),
        sql: sql.to_owned(),
        ..PipelineStatement::default()
    };
    let long = format!("SELECT x FROM logging --{}", " ".repeat(10_000));
    let texts = ["SELECT x FROM logging", "SELECT count(*) FROM things", "SELECT x FROM numbering", &long];
    // The first of a connection is sent without a guard.
    client.sql("acme", "SELECT 1").await;
    for round in 0..3 {
        let statements: Vec<_> = (0..40).map(|id| statement(id, texts[usize::try_from(id % 4).unwrap()])).collect();
        let user = PipelineStatement { user_id: Uuid::new_v4().to_string(), ..statement(40, texts[0]) };
        let parsed = statement(41, &format!("SELECT '({round})'::single"));
        let requests = tokio_stream::iter([PipelineRequest { statements: [statements, vec![user, parsed]].concat() }]);
        let mut answers = client.query().pipeline(requests).await.unwrap().into_inner();
        let mut count = 0;
        while let Some(response) = timeout(Duration::from_secs(30), answers.message()).await.unwrap().unwrap() {
            for answer in response.answers {
                assert!(matches!(answer.outcome, Some(Outcome::Result(_))), "{answer:?}");
                count += 1;
            }
        }
        assert_eq!(count, 42);
    }
    let written: i32 = written(client).await.parse().unwrap();
    assert!(written >= 3 * 22, "{written}");
    assert_eq!(client.sql("acme", "SELECT x FROM numbering").await, "31");
    fleet.stop(daemon).await;
}
