//! What a tenant changes under its own statements: tables between transactions and inside one, how texts travel, what a
//! transaction may do, and the tenant's place in service. Each is told as what it is.

use tenantd::proto::v1::transact_request::Action;
use tenantd::proto::v1::transact_response::Outcome;
use tenantd::proto::v1::{
    ArrayValue, BeginTransaction, ExecuteRequest, SuspendTenantRequest, TransactionStatement, Value, value::Kind,
};
use tonic::Code;

use super::text;
use super::transact::{Caller, execute};
use crate::harness::{Client, Daemon, Fleet, Spec, reason};

async fn made() -> (Fleet, Daemon) {
    made_with(Spec::default()).await
}

async fn made_with(spec: Spec) -> (Fleet, Daemon) {
    let fleet = Fleet::new(spec).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    (fleet, daemon)
}

fn begin() -> BeginTransaction {
    BeginTransaction { tenant: "acme".to_owned(), ..BeginTransaction::default() }
}

async fn begun(client: &Client) -> Caller {
    Caller::begin_as(client, begin()).await
}

async fn committed(mut caller: Caller) {
    caller.ask(Action::Commit(tenantd::proto::v1::CommitTransaction {})).await.unwrap();
}

const ALL: &str = "SELECT * FROM t";

#[tokio::test]
async fn a_table_that_was_altered_is_read_anew() {
    // All of it on one connection.
    let one =
        [("connections_max", "21"), ("connections_reserved", "20")].map(|(name, value)| ("[[servers]]", name, value));
    let spec = one.into_iter().fold(Spec::default(), |spec, (section, name, value)| spec.setting(section, name, value));
    let (fleet, daemon) = made_with(spec).await;
    let client = &daemon.client;
    client.execute("acme", "CREATE TABLE t AS SELECT 1 AS a").await.unwrap();
    let prepared = async || {
        let mut caller = begun(client).await;
        caller.run(ALL).await;
        committed(caller).await;
    };
    prepared().await;
    let database = client.tenant_get("acme").await.unwrap().database;
    let judge = fleet.judge(&database).await;

    // As the first statement: nobody sees it.
    judge.batch_execute("ALTER TABLE t ADD b int").await.unwrap();
    prepared().await;
    // Later: what was done before would be lost.
    judge.batch_execute("ALTER TABLE t ADD c int").await.unwrap();
    let mut caller = begun(client).await;
    caller.run("INSERT INTO t VALUES (2)").await;
    let refused = caller.fails(execute(ALL)).await;
    assert_eq!(refused.code, i32::from(Code::Aborted), "{refused:?}");
    assert!(refused.retry_delay.is_some());
    drop(caller);
    assert_eq!(client.execute("acme", "SELECT count(*) FROM t").await.unwrap(), [["1"]]);

    // By the transaction itself, and back.
    let mut caller = begun(client).await;
    caller.run(ALL).await;
    caller.run("SELECT 1").await;
    caller.ask(Action::SetSavepoint(tenantd::proto::v1::SetSavepoint {})).await.unwrap();
    caller.run("ALTER TABLE t ADD d int").await;
    caller.run(ALL).await;
    let back = tenantd::proto::v1::RollbackToSavepoint { savepoint: 1 };
    caller.ask(Action::RollbackToSavepoint(back)).await.unwrap();
    caller.run(ALL).await;
    committed(caller).await;
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn texts_travel_in_utf8_whatever_a_tenant_sets() {
    let (fleet, daemon) = made().await;
    let client = &daemon.client;
    let latin = "CREATE FUNCTION latin() RETURNS text LANGUAGE sql AS \
        $$ SELECT set_config('client_encoding', 'LATIN1', false) $$";
    client.execute("acme", latin).await.unwrap();
    client.execute("acme", "CREATE TABLE t (a text)").await.unwrap();
    for sql in ["SET client_encoding = 'LATIN1'", "SELECT set_config('client_encoding', 'LATIN1', false)"] {
        assert_eq!(client.execute("acme", sql).await.unwrap_err().code(), Code::InvalidArgument, "{sql}");
        let refused = begun(client).await.fails(execute(sql)).await;
        assert_eq!(refused.code, i32::from(Code::InvalidArgument), "{sql}");
    }
    for sql in ["SELECT latin(), 'é'", "SELECT latin()", "INSERT INTO t SELECT 'é' || latin() RETURNING a"] {
        if let Err(refused) = client.execute("acme", sql).await {
            assert!(matches!(refused.code(), Code::InvalidArgument | Code::FailedPrecondition), "{sql}: {refused:?}");
        }
        assert_eq!(client.execute("acme", "SELECT 'é'").await.unwrap(), [["é"]], "{sql}");
        // Nothing is written in another encoding behind it.
        let mut caller = begun(client).await;
        let answer = caller.ask(execute(sql)).await;
        let next = caller.ask(execute("INSERT INTO t VALUES ('é')")).await;
        for ended in [&answer, &next].into_iter().filter_map(|answer| answer.as_ref().err()) {
            assert_eq!(ended.code(), Code::FailedPrecondition, "{sql}: {ended:?}");
            assert!(ended.message().contains("changed client_encoding"), "{sql}: {ended:?}");
        }
        let is_refused = |answer: &Result<Outcome, _>| !matches!(answer, Ok(Outcome::Result(_)));
        assert!(is_refused(&answer) || is_refused(&next), "{sql}: {answer:?} {next:?}");
        let wrong = "SELECT count(*) FROM t WHERE a LIKE '%Ã%'";
        assert_eq!(client.execute("acme", wrong).await.unwrap(), [["0"]], "{sql}");
    }
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_transaction_that_only_reads_stays_one() {
    let (fleet, daemon) = made().await;
    let client = &daemon.client;
    client.execute("acme", "CREATE TABLE t (a int)").await.unwrap();
    let hidden = "DO $$ BEGIN SET LOCAL transaction_read_only = off; END $$";
    for sql in ["SET TRANSACTION READ WRITE", "SET LOCAL transaction_read_only = off", hidden] {
        let mut caller = Caller::begin_as(client, BeginTransaction { read_only: true, ..begin() }).await;
        let refused = caller.fails(execute(sql)).await;
        assert!(!refused.message.is_empty(), "{sql}");
        assert_eq!(caller.fails(execute("INSERT INTO t VALUES (1)")).await.sqlstate, "25P02", "{sql}");
    }
    let mut caller = begun(client).await;
    caller.run("SET TRANSACTION READ ONLY").await;
    assert_eq!(client.execute("acme", "SELECT count(*) FROM t").await.unwrap(), [["0"]]);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_suspension_in_the_middle_of_a_transaction_is_told_as_one() {
    let (fleet, daemon) = made().await;
    let client = &daemon.client;
    let mut caller = begun(client).await;
    caller.run("SELECT 1").await;
    let request = SuspendTenantRequest {
        tenant: "acme".to_owned(),
        reason: "a test".to_owned(),
        ..SuspendTenantRequest::default()
    };
    let suspension = client.tenants().suspend_tenant(request).await.unwrap().into_inner().operation.unwrap();
    client.succeeded(&suspension).await;
    let ended = caller.ask(execute("SELECT 1")).await.unwrap_err();
    assert_eq!((ended.code(), reason(&ended).as_str()), (Code::FailedPrecondition, "TENANT_STATE"), "{ended:?}");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_its_callers_mistake() {
    let (fleet, daemon) = made().await;
    let client = &daemon.client;
    let array = |inner| Value { kind: Some(Kind::ArrayValue(ArrayValue { elements: vec![inner] })) };
    let deep = (0..120).fold(text("a"), |inner, _| array(inner));
    let request = |parameters| ExecuteRequest {
        tenant: "acme".to_owned(),
        sql: "SELECT $1".to_owned(),
        parameters,
        ..ExecuteRequest::default()
    };
    let refused = client.rows(request(vec![deep])).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"), "{refused:?}");
    assert_eq!(client.rows(request(vec![text("a")])).await.unwrap(), [["a"]]);

    // As part of a stream it ends that.
    let mut caller = begun(client).await;
    let parameters = request(vec![(0..120).fold(text("a"), |inner, _| array(inner))]).parameters;
    let statement = TransactionStatement { sql: "SELECT $1".to_owned(), parameters, ..TransactionStatement::default() };
    let refused = caller.ask(Action::Execute(statement)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"), "{refused:?}");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn rows_that_are_returned_are_counted() {
    let (fleet, daemon) = made().await;
    for sql in ["SHOW server_version", "EXPLAIN SELECT 1", "SELECT 1", "INSERT INTO t VALUES (1)"] {
        if sql.starts_with("INSERT") {
            daemon.client.execute("acme", "CREATE TABLE t (a int)").await.unwrap();
        }
        let request = ExecuteRequest { tenant: "acme".to_owned(), sql: sql.to_owned(), ..ExecuteRequest::default() };
        for _ in 0..2 {
            let answer = daemon.client.query().execute(request.clone()).await.unwrap().into_inner();
            assert_eq!(answer.row_count, 1, "{sql}");
        }
    }
    fleet.stop(daemon).await;
}
