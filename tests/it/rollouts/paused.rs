//! Rollouts that pause: nobody is in a tenant's database while it is migrated, and everybody is back afterwards,
//! whatever became of the migration or of the daemon. The judge is the server's own list of roles and sessions.

use std::time::Duration;

use tenantd::domain::tenant::TenantRole;
use tenantd::proto::v1::{
    CreateRolloutRequest, GetRolloutRequest, OperationState, Rollout, RolloutState, RolloutTargetState,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use uuid::Uuid;

use super::{SECOND, begin, only, summary, suspend, target_state};
use crate::harness::{Client, Fleet, Spec, reason, until};
use crate::router::gates::{direct, ended, resolve};

/// A fleet whose second migration ends when the test says so.
struct Paused {
    fleet: Fleet,
    judge: tokio_postgres::Client,
}

impl Paused {
    async fn new() -> Self {
        Self::with(Spec::default()).await
    }

    async fn with(spec: Spec) -> Self {
        // However slow the machine is, who waits is not sent away.
        let fleet = Fleet::new(spec.setting("[router]", "pause_wait_max", "\"2m\"")).await;
        let judge = fleet.judge("postgres").await;
        Self { fleet, judge }
    }

    fn go_role(&self) -> String {
        format!("{}_go", self.fleet.naming.prefix())
    }

    /// The second migration: it waits, and then does this.
    fn migration(&self, then: &str) {
        let role = self.go_role();
        let wait =
            format!("WHILE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') LOOP PERFORM pg_sleep(0.05)");
        self.fleet.migration(SECOND.0, &format!("DO $$ BEGIN {wait}; END LOOP; END $$;\n{then}\n"));
    }

    async fn go(&self) {
        self.judge.batch_execute(&format!("CREATE ROLE {}", self.go_role())).await.unwrap();
    }

    fn role(&self, code: &str, role: TenantRole) -> String {
        format!("{}_{code}{}", self.fleet.naming.prefix(), role.suffix())
    }

    /// Which of the tenant's logins may log in.
    async fn logins(&self, code: &str) -> Vec<TenantRole> {
        let mut enabled = Vec::new();
        for role in TenantRole::LOGINS {
            let sql = "SELECT rolcanlogin FROM pg_roles WHERE rolname = $1";
            if self.judge.query_one(sql, &[&self.role(code, role)]).await.unwrap().get(0) {
                enabled.push(role);
            }
        }
        enabled
    }

    /// As whom anybody is in the tenant's database.
    async fn sessions(&self, code: &str) -> Vec<String> {
        let sql = "SELECT DISTINCT usename::text FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend' ORDER BY 1";
        let database = format!("{}_{code}", self.fleet.naming.prefix());
        self.judge.query(sql, &[&database]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    async fn gate(&self, code: &str) -> String {
        let shared = self.fleet.judge(self.fleet.naming.shared_database().as_str()).await;
        shared.query_one("SELECT gate FROM tenants WHERE code = $1", &[&code]).await.unwrap().get(0)
    }

    /// Until the migration runs, in another backend than this one; everybody is out by then.
    async fn migrating_again(&self, code: &str, before: i32) -> i32 {
        let migrator = self.role(code, TenantRole::Migrator);
        let sql = "SELECT pid FROM pg_stat_activity WHERE usename = $1 AND query LIKE '%pg_sleep%' AND pid <> $2";
        until("the migration runs", || async {
            self.judge.query_opt(sql, &[&migrator, &before]).await.unwrap().map(|row| row.get(0))
        })
        .await
    }

    async fn migrating(&self, code: &str) -> i32 {
        self.migrating_again(code, 0).await
    }

    /// Open, with every login as it was made.
    async fn assert_open(&self, client: &Client, code: &str) {
        assert_eq!((self.gate(code).await.as_str(), self.logins(code).await), ("OPEN", TenantRole::LOGINS.to_vec()));
        assert_eq!(client.sql(code, "SELECT count(*) >= 20 FROM things").await, "true");
    }
}

async fn begin_paused(client: &Client, tenants: &[&str]) -> Rollout {
    begin_with(client, tenants, CreateRolloutRequest::default()).await
}

async fn begin_with(client: &Client, tenants: &[&str], request: CreateRolloutRequest) -> Rollout {
    let request = CreateRolloutRequest {
        request_id: Uuid::new_v4().to_string(),
        tenants: tenants.iter().map(|&tenant| tenant.to_owned()).collect(),
        pause: true,
        ..request
    };
    let rollout = client.migrations().create_rollout(request).await.unwrap().into_inner().rollout.unwrap();
    assert!(rollout.pause);
    rollout
}

fn call(client: &Client, code: &str, sql: &str) -> JoinHandle<String> {
    let (client, code, sql) = (client.clone(), code.to_owned(), sql.to_owned());
    tokio::spawn(async move { client.sql(&code, &sql).await })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_wait_and_nobody_else_gets_in_while_a_tenant_is_migrated() {
    let paused = Paused::new().await;
    let daemon = paused.fleet.start().await;
    let client = &daemon.client;
    for code in ["acme", "beta"] {
        client.tenant(code).await;
    }
    client.sql("acme", "SELECT 1").await;
    let route = resolve(client, true).await.unwrap();
    let (idle, busy) = (direct(&route).await.unwrap(), direct(&route).await.unwrap());
    busy.batch_execute("BEGIN; SELECT 1").await.unwrap();
    paused.migration("ALTER TABLE things ADD COLUMN colour text DEFAULT 'blue';");
    let rollout = begin_paused(client, &["acme"]).await;
    paused.migrating("acme").await;
    assert_eq!(paused.gate("acme").await, "PAUSED");
    assert_eq!(paused.logins("acme").await, [TenantRole::Migrator]);
    assert_eq!(paused.sessions("acme").await, [paused.role("acme", TenantRole::Migrator)]);
    for session in [idle, busy] {
        ended(&session).await;
    }
    assert_eq!(direct(&route).await.err().as_deref(), Some("28000"));
    // It waits at the gate and sees what was migrated; others are served.
    let waits = call(client, "acme", "SELECT min(colour) FROM things");
    assert_eq!(client.sql("beta", "SELECT count(*) FROM things").await, "20");
    for refused in [
        suspend(client, Uuid::new_v4(), "acme").await.map(drop),
        client.backup_create(Uuid::new_v4(), "acme").await.map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert_eq!(
            (reason(&refused).as_str(), super::holder(&refused)),
            ("OPERATION_CONFLICT", rollout.rollout_id.clone())
        );
    }
    assert!(!waits.is_finished());
    assert_eq!(paused.sessions("acme").await.len(), 1, "nobody got in");
    paused.go().await;
    assert_eq!(waits.await.unwrap(), "blue");
    let ended = client.rollout_ended(&rollout.rollout_id).await;
    assert_eq!((ended.state(), ended.pause), (RolloutState::Succeeded, true));
    assert_eq!(summary(only(&ended)), (RolloutTargetState::Migrated, 1, 2, 1));
    paused.assert_open(client, "acme").await;
    assert_eq!(
        client.succeeded(&client.backup_create(Uuid::new_v4(), "acme").await.unwrap()).await.state(),
        OperationState::Succeeded
    );
    paused.fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_fails_opens_its_tenant_and_what_was_locked_before_stays_locked() {
    let paused = Paused::new().await;
    let daemon = paused.fleet.start().await;
    let client = &daemon.client;
    for code in ["acme", "beta"] {
        client.tenant(code).await;
    }
    let by_hand = paused.role("acme", TenantRole::DirectB);
    paused.judge.batch_execute(&format!("ALTER ROLE {by_hand} NOLOGIN")).await.unwrap();
    let logins: Vec<_> = TenantRole::LOGINS.into_iter().filter(|role| *role != TenantRole::DirectB).collect();
    paused.migration("DO $$ BEGIN IF current_database() LIKE '%acme' THEN RAISE EXCEPTION 'not here'; END IF; END $$;");
    let request = CreateRolloutRequest { max_failures: 1, ..CreateRolloutRequest::default() };
    let rollout = begin_with(client, &["acme", "beta"], request).await;
    paused.migrating("acme").await;
    paused.migrating("beta").await;
    paused.go().await;
    let ended = client.rollout_ended(&rollout.rollout_id).await;
    assert_eq!(ended.targets[0].state(), RolloutTargetState::Failed);
    assert!(ended.targets[0].error.contains("not here"), "{ended:#?}");
    assert_eq!((paused.gate("acme").await.as_str(), paused.logins("acme").await), ("OPEN", logins));
    assert_eq!(client.sql("acme", "SELECT count(*) FROM things").await, "20");
    assert_eq!(summary(&ended.targets[1]), (RolloutTargetState::Migrated, 1, 2, 1));
    paused.assert_open(client, "beta").await;
    paused.fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_is_behind_and_in_service_is_paused() {
    let paused = Paused::new().await;
    let daemon = paused.fleet.start().await;
    let client = &daemon.client;
    for code in ["acme", "beta"] {
        client.tenant(code).await;
    }
    // Each move of the gate is a revision.
    let before = client.tenant_get("acme").await.unwrap();
    let request = CreateRolloutRequest { verify: true, ..CreateRolloutRequest::default() };
    let rollout = begin_with(client, &["acme"], request).await;
    assert_eq!(only(&client.rollout_ended(&rollout.rollout_id).await).state(), RolloutTargetState::Current);
    assert_eq!(client.tenant_get("acme").await.unwrap().etag, before.etag, "nothing was to be done");

    client.succeeded(&client.tenant_suspend(Uuid::new_v4(), "beta", "unpaid").await.unwrap()).await;
    paused.fleet.migration(SECOND.0, SECOND.1);
    let rollout = begin_paused(client, &["beta"]).await;
    assert_eq!(only(&client.rollout_ended(&rollout.rollout_id).await).state(), RolloutTargetState::Migrated);
    assert_eq!(
        (paused.gate("beta").await.as_str(), paused.logins("beta").await),
        ("CLOSED", vec![TenantRole::Migrator])
    );
    paused.fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_waits_for_a_tenant_that_another_one_has_paused() {
    let paused = Paused::new().await;
    let daemon = paused.fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    paused.migration("CREATE TABLE colours (name text);");
    let first = begin_paused(client, &["acme"]).await;
    paused.migrating("acme").await;
    let others = [begin_paused(client, &["acme"]).await, begin(client, &["acme"], false).await.unwrap()];
    // Each has looked at its target some times by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for other in &others {
        assert_eq!(target_state(client, other).await, RolloutTargetState::Pending);
    }
    assert_eq!(paused.logins("acme").await, [TenantRole::Migrator]);
    paused.go().await;
    assert_eq!(summary(only(&client.rollout_ended(&first.rollout_id).await)), (RolloutTargetState::Migrated, 1, 2, 1));
    for other in others {
        let ended = client.rollout_ended(&other.rollout_id).await;
        assert_eq!(summary(only(&ended)), (RolloutTargetState::Current, 2, 2, 0), "{ended:#?}");
    }
    paused.assert_open(client, "acme").await;
    paused.fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_cannot_be_opened_in_its_turn_is_opened_while_the_others_have_theirs() {
    let paused = Paused::with(Spec::default().setting("[operations]", "repeat_max", "\"1s\"")).await;
    paused.fleet.expect_log("a paused tenant cannot be opened; it is tried again");
    let daemon = paused.fleet.start().await;
    let client = &daemon.client;
    for code in ["acme", "beta"] {
        client.tenant(code).await;
    }
    let wait = "WHILE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = current_database() || '_go') LOOP PERFORM pg_sleep(0.05)";
    paused.fleet.migration(SECOND.0, &format!("DO $$ BEGIN {wait}; END LOOP; END $$;\n"));
    let go = async |code: &str| {
        let role = format!("{}_{code}_go", paused.fleet.naming.prefix());
        paused.judge.batch_execute(&format!("CREATE ROLE {role}")).await.unwrap();
    };
    let rollout = begin_paused(client, &["acme", "beta"]).await;
    paused.migrating("acme").await;
    paused.migrating("beta").await;
    let (reader, away) = (paused.role("acme", TenantRole::Reader), format!("{}_away", paused.fleet.naming.prefix()));
    paused.judge.batch_execute(&format!("ALTER ROLE {reader} RENAME TO {away}")).await.unwrap();
    go("acme").await;
    let target = async |number: usize| {
        let request = GetRolloutRequest { rollout_id: rollout.rollout_id.clone(), ..GetRolloutRequest::default() };
        let rollout = client.migrations().get_rollout(request).await.unwrap().into_inner().rollout.unwrap();
        rollout.targets[number].clone()
    };
    let left = until("its turn has ended", || async {
        Some(target(0).await).filter(|target| target.state() != RolloutTargetState::Running)
    })
    .await;
    assert_eq!(left.state(), RolloutTargetState::Migrated);
    assert!(left.error.contains("was not opened in its turn"), "{left:?}");
    assert_eq!(paused.gate("acme").await, "PAUSED");
    paused.judge.batch_execute(&format!("ALTER ROLE {away} RENAME TO {reader}")).await.unwrap();
    until("it is opened", || async { (paused.gate("acme").await == "OPEN").then_some(()) }).await;
    paused.assert_open(client, "acme").await;
    assert_eq!(target(1).await.state(), RolloutTargetState::Running);
    assert_eq!(paused.logins("beta").await, [TenantRole::Migrator]);
    go("beta").await;
    assert_eq!(client.rollout_ended(&rollout.rollout_id).await.state(), RolloutState::Succeeded);
    paused.assert_open(client, "beta").await;
    paused.fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_has_its_turn_while_a_rollout_waits_for_it() {
    let spec = Spec::default().setting("[operations]", "concurrency_max", "1");
    let paused = Paused::with(spec.setting("[migrator]", "concurrency_max", "1")).await;
    let daemon = paused.fleet.start().await;
    let client = &daemon.client;
    for code in ["acme", "beta"] {
        client.tenant(code).await;
    }
    paused.migration("");
    let rollout = begin_paused(client, &["acme", "beta"]).await;
    paused.migrating("acme").await;
    // Before the rollout comes to this tenant.
    let backup = client.backup_create(Uuid::new_v4(), "beta").await.unwrap();
    paused.go().await;
    client.succeeded(&backup).await;
    let ended = client.rollout_ended(&rollout.rollout_id).await;
    assert_eq!((ended.state(), ended.counts.unwrap().migrated), (RolloutState::Succeeded, 2));
    paused.assert_open(client, "beta").await;
    paused.fleet.stop(daemon).await;
}

/// Where a daemon is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// The gate is paused, and no login is locked.
    Pausing,
    Migrating,
    /// The migration is done, and the logins are locked.
    Reopening,
}

/// Has whoever locks or unlocks this login wait.
async fn role_hold(paused: &Paused, role: &str) -> tokio_postgres::Client {
    let holder = paused.fleet.judge("postgres").await;
    holder.batch_execute(&format!("BEGIN; ALTER ROLE {role} CONNECTION LIMIT 9")).await.unwrap();
    holder
}

fn role_waiters(what: &str) -> String {
    format!(
        "SELECT {what} FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'ALTER ROLE %' || $1 || '%'"
    )
}

async fn role_waits(paused: &Paused) -> bool {
    let count = role_waiters("count(*)");
    paused.judge.query_one(&count, &[&paused.fleet.naming.prefix()]).await.unwrap().get::<_, i64>(0) > 0
}

async fn killed_at(moment: Moment) {
    let paused = Paused::with(Spec::default().setting("[operations]", "lease", "\"3s\"")).await;
    paused.fleet.allow_log("the operation stands still until a daemon claims it again");
    let daemon = paused.fleet.spawn();
    daemon.client.tenant("acme").await;
    paused.migration("CREATE TABLE colours (name text);");
    let login = paused.role("acme", TenantRole::DirectA);
    let mut holder = None;
    if matches!(moment, Moment::Pausing) {
        holder = Some(role_hold(&paused, &login).await);
    }
    let rollout = begin_paused(&daemon.client, &["acme"]).await;
    let mut backend = 0;
    if holder.is_none() {
        backend = paused.migrating("acme").await;
    }
    if matches!(moment, Moment::Reopening) {
        holder = Some(role_hold(&paused, &login).await);
        paused.go().await;
    }
    if holder.is_some() {
        until("it waits for the login", || async { role_waits(&paused).await.then_some(()) }).await;
    }
    assert_eq!(paused.gate("acme").await, "PAUSED");
    daemon.kill();
    if let Some(holder) = holder {
        // What the dead daemon has asked for is not done after its death.
        paused
            .judge
            .execute(&role_waiters("pg_terminate_backend(pid)"), &[&paused.fleet.naming.prefix()])
            .await
            .unwrap();
        until("nobody waits for the login", || async { (!role_waits(&paused).await).then_some(()) }).await;
        holder.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(paused.logins("acme").await.contains(&TenantRole::DirectA), matches!(moment, Moment::Pausing));
    }
    let daemon = paused.fleet.spawn();
    if !matches!(moment, Moment::Reopening) {
        assert_eq!(paused.gate("acme").await, "PAUSED", "a pause does not end by itself");
        // What the dead daemon has left there is ended before.
        paused.migrating_again("acme", backend).await;
        assert_eq!(paused.logins("acme").await, [TenantRole::Migrator]);
        paused.go().await;
    }
    let ended = daemon.client.rollout_ended(&rollout.rollout_id).await;
    assert_eq!(summary(only(&ended)), (RolloutTargetState::Migrated, 1, 2, 1), "{ended:#?}");
    until("the tenant is served", async || daemon.client.execute("acme", "SELECT 1").await.ok()).await;
    paused.assert_open(&daemon.client, "acme").await;
    daemon.terminate().await;
    paused.fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_that_is_killed_before_it_locks_a_login_goes_on() {
    killed_at(Moment::Pausing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_that_is_killed_in_its_migration_goes_on() {
    killed_at(Moment::Migrating).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_that_is_killed_before_it_unlocks_a_login_is_ended() {
    killed_at(Moment::Reopening).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_of_another_daemon_wait_as_well() {
    let spec = Spec::default().setting("[[servers]]", "connections_max", "100");
    let paused = Paused::with(spec).await;
    // Whoever had passed its gate before it heard of the pause.
    paused.fleet.allow_log("the tenant cannot be reached; its callers are refused until it can");
    let [one, other] = ["a", "b"].map(|name| {
        paused.fleet.configure(&[("", "instance", format!("{name:?}"))]);
        paused.fleet.spawn()
    });
    one.client.tenant("acme").await;
    until("the other one serves it too", async || other.client.execute("acme", "SELECT 1").await.ok()).await;
    paused.migration("ALTER TABLE things ADD COLUMN colour text DEFAULT 'blue';");
    let stop = CancellationToken::new();
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (client, stop) = (other.client.clone(), stop.clone());
            tokio::spawn(async move {
                let mut answers = 0;
                while !stop.is_cancelled() {
                    match client.execute("acme", "SELECT count(*) FROM things").await {
                        Ok(_) => answers += 1,
                        // The other daemon may hear of the pause when a statement runs already.
                        Err(cut) => {
                            assert_eq!(cut.code(), Code::Unavailable, "{cut:?}");
                            assert!(!cut.message().contains("cannot be reached"), "{cut:?}");
                        }
                    }
                }
                answers
            })
        })
        .collect();
    let rollout = begin_paused(&one.client, &["acme"]).await;
    paused.migrating("acme").await;
    assert_eq!(paused.sessions("acme").await, [paused.role("acme", TenantRole::Migrator)]);
    paused.go().await;
    assert_eq!(one.client.rollout_ended(&rollout.rollout_id).await.state(), RolloutState::Succeeded);
    assert_eq!(other.client.sql("acme", "SELECT min(colour) FROM things").await, "blue");
    stop.cancel();
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
    for daemon in [one, other] {
        daemon.terminate().await;
    }
    paused.fleet.finish().await;
}
