//! Nothing that a tenant has defined runs as the dump role or as the daemon: not while PostgreSQL plans, which calls
//! functions in the expressions of indexes, statistics, checks and partitions' keys, and not while rows are read.

use tenantd::backup::Check;

use super::place::Place;
use super::restored_is_what_was_dumped;
use crate::harness::Spec;

#[tokio::test]
async fn a_tenants_functions_never_run_as_the_dump_role() {
    let place = Place::new(Spec::default()).await;
    let (dump, daemon) = (&place.server.dump().role, &place.server.daemon().role);
    let script = format!(
        "CREATE FUNCTION evil(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
            IF session_user IN ('{dump}', '{daemon}') THEN RAISE EXCEPTION 'ran as %', session_user; END IF;
            RETURN $1;
        END $$;
        CREATE FUNCTION apart(int, int) RETURNS float8 LANGUAGE sql IMMUTABLE AS 'SELECT public.evil($1 - $2)::float8';
        CREATE DOMAIN grade AS int CHECK (public.evil(VALUE) >= 0);
        CREATE TYPE pair AS (a grade, b grade[]);
        CREATE TYPE span AS RANGE (subtype = int, subtype_diff = apart);
        CREATE TABLE t (
            a int DEFAULT public.evil(7) CHECK (a < public.evil(1000)),
            doubled int GENERATED ALWAYS AS (public.evil(a) * 2) STORED,
            grade grade, pair pair, span span, spans int4multirange
        );
        CREATE INDEX ON t ((a + public.evil(1)));
        CREATE INDEX ON t (a) WHERE a > public.evil(0);
        CREATE STATISTICS of_t ON (a + public.evil(2)), (a - public.evil(3)) FROM t;
        INSERT INTO t (grade, pair, span, spans) SELECT n, (n, ARRAY[n])::pair, span(n, n + 2), '{{[1,3)}}' FROM generate_series(1, 50) n;
        ANALYZE t;
        ALTER TABLE t ENABLE ROW LEVEL SECURITY;
        CREATE POLICY p ON t USING (public.evil(a) > 0);
        CREATE TABLE parted (a int) PARTITION BY LIST ((a % public.evil(10)));
        CREATE TABLE parted_0 PARTITION OF parted FOR VALUES IN (0, 1, 2);
        CREATE TABLE parted_rest PARTITION OF parted DEFAULT;
        INSERT INTO parted SELECT generate_series(1, 30);
        CREATE VIEW seen AS SELECT public.evil(a) FROM t;
        CREATE MATERIALIZED VIEW kept AS SELECT public.evil(a) FROM parted;
        CREATE INDEX ON kept ((public.evil(evil)));
        CREATE TABLE public.refinery_schema_history (version int8, name text);
        CREATE INDEX ON refinery_schema_history ((version + public.evil(1)));
        INSERT INTO refinery_schema_history VALUES (3, 'three'), (12, 'twelve'), (NULL, NULL)"
    );
    place.run(&script).await;
    let (_backup, manifest) = place.backup_new().await;
    let counts: Vec<_> = manifest.tables.iter().map(|table| (table.name.as_str(), table.row_count)).collect();
    assert_eq!(counts, [("parted", 30), ("refinery_schema_history", 3), ("t", 50)]);
    assert_eq!(manifest.schema_version, 12, "the snapshot's, without a query over the tenant's table");
    restored_is_what_was_dumped(&place, &manifest).await;
    place.finish().await;
}

#[tokio::test]
async fn an_index_over_a_function_that_finds_nothing_is_no_hindrance() {
    let place = Place::new(Spec::default()).await;
    place
        .run(
            "CREATE FUNCTION half(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 / 2';
            CREATE FUNCTION quarter(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT public.half($1) / 2';
            CREATE TABLE t (a int);
            CREATE INDEX ON t ((a + quarter(8)));
            -- From PostgreSQL 17 on, an index is made without the tenant's search path.
            CREATE OR REPLACE FUNCTION quarter(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT half($1) / 2';
            INSERT INTO t SELECT generate_series(1, 9)",
        )
        .await;
    let (_backup, manifest) = place.backup_new().await;
    assert_eq!(manifest.tables[0].row_count, 9);
    assert_eq!(place.verify(&manifest).await.unwrap(), Check::ALL);
    place.finish().await;
}
