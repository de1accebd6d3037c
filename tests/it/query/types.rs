//! Types within each other, as deep as a tenant makes them: refused where they are too deep, and no thread's end.

use tenantd::proto::v1::pipeline_answer::Outcome as Answered;
use tenantd::proto::v1::transact_request::Action;
use tenantd::proto::v1::{
    ExecuteRequest, PipelineRequest, PipelineStatement, StreamQueryRequest, TransactionStatement, Value,
};
use tonic::{Code, Status};

use super::null;
use crate::harness::{Client, Daemon, Fleet, Spec};

/// Domains over each other, of which each shallower one has been looked up before.
const DEPTHS: [u32; 5] = [65, 300, 600, 1_500, 3_000];

async fn made() -> (Fleet, Daemon) {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    (fleet, daemon)
}

async fn judged(fleet: &Fleet, client: &Client, sql: &str) {
    let tenant = client.tenant_get("acme").await.unwrap();
    let judge = fleet.judge(&tenant.database).await;
    judge.batch_execute(sql).await.unwrap();
}

fn deep(depth: u32) -> (String, Vec<Value>) {
    // A column of a domain is told as what it is made from; that of an array of domains is not.
    (format!("SELECT NULL::deep.d{depth}[], $1::deep.d{depth}"), vec![null()])
}

async fn executed(client: &Client, depth: u32) -> Result<Vec<Vec<String>>, Status> {
    let (sql, parameters) = deep(depth);
    client.rows(ExecuteRequest { tenant: "acme".to_owned(), sql, parameters, ..ExecuteRequest::default() }).await
}

async fn streamed(client: &Client, depth: u32) -> Result<(), Status> {
    let (sql, parameters) = deep(depth);
    let request = StreamQueryRequest { tenant: "acme".to_owned(), sql, parameters, ..StreamQueryRequest::default() };
    let mut parts = client.query().stream_query(request).await?.into_inner();
    while parts.message().await?.is_some() {}
    Ok(())
}

async fn pipelined(client: &Client, depth: u32) -> Answered {
    let (sql, parameters) = deep(depth);
    let tenant = "acme".to_owned();
    let statement = PipelineStatement { tenant, sql, parameters, ..PipelineStatement::default() };
    let requests = tokio_stream::once(PipelineRequest { statements: vec![statement] });
    let mut answers = client.query().pipeline(requests).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap().answers.remove(0).outcome.unwrap()
}

fn is_refused(status: &Status) -> bool {
    status.code() == Code::InvalidArgument && status.message().contains("cast them to text")
}

#[tokio::test]
async fn types_that_are_too_deep_are_refused_and_end_no_daemon() {
    let (fleet, daemon) = made().await;
    let client = &daemon.client;
    let chain = "CREATE SCHEMA deep; GRANT USAGE ON SCHEMA deep TO PUBLIC; CREATE DOMAIN deep.d0 AS int; \
        DO $$ BEGIN FOR i IN 1 .. 3000 LOOP \
        EXECUTE format('CREATE DOMAIN deep.d%s AS deep.d%s', i, i - 1); END LOOP; END $$";
    judged(&fleet, client, chain).await;
    for _ in 0..2 {
        assert_eq!(executed(client, 20).await.unwrap(), [["NULL", "NULL"]]);
        streamed(client, 20).await.unwrap();
        assert!(matches!(pipelined(client, 20).await, Answered::Result(_)));
    }
    for depth in DEPTHS {
        for refused in [executed(client, depth).await.unwrap_err(), streamed(client, depth).await.unwrap_err()] {
            assert!(is_refused(&refused), "{depth}: {refused:?}");
        }
        let Answered::Error(refused) = pipelined(client, depth).await else { panic!("{depth}") };
        assert_eq!(refused.code, i32::from(Code::InvalidArgument), "{refused:?}");
        let mut transaction = client.transaction("acme").await;
        let (sql, parameters) = deep(depth);
        transaction.send(Action::Execute(TransactionStatement { sql, parameters, ..Default::default() })).await;
        let refused = transaction.answer().await.unwrap_err();
        assert!(is_refused(&refused), "{depth}: {refused:?}");
        let cast = format!("SELECT NULL::text::deep.d{depth}::text");
        assert_eq!(client.execute("acme", &cast).await.unwrap(), [["NULL"]], "{depth}");
    }
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_look_up_that_a_tenant_has_no_end_for_is_given_up() {
    let (fleet, daemon) = made().await;
    let client = &daemon.client;
    // Whoever asks for the one type is answered with the array of it, without an end.
    let evil = "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC; CREATE TYPE evil.mood AS ENUM ('ok'); \
        DO $do$ BEGIN EXECUTE format('CREATE FUNCTION evil.same(oid, oid) RETURNS bool LANGUAGE sql IMMUTABLE AS \
        $$ SELECT $1 OPERATOR(pg_catalog.=) CASE WHEN $2 OPERATOR(pg_catalog.=) %s::oid THEN %s::oid ELSE $2 END $$', \
        'evil.mood'::regtype::oid, 'evil._mood'::regtype::oid); END $do$; \
        CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = evil.same)";
    judged(&fleet, client, evil).await;
    let mut transaction = client.transaction("acme").await;
    transaction.execute("SET LOCAL search_path = evil, pg_catalog").await;
    transaction.answer().await.unwrap();
    transaction.execute("SELECT 'ok'::evil.mood").await;
    let refused = transaction.answer().await.unwrap_err();
    assert!(is_refused(&refused), "{refused:?}");
    assert_eq!(client.execute("acme", "SELECT 'ok'::evil.mood").await.unwrap(), [["ok"]]);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn hundreds_of_types_beside_each_other_are_looked_up() {
    let (fleet, daemon) = made().await;
    let client = &daemon.client;
    let wide = "DO $$ BEGIN FOR i IN 1 .. 300 LOOP EXECUTE format('CREATE TYPE e%s AS ENUM (''ok'')', i); END LOOP; \
        EXECUTE (SELECT format('CREATE TABLE wide (%s)', string_agg(format('c%s e%s', i, i), ', ')) \
                 FROM generate_series(1, 300) i); \
        EXECUTE 'GRANT SELECT, INSERT ON wide TO PUBLIC'; END $$";
    judged(&fleet, client, wide).await;
    let all = vec!["('ok')"; 300].join(",").replace(['(', ')'], "");
    client.execute("acme", &format!("INSERT INTO wide VALUES ({all})")).await.unwrap();
    for sql in ["SELECT * FROM wide", "SELECT * FROM wide LIMIT 1"] {
        assert_eq!(client.execute("acme", sql).await.unwrap(), [vec!["ok"; 300]]);
    }
    assert!(client.sql("acme", "SELECT wide FROM wide").await.starts_with("(ok,ok,"));
    fleet.stop(daemon).await;
}
