//! The whole job as a new user sees it: `tenantd dev` in an empty directory, and the command line beside it. Then the
//! walls between tenants, tried with the tenants' own logins.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tenantd::proto::v1::{ResolveTenantRequest, resolve_tenant_request::Selector};
use tokio_postgres::NoTls;

use crate::harness::{Fleet, Spec, signal, tenantd, until};

/// A user's directory, with `tenantd dev` running in it.
struct Desk {
    dir: tempfile::TempDir,
    dev: Child,
}

impl Desk {
    /// An empty directory with the sample migrations.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let migrations = dir.path().join("tenant-migrations");
        std::fs::create_dir(&migrations).unwrap();
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tenant-migrations")).unwrap() {
            let file = entry.unwrap();
            std::fs::copy(file.path(), migrations.join(file.file_name())).unwrap();
        }
        let dev = Self::dev(dir.path());
        let desk = Self { dir, dev };
        desk.ready().await;
        desk
    }

    fn dev(dir: &Path) -> Child {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("dev.log")).unwrap();
        tenantd()
            .args(["dev", "--listen", "127.0.0.1:0"])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("dev.log")).unwrap()
    }

    /// Up, with its demo tenants: it says what to type next.
    async fn ready(&self) {
        until("dev says what to type next", || async { self.log().contains("./tenantd tenant create").then_some(()) })
            .await;
    }

    fn command(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tenantd")).args(arguments).current_dir(self.dir.path()).output().unwrap()
    }

    /// A command that succeeds, and what it prints.
    fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {}\n{error}\n{}", output.status, self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.run(&[arguments, &["--output", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }

    /// The rows of a statement's answer, as texts.
    fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        let answer = self.json(&["sql", "acme", "-c", sql]);
        let cell = |value: &Value| match value.as_object().and_then(|kinds| kinds.values().next()) {
            Some(Value::String(text)) => text.clone(),
            other => panic!("{sql}: no text in {other:?}"),
        };
        let rows = answer["rows"].as_array().cloned().unwrap_or_default();
        rows.iter().map(|row| row["values"].as_array().unwrap().iter().map(cell).collect()).collect()
    }

    /// Count and digest of every table, by name.
    fn digests(&self) -> Vec<Vec<String>> {
        let tables = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
            WHERE schemaname NOT IN ('pg_catalog', 'information_schema', 'tenantd') ORDER BY 1";
        let digest = |table: &Vec<String>| {
            let query = format!(
                "SELECT '{0}', count(*)::text, coalesce(md5(string_agg(t::text, '|' ORDER BY t::text)), 'none') FROM {0} t",
                table[0]
            );
            self.rows(&query).remove(0)
        };
        self.rows(tables).iter().map(digest).collect()
    }

    async fn stop(&mut self) {
        signal("INT", self.dev.id());
        let dev = std::sync::Mutex::new(&mut self.dev);
        let status = until("dev ends", || async { dev.lock().unwrap().try_wait().unwrap() }).await;
        assert!(status.success(), "dev ended with {status}:\n{}", self.log());
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        drop(self.dev.kill());
        drop(self.dev.wait());
    }
}

#[tokio::test]
async fn the_whole_job() {
    let mut desk = Desk::new().await;
    let created =
        desk.run(&["tenant", "create", "acme", "--name", "Acme Steel", "--tier", "standard", "--sample-data"]);
    assert!(created.contains("acme") && created.contains("ACTIVE"), "{created}");
    assert!(desk.run(&["resolve", "acme"]).contains("erp_topsteel_acme"));
    assert!(desk.run(&["sql", "acme", "-c", "select count(*) from articles"]).contains("(1 row)"));
    assert_eq!(desk.json(&["resolve", "acme"])["route"]["code"], "acme");

    let migration = desk.dir.path().join("tenant-migrations/V900__a_users_own.sql");
    std::fs::write(
        &migration,
        "CREATE TABLE a_users_own (id bigint PRIMARY KEY);\nINSERT INTO a_users_own VALUES (7);\n",
    )
    .unwrap();
    let first = desk.json(&["migrate-all"]);
    assert_eq!(first["rollout"]["state"], "ROLLOUT_STATE_SUCCEEDED", "{first}");
    assert_eq!(first["rollout"]["counts"]["migrated"], 3, "two demo tenants and acme: {first}");
    let second = desk.json(&["migrate-all"]);
    assert_eq!(second["rollout"]["counts"]["current"], 3, "{second}");
    assert_eq!(second["rollout"]["counts"].get("migrated").cloned().unwrap_or(0.into()), 0, "{second}");

    let backup = desk.json(&["backup", "create", "acme"]);
    let id = backup["operation"]["result"]["backup_id"].as_str().unwrap_or_else(|| panic!("{backup}")).to_owned();
    desk.json(&["backup", "verify", &id]);
    desk.json(&["backup", "list"]);
    desk.json(&["backup", "show", &id]);
    let before = desk.digests();
    assert!(before.len() > 5, "{before:?}");
    let rows: u64 = before.iter().map(|table| table[1].parse::<u64>().unwrap()).sum();
    assert!(rows > 20_000, "tens of thousands of rows: {before:?}");
    assert!(before.iter().any(|table| table[0].contains("stock_movements") && table[1] != "0"), "{before:?}");

    desk.json(&["sql", "acme", "-c", "delete from stock_movements"]);
    assert_ne!(desk.digests(), before);
    desk.json(&["restore", &id, "--in-place"]);
    assert_eq!(desk.digests(), before);
    desk.json(&["restore", &id, "--as", "acme_copy"]);
    desk.json(&["tenant", "list"]);
    desk.json(&["operation", "list"]);
    desk.json(&["whoami"]);

    desk.stop().await;
    desk.dev = Desk::dev(desk.dir.path());
    until("the second start serves the same data", || async {
        desk.command(&["resolve", "acme_copy"]).status.success().then_some(())
    })
    .await;
    assert_eq!(desk.digests(), before);
    desk.stop().await;
}

#[tokio::test]
async fn bad_usage_ends_with_64_and_an_unreachable_daemon_with_69() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenantd"));
        command.args(arguments).current_dir(dir.path()).env("HOME", dir.path()).output().unwrap()
    };
    assert_eq!(run(&["no-such-command"]).status.code(), Some(64));
    assert_eq!(run(&["resolve", "acme"]).status.code(), Some(64), "no client file");
    std::fs::write(dir.path().join("key"), "tnd_key").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(dir.path().join("key"), mode).unwrap();
    let refused = run(&["--endpoint", "http://127.0.0.1:1", "--key-file", "key", "resolve", "acme"]);
    assert_eq!(refused.status.code(), Some(69), "{refused:?}");
}

/// What a login may reach, tried.
async fn reaches(fleet: &Fleet, user: &str, password: &str, database: &str) -> bool {
    let mut config = tokio_postgres::Config::new();
    config.host(&fleet.machine.host).port(fleet.machine.port).user(user).password(password).dbname(database);
    match config.connect(NoTls).await {
        Ok((client, connection)) => {
            let driver = tokio::spawn(connection);
            client.simple_query("SELECT 1").await.unwrap();
            drop(client);
            drop(driver.await);
            true
        }
        Err(error) => {
            let code = error.code().map(tokio_postgres::error::SqlState::code);
            // Databases of other tests come and go.
            assert!(matches!(code, Some("42501" | "3D000")), "{error:?}");
            false
        }
    }
}

#[tokio::test]
async fn a_tenants_login_reaches_its_own_database_and_no_other() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    for code in ["acme", "other"] {
        daemon.client.tenant(code).await;
    }
    let request = ResolveTenantRequest { selector: Some(Selector::Code("acme".to_owned())), include_credentials: true };
    let route = daemon.client.router().resolve_tenant(request).await.unwrap().into_inner().route.unwrap();
    let judge = fleet.judge("postgres").await;
    let all = judge.query("SELECT datname::text FROM pg_database WHERE datallowconn", &[]).await.unwrap();
    let mut reached = Vec::new();
    for name in all.iter().map(|row| row.get::<_, String>(0)) {
        if reaches(&fleet, &route.role, &route.password, &name).await {
            reached.push(name);
        }
    }
    assert_eq!(reached, [format!("{}_acme", fleet.naming.prefix())]);
    let query = "SELECT count(*) FROM pg_roles WHERE rolname !~ '^pg_' AND rolname <> 'postgres'
        AND (rolsuper OR rolreplication OR (rolbypassrls AND rolname <> 'tenantd_dump'))";
    assert_eq!(judge.query_one(query, &[]).await.unwrap().get::<_, i64>(0), 0, "no role of ours is privileged");
    fleet.stop(daemon).await;
}
