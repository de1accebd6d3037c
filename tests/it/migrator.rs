//! One tenant's migration against a real server: what is applied, what is refused, and that nothing half-done stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tenantd::config::MigratorConfig;
use tenantd::domain::migration::{MigrationFile, Standing};
use tenantd::domain::tenant::TenantId;
use tenantd::migrator::{
    Cause, Directory, FilesHashes, TenantError, TenantReport, history_look, history_read, migrate_tenant,
};
use tenantd::operations::sample_data::sample_rows_insert;
use tenantd::postgres::fingerprint::fingerprint;
use tenantd::postgres::locks::advisory_key;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use crate::harness::{machine, until};

/// A tenant's database with an owner and a login that acts as it, as the daemon makes them.
struct Tenant {
    name: String,
    id: TenantId,
    judge: Client,
}

impl Tenant {
    async fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(1);
        let name = format!("mig_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let server = machine().judge("postgres").await;
        server.batch_execute(&format!("CREATE ROLE {name} NOLOGIN")).await.unwrap();
        server.batch_execute(&format!("CREATE ROLE {name}__m LOGIN PASSWORD 'm' IN ROLE {name}")).await.unwrap();
        server.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0")).await.unwrap();
        server.batch_execute(&format!("ALTER ROLE {name}__m IN DATABASE {name} SET role = {name}")).await.unwrap();
        let judge = machine().judge(&name).await;
        judge.batch_execute(&format!("GRANT ALL ON SCHEMA public TO {name}")).await.unwrap();
        judge.batch_execute(&format!("GRANT CREATE, TEMPORARY ON DATABASE {name} TO {name}")).await.unwrap();
        Self { name, id: TenantId(Uuid::now_v7()), judge }
    }

    async fn client(&self) -> Client {
        self.counted().await.0
    }

    /// A session as the migrator's role, and how many messages it has sent since it began.
    async fn counted(&self) -> (Client, Arc<AtomicUsize>) {
        let server = tokio::net::TcpStream::connect((machine().host.as_str(), machine().port)).await.unwrap();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let count = Arc::new(AtomicUsize::new(0));
        let (mut from_server, mut to_server) = server.into_split();
        let (mut from_client, mut to_client) = tokio::io::split(far);
        tokio::spawn(async move {
            tokio::io::copy(&mut from_server, &mut to_client).await.unwrap();
            to_client.shutdown().await.unwrap();
        });
        let counter = Arc::clone(&count);
        tokio::spawn(async move {
            let startup = from_client.read_u32().await.unwrap();
            let mut message = vec![0; startup as usize - 4];
            from_client.read_exact(&mut message).await.unwrap();
            to_server.write_u32(startup).await.unwrap();
            to_server.write_all(&message).await.unwrap();
            while let Ok(kind) = from_client.read_u8().await {
                let length = from_client.read_u32().await.unwrap();
                message.resize(length as usize - 4, 0);
                from_client.read_exact(&mut message).await.unwrap();
                // A simple query, or the end of a sequence of the extended protocol.
                counter.fetch_add(usize::from(matches!(kind, b'Q' | b'S')), Ordering::Relaxed);
                to_server.write_u8(kind).await.unwrap();
                to_server.write_u32(length).await.unwrap();
                to_server.write_all(&message).await.unwrap();
            }
        });
        let mut config = tokio_postgres::Config::new();
        config.user(format!("{}__m", self.name)).password("m").dbname(&self.name);
        let (client, connection) = config.connect_raw(near, NoTls).await.unwrap();
        tokio::spawn(connection);
        (client, count)
    }

    async fn migrate(&self, files: &[MigrationFile]) -> Result<TenantReport, TenantError> {
        migrate_tenant(&mut self.client().await, files, &settings(), self.id, 0).await
    }

    async fn cause(&self, files: &[MigrationFile]) -> Cause {
        self.migrate(files).await.unwrap_err().cause
    }

    async fn ask(&self, sql: &str) -> String {
        let row = self.judge.query_one(&format!("SELECT ({sql})::text"), &[]).await.unwrap();
        row.get::<_, Option<String>>(0).unwrap_or_default()
    }

    async fn fingerprint(&self) -> String {
        fingerprint(&self.judge).await.unwrap()
    }

    /// Versions in the history, by the code under test's own reader.
    async fn versions(&self) -> Vec<i64> {
        history_read(&self.judge).await.unwrap().iter().map(|applied| applied.version).collect()
    }

    async fn finish(self) {
        let server = machine().judge("postgres").await;
        drop(self.judge);
        server.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await.unwrap();
        server.batch_execute(&format!("DROP ROLE {0}__m, {0}", self.name)).await.unwrap();
    }
}

fn settings() -> MigratorConfig {
    MigratorConfig {
        concurrency_max: 1,
        lock_timeout: Duration::from_secs(20),
        statement_timeout: Duration::from_secs(20),
        advisory_lock_wait_max: Duration::from_secs(20),
    }
}

fn files(files: &[(&str, &str)]) -> Vec<MigrationFile> {
    Directory::from_files(files).unwrap().files
}

fn directory(name: &str) -> Directory {
    Directory::read(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

const A: (&str, &str) = ("V1__a.sql", "CREATE TABLE a (id int PRIMARY KEY, b int);\nINSERT INTO a VALUES (1, 1);");
const B: (&str, &str) = ("V2__b.sql", "CREATE TABLE b (id int PRIMARY KEY);");
const C: (&str, &str) = ("V3__c.sql", "CREATE TABLE c (id int PRIMARY KEY);");

#[test]
fn every_directory_in_the_repository_passes_the_gate() {
    assert_eq!(directory("tenant-migrations").version(), 4);
    assert!(directory("shared-migrations/shared").version() > 0);
    assert!(directory("shared-migrations/auth").version() > 0);
}

#[tokio::test]
async fn a_tenant_is_migrated_in_two_messages_and_one_per_file() {
    let tenant = Tenant::new().await;
    let (mut client, messages) = tenant.counted().await;
    let report = migrate_tenant(&mut client, &files(&[A, B, C]), &settings(), tenant.id, 0).await.unwrap();
    assert_eq!(messages.swap(0, Ordering::Relaxed), 2 + 3);
    assert_eq!((report.from, report.to, report.applied, report.standing), (0, 3, 3, Standing::Current));
    assert_eq!(report.fingerprint, tenant.fingerprint().await);

    let again = migrate_tenant(&mut client, &files(&[A, B, C]), &settings(), tenant.id, 0).await.unwrap();
    assert_eq!(messages.load(Ordering::Relaxed), 2);
    assert_eq!(again, TenantReport { from: 3, applied: 0, ..report });
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(tenant.ask(locks).await, "0");
    assert_eq!(tenant.ask("SELECT relowner::regrole FROM pg_class WHERE relname = 'b'").await, tenant.name);
    tenant.finish().await;
}

#[tokio::test]
async fn the_history_is_the_one_that_refinery_with_int8_versions_keeps() {
    let tenant = Tenant::new().await;
    assert_eq!(tenant.versions().await, [0; 0]);
    tenant.migrate(&files(&[A, B])).await.unwrap();
    let columns = "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
        FROM pg_attribute WHERE attrelid = 'public.refinery_schema_history'::regclass AND attnum > 0";
    assert_eq!(
        tenant.ask(columns).await,
        "version bigint, name character varying(255), applied_on character varying(255), checksum character varying(255)"
    );
    let history = history_read(&tenant.judge).await.unwrap();
    for (applied, (name, sql)) in history.iter().zip([A, B]) {
        let expected = refinery_core::Migration::unapplied(name, sql).unwrap();
        assert_eq!((applied.version, applied.name.as_str()), (expected.version(), expected.name()));
        assert_eq!(applied.checksum, expected.checksum());
    }
    tenant.finish().await;
}

#[tokio::test]
async fn a_file_that_fails_leaves_no_trace_and_is_named_with_its_line() {
    let cases: [(&str, usize, &str); 7] = [
        ("SELECT 1;\n\nSELECT é FROM a;", 3, "42703"),
        ("CREATE TABLE x (a int);\n-- é\nSELEC 1;", 3, "42601"),
        ("CREATE TABLE x (a int);\nCREATE TABLE x (a int);", 2, "42P07"),
        ("CREATE TABLE x (a int);;\n/* ; */ INSERT INTO a\nVALUES (1);\nSELECT 1", 2, "23505"),
        ("CREATE TABLE x (a int);\nDO $$\nBEGIN\nPERFORM 1 / 0;\nEND $$;", 2, "22012"),
        ("UPDATE a SET b = 2;\nSELECT pg_sleep(60);", 2, "57014"),
        ("INSERT INTO public.nowhere VALUES (1)", 1, "42P01"),
    ];
    let tenant = Tenant::new().await;
    tenant.migrate(&files(&[A])).await.unwrap();
    let before = (tenant.fingerprint().await, tenant.ask("SELECT array_agg(a.*) FROM a").await);
    let impatient = MigratorConfig { statement_timeout: Duration::from_millis(300), ..settings() };
    let mut client = tenant.client().await;
    for (sql, expected_line, expected_sqlstate) in cases {
        let files = files(&[A, ("V2__bad.sql", sql), C]);
        let error = migrate_tenant(&mut client, &files, &impatient, tenant.id, 0).await.unwrap_err();
        assert_eq!(error.version, Some(1));
        assert_eq!(error.sqlstate(), Some(expected_sqlstate), "{error}");
        assert!(error.to_string().starts_with(&format!("V2__bad.sql:{expected_line}: ")), "{sql}: {error}");
        assert!(!error.is_retryable(), "{error}");
        assert_eq!((tenant.fingerprint().await, tenant.ask("SELECT array_agg(a.*) FROM a").await), before, "{sql}");
        assert_eq!(tenant.versions().await, [1]);
    }
    // The session, its role and the lock are as they were.
    let report = migrate_tenant(&mut client, &files(&[A, B, C]), &settings(), tenant.id, 0).await.unwrap();
    assert_eq!((report.from, report.to, report.applied), (1, 3, 2));
    tenant.finish().await;
}

#[tokio::test]
async fn what_fails_at_commit_or_in_the_first_file_leaves_not_even_the_history_table() {
    let tenant = Tenant::new().await;
    let before = tenant.fingerprint().await;
    let deferred = "CREATE TABLE p (id int PRIMARY KEY);
        CREATE TABLE q (id int REFERENCES p DEFERRABLE INITIALLY DEFERRED);
        INSERT INTO q VALUES (1);";
    let error = tenant.migrate(&files(&[("V1__deferred.sql", deferred)])).await.unwrap_err();
    assert_eq!((error.sqlstate(), error.version), (Some("23503"), Some(0)));
    assert!(error.to_string().starts_with("V1__deferred.sql at its end: "), "{error}");
    assert_eq!(tenant.fingerprint().await, before);
    assert_eq!(tenant.ask("SELECT to_regclass('public.refinery_schema_history') IS NULL").await, "true");
    tenant.finish().await;
}

#[tokio::test]
async fn runners_that_start_together_take_turns() {
    let tenant = Tenant::new().await;
    let files = files(&[A, B, C]);
    let runs = futures_util::future::join_all((0..5).map(|_| tenant.migrate(&files))).await;
    let reports: Vec<_> = runs.into_iter().map(Result::unwrap).collect();
    assert!(reports.iter().all(|report| report.to == 3));
    assert_eq!(reports.iter().map(|report| report.applied).sum::<usize>(), 3);
    assert_eq!(tenant.versions().await, [1, 2, 3]);
    tenant.finish().await;
}

#[tokio::test]
async fn a_lock_that_somebody_holds_is_waited_for_and_then_named() {
    let tenant = Tenant::new().await;
    let key = advisory_key("migration", tenant.id.0);
    tenant.judge.execute("SELECT pg_advisory_lock($1)", &[&key]).await.unwrap();
    let pid = tenant.ask("SELECT pg_backend_pid()").await;
    let impatient = MigratorConfig { advisory_lock_wait_max: Duration::from_millis(60), ..settings() };
    let files = files(&[A]);
    let error = migrate_tenant(&mut tenant.client().await, &files, &impatient, tenant.id, 0).await.unwrap_err();
    assert!(error.is_retryable());
    assert!(error.to_string().contains(&format!("(the server's process {pid})")), "{error}");
    assert_eq!(tenant.ask("SELECT to_regclass('public.refinery_schema_history') IS NULL").await, "true");

    let release = async {
        until("the runner has asked for the lock", || async {
            let asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_try_advisory_lock%' AND pid <> pg_backend_pid()";
            (tenant.ask(asked).await == "1").then_some(())
        })
        .await;
        tenant.judge.execute("SELECT pg_advisory_unlock($1)", &[&key]).await.unwrap();
    };
    let (report, ()) = tokio::join!(tenant.migrate(&files), release);
    assert_eq!(report.unwrap().applied, 1);
    tenant.finish().await;
}

#[tokio::test]
async fn histories_that_do_not_fit_the_directory_are_told_apart_and_left_alone() {
    let tenant = Tenant::new().await;
    tenant.migrate(&files(&[A, C])).await.unwrap();
    let before = tenant.fingerprint().await;

    let ahead = tenant.migrate(&files(&[A])).await.unwrap();
    assert_eq!((ahead.from, ahead.to, ahead.applied, ahead.standing), (3, 3, 0, Standing::Ahead));
    assert!(matches!(tenant.migrate(&[]).await.unwrap().standing, Standing::Ahead));

    let edited = (C.0, "CREATE TABLE c (id bigint PRIMARY KEY);");
    let cause = tenant.cause(&files(&[A, edited])).await;
    assert!(matches!(&cause, Cause::Divergent { file, version: 3, .. } if file == "V3__c.sql"), "{cause}");
    let renamed = ("V3__other.sql", C.1);
    assert!(matches!(tenant.cause(&files(&[A, renamed])).await, Cause::Divergent { version: 3, .. }));

    let cause = tenant.cause(&files(&[A, B, C])).await;
    assert!(matches!(&cause, Cause::OutOfOrder { file, current: 3 } if file == "V2__b.sql"), "{cause}");
    let cause = tenant.cause(&files(&[C])).await;
    assert!(matches!(&cause, Cause::Missing { version: 1, name } if name == "a"), "{cause}");

    tenant.judge.batch_execute("UPDATE refinery_schema_history SET checksum = NULL WHERE version = 3").await.unwrap();
    let cause = tenant.cause(&files(&[A, C])).await;
    assert!(matches!(&cause, Cause::History { reason } if reason.contains("version 3")), "{cause}");
    assert_eq!((tenant.fingerprint().await, tenant.versions_raw().await), (before, "1,3".to_owned()));
    tenant.finish().await;
}

impl Tenant {
    async fn versions_raw(&self) -> String {
        self.ask("SELECT string_agg(version::text, ',' ORDER BY version) FROM refinery_schema_history").await
    }
}

#[tokio::test]
async fn a_table_that_is_locked_is_tried_again_and_then_reported() {
    let tenant = Tenant::new().await;
    tenant.migrate(&files(&[A])).await.unwrap();
    let files = files(&[A, ("V2__alter.sql", "CREATE TABLE x (a int);\nALTER TABLE a ADD c int;")]);
    let impatient = MigratorConfig { lock_timeout: Duration::from_millis(20), ..settings() };
    let mut client = tenant.client().await;

    tenant.judge.batch_execute("BEGIN; LOCK TABLE a IN ACCESS SHARE MODE").await.unwrap();
    let error = migrate_tenant(&mut client, &files, &impatient, tenant.id, 0).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("55P03"));
    assert!(error.is_retryable());
    assert!(error.to_string().starts_with("V2__alter.sql:2: "), "{error}");
    assert!(error.to_string().ends_with("tried 3 times"), "{error}");

    let release = async {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'a'::regclass";
        until("the file waits for its lock", || async { (tenant.ask(waiting).await == "1").then_some(()) }).await;
        tenant.judge.batch_execute("COMMIT").await.unwrap();
    };
    let settings = settings();
    let (report, ()) = tokio::join!(migrate_tenant(&mut client, &files, &settings, tenant.id, 0), release);
    assert_eq!(report.unwrap().applied, 1);
    tenant.finish().await;
}

#[tokio::test]
async fn a_session_that_is_killed_half_way_leaves_whole_files_only() {
    let tenant = Tenant::new().await;
    tenant.migrate(&files(&[A])).await.unwrap();
    tenant.judge.batch_execute("BEGIN; LOCK TABLE a IN ACCESS SHARE MODE").await.unwrap();
    let files = files(&[A, B, ("V3__alter.sql", "CREATE TABLE x (a int);\nALTER TABLE a ADD c int;")]);
    let kill = async {
        let waiting = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'a'::regclass";
        let waiting = format!("SELECT coalesce(({waiting}), 0)");
        let pid = until("the file waits for its lock", || async {
            Some(tenant.ask(&waiting).await).filter(|pid| pid != "0")
        })
        .await;
        tenant.ask(&format!("SELECT pg_terminate_backend({pid}, 20000)")).await;
    };
    let (outcome, ()) = tokio::join!(tenant.migrate(&files), kill);
    let error = outcome.unwrap_err();
    assert_eq!((error.sqlstate(), error.version, error.is_retryable()), (Some("57P01"), Some(2), true), "{error}");
    tenant.judge.batch_execute("COMMIT").await.unwrap();
    assert_eq!(tenant.versions().await, [1, 2]);
    assert_eq!(tenant.ask("SELECT to_regclass('x') IS NULL").await, "true");
    assert_eq!(tenant.migrate(&files).await.unwrap().applied, 1);
    tenant.finish().await;
}

#[tokio::test]
async fn neither_search_paths_nor_a_tenants_defaults_lead_the_history_astray() {
    let tenant = Tenant::new().await;
    for setting in ["default_transaction_read_only = on", "default_transaction_isolation = serializable"] {
        tenant.judge.batch_execute(&format!("ALTER DATABASE {} SET {setting}", tenant.name)).await.unwrap();
    }
    let dumped = "SELECT pg_catalog.set_config('search_path', '', true);\nCREATE TABLE public.d (a int); -- end";
    let shadow = "CREATE SCHEMA s; SET LOCAL search_path = s; CREATE TABLE e (a int)";
    let all = files(&[("V1__dumped.sql", dumped), ("V2__shadow.sql", shadow), C]);
    let mut client = tenant.client().await;
    migrate_tenant(&mut client, &all, &settings(), tenant.id, 0).await.unwrap();
    assert_eq!(tenant.versions().await, [1, 2, 3]);
    assert_eq!(
        tenant.ask("SELECT to_regclass('s.e') IS NOT NULL AND to_regclass('public.c') IS NOT NULL").await,
        "true"
    );
    tenant.finish().await;
}

#[tokio::test]
async fn a_file_finds_the_session_as_a_new_one_would_be() {
    let (behind, up_to_date) = (Tenant::new().await, Tenant::new().await);
    let leaves = "PREPARE left_over AS SELECT 1;
        CREATE TEMP TABLE left_behind (a int);
        CREATE SEQUENCE numbers;
        SELECT nextval('numbers');
        DECLARE held CURSOR WITH HOLD FOR SELECT 1;
        DO $$ BEGIN
            EXECUTE format('SET ROLE %I', session_user);
            EXECUTE 'SET search_path = pg_temp, public';
            EXECUTE 'SET statement_timeout = 60000';
            EXECUTE 'SET default_transaction_isolation = serializable';
            EXECUTE 'SET default_transaction_read_only = on';
        END $$;";
    let finds = "DO $$ BEGIN
            ASSERT current_user <> session_user, current_user;
            ASSERT current_setting('search_path') = '\"$user\", public', current_setting('search_path');
            ASSERT current_setting('transaction_isolation') = 'read committed', current_setting('transaction_isolation');
            ASSERT to_regclass('left_behind') IS NULL, 'a temporary table';
            ASSERT (SELECT count(*) FROM pg_prepared_statements) = 0, 'a prepared statement';
            ASSERT (SELECT count(*) FROM pg_cursors WHERE is_holdable) = 0, 'a cursor';
        END $$;
        CREATE TABLE own (a int);
        PREPARE left_over AS SELECT 2;";
    let files = files(&[A, ("V2__leaves.sql", leaves), ("V3__finds.sql", finds)]);
    let (mut client, messages) = behind.counted().await;
    let report = migrate_tenant(&mut client, &files, &settings(), behind.id, 0).await.unwrap();
    assert_eq!(messages.load(Ordering::Relaxed), 2 + 3);
    for count in 1..=3 {
        up_to_date.migrate(&files[..count]).await.unwrap();
    }
    assert_eq!(report.fingerprint, up_to_date.fingerprint().await);
    assert_eq!(behind.ask("SELECT relowner::regrole FROM pg_class WHERE relname = 'own'").await, behind.name);
    behind.finish().await;
    up_to_date.finish().await;
}

#[tokio::test]
async fn a_file_is_tried_again_on_a_session_without_its_own_leftovers() {
    let tenant = Tenant::new().await;
    tenant.migrate(&files(&[A])).await.unwrap();
    let files = files(&[A, ("V2__prepares.sql", "PREPARE p AS SELECT 1;\nALTER TABLE a ADD c int;")]);
    let impatient = MigratorConfig { lock_timeout: Duration::from_millis(20), ..settings() };
    tenant.judge.batch_execute("BEGIN; LOCK TABLE a IN ACCESS SHARE MODE").await.unwrap();
    let error = migrate_tenant(&mut tenant.client().await, &files, &impatient, tenant.id, 0).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("55P03"), "{error}");
    assert!(error.to_string().starts_with("V2__prepares.sql:2: "), "{error}");
    assert!(error.to_string().ends_with("tried 3 times"), "{error}");
    tenant.judge.batch_execute("COMMIT").await.unwrap();
    tenant.finish().await;
}

#[tokio::test]
async fn a_history_that_has_lost_rows_is_refused_before_anything_is_run() {
    let tenant = Tenant::new().await;
    let twice = ("V2__twice.sql", "UPDATE a SET b = b * 2;");
    let files = files(&[A, twice]);
    tenant.migrate(&files).await.unwrap();
    let known = |version| {
        let files = &files;
        let tenant = &tenant;
        async move { migrate_tenant(&mut tenant.client().await, files, &settings(), tenant.id, version).await }
    };
    assert_eq!(known(2).await.unwrap().applied, 0);
    for (loss, found) in [
        ("DELETE FROM refinery_schema_history WHERE version = 2", "ends at version 1"),
        ("DROP TABLE refinery_schema_history", "is empty or gone (version 0)"),
    ] {
        tenant.judge.batch_execute(loss).await.unwrap();
        let error = known(2).await.unwrap_err();
        assert!(matches!(error.cause, Cause::HistoryLost { known: 2, .. }), "{error}");
        assert!(error.to_string().contains(found), "{error}");
        assert!(error.to_string().contains("version 2 was applied"), "{error}");
        assert_eq!((error.version, error.is_retryable()), (None, false));
        assert_eq!(tenant.ask("SELECT b FROM a").await, "2");
    }
    assert_eq!(tenant.versions().await, [0; 0]);
    tenant.finish().await;
}

#[tokio::test]
async fn what_was_applied_has_the_hash_that_the_directory_has_up_to_there() {
    let tenant = Tenant::new().await;
    let all = files(&[A, B, C]);
    let expected = FilesHashes::of(&all);
    assert_eq!(history_look(&tenant.judge).await.unwrap().files_hash, expected.up_to(0));
    let first = tenant.migrate(&all[..1]).await.unwrap();
    assert_eq!((first.files_hash.as_str(), first.files_hash == expected.up_to(3)), (expected.up_to(1), false));
    assert_eq!(tenant.migrate(&all).await.unwrap().files_hash, expected.up_to(3));
    assert_eq!(tenant.migrate(&all).await.unwrap().files_hash, expected.up_to(3));
    let looked = history_look(&tenant.judge).await.unwrap();
    assert_eq!((looked.version, looked.files_hash.as_str()), (3, expected.up_to(3)));
    let half = [A, B, ("V3__bad.sql", "SELECT nothing;")];
    let other = Tenant::new().await;
    let error = other.migrate(&files(&half)).await.unwrap_err();
    assert_eq!((error.from, error.version, error.files_hash.as_deref()), (Some(0), Some(2), Some(expected.up_to(2))));
    other.finish().await;
    tenant.finish().await;
}

#[tokio::test]
async fn fingerprints_agree_between_tenants_and_show_every_kind_of_drift() {
    let (one, other) = (Tenant::new().await, Tenant::new().await);
    let sample = directory("tenant-migrations");
    let report = one.migrate(&sample.files).await.unwrap();
    assert_eq!(other.migrate(&sample.files).await.unwrap().fingerprint, report.fingerprint);
    one.judge.batch_execute("ANALYZE; CREATE SCHEMA tenantd; CREATE TABLE tenantd.identity (a int)").await.unwrap();
    assert_eq!(one.fingerprint().await, report.fingerprint);
    let drifts = [
        "CREATE TABLE drift (a int)",
        "ALTER TABLE articles ADD drift int",
        "ALTER TABLE articles ALTER designation DROP NOT NULL",
        "ALTER TABLE articles ALTER unit SET DEFAULT 'kg'",
        "ALTER TABLE articles ALTER grade TYPE text",
        "ALTER TABLE articles DROP CONSTRAINT articles_prices_not_negative",
        "DROP INDEX articles_category_idx",
        "ALTER TYPE partner_type ADD VALUE 'other'",
        "ALTER SEQUENCE stock_movement_numbers INCREMENT 2",
        "CREATE OR REPLACE VIEW article_availability AS SELECT id, code, designation, unit, 0::numeric AS quantity, 0::numeric AS available, false AS is_short FROM articles",
        "DROP TRIGGER articles_touch ON articles",
        "ALTER FUNCTION articles_touch() SECURITY DEFINER",
        "ALTER TABLE articles ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY p ON partners USING (true)",
        "CREATE DOMAIN money_amount AS numeric CHECK (value >= 0)",
        "CREATE SCHEMA another",
        "CREATE STATISTICS st ON category, family FROM articles",
        "CREATE RULE r AS ON DELETE TO stocks DO INSTEAD NOTHING",
    ];
    for drift in drifts {
        one.judge.batch_execute(drift).await.unwrap();
        let drifted = one.fingerprint().await;
        assert_ne!(drifted, other.fingerprint().await, "{drift}");
        other.judge.batch_execute(drift).await.unwrap();
        assert_eq!(drifted, other.fingerprint().await, "{drift}");
    }
    one.finish().await;
    other.finish().await;
}

#[tokio::test]
async fn demo_rows_are_many_and_the_same_for_the_same_seed() {
    let (one, same) = (Tenant::new().await, Tenant::new().await);
    let sample = directory("tenant-migrations");
    for tenant in [&one, &same] {
        tenant.migrate(&sample.files).await.unwrap();
        let mut client = tenant.client().await;
        assert_eq!(sample_rows_insert(&mut client, "acme").await.unwrap(), 31_900);
        assert_eq!(sample_rows_insert(&mut client, "acme").await.unwrap(), 0);
    }
    for (table, rows) in
        [("articles", 2_000), ("partners", 600), ("projects", 300), ("stocks", 4_000), ("stock_movements", 25_000)]
    {
        let digest = format!("SELECT count(*) || ' ' || md5(string_agg(t::text, ',' ORDER BY id)) FROM {table} AS t");
        let digest_one = one.ask(&digest).await;
        assert!(digest_one.starts_with(&format!("{rows} ")), "{table}: {digest_one}");
        assert_eq!(digest_one, same.ask(&digest).await, "{table}");
    }
    let orphans = "SELECT count(*) FROM stock_movements WHERE reference_type = 'project'
        AND reference_id NOT IN (SELECT id FROM projects)";
    assert_eq!(one.ask(orphans).await, "0");
    assert_eq!(one.ask("SELECT last_value FROM stock_movement_numbers").await, "124999");
    one.judge.batch_execute("TRUNCATE articles, partners CASCADE").await.unwrap();
    sample_rows_insert(&mut one.client().await, "globex").await.unwrap();
    assert_ne!(
        one.ask("SELECT min(id::text) FROM articles").await,
        same.ask("SELECT min(id::text) FROM articles").await
    );
    one.finish().await;
    same.finish().await;
}
