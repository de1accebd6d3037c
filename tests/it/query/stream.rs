//! StreamQuery as a caller over gRPC sees it: rows come in order and in batches, the server makes no more of them than
//! are read, and a caller who goes away or says nothing leaves nothing running.

use std::time::Duration;

use tenantd::proto::v1::stream_query_response::Part;
use tenantd::proto::v1::value::Kind;
use tenantd::proto::v1::{Row, StreamQueryRequest, StreamQueryResponse};
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt as _;

use super::ends::Running;
use crate::harness::{Client, Fleet, Spec, reason, until};

fn of(sql: &str) -> StreamQueryRequest {
    StreamQueryRequest { tenant: "acme".to_owned(), sql: sql.to_owned(), ..StreamQueryRequest::default() }
}

async fn stream(client: &Client, request: StreamQueryRequest) -> Result<Streaming<StreamQueryResponse>, Status> {
    Ok(client.query().stream_query(request).await?.into_inner())
}

/// Everything until the end.
async fn parts(mut stream: Streaming<StreamQueryResponse>) -> Result<Vec<Part>, Status> {
    let mut parts = Vec::new();
    while let Some(response) = stream.message().await? {
        parts.push(response.part.unwrap());
    }
    Ok(parts)
}

fn number(row: &Row) -> i64 {
    match row.values[0].kind {
        Some(Kind::Int64Value(number)) => number,
        ref other => panic!("no number: {other:?}"),
    }
}

/// Sessions of the tenant that are not idle, as a superuser sees them.
async fn busy(fleet: &Fleet) -> i64 {
    let judge = fleet.judge("postgres").await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND state <> 'idle'";
    judge.query_one(sql, &[&format!("{}_acme", fleet.naming.prefix())]).await.unwrap().get(0)
}

async fn quiet(fleet: &Fleet) {
    until("no statement and no transaction is left", async || (busy(fleet).await == 0).then_some(())).await;
}

#[tokio::test]
async fn header_batches_and_trailer() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let request =
        StreamQueryRequest { batch_rows: 1_000, ..of("SELECT n, repeat('x', 10) FROM generate_series(1, 2500) AS n") };
    let all = parts(stream(&daemon.client, request).await.unwrap()).await.unwrap();
    let Part::Header(header) = &all[0] else { panic!("{:?}", all[0]) };
    assert_eq!(header.columns.iter().map(|column| column.type_name.as_str()).collect::<Vec<_>>(), ["int4", "text"]);
    let mut rows = Vec::new();
    for part in &all[1..all.len() - 1] {
        let Part::Batch(batch) = part else { panic!("{part:?}") };
        assert!((1..=1_000).contains(&batch.rows.len()));
        rows.extend(batch.rows.iter().map(number));
    }
    assert_eq!(rows, (1..=2500).collect::<Vec<_>>());
    assert!(matches!(all.last(), Some(Part::Trailer(trailer)) if trailer.row_count == 2500));

    // A batch ends by its bytes too.
    let wide =
        parts(stream(&daemon.client, of("SELECT repeat('x', 100000) FROM generate_series(1, 9)")).await.unwrap());
    let batches = wide.await.unwrap().iter().filter(|part| matches!(part, Part::Batch(_))).count();
    assert!(batches >= 3, "{batches} batches");

    // Without a result there is a count, and what was done is done.
    let changed =
        parts(stream(&daemon.client, of("UPDATE things SET name = name || '!' WHERE id > 15")).await.unwrap());
    let changed = changed.await.unwrap();
    assert!(matches!(&changed[..], [Part::Header(_), Part::Trailer(trailer)] if trailer.row_count == 5));
    let returning = of("DELETE FROM things WHERE id <= 3 RETURNING id");
    let returning = parts(stream(&daemon.client, returning).await.unwrap()).await.unwrap();
    assert!(matches!(returning.last(), Some(Part::Trailer(trailer)) if trailer.row_count == 3));
    assert_eq!(
        daemon.client.sql("acme", "SELECT count(*) || '/' || count(*) FILTER (WHERE name LIKE '%!') FROM things").await,
        "17/5"
    );
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn refusals_come_before_and_between_rows() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let request_refused = async |request: StreamQueryRequest| {
        let sql = request.sql.clone();
        let ended = match stream(&daemon.client, request).await {
            Ok(stream) => parts(stream).await,
            Err(status) => Err(status),
        };
        ended.expect_err(&sql)
    };
    let refused = async |sql: &str| request_refused(of(sql)).await;
    let syntax = refused("SELECT * FORM things").await;
    let details = syntax.get_error_details();
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!((metadata["sqlstate"].as_str(), metadata["position"].as_str()), ("42601", "10"));
    let between = refused("SELECT 1 / (2000 - n) FROM generate_series(1, 3000) AS n").await;
    assert_eq!(between.get_error_details().error_info().unwrap().metadata["sqlstate"], "22012");
    let undone = refused("INSERT INTO things (name) SELECT 'x' FROM generate_series(1, 2) RETURNING id").await;
    assert_eq!(undone.code(), Code::FailedPrecondition, "{undone:?}");
    for sql in ["COMMIT", "SELECT 1; SELECT 2", "FETCH ALL FROM c", ""] {
        assert_eq!(refused(sql).await.code(), Code::InvalidArgument, "{sql}");
    }
    for batch_rows in [10_001, -1] {
        let wrong = request_refused(StreamQueryRequest { batch_rows, ..of("SELECT 1") }).await;
        let field = wrong.get_error_details().bad_request().unwrap().field_violations[0].field.clone();
        assert_eq!((wrong.code(), field.as_str()), (Code::InvalidArgument, "batch_rows"), "{wrong:?}");
    }
    assert_eq!(daemon.client.sql("acme", "SELECT count(*) FROM things").await, "20");
    quiet(&fleet).await;
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn rows_are_made_as_they_are_read() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    daemon.client.sql("acme", "CREATE SEQUENCE made").await;
    // 200 MB, of which the caller takes one batch and then nothing.
    let sql = "SELECT nextval('made'), repeat('x', 2000) FROM generate_series(1, 100000)";
    let mut slow = stream(&daemon.client, StreamQueryRequest { batch_rows: 100, ..of(sql) }).await.unwrap();
    slow.message().await.unwrap();
    slow.message().await.unwrap();
    let made = async || daemon.client.sql("acme", "SELECT last_value FROM made").await.parse::<i64>().unwrap();
    // What fits between the server and the caller is made, and then nothing more.
    until("the transaction waits for its reader", async || {
        let judge = fleet.judge("postgres").await;
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND state = 'idle in transaction'
            AND state_change < clock_timestamp() - interval '300 milliseconds'";
        let name = format!("{}_acme", fleet.naming.prefix());
        (judge.query_one(sql, &[&name]).await.unwrap().get::<_, i64>(0) == 1).then_some(())
    })
    .await;
    let while_waiting = made().await;
    assert!(while_waiting < 20_000, "{while_waiting} rows were made for a reader of 100");
    let mut count = 100;
    while let Some(response) = slow.message().await.unwrap() {
        match response.part.unwrap() {
            Part::Batch(batch) => count += batch.rows.len(),
            Part::Trailer(trailer) => assert_eq!(trailer.row_count, 100_000),
            Part::Header(_) => panic!("a second header"),
        }
    }
    assert_eq!((count, made().await), (100_000, 100_000));
    quiet(&fleet).await;
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_caller_who_goes_away_leaves_nothing() {
    let fleet = Fleet::new(Spec::default().setting("[router]", "statement_timeout", "\"10m\"")).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    // In the middle of a statement, and between two batches.
    for sql in ["SELECT pg_sleep(600)", "SELECT n, repeat('x', 2000) FROM generate_series(1, 1000000) AS n"] {
        let client = daemon.client.clone();
        let request = of(sql);
        let call = tokio::spawn(async move {
            let mut stream = stream(&client, request).await?;
            stream.message().await?;
            stream.message().await?;
            std::future::pending::<Result<(), Status>>().await
        });
        until("the statement runs", async || (busy(&fleet).await == 1).then_some(())).await;
        if sql.contains("pg_sleep") {
            let running = Running::find(&fleet, sql, 1).await;
            call.abort();
            running.cancelled().await;
        } else {
            call.abort();
        }
        quiet(&fleet).await;
    }
    // By the deadline, whether it reads or not.
    let mut request = Request::new(of("SELECT n, pg_sleep(0.01) FROM generate_series(1, 1000000) AS n"));
    request.set_timeout(Duration::from_secs(1));
    let ended = match daemon.client.query().stream_query(request).await {
        Ok(stream) => parts(stream.into_inner()).await.map(|_parts| ()),
        Err(status) => Err(status),
    };
    assert!(matches!(ended.map_err(|status| status.code()), Err(Code::DeadlineExceeded | Code::Cancelled)));
    quiet(&fleet).await;
    assert_eq!(daemon.client.sql("acme", "SELECT count(*) FROM things").await, "20");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_caller_who_reads_nothing_loses_its_stream() {
    let spec = Spec::default().setting("[query]", "stream_idle_max", "\"300ms\"");
    let fleet = Fleet::new(spec).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    daemon.client.sql("acme", "CREATE SEQUENCE made").await;
    let sql = "SELECT nextval('made'), repeat('x', 2000) FROM generate_series(1, 1000000)";
    let silent = stream(&daemon.client, of(sql)).await.unwrap();
    let judge = fleet.judge(&format!("{}_acme", fleet.naming.prefix())).await;
    until("rows are made", async || {
        judge.query_one("SELECT is_called FROM made", &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    quiet(&fleet).await;
    let ended = parts(silent).await.unwrap_err();
    assert_eq!((ended.code(), reason(&ended).as_str()), (Code::Aborted, "CANCELLED"));
    fleet.stop(daemon).await;
}
