//! The backup room against a real server and bucket: what is restored is what was dumped, whatever the schema and
//! whoever writes meanwhile; what is damaged is refused; what fails leaves nothing.

mod at_once;
mod bad_store;
mod counted;
mod nothing_runs;
mod place;
mod turns;

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tenantd::backup::{BackupRef, Check, Error, manifest_read, uploads_give_up};
use tenantd::domain::backup::Manifest;
use tenantd::domain::tenant::{DatabaseName, TenantRole};
use tenantd::store::UploadId;

use self::place::Place;
use crate::harness::{Proxy, Spec, machine, until};

const HOSTILE: &str = include_str!("backup/hostile.sql");
/// Does not shrink below some parts' size.
const NOISE: &str =
    "CREATE TABLE noise AS SELECT n, md5(n::text) || md5((-n)::text) AS text FROM generate_series(1, 300000) n";
/// 32 MB that do not shrink.
const FLOOD: &str = "CREATE TABLE noise AS
    SELECT n, sha512(n::text::bytea) || sha512((-n)::text::bytea) AS bytes FROM generate_series(1, 250000) n";

async fn restored_is_what_was_dumped(place: &Place, manifest: &Manifest) {
    let target = place.target().await;
    let report = place.restore(manifest, &target).await.unwrap();
    let steps: Vec<_> = report.steps.iter().map(|step| step.name).collect();
    assert_eq!(steps, ["download", "database", "privileges", "integrity"]);
    let is_same_schema = report.schema_fingerprint == manifest.schema_fingerprint;
    assert_eq!(is_same_schema, !manifest.tables.iter().any(|table| table.name == "child"), "inheritance moves columns");
    assert_eq!(place.tables(&target).await, manifest.tables);
}

#[tokio::test]
async fn a_hostile_schema_comes_back_as_it_was() {
    let place = Place::new(Spec::default()).await;
    place.run(HOSTILE).await;
    let (backup, manifest) = place.backup_new().await;
    // Partitions are counted as the table that they are parts of.
    assert_eq!(manifest.tables.len(), 17);
    let measures = manifest.tables.iter().find(|table| table.name == "measures");
    assert_eq!(measures.map(|table| table.row_count), Some(52));
    assert!(manifest.tables.iter().any(|table| table.name.contains('\n') && table.row_count == 2));
    assert_eq!(manifest_read(&place.store, &place.signer, backup).await.unwrap(), manifest);
    assert_eq!(place.verify(&manifest).await.unwrap(), Check::ALL);
    restored_is_what_was_dumped(&place, &manifest).await;
    let query = "SELECT count(*) FROM pg_roles WHERE rolsuper AND rolname LIKE $1";
    let judge = place.fleet.judge("postgres").await;
    let prefix = format!("{}\\_%", place.fleet.naming.prefix());
    assert_eq!(judge.query_one(query, &[&prefix]).await.unwrap().get::<_, i64>(0), 0);
    place.finish().await;
}

/// Every grant in a database, as PostgreSQL's own texts.
const GRANTS: &str = "
SELECT string_agg(line, E'\n' ORDER BY line) FROM (
    SELECT format('%s %s', c.oid::regclass, c.relacl) FROM pg_class c WHERE c.relnamespace IN ('public'::regnamespace, 'app'::regnamespace)
    UNION ALL
    SELECT format('%s.%s %s', attrelid::regclass, attname, attacl) FROM pg_attribute WHERE attacl IS NOT NULL AND attrelid > 16383
    UNION ALL
    SELECT format('%s %s', oid::regprocedure, coalesce(proacl, acldefault('f', proowner))) FROM pg_proc WHERE pronamespace = 'app'::regnamespace
    UNION ALL
    SELECT format('%s %s', nspname, nspacl) FROM pg_namespace WHERE nspname IN ('public', 'app')
    UNION ALL
    SELECT format('default %s %s %s %s', defaclrole::regrole, nullif(defaclnamespace, 0)::regnamespace, defaclobjtype, defaclacl) FROM pg_default_acl
    UNION ALL
    SELECT format('policy %s %s', polname, polroles::regrole[]) FROM pg_policy
) AS lines (line)";

#[tokio::test]
async fn what_the_tenant_granted_and_took_back_is_so_again() {
    let place = Place::new(Spec::default()).await;
    let reader = place.roles.name(TenantRole::Reader).unwrap().quoted();
    let judge = place.fleet.judge("postgres").await;
    let analyst = format!("{}_analyst", place.fleet.naming.prefix());
    judge.batch_execute(&format!("CREATE ROLE {analyst}")).await.unwrap();
    let script = format!(
        "CREATE TABLE open (id int, pin text);
        CREATE TABLE secret (id int);
        CREATE TABLE partly (id int, pin text);
        CREATE SCHEMA app;
        CREATE SEQUENCE app.numbers;
        CREATE FUNCTION app.f(a int, VARIADIC b text[]) RETURNS int LANGUAGE sql AS 'SELECT 1';
        CREATE POLICY p ON open FOR SELECT TO {reader} USING (id > 0);
        REVOKE ALL ON secret FROM {reader};
        REVOKE ALL ON partly FROM {reader};
        GRANT SELECT (id) ON partly TO {reader} WITH GRANT OPTION;
        GRANT INSERT, SELECT ON open TO {analyst};
        REVOKE DELETE ON open FROM CURRENT_USER;
        REVOKE EXECUTE ON FUNCTION app.f FROM PUBLIC;
        GRANT USAGE ON SEQUENCE app.numbers TO {reader};
        REVOKE USAGE ON SCHEMA app FROM {reader};
        ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON ROUTINES FROM PUBLIC;
        ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT INSERT ON TABLES TO {analyst};
        DO $$ BEGIN
            IF current_setting('server_version_num')::int >= 180000 THEN
                EXECUTE 'ALTER DEFAULT PRIVILEGES GRANT SELECT ON LARGE OBJECTS TO PUBLIC';
            END IF;
        END $$"
    );
    place.run(&script).await;
    let (_backup, manifest) = place.backup_new().await;
    let target = place.target().await;
    let report = place.restore(&manifest, &target).await.unwrap();
    assert_eq!(report.privileges_left_out, Vec::<String>::new());
    let grants = async |database: &DatabaseName| -> String {
        place.fleet.judge(database.as_str()).await.query_one(GRANTS, &[]).await.unwrap().get(0)
    };
    let (before, after) = (grants(&place.database).await, grants(&target).await);
    assert!(before.contains("secret") && before.contains(&analyst) && before.contains("policy p"), "{before}");
    assert_eq!(after, before);

    // A role that is gone by then is named, and the rows come back all the same.
    let gone = format!("DROP OWNED BY {analyst}");
    for database in [&place.database, &target] {
        place.fleet.judge(database.as_str()).await.batch_execute(&gone).await.unwrap();
    }
    judge.batch_execute(&format!("DROP ROLE {analyst}")).await.unwrap();
    let report = place.restore(&manifest, &place.target().await).await.unwrap();
    assert_eq!(report.privileges_left_out.len(), 3, "{:?}", report.privileges_left_out);
    assert!(report.privileges_left_out.iter().all(|left| left.contains(&analyst)));
    place.finish().await;
}

/// What others made, what nobody may use, and what only looks like the daemon's own.
#[tokio::test]
async fn what_was_not_the_owners_is_the_owners_and_of_use_to_it() {
    let place = Place::new(Spec::default()).await;
    let reader = place.roles.name(TenantRole::Reader).unwrap().quoted();
    let owner = place.roles.owner.quoted();
    place.run("CREATE TABLE nobodys (a int); REVOKE ALL ON nobodys FROM CURRENT_USER").await;
    place.run(&format!("REVOKE ALL ON nobodys FROM {reader}")).await;
    // Its constructors are PostgreSQL's own, before and after.
    place.run("CREATE TYPE spans AS RANGE (subtype = int)").await;
    place.run("SET ROLE NONE; CREATE SCHEMA logins; CREATE TABLE logins.t AS SELECT 2 AS a").await;
    let judge = place.fleet.judge(place.database.as_str()).await;
    let script = format!(
        "CREATE TABLE public.dba AS SELECT 1 AS a;
        GRANT SELECT ON public.dba TO {reader} WITH GRANT OPTION;
        CREATE FUNCTION public.dbas() RETURNS int LANGUAGE sql AS 'SELECT 3';
        CREATE FUNCTION public.closed() RETURNS int LANGUAGE sql AS 'SELECT 4';
        REVOKE EXECUTE ON FUNCTION public.closed() FROM PUBLIC;
        CREATE FUNCTION public.last(a float8[]) RETURNS float8 LANGUAGE sql AS 'SELECT a[cardinality(a)]';
        CREATE AGGREGATE public.ordered(ORDER BY double precision)
            (sfunc = array_append, stype = float8[], finalfunc = public.last);
        ALTER AGGREGATE public.ordered(ORDER BY double precision) OWNER TO {owner};
        ALTER FUNCTION public.last OWNER TO {owner};
        REVOKE ALL ON FUNCTION public.ordered(double precision) FROM PUBLIC"
    );
    judge.batch_execute(&script).await.unwrap();
    let (_backup, manifest) = place.backup_new().await;
    let target = place.target().await;
    let report = place.restore(&manifest, &target).await.unwrap();
    assert_eq!(report.privileges_left_out, Vec::<String>::new());
    let login = place.login.role.as_str();
    let of = ["ROUTINE public.closed() (of postgres)", "ROUTINE public.dbas() (of postgres)"].map(str::to_owned);
    let logins = [format!("SCHEMA logins (of {login})"), format!("TABLE logins.t (of {login})")];
    let table = ["TABLE public.dba (of postgres)".to_owned()];
    assert_eq!(report.owners_changed, of.into_iter().chain(logins).chain(table).collect::<Vec<_>>());
    let restored = place.fleet.judge(target.as_str()).await;
    let may = async |role: &str, sql: &str| -> bool {
        restored.batch_execute(&format!("SET ROLE {role}")).await.unwrap();
        let allowed = restored.batch_execute(sql).await.is_ok();
        restored.batch_execute("RESET ROLE").await.unwrap();
        allowed
    };
    let own = "SELECT public.dbas() + public.closed() + dba.a + t.a FROM public.dba, logins.t";
    assert!(may(&owner, own).await);
    assert!(may(&owner, "INSERT INTO dba VALUES (2)").await);
    assert!(may(&reader, "SELECT public.dbas()").await);
    assert!(!may(&reader, "SELECT public.closed()").await);
    assert!(!may(&owner, "SELECT * FROM nobodys").await, "as it was");
    let acl = "SELECT proacl::text FROM pg_proc WHERE proname = 'ordered'";
    let (before, after) = (judge.query_one(acl, &[]).await.unwrap(), restored.query_one(acl, &[]).await.unwrap());
    assert_eq!(before.get::<_, String>(0), after.get::<_, String>(0));
    place.finish().await;
}

#[tokio::test]
async fn schemas_that_begin_as_the_daemons_own_come_back() {
    let place = Place::new(Spec::default()).await;
    let script = "CREATE SCHEMA \"public archive\"; CREATE TABLE \"public archive\".t AS SELECT 1 AS a;
        COMMENT ON SCHEMA \"public archive\" IS 'of old';
        CREATE SCHEMA \"tenantd \"; CREATE TABLE \"tenantd \".t AS SELECT 2 AS a";
    place.run(script).await;
    let (_backup, manifest) = place.backup_new().await;
    assert_eq!(manifest.tables.len(), 2);
    restored_is_what_was_dumped(&place, &manifest).await;
    place.finish().await;
}

#[tokio::test]
async fn a_materialized_view_holds_what_its_owner_may_see() {
    let place = Place::new(Spec::default()).await;
    let script = "CREATE TABLE guarded (a int);
        INSERT INTO guarded SELECT generate_series(1, 30);
        ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
        ALTER TABLE guarded FORCE ROW LEVEL SECURITY;
        CREATE POLICY part ON guarded USING (a <= 7 AND current_setting('app.current_tenant') = 'acme');
        CREATE MATERIALIZED VIEW seen AS SELECT a FROM guarded;
        CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM seen;
        CREATE UNIQUE INDEX ON seen (a);
        CREATE MATERIALIZED VIEW never AS SELECT a FROM guarded WITH NO DATA";
    place.run(script).await;
    let (_backup, manifest) = place.backup_new().await;
    let target = place.target().await;
    place.restore(&manifest, &target).await.unwrap();
    let judge = place.fleet.judge(target.as_str()).await;
    assert_eq!(judge.query_one("SELECT n FROM counted", &[]).await.unwrap().get::<_, i64>(0), 7);
    assert_eq!(judge.query_one("SELECT max(a) FROM seen", &[]).await.unwrap().get::<_, i32>(0), 7);
    let populated = "SELECT relispopulated FROM pg_class WHERE relname = 'never'";
    assert!(!judge.query_one(populated, &[]).await.unwrap().get::<_, bool>(0));
    assert_eq!(place.tables(&target).await, manifest.tables);
    place.finish().await;
}

#[tokio::test]
async fn rows_that_a_later_constraint_would_refuse_come_back() {
    let place = Place::new(Spec::default()).await;
    let tables = (0..8)
        .map(|n| format!("CREATE TABLE t{n} (a small); INSERT INTO t{n} SELECT generate_series(1, 2000)::small;\n"));
    let script = format!(
        "CREATE DOMAIN small AS int; {}
        ALTER DOMAIN small ADD CONSTRAINT really CHECK (VALUE < 1000) NOT VALID;
        COMMENT ON CONSTRAINT really ON DOMAIN small IS 'from now on';
        ALTER TABLE t0 ADD CONSTRAINT positive CHECK (a > 5) NOT VALID",
        tables.collect::<String>()
    );
    place.run(&script).await;
    let (_backup, manifest) = place.backup_new().await;
    restored_is_what_was_dumped(&place, &manifest).await;
    place.finish().await;
}

#[tokio::test]
async fn publications_come_back_as_far_as_the_tenant_may_have_them_and_the_others_are_named() {
    let place = Place::new(Spec::default()).await;
    place.run("CREATE TABLE t (a int); CREATE SCHEMA side; CREATE TABLE side.t (a int)").await;
    place.run("CREATE PUBLICATION own FOR TABLE t, side.t WITH (publish = 'insert')").await;
    let target = place.target().await;
    let (_backup, manifest) = place.backup_new().await;
    let report = place.restore(&manifest, &target).await.unwrap();
    assert_eq!(report.publications_left_out, Vec::<String>::new());

    let judge = place.fleet.judge(place.database.as_str()).await;
    let script = "COMMENT ON PUBLICATION own IS 'the tenant''s'; CREATE PUBLICATION everything FOR ALL TABLES;
        CREATE PUBLICATION a_schema FOR TABLES IN SCHEMA side; CREATE PUBLICATION dbas FOR TABLE t";
    judge.batch_execute(script).await.unwrap();
    let (_backup, manifest) = place.backup_new().await;
    let target = place.target().await;
    let report = place.restore(&manifest, &target).await.unwrap();
    let left_out = report.publications_left_out;
    assert!(left_out.len() == 2 && left_out[0].contains("everything") && left_out[1].contains("side"), "{left_out:#?}");
    let published = "SELECT string_agg(line, ',' ORDER BY line) FROM (
        SELECT format('%s %s %s', pubname, schemaname, tablename) AS line FROM pg_publication_tables) AS lines";
    let restored = place.fleet.judge(target.as_str()).await;
    let found: String = restored.query_one(published, &[]).await.unwrap().get(0);
    assert_eq!(found, "dbas public t,own public t,own side t");
    place.finish().await;
}

#[tokio::test]
async fn an_empty_database_is_a_good_backup() {
    let place = Place::new(Spec::default()).await;
    let (_backup, manifest) = place.backup_new().await;
    assert_eq!(manifest.tables, []);
    assert_eq!(place.verify(&manifest).await.unwrap(), Check::ALL);
    restored_is_what_was_dumped(&place, &manifest).await;
    place.finish().await;
}

#[tokio::test]
async fn the_numbers_are_those_of_the_dump_whatever_is_written_meanwhile() {
    let place = Place::new(Spec::default()).await;
    place.run("CREATE TABLE t (id serial, a int); INSERT INTO t (a) SELECT generate_series(1, 100)").await;
    // The snapshot has been taken by then, and `pg_dump` has not begun.
    let write = async |_upload| {
        let locks = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
            WHERE relation = 't'::regclass AND mode = 'AccessShareLock' AND usename = $1";
        let judge = place.fleet.judge(place.database.as_str()).await;
        let locked: i64 = judge.query_one(locks, &[&place.server.dump().role.as_str()]).await.unwrap().get(0);
        assert_eq!(locked, 1, "nobody may alter the table before it is dumped and digested");
        place
            .run("DELETE FROM t WHERE a < 10; UPDATE t SET a = -a; INSERT INTO t (a) SELECT generate_series(1, 7)")
            .await;
        Ok(())
    };
    let manifest = place.dump(place.backup(), write).await.unwrap();
    assert_eq!(manifest.tables[0].row_count, 100);
    assert_eq!((manifest.sequences[0].low, manifest.sequences[0].high), (Some(100), Some(107)));
    restored_is_what_was_dumped(&place, &manifest).await;
    let live = place.tables(&place.database).await;
    assert_ne!(live[0].digest, manifest.tables[0].digest);
    place.finish().await;
}

#[tokio::test]
async fn a_damaged_archive_is_refused_and_the_check_is_named() {
    let place = Place::new(Spec::default()).await;
    place.run("CREATE TABLE t AS SELECT md5(n::text) FROM generate_series(1, 10000) n").await;
    let (backup, manifest) = place.backup_new().await;
    let key = backup.keys().archive;
    let good = place.store.get(&key, 64 << 20).await.unwrap();
    let target = place.target().await;
    let flipped = |position: usize| {
        let mut bytes = good.to_vec();
        bytes[position] ^= 0x10;
        (bytes, Check::Sha256)
    };
    let cut = |bytes: usize| (good[..bytes].to_vec(), Check::Size);
    let last = good.len() - 1;
    let damages = [flipped(0), flipped(150), flipped(last / 2), flipped(last), cut(0), cut(1), cut(65_536), cut(last)];
    for (bytes, expected) in damages {
        place.store.put(&key, Bytes::from(bytes)).await.unwrap();
        for refused in [place.verify(&manifest).await.map(drop), place.restore(&manifest, &target).await.map(drop)] {
            assert!(matches!(refused, Err(Error::Archive { check, .. }) if check == expected), "{refused:?}");
        }
    }
    place.store.delete(&key).await.unwrap();
    assert!(place.verify(&manifest).await.unwrap_err().is_damage());
    place.store.put(&key, good.clone()).await.unwrap();
    assert_eq!(place.verify(&manifest).await.unwrap(), Check::ALL);
    place.finish().await;
}

#[tokio::test]
async fn swapped_and_changed_backups_are_refused() {
    let place = Place::new(Spec::default()).await;
    place.run("CREATE TABLE t (a int)").await;
    let (first, first_manifest) = place.backup_new().await;
    let (second, _) = place.backup_new().await;
    let object = async |key: &str| place.store.get(key, 64 << 20).await.unwrap();
    let (archive, manifest) = (object(&second.keys().archive).await, object(&second.keys().manifest).await);
    let read = async |backup: BackupRef| manifest_read(&place.store, &place.signer, backup).await;
    let own = object(&first.keys().manifest).await;
    place.store.put(&first.keys().manifest, manifest).await.unwrap();
    let error = read(first).await.unwrap_err().to_string();
    assert!(error.contains(&second.backup.to_string()), "{error}");
    let mut changed = own.to_vec();
    changed[own.len() / 2] ^= 1;
    place.store.put(&first.keys().manifest, changed.into()).await.unwrap();
    assert!(matches!(read(first).await, Err(Error::Manifest { .. })));
    place.store.put(&first.keys().archive, archive).await.unwrap();
    assert!(matches!(place.verify(&first_manifest).await, Err(Error::Archive { .. })));
    place.finish().await;
}

#[tokio::test]
async fn a_dump_that_is_killed_half_way_leaves_nothing() {
    let proxy = Proxy::start(machine().s3).await;
    let spec = Spec { store: Some(proxy.address), ..Spec::default() };
    let place = Place::new(spec.setting("[store]", "part_bytes_min", &(5 << 20).to_string())).await;
    place.run(FLOOD).await;
    let judge = place.fleet.judge("postgres").await;
    // The store stops reading in the middle of the first part. Behind it two parts more fit, and the dump has six.
    let armed = tokio::sync::Notify::new();
    let dumping = place.dump(place.backup(), async |_upload| {
        proxy.stall_after(1 << 20);
        armed.notify_one();
        Ok(())
    });
    let killing = async {
        armed.notified().await;
        proxy.stalled().await;
        // As `pg_dump` writes it; the digests' session reads the same rows.
        let query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE datname = $1 AND query LIKE 'COPY %noise% TO stdout;'";
        until("the dump copies rows", || async {
            let killed: i64 = judge.query_one(query, &[&place.database.as_str()]).await.unwrap().get(0);
            (killed == 1).then_some(())
        })
        .await;
        proxy.flow();
    };
    let (dumped, ()) = tokio::join!(dumping, killing);
    let error = dumped.unwrap_err().to_string();
    assert!(error.contains("pg_dump") && error.contains("terminat"), "{error}");
    assert_eq!(place.in_bucket().await, Vec::<String>::new());
    place.finish().await;
}

#[tokio::test]
async fn a_store_that_stalls_fails_the_backup_and_the_repetition_cleans_up() {
    let proxy = Proxy::start(machine().s3).await;
    let spec = Spec { store: Some(proxy.address), ..Spec::default() };
    let spec = spec.setting("[backup]", "stall_timeout", "\"1s\"").setting("[store]", "request_timeout", "\"1s\"");
    let place = Place::new(spec).await;
    place.fleet.allow_log("could not be given up");
    place.run(NOISE).await;
    let (backup, persisted) = (place.backup(), Mutex::new(None::<UploadId>));
    let keep = async |upload| {
        *persisted.lock().unwrap_or_else(PoisonError::into_inner) = Some(upload);
        proxy.stall_after(1 << 20);
        Ok(())
    };
    let error = place.dump(backup, keep).await.unwrap_err();
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
    assert!(error.is_retryable());
    assert_eq!(place.in_bucket().await, [backup.keys().archive]);
    let upload = persisted.into_inner().unwrap();
    uploads_give_up(&place.fleet.store(), backup, upload.as_ref()).await.unwrap();
    assert_eq!(place.in_bucket().await, Vec::<String>::new());
    uploads_give_up(&place.fleet.store(), backup, upload.as_ref()).await.unwrap();
    place.finish().await;
}

#[tokio::test]
async fn an_upload_whose_id_cannot_be_persisted_is_given_up() {
    let place = Place::new(Spec::default()).await;
    let refuse = async |_upload| Err(std::io::Error::other("no catalog"));
    let error = place.dump(place.backup(), refuse).await.unwrap_err();
    assert!(matches!(error, Error::Persist(_)), "{error}");
    assert_eq!(place.in_bucket().await, Vec::<String>::new());
    place.finish().await;
}
