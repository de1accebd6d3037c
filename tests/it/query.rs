//! Statements as a caller sends them: values come back as they went in, results are bounded, sessions are clean.

mod altered;
mod changed;
pub mod convoy;
mod deadlines;
mod drained;
pub mod ends;
mod harmless;
mod holders;
mod long;
mod pipeline;
mod quoted;
mod refused;
mod shared;
mod stream;
mod texts;
mod transact;
mod turns;
mod types;
mod writes;

use std::time::Duration;

use tenantd::proto::v1;
use tenantd::proto::v1::value::Kind;
use tenantd::query::{BYTES_MAX, Error, Execute, Output};

use crate::harness::Spec;
use crate::tenants::{Made, Rooms};

async fn run(
    rooms: &Rooms,
    tenant: &Made,
    sql: &str,
    parameters: &[v1::Value],
    rows_max: i32,
) -> Result<Output, Error> {
    let lease = rooms.lease(tenant).await.unwrap();
    let input = Execute { sql, parameters, rows_max, bytes_max: BYTES_MAX, user: None };
    rooms.queries.execute(lease.into(), input).await
}

async fn ask(rooms: &Rooms, tenant: &Made, sql: &str) -> Result<Output, Error> {
    run(rooms, tenant, sql, &[], 0).await
}

fn value(kind: Kind) -> v1::Value {
    v1::Value { kind: Some(kind) }
}

fn text(text: &str) -> v1::Value {
    value(Kind::TextValue(text.to_owned()))
}

fn null() -> v1::Value {
    value(Kind::NullValue(0))
}

fn array(elements: Vec<v1::Value>) -> v1::Value {
    value(Kind::ArrayValue(v1::ArrayValue { elements }))
}

fn only(output: &Output) -> v1::Value {
    output.rows[0].values[0].clone()
}

const TYPES: &str = "CREATE TYPE mood AS ENUM ('sad', 'ok, \"fine\"'); \
    CREATE DOMAIN positive AS integer CHECK (VALUE > 0); \
    CREATE TYPE pair AS (a integer, b text)";

/// Type, what is sent, and what comes back.
fn values() -> Vec<(&'static str, v1::Value, v1::Value)> {
    let same = |ty: &'static str, value: v1::Value| (ty, value.clone(), value);
    let int = |number: i64| value(Kind::Int64Value(number));
    let float = |number: f64| value(Kind::DoubleValue(number));
    let mut all = vec![
        same("bool", value(Kind::BoolValue(true))),
        ("bool", text("off"), value(Kind::BoolValue(false))),
        same("int2", int(-32768)),
        same("int4", int(i64::from(i32::MIN))),
        same("int8", int(i64::MAX)),
        ("int8", text("-9223372036854775808"), int(i64::MIN)),
        same("oid", int(i64::from(u32::MAX))),
        same("positive", int(7)),
        same("float8", float(0.1)),
        same("float8", float(-1.797_693_134_862_315_7e308)),
        same("float8", float(f64::INFINITY)),
        same("float4", float(0.5)),
        same("bytea", value(Kind::BytesValue(vec![0, 255, 92, 39]))),
        ("bytea", text("\\x00ff"), value(Kind::BytesValue(vec![0, 255]))),
        ("numeric", int(5), text("5")),
        ("jsonb", text("{\"b\":1,  \"a\":null}"), text("{\"a\": null, \"b\": 1}")),
        ("timestamptz", text("2024-02-29 12:00:00+02"), text("2024-02-29T10:00:00Z")),
        same("int4[]", array(vec![int(1), null(), int(-3)])),
        same("int4[]", array(vec![])),
        same("text[]", array(vec![text("a,b"), text(""), text("NULL"), null(), text("\"\\{}")])),
        same("bytea[]", array(vec![value(Kind::BytesValue(vec![0, 1])), null()])),
        same("numeric[]", array(vec![text("1.50"), text("NaN")])),
        same("mood[]", array(vec![text("sad"), text("ok, \"fine\"")])),
        same("timestamptz[]", array(vec![text("2024-01-02T03:04:05.000006Z")])),
        same("int4", null()),
        same("text[]", null()),
    ];
    let texts = [
        ("text", "é — '\"\\ \n"),
        ("varchar", ""),
        ("name", "name"),
        ("json", "{\"b\":1,  \"a\":null}"),
        ("xml", "<a>b</a>"),
        ("uuid", "00112233-4455-6677-8899-aabbccddeeff"),
        ("numeric", "12345678901234567890123456789012345678.00100"),
        ("numeric", "-0.000000000000000000001"),
        ("numeric", "NaN"),
        ("numeric", "10000"),
        ("numeric", "0.00"),
        ("date", "2024-02-29"),
        ("date", "0044-03-15 BC"),
        ("date", "infinity"),
        ("date", "5874897-12-31"),
        ("time", "24:00:00"),
        ("time", "01:02:03.000004"),
        ("timetz", "01:02:03-05:30"),
        ("timestamp", "1999-12-31T23:59:59.999999"),
        ("timestamptz", "294276-12-31T23:59:59.999999Z"),
        ("timestamptz", "4713-01-01T00:00:00Z BC"),
        ("timestamptz", "-infinity"),
        ("interval", "1 year 2 mons -3 days +04:05:06.789"),
        ("interval", "-00:00:00.000001"),
        ("mood", "ok, \"fine\""),
        ("inet", "192.168.0.1"),
        ("inet", "::1/64"),
        ("cidr", "10.0.0.0/8"),
        ("macaddr", "08:00:2b:01:02:03"),
        ("bit(5)", "10110"),
        ("varbit", "101"),
        ("int4range", "[1,10)"),
        ("int4range", "empty"),
        ("tstzrange", "[2024-01-01T00:00:00Z,)"),
        ("int4multirange", "{[1,2),[5,7)}"),
        ("pg_lsn", "16/B374D848"),
        ("int4[]", "{{1,2},{3,NULL}}"),
        ("int4[]", "[0:1]={1,2}"),
        ("pair", "(1,\"a \"\"b\"\"\")"),
        ("pair", "(,)"),
    ];
    all.extend(texts.map(|(ty, given)| same(ty, text(given))));
    all
}

#[tokio::test]
async fn values_come_back_as_they_went_in() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    for statement in TYPES.split("; ") {
        ask(&rooms, &acme, statement).await.unwrap();
    }
    let mut wrong = Vec::new();
    for (ty, given, wanted) in values() {
        let sql = format!("SELECT $1::{ty}");
        match run(&rooms, &acme, &sql, std::slice::from_ref(&given), 0).await {
            Ok(output) if only(&output) == wanted => {
                // What came back is taken again, and stays.
                let again =
                    run(&rooms, &acme, &sql, std::slice::from_ref(&wanted), 0).await.map(|output| only(&output));
                assert_eq!(again.unwrap(), wanted, "{ty}");
            }
            Ok(output) => wrong.push(format!("{ty}: {given:?} came back as {:?}", only(&output))),
            Err(error) => wrong.push(format!("{ty}: {given:?}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    rooms.finish().await;
}

#[tokio::test]
async fn columns_rows_and_counts() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    let created = ask(&rooms, &acme, "CREATE TABLE t (a int PRIMARY KEY, b numeric(10, 2))").await.unwrap();
    assert!(created.columns.is_empty() && created.rows.is_empty() && created.row_count == 0);
    let inserted = ask(&rooms, &acme, "INSERT INTO t SELECT n, n FROM generate_series(1, 5) AS n").await.unwrap();
    assert_eq!((inserted.row_count, inserted.rows.len()), (5, 0));
    let updated = ask(&rooms, &acme, "UPDATE t SET b = b + 1 WHERE a > 3 RETURNING a, b").await.unwrap();
    assert_eq!((updated.row_count, updated.rows.len()), (2, 2));
    let names: Vec<_> =
        updated.columns.iter().map(|column| (column.name.as_str(), column.type_name.as_str())).collect();
    assert_eq!(names, [("a", "int4"), ("b", "numeric")]);
    assert_eq!(updated.columns[1].type_oid, 1700);
    let owner = "SELECT tableowner::text FROM pg_tables WHERE tablename = 't'";
    assert_eq!(only(&ask(&rooms, &acme, owner).await.unwrap()), text(acme.roles.owner.as_str()));
    rooms.finish().await;
}

#[tokio::test]
async fn refusals_say_where_and_why() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    ask(&rooms, &acme, "CREATE TABLE t (a int CONSTRAINT a_is_small CHECK (a < 10), m money)").await.unwrap();
    let sql_error = async |sql: &str| match ask(&rooms, &acme, sql).await {
        Err(Error::Sql(error)) => *error,
        other => panic!("{sql}: {other:?}"),
    };
    let syntax = sql_error("SELECT * FORM t").await;
    assert_eq!((syntax.sqlstate.as_str(), syntax.position), ("42601", Some(10)));
    let check = sql_error("INSERT INTO t VALUES (10)").await;
    assert_eq!((check.sqlstate.as_str(), check.constraint.as_deref()), ("23514", Some("a_is_small")));
    assert!(check.detail.is_some() && check.table.as_deref() == Some("t"));
    for several in ["SELECT 1; SELECT 2", "CREATE TABLE one (a int); DROP TABLE one"] {
        assert!(matches!(ask(&rooms, &acme, several).await, Err(Error::Several)), "{several}");
    }
    assert_eq!(sql_error("VACUUM t").await.sqlstate, "25001");
    for sql in ["BEGIN", "commit", "COPY t FROM stdin", "LISTEN a", "/* x */ SAVEPOINT s", "DISCARD ALL"] {
        assert!(matches!(ask(&rooms, &acme, sql).await, Err(Error::Refused { .. })), "{sql}");
    }
    assert!(matches!(ask(&rooms, &acme, " -- nothing").await, Err(Error::Empty)));
    let counted = run(&rooms, &acme, "SELECT $1::int, $2::int", &[null()], 0).await;
    assert!(matches!(counted, Err(Error::ParameterCount { wanted: 2, given: 1 })));
    let shape = run(&rooms, &acme, "SELECT $1::int", &[array(vec![])], 0).await;
    assert!(matches!(shape, Err(Error::Parameter { number: 1, .. })));
    let unsupported = ask(&rooms, &acme, "SELECT adbin AS m FROM pg_attrdef").await;
    assert!(
        matches!(&unsupported, Err(Error::Unsupported { column, type_name }) if column == "m" && type_name == "pg_node_tree")
    );
    // None of these cost a connection.
    assert_eq!(rooms.sessions().await, 1);
    rooms.finish().await;
}

#[tokio::test]
async fn results_are_bounded_and_too_large_ones_change_nothing() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    ask(&rooms, &acme, "CREATE TABLE t AS SELECT n FROM generate_series(1, 20) AS n").await.unwrap();
    assert_eq!(run(&rooms, &acme, "SELECT n FROM t", &[], 20).await.unwrap().rows.len(), 20);
    assert!(matches!(run(&rooms, &acme, "SELECT n FROM t", &[], 19).await, Err(Error::TooManyRows { rows_max: 19 })));
    let deleted = run(&rooms, &acme, "DELETE FROM t RETURNING n", &[], 5).await;
    assert!(matches!(deleted, Err(Error::TooManyRows { rows_max: 5 })));
    assert_eq!(only(&ask(&rooms, &acme, "SELECT count(*) FROM t").await.unwrap()), value(Kind::Int64Value(20)));
    assert!(matches!(run(&rooms, &acme, "SELECT 1", &[], 10_001).await, Err(Error::RowsMax { .. })));
    assert!(matches!(run(&rooms, &acme, "SELECT 1", &[], -1).await, Err(Error::RowsMax { .. })));
    let endless = run(&rooms, &acme, "SELECT generate_series(1, 2000000000)", &[], 10_000);
    assert!(matches!(endless.await, Err(Error::TooManyRows { .. })));
    let wide = "SELECT repeat('x', 1000000) FROM generate_series(1, 9000)";
    assert!(matches!(run(&rooms, &acme, wide, &[], 10_000).await, Err(Error::TooManyBytes { .. })));
    rooms.finish().await;
}

#[tokio::test]
async fn nothing_of_a_session_reaches_the_next_caller() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    ask(
        &rooms,
        &acme,
        "CREATE FUNCTION leave() RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
           PERFORM set_config('app.kept', 'yes', false); PERFORM pg_advisory_lock(42); \
           CREATE TEMP TABLE left_over (a int); SET ROLE none; END $$",
    )
    .await
    .unwrap();
    let leaving = [
        "SELECT set_config('app.kept', 'yes', false)",
        "SELECT pg_advisory_lock(42)",
        "SELECT leave()",
        "CREATE TEMP TABLE left_over (a int)",
        "SET app.kept = 'yes'",
        "SET ROLE none",
        "SET search_path = pg_catalog",
        "SET statement_timeout = 0",
        "DO $$ BEGIN PERFORM leave(); END $$",
        "SELECT 1 AS a INTO TEMP left_over",
    ];
    let state = "SELECT coalesce(current_setting('app.kept', true), '') || '|' || current_user || '|' \
                 || current_setting('search_path') || '|' || current_setting('statement_timeout') || '|' \
                 || (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) || '|' \
                 || coalesce(to_regclass('left_over')::text, '')";
    let clean = text(&format!("|{}|\"$user\", public|30s|0|", acme.roles.owner));
    for sql in leaving {
        ask(&rooms, &acme, sql).await.unwrap();
        // The same connection, cleaned, or a new one: whichever is next.
        for _ in 0..2 {
            assert_eq!(only(&ask(&rooms, &acme, state).await.unwrap()), clean, "after {sql}");
        }
    }
    rooms.finish().await;
}

#[tokio::test]
async fn a_prepared_statement_survives_changes_of_its_tables() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    ask(&rooms, &acme, "CREATE TABLE t AS SELECT 1 AS a").await.unwrap();
    assert_eq!(ask(&rooms, &acme, "SELECT * FROM t").await.unwrap().columns.len(), 1);
    let judge = rooms.fleet.judge(&acme.database).await;
    judge.batch_execute("ALTER TABLE t ADD COLUMN b text").await.unwrap();
    assert_eq!(ask(&rooms, &acme, "SELECT * FROM t").await.unwrap().columns.len(), 2);
    assert_eq!(rooms.sessions().await, 1);
    rooms.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_call_changes_nothing_and_leaves_nothing() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    ask(&rooms, &acme, "CREATE TABLE t (a int)").await.unwrap();
    for milliseconds in 0..40 {
        let call = ask(&rooms, &acme, "INSERT INTO t SELECT 1 FROM pg_sleep(20)");
        assert!(tokio::time::timeout(Duration::from_millis(milliseconds), call).await.is_err());
        let inserted = ask(&rooms, &acme, "INSERT INTO t VALUES (2)").await.unwrap();
        assert_eq!(inserted.row_count, 1, "what was acknowledged is there");
    }
    let counts = "SELECT count(*) FILTER (WHERE a = 1) || '/' || count(*) FILTER (WHERE a = 2) FROM t";
    assert_eq!(only(&ask(&rooms, &acme, counts).await.unwrap()), text("0/40"));
    rooms.finish().await;
}
