//! Types that are altered under a connection that knows them: a value is as the server says that it is, or refused.

use tenantd::query::Error;

use super::{ask, only, text};
use crate::harness::Spec;
use crate::tenants::{Made, Rooms};

async fn all(rooms: &Rooms, tenant: &Made, statements: &[&str]) {
    for sql in statements {
        ask(rooms, tenant, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

#[tokio::test]
async fn a_row_is_read_as_its_type_is_now() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    let types = [
        "CREATE TYPE ct AS (a float8, b int4)",
        "CREATE TYPE cts AS RANGE (SUBTYPE = ct)",
        "CREATE TYPE outside AS (inside ct)",
        "CREATE TABLE t AS SELECT 5::float8 AS a, 2 AS b",
    ];
    all(&rooms, &acme, &types).await;
    let reads = [
        ("SELECT row(5, 2)::ct AS c", "(5,2)"),
        ("SELECT array[array[row(5, 2)::ct]] AS c", "{{\"(5,2)\"}}"),
        ("SELECT cts(row(5, 2)::ct, NULL) AS c", "[\"(5,2)\",)"),
        ("SELECT row(row(5, 2)::ct)::outside AS c", "(\"(5,2)\")"),
        ("SELECT t AS c FROM t", "(5,2)"),
    ];
    for (sql, wanted) in reads {
        assert_eq!(only(&ask(&rooms, &acme, sql).await.unwrap()), text(wanted), "{sql}");
    }
    let judge = rooms.fleet.judge(&acme.database).await;
    let altering = "ALTER TYPE ct ALTER ATTRIBUTE a TYPE int8 CASCADE; ALTER TABLE t ALTER COLUMN a TYPE int8";
    // A range's type keeps its composite from being altered, so it goes first.
    judge.batch_execute(&format!("DROP TYPE cts; {altering}; CREATE TYPE cts AS RANGE (SUBTYPE = ct)")).await.unwrap();
    // PostgreSQL itself keeps the old bytes in the plans of statements that are prepared, so these are others.
    for (sql, wanted) in reads {
        let sql = format!("{sql} LIMIT 1");
        assert_eq!(only(&ask(&rooms, &acme, &sql).await.unwrap()), text(wanted), "{sql}");
    }
    judge.batch_execute("ALTER TYPE ct ADD ATTRIBUTE c text CASCADE").await.unwrap();
    let more = "SELECT row(5, 2, 'x')::ct AS c";
    assert_eq!(only(&ask(&rooms, &acme, more).await.unwrap()), text("(5,2,x)"));
    assert_eq!(rooms.sessions().await, 1);

    // What only the catalog knows ends the connection, and is known on the next one.
    let enumerated = "CREATE TYPE mood AS ENUM ('ok'); ALTER TYPE ct ALTER ATTRIBUTE c TYPE mood CASCADE";
    judge.batch_execute(enumerated).await.unwrap();
    let moods = "SELECT row(5, 2, 'ok')::ct AS c, 1 AS one";
    let refused = ask(&rooms, &acme, moods).await;
    assert!(matches!(&refused, Err(Error::TypeChanged { column, type_name }) if column == "c" && type_name == "ct"));
    assert_eq!(only(&ask(&rooms, &acme, moods).await.unwrap()), text("(5,2,ok)"));
    rooms.finish().await;
}

#[tokio::test]
async fn a_row_with_a_field_that_has_no_form_is_to_be_cast() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    all(&rooms, &acme, &["CREATE TYPE mood AS ENUM ('a b')", "CREATE TABLE t (a int DEFAULT 1)"]).await;
    for sql in ["SELECT row(1, 'a b'::mood) AS r", "SELECT row(adbin) AS r FROM pg_attrdef"] {
        for _ in 0..2 {
            let refused = ask(&rooms, &acme, sql).await;
            let Err(Error::Unsupported { column, type_name }) = &refused else { panic!("{sql}: {refused:?}") };
            assert!(column == "r" && type_name.starts_with("record with a field of type "), "{sql}: {type_name}");
        }
    }
    let inserted = ask(&rooms, &acme, "INSERT INTO t VALUES (2) RETURNING row(a, 'a b'::mood)").await;
    assert!(matches!(inserted, Err(Error::Unsupported { .. })), "{inserted:?}");
    let cast = "SELECT row(1, 'a b'::mood)::text || count(*) FROM t";
    assert_eq!(only(&ask(&rooms, &acme, cast).await.unwrap()), text("(1,\"a b\")0"));
    rooms.finish().await;
}

#[tokio::test]
async fn rows_within_rows_are_bounded_by_their_text() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    let deep = "CREATE FUNCTION deep(n int) RETURNS record LANGUAGE plpgsql AS $$ DECLARE r record; \
                BEGIN r := row(1); FOR i IN 1 .. n LOOP r := row(r); END LOOP; RETURN r; END $$";
    all(&rooms, &acme, &[deep]).await;
    assert_eq!(only(&ask(&rooms, &acme, "SELECT deep(2)").await.unwrap()), text("(\"(\"\"(1)\"\")\")"));
    assert!(ask(&rooms, &acme, "SELECT deep(12)").await.is_ok());
    for sql in ["SELECT deep(40)", "SELECT deep(2000)", "SELECT deep(99)"] {
        let refused = ask(&rooms, &acme, sql).await;
        let is_deep = matches!(&refused, Err(Error::Sql(error)) if error.sqlstate.starts_with("54"));
        assert!(is_deep || matches!(refused, Err(Error::TooManyBytes { .. })), "{sql}: {refused:?}");
    }
    let many = ask(&rooms, &acme, "SELECT deep(14) FROM generate_series(1, 1000)").await;
    assert!(matches!(many, Err(Error::TooManyBytes { .. })), "{:?}", many.map(|output| output.row_count));
    rooms.finish().await;
}
