//! What is refused over gRPC before PostgreSQL hears of it, and what arrives of a refusal that is long.

use tenantd::proto::v1::pipeline_answer::Outcome as Answered;
use tenantd::proto::v1::{
    BeginTransaction, ExecuteRequest, PipelineRequest, PipelineStatement, StreamQueryRequest, TransactRequest,
    transact_request::Action,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::transact::{Caller, execute};
use super::{array, null, text};
use crate::harness::{Client, Fleet, Spec, reason};

fn request(sql: &str) -> ExecuteRequest {
    ExecuteRequest { tenant: "acme".to_owned(), sql: sql.to_owned(), ..ExecuteRequest::default() }
}

fn stream(sql: &str) -> StreamQueryRequest {
    StreamQueryRequest { tenant: "acme".to_owned(), sql: sql.to_owned(), ..StreamQueryRequest::default() }
}

/// The end of a stream, or its beginning when it has none.
async fn streamed(client: &Client, request: StreamQueryRequest) -> Status {
    let mut parts = match client.query().stream_query(request).await {
        Err(status) => return status,
        Ok(stream) => stream.into_inner(),
    };
    loop {
        match parts.message().await {
            Err(status) => return status,
            Ok(part) => assert!(part.is_some(), "it is refused"),
        }
    }
}

/// SQLSTATE, and where in the statement it is wrong.
fn position(status: &Status) -> (Code, String, String) {
    let metadata = status.get_error_details().error_info().unwrap().metadata.clone();
    (status.code(), metadata["sqlstate"].clone(), metadata["position"].clone())
}

#[tokio::test]
async fn a_statement_that_is_wrong_is_told_where() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let wrong = [
        ("SELECT * FORM things", "42601", "10"),
        ("SELECT 'ü', nothing FROM things", "42703", "13"),
        ("UPDATE things SET nothing = 1", "42703", "19"),
    ];
    // On a new connection, and on one that was used.
    for _ in 0..2 {
        for (sql, sqlstate, place) in wrong {
            let expected = (Code::InvalidArgument, sqlstate.to_owned(), place.to_owned());
            assert_eq!(position(&client.rows(request(sql)).await.unwrap_err()), expected, "{sql}");
            assert_eq!(position(&streamed(client, stream(sql)).await), expected, "{sql}");
        }
    }
    fleet.stop(daemon).await;
}

fn field(status: &Status) -> String {
    assert_eq!((status.code(), reason(status).as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"), "{status:?}");
    status.get_error_details().bad_request().expect("BadRequest").field_violations[0].field.clone()
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_and_costs_no_connection() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let backend = client.sql("acme", "SELECT pg_backend_pid()").await;

    let nul = "SELECT 'a\0b'";
    assert_eq!(field(&client.rows(request(nul)).await.unwrap_err()), "sql");
    assert_eq!(field(&streamed(client, stream(nul)).await), "sql");
    assert_eq!(client.sql("acme", "SELECT pg_backend_pid()").await, backend);
    let begin = || BeginTransaction { tenant: "acme".to_owned(), ..BeginTransaction::default() };
    let refused = Caller::begin_as(client, begin()).await.fails(execute(nul)).await;
    assert_eq!(refused.code, i32::from(Code::InvalidArgument), "{refused:?}");
    let statement =
        PipelineStatement { tenant: "acme".to_owned(), sql: nul.to_owned(), ..PipelineStatement::default() };
    let statements = tokio_stream::once(PipelineRequest { statements: vec![statement] });
    let mut answers = client.query().pipeline(statements).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().answers.remove(0).outcome.unwrap();
    let Answered::Error(refused) = answer else { panic!("{answer:?}") };
    assert_eq!(refused.code, i32::from(Code::InvalidArgument), "{refused:?}");

    let many = ExecuteRequest { parameters: vec![null(); 65_536], ..request("SELECT $1::int") };
    assert_eq!(field(&client.rows(many).await.unwrap_err()), "parameters");
    assert_eq!(field(&client.rows(request("SELECT $65536::int")).await.unwrap_err()), "parameters");
    let places = (1..=65_535).map(|n| format!("${n}")).collect::<Vec<_>>().join(",");
    let most =
        ExecuteRequest { parameters: vec![text("1"); 65_535], ..request(&format!("SELECT 1 WHERE '1' IN ({places})")) };
    assert_eq!(client.rows(most).await.unwrap(), [["1"]]);

    assert_eq!(field(&client.rows(ExecuteRequest { target: 99, ..request("SELECT 1") }).await.unwrap_err()), "target");
    assert_eq!(field(&streamed(client, StreamQueryRequest { target: -1, ..stream("SELECT 1") }).await), "target");
    for (wrong, named) in [
        (BeginTransaction { target: 99, ..begin() }, "target"),
        (BeginTransaction { isolation_level: 99, ..begin() }, "isolation_level"),
    ] {
        let first = TransactRequest { action: Some(Action::Begin(wrong)) };
        let mut answers = client.query().transact(tokio_stream::once(first)).await.unwrap().into_inner();
        assert_eq!(field(&answers.message().await.unwrap_err()), named);
    }
    let open = client.execute("acme", "(").await.unwrap_err();
    assert_eq!(open.get_error_details().error_info().unwrap().metadata["sqlstate"], "42601", "{open:?}");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_long_refusal_arrives_with_its_code_and_its_sqlstate() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let unquoted = format!("SELECT 'é{}", "é".repeat(20_000));
    let long = "DO $$ BEGIN RAISE EXCEPTION USING MESSAGE = repeat('é', 20000), ERRCODE = '42601',
                DETAIL = repeat('d', 9000), HINT = repeat('h', 9000); END $$";
    for sql in [unquoted.as_str(), long] {
        for status in [client.execute("acme", sql).await.unwrap_err(), streamed(client, stream(sql)).await] {
            assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "SQL"), "{}", status.code());
            assert_eq!(status.get_error_details().error_info().unwrap().metadata["sqlstate"], "42601");
            assert!(status.message().ends_with('…') && status.message().len() > 400);
        }
    }
    // Inside a stream there is room for all of it.
    let begin = BeginTransaction { tenant: "acme".to_owned(), ..BeginTransaction::default() };
    let refused = Caller::begin_as(client, begin).await.fails(execute(long)).await;
    assert_eq!((refused.message.chars().count(), refused.detail.len(), refused.hint.len()), (20_000, 9_000, 9_000));
    assert_eq!(refused.sqlstate, "42601");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_null_in_an_array_is_one_whatever_the_tenants_settings_say() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let database = client.tenant_get("acme").await.unwrap().database;
    let judge = fleet.judge("postgres").await;
    judge.batch_execute(&format!("ALTER DATABASE \"{database}\" SET array_nulls = off")).await.unwrap();
    // On a connection that knows it.
    client.execute("acme", "DO $$ BEGIN PERFORM 1; END $$").await.unwrap();
    let asked = ExecuteRequest {
        parameters: vec![array(vec![null(), text("NULL")])],
        ..request("SELECT ($1::text[])[1] IS NULL AND ($1::text[])[2] = 'NULL'")
    };
    assert_eq!(client.rows(asked).await.unwrap(), [["true"]]);
    fleet.stop(daemon).await;
}
