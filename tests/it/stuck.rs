//! A server that goes away in the middle of an operation: what waits for it, what is undone when it is back, and what a
//! person does about an operation that is stuck. The tenants' server is a cluster of the test's own, and the daemon's
//! databases are on the common one. Daemons that are restarted in the middle of a step belong here too.

use std::time::Duration;

use futures_util::StreamExt as _;
use tenantd::config::write_private;
use tenantd::domain::tenant::database_under_construction;
use tenantd::proto::v1::{
    AbandonOperationRequest, CreateRolloutRequest, Operation, OperationState, OperationStepState,
    RetryOperationRequest, Rollout, RolloutState, TenantState, WatchRolloutRequest,
};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::harness::{Client, Daemon, Fleet, Machine, PATIENCE, Spec, Standstills, reason, until};

const SECOND: &str = "[[servers]] # the catalog's";

/// A fleet whose tenants are on a server of their own, and how long what passes is tried again.
struct Apart {
    fleet: Fleet,
    machine: &'static Machine,
    daemon: Daemon,
}

impl Apart {
    /// With a tenant's suspension that waits for its server, which is stopped.
    async fn with_waiting_suspension() -> (Self, Operation) {
        let apart = Self::new("10m").await;
        apart.client().tenant("acme").await;
        apart.machine.server_stop().await;
        let waiting = apart.client().tenant_suspend(Uuid::new_v4(), "acme", "unpaid").await.unwrap();
        until("it waits for its server", || async {
            let now = apart.client().operation(&waiting.operation_id).await;
            now.steps.iter().any(|step| step.detail.contains("tried again")).then_some(())
        })
        .await;
        (apart, waiting)
    }

    async fn new(repeat_max: &str) -> Self {
        let machine = Machine::with_room_for(60);
        let common = crate::harness::machine();
        let quoted = |text: &str| format!("{text:?}");
        let spec = Spec::default()
            .setting("[operations]", "repeat_max", &quoted(repeat_max))
            .setting("[[servers]]", "host", &quoted(&machine.host))
            .setting("[[servers]]", "port", &machine.port.to_string())
            .setting("[[servers]]", "credentials_file", &quoted("tenants.toml"))
            .setting("", "catalog_server", &quoted("catalog"))
            .setting(SECOND, "name", &quoted("catalog"))
            .setting(SECOND, "host", &quoted(&common.host))
            .setting(SECOND, "port", &common.port.to_string())
            .setting(SECOND, "tls", &quoted("disable"))
            .setting(SECOND, "credentials_file", &quoted("credentials.toml"));
        let fleet = Fleet::new(spec).await;
        write_private(&fleet.dir.join("tenants.toml"), &machine.credentials.to_toml()).unwrap();
        let daemon = fleet.start().await;
        Self { fleet, machine, daemon }
    }

    fn client(&self) -> &Client {
        &self.daemon.client
    }

    /// How many of the tenant's logins may log in, and how many databases and roles it has.
    async fn on_the_server(&self, code: &str) -> (i64, i64) {
        let judge = self.machine.judge("postgres").await;
        let name = format!("{}_{code}", self.fleet.naming.prefix());
        let sql = "SELECT count(*) FILTER (WHERE rolcanlogin), count(*) FROM pg_roles WHERE starts_with(rolname, $1)";
        let row = judge.query_one(sql, &[&name]).await.unwrap();
        (row.get(0), row.get(1))
    }

    /// The tenant's gate, as the catalog has it.
    async fn on_the_catalog(&self, code: &str) -> String {
        let shared = self.fleet.judge(self.fleet.naming.shared_database().as_str()).await;
        shared.query_one("SELECT gate FROM tenants WHERE code = $1", &[&code]).await.unwrap().get(0)
    }

    /// A creation that has made its roles when the server goes away, and is stuck.
    async fn stuck_creation(&self, code: &str) -> Operation {
        self.fleet.expect_log("the step cannot be undone; the operation is stuck");
        let operation = self.creation_cut_off(code).await;
        self.becomes(&operation, OperationState::Stuck).await
    }

    /// A creation that has made its roles when the server goes away.
    async fn creation_cut_off(&self, code: &str) -> Operation {
        let standstills = Standstills::install(&self.fleet).await;
        let (request, armed) = standstills.arm_step("database").await;
        let operation = self.client().tenant_create(request, code).await.unwrap();
        standstills.reached(armed).await;
        self.machine.server_stop().await;
        standstills.pass(armed).await;
        operation
    }

    async fn becomes(&self, operation: &Operation, state: OperationState) -> Operation {
        until("the operation is there", || async {
            let now = self.client().operation(&operation.operation_id).await;
            (now.state() == state).then_some(now)
        })
        .await
    }

    async fn retry(&self, operation: &Operation, request: Uuid) -> Result<Operation, Status> {
        let message = RetryOperationRequest {
            request_id: request.to_string(),
            operation_id: operation.operation_id.clone(),
            validate_only: false,
        };
        Ok(self.client().operations().retry_operation(message).await?.into_inner().operation.unwrap())
    }

    async fn abandon(&self, operation: &Operation, request: Uuid, reason: &str) -> Result<Operation, Status> {
        let message = AbandonOperationRequest {
            request_id: request.to_string(),
            operation_id: operation.operation_id.clone(),
            reason: reason.to_owned(),
            validate_only: false,
        };
        Ok(self.client().operations().abandon_operation(message).await?.into_inner().operation.unwrap())
    }

    /// What the audit log has of this operation.
    async fn audited(&self, operation: &Operation) -> Vec<String> {
        let auth = self.fleet.judge(self.fleet.naming.auth_database().as_str()).await;
        let sql = "SELECT action::text FROM audit_log WHERE resource_id::text = $1 ORDER BY 1";
        let rows = auth.query(sql, &[&operation.operation_id]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    async fn finish(self) {
        self.fleet.stop(self.daemon).await;
    }
}

fn refused(answer: Result<Operation, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), reason(&status))
}

fn not_stuck() -> (Code, String) {
    (Code::FailedPrecondition, "OPERATION_STATE".to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_waits_for_its_server_and_others_get_their_turn() {
    let apart = Apart::new("10m").await;
    apart.client().tenant("acme").await;
    apart.machine.server_stop().await;
    let operation = apart.client().tenant_suspend(Uuid::new_v4(), "acme", "unpaid").await.unwrap();
    let waiting = until("it says what it waits for", || async {
        let now = apart.client().operation(&operation.operation_id).await;
        now.steps.iter().any(|step| step.detail.contains("tried again")).then_some(now)
    })
    .await;
    assert_eq!(waiting.state(), OperationState::Running);
    assert_eq!(apart.client().tenant_get("acme").await.unwrap().state(), TenantState::Suspended);
    assert_eq!(refused(apart.retry(&operation, Uuid::new_v4()).await), not_stuck());
    apart.machine.server_start().await;
    let ended = apart.client().succeeded(&operation).await;
    // However often it was tried: nobody died in it.
    assert!(ended.steps.iter().all(|step| step.attempts == 1), "{ended:#?}");
    assert_eq!(apart.on_the_server("acme").await.0, 1, "only the migrator may log in");
    let operation = apart.client().tenant_resume(Uuid::new_v4(), "acme").await.unwrap();
    apart.client().succeeded(&operation).await;
    assert_eq!(apart.client().sql("acme", "SELECT count(*) FROM things").await, "20");
    apart.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_daemon_drove_waits_for_the_server_and_the_rest_does_not() {
    let (apart, waiting) = Apart::with_waiting_suspension().await;
    apart.fleet.expect_log("sessions of a daemon that is gone cannot be ended; what it drove there waits");
    // It may be at it at this moment.
    apart.fleet.allow_log("the operation stands still until a daemon claims it again");
    let shared = apart.fleet.judge(apart.fleet.naming.shared_database().as_str()).await;
    let dies = "UPDATE operations SET lease_owner = gen_random_uuid(), lease_until = now() - interval '1 second' \
                WHERE id::text = $1";
    assert_eq!(shared.execute(dies, &[&waiting.operation_id]).await.unwrap(), 1);
    // Nobody is behind, so that it needs no other server than the catalog's.
    let other = apart.client().rollout_create(Uuid::new_v4(), 0).await.unwrap();
    assert_eq!(apart.client().rollout_ended(&other.rollout_id).await.state(), RolloutState::Succeeded);
    assert_eq!(apart.client().operation(&waiting.operation_id).await.state(), OperationState::Running);
    apart.machine.server_start().await;
    apart.client().succeeded(&waiting).await;
    apart.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_holds_up_no_claims_of_what_works_elsewhere() {
    let (apart, waiting) = Apart::with_waiting_suspension().await;
    // It is away for whoever asks, and hangs from now on.
    let hangs = apart.machine.hang().await;
    apart.fleet.allow_log("sessions of a daemon that is gone cannot be ended; what it drove there waits");
    apart.fleet.allow_log("the operation stands still until a daemon claims it again");
    let shared = apart.fleet.judge(apart.fleet.naming.shared_database().as_str()).await;
    let dies = "UPDATE operations SET lease_owner = gen_random_uuid(), lease_until = now() - interval '1 second' \
                WHERE id::text = $1";
    assert_eq!(shared.execute(dies, &[&waiting.operation_id]).await.unwrap(), 1);
    // Each would wait for a connect that is not answered, and all together for longer than anybody does.
    let others = async {
        for _ in 0..12 {
            let other = apart.client().rollout_create(Uuid::new_v4(), 0).await.unwrap();
            assert_eq!(apart.client().rollout_ended(&other.rollout_id).await.state(), RolloutState::Succeeded);
        }
    };
    tokio::time::timeout(PATIENCE, others).await.expect("nobody waits for a server that hangs");
    assert_eq!(apart.client().operation(&waiting.operation_id).await.state(), OperationState::Running);
    drop(hangs);
    apart.machine.server_start().await;
    apart.client().succeeded(&waiting).await;
    apart.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_is_undone_when_its_server_is_back() {
    let apart = Apart::new("10m").await;
    let operation = apart.creation_cut_off("acme").await;
    until("it waits for the server", || async {
        let now = apart.client().operation(&operation.operation_id).await;
        let waits = |detail: &str| detail.contains("tried again");
        let undoing = now.steps.iter().find(|step| step.state() == OperationStepState::Undoing)?;
        waits(&undoing.detail).then_some(())
    })
    .await;
    apart.machine.server_start().await;
    let ended = apart.client().ended(&operation.operation_id).await;
    assert_eq!(ended.state(), OperationState::Failed, "{ended:#?}");
    assert_eq!(apart.on_the_server("acme").await, (0, 0));
    apart.client().tenant("acme").await;
    apart.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_operation_goes_on_when_it_is_told_to() {
    let apart = Apart::new("1s").await;
    let stuck = apart.stuck_creation("acme").await;
    let error = stuck.error.clone().unwrap();
    let verbs = ["retry", "abandon"].map(|verb| format!("tenantd operation {verb} {}", stuck.operation_id));
    assert!(verbs.iter().all(|verb| error.message.contains(verb)), "{error:?}");
    assert_eq!(reason(&apart.client().tenant_suspend(Uuid::new_v4(), "acme", "x").await.unwrap_err()), "TENANT_STATE");
    apart.machine.server_start().await;
    let request = Uuid::new_v4();
    let again = apart.retry(&stuck, request).await.unwrap();
    assert_eq!((again.state(), again.end_time), (OperationState::Running, None));
    let ended = apart.client().ended(&stuck.operation_id).await;
    assert_eq!(ended.state(), OperationState::Failed, "{ended:#?}");
    // Why it was undone, and not that it once could not be.
    assert_eq!(ended.error.unwrap().step, "database");
    // The same request changes nothing more, another one is refused.
    assert_eq!(apart.retry(&stuck, request).await.unwrap().state(), OperationState::Failed);
    assert_eq!(refused(apart.retry(&stuck, Uuid::new_v4()).await), not_stuck());
    assert_eq!(refused(apart.abandon(&stuck, Uuid::new_v4(), "x").await), not_stuck());
    assert_eq!(apart.on_the_server("acme").await, (0, 0));
    assert_eq!(apart.audited(&stuck).await, ["OperationService/RetryOperation"]);
    apart.client().tenant("acme").await;
    apart.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_is_given_up_frees_its_code_and_says_what_it_left() {
    let apart = Apart::new("1s").await;
    let stuck = apart.stuck_creation("acme").await;
    let request = Uuid::new_v4();
    let nothing = apart.abandon(&stuck, request, " ").await;
    assert_eq!(refused(nothing), (Code::InvalidArgument, "INVALID_ARGUMENT".to_owned()));
    for _ in 0..2 {
        let given_up = apart.abandon(&stuck, request, "the machine is gone").await.unwrap();
        assert_eq!(given_up.state(), OperationState::Failed);
        let said = given_up.error.unwrap().message;
        let left = database_under_construction(stuck.operation_id.parse().unwrap()).to_string();
        let roles = format!("{}_acme__r", apart.fleet.naming.prefix());
        assert!(["the machine is gone", &left, &roles].iter().all(|part| said.contains(part)), "{said}");
    }
    assert_eq!(apart.audited(&stuck).await, ["OperationService/AbandonOperation"]);
    assert_eq!(reason(&apart.client().tenant_get("acme").await.unwrap_err()), "TENANT_NOT_FOUND");
    apart.machine.server_start().await;
    assert_eq!(apart.on_the_server("acme").await.1, 6);
    let judge = apart.machine.judge("postgres").await;
    for role in ["__r", "__a", "__b", "__m", "__ro", ""] {
        judge.batch_execute(&format!("DROP ROLE {}_acme{role}", apart.fleet.naming.prefix())).await.unwrap();
    }
    apart.client().tenant("acme").await;
    apart.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_that_is_given_up_is_repaired_by_resuming() {
    let apart = Apart::new("1s").await;
    apart.client().tenant("acme").await;
    apart.machine.server_stop().await;
    apart.fleet.expect_log("the step cannot be undone; the operation is stuck");
    let operation = apart.client().tenant_suspend(Uuid::new_v4(), "acme", "unpaid").await.unwrap();
    let stuck = apart.becomes(&operation, OperationState::Stuck).await;
    let busy = apart.client().tenant_resume(Uuid::new_v4(), "acme").await.unwrap_err();
    assert_eq!(reason(&busy), "OPERATION_CONFLICT");
    let given_up = apart.abandon(&stuck, Uuid::new_v4(), "the server is back").await.unwrap();
    assert!(given_up.error.unwrap().message.contains("SUSPENDED"));
    apart.machine.server_start().await;
    for _ in 0..2 {
        let operation = apart.client().tenant_resume(Uuid::new_v4(), "acme").await.unwrap();
        apart.client().succeeded(&operation).await;
        assert_eq!(apart.client().sql("acme", "SELECT count(*) FROM things").await, "20");
        let operation = apart.client().tenant_suspend(Uuid::new_v4(), "acme", "unpaid").await.unwrap();
        apart.client().succeeded(&operation).await;
        assert_eq!(apart.on_the_server("acme").await.0, 1, "only the migrator may log in");
    }
    apart.finish().await;
}

/// What has a migration wait until the test says so, by making this role.
fn slow_migration(fleet: &Fleet) -> (String, String) {
    let role = format!("{}_go", fleet.naming.prefix());
    let body = format!(
        "BEGIN WHILE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') LOOP PERFORM pg_sleep(0.05); END LOOP; END"
    );
    (role, format!("DO $$ {body} $$;\n"))
}

/// A rollout that has paused the tenant acme, whose server goes away before it can be opened.
async fn paused_cut_off(repeat_max: &str) -> (Apart, Rollout) {
    let apart = Apart::new(repeat_max).await;
    for code in ["acme", "beta"] {
        apart.client().tenant(code).await;
    }
    apart.fleet.migration("V2__slow.sql", &slow_migration(&apart.fleet).1);
    let request = CreateRolloutRequest {
        request_id: Uuid::new_v4().to_string(),
        tenants: vec!["acme".to_owned()],
        pause: true,
        ..CreateRolloutRequest::default()
    };
    let rollout = apart.client().migrations().create_rollout(request).await.unwrap().into_inner().rollout.unwrap();
    until("only the migrator may log in", || async { (apart.on_the_server("acme").await.0 == 1).then_some(()) }).await;
    let judge = apart.machine.judge("postgres").await;
    let migrator = format!("{}_acme__m", apart.fleet.naming.prefix());
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND query LIKE '%pg_sleep%'";
    until("the migration runs", || async {
        (judge.query_one(sql, &[&migrator]).await.unwrap().get::<_, i64>(0) == 1).then_some(())
    })
    .await;
    apart.fleet.expect_log("a paused tenant cannot be opened; it is tried again");
    apart.machine.server_stop().await;
    (apart, rollout)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_a_rollout_has_paused_is_opened_when_its_server_is_back() {
    let (apart, rollout) = paused_cut_off("10m").await;
    until("it is tried again", || async {
        apart.fleet.has_logged("a paused tenant cannot be opened; it is tried again").then_some(())
    })
    .await;
    apart.machine.server_start().await;
    let ended = apart.client().rollout_ended(&rollout.rollout_id).await;
    assert_eq!((ended.state(), ended.counts.unwrap().failed), (RolloutState::Halted, 1), "{ended:#?}");
    assert_eq!(apart.on_the_server("acme").await.0, 5);
    assert_eq!(apart.client().sql("acme", "SELECT count(*) FROM things").await, "20");
    apart.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_that_cannot_open_a_tenant_is_stuck_and_opens_it_when_it_is_told_to() {
    let (apart, rollout) = paused_cut_off("1s").await;
    apart.fleet.expect_log("the step cannot be undone; the operation is stuck");
    let operation = apart.client().operation(&rollout.rollout_id).await;
    let stuck = apart.becomes(&operation, OperationState::Stuck).await;
    let request = WatchRolloutRequest { rollout_id: rollout.rollout_id.clone() };
    let watched = apart.client().migrations().watch_rollout(request).await.unwrap().into_inner();
    let seen: Vec<_> = watched.map(|update| update.unwrap().rollout.unwrap().state()).collect().await;
    assert_eq!(seen.last(), Some(&RolloutState::Stuck), "whoever watches it is told, and waits no longer");
    assert_eq!(apart.on_the_catalog("acme").await, "PAUSED");
    let busy = apart.client().tenant_suspend(Uuid::new_v4(), "acme", "x").await.unwrap_err();
    assert_eq!(reason(&busy), "OPERATION_CONFLICT");
    apart.machine.server_start().await;
    apart.retry(&stuck, Uuid::new_v4()).await.unwrap();
    let ended = apart.client().ended(&rollout.rollout_id).await;
    assert_eq!(ended.state(), OperationState::Failed, "{ended:#?}");
    assert_eq!((apart.on_the_catalog("acme").await.as_str(), apart.on_the_server("acme").await.0), ("OPEN", 5));
    assert_eq!(apart.client().sql("acme", "SELECT count(*) FROM things").await, "20");
    apart.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_that_is_given_up_suspends_what_it_has_left_paused() {
    let (apart, rollout) = paused_cut_off("1s").await;
    apart.fleet.expect_log("the step cannot be undone; the operation is stuck");
    let operation = apart.client().operation(&rollout.rollout_id).await;
    let stuck = apart.becomes(&operation, OperationState::Stuck).await;
    let given_up = apart.abandon(&stuck, Uuid::new_v4(), "the machine is gone").await.unwrap();
    let said = given_up.error.unwrap().message;
    assert!(said.contains("could not be opened: acme; resume them"), "{said}");
    let suspended = apart.client().tenant_get("acme").await.unwrap();
    assert_eq!(suspended.state(), TenantState::Suspended, "{suspended:#?}");
    assert!(suspended.suspend_reason.contains("the machine is gone"), "{suspended:#?}");
    assert_eq!(apart.client().tenant_get("beta").await.unwrap().state(), TenantState::Active);
    apart.machine.server_start().await;
    let resumed = apart.client().tenant_resume(Uuid::new_v4(), "acme").await.unwrap();
    apart.client().succeeded(&resumed).await;
    assert_eq!((apart.on_the_catalog("acme").await.as_str(), apart.on_the_server("acme").await.0), ("OPEN", 5));
    assert_eq!(apart.client().sql("acme", "SELECT count(*) FROM things").await, "20");
    apart.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_that_stop_in_a_step_say_nothing_against_it() {
    let fleet = Fleet::new(Spec::default()).await;
    // It ends when the test says so.
    let (role, slow) = slow_migration(&fleet);
    fleet.migration("V2__slow.sql", &slow);
    let mut daemon = fleet.spawn();
    let operation = daemon.client.tenant_create(Uuid::new_v4(), "acme").await.unwrap();
    for _ in 0..6 {
        until("the step has begun", || async {
            let now = daemon.client.operation(&operation.operation_id).await;
            let step = now.steps.into_iter().find(|step| step.name == "migrations").unwrap();
            (step.state() == OperationStepState::Running && step.attempts == 1).then_some(())
        })
        .await;
        daemon.terminate().await;
        daemon = fleet.spawn();
    }
    // And one that is stopped while it still writes that the step is begun.
    daemon.terminate().await;
    let shared = fleet.naming.shared_database().to_string();
    let (mut holder, judge) = (fleet.judge(&shared).await, fleet.judge("postgres").await);
    let held = holder.transaction().await.unwrap();
    held.batch_execute("SELECT FROM operation_steps WHERE name = 'migrations' FOR UPDATE").await.unwrap();
    let daemon = fleet.spawn();
    let waiting = "SELECT FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'";
    until("the step is to begin", async || judge.query_opt(waiting, &[&shared]).await.unwrap()).await;
    let let_go = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        held.commit().await.unwrap();
    };
    tokio::join!(daemon.terminate(), let_go);
    let attempts = "SELECT attempts FROM operation_steps WHERE name = 'migrations'";
    assert_eq!(holder.query_one(attempts, &[]).await.unwrap().get::<_, i32>(0), 0);

    let daemon = fleet.spawn();
    judge.batch_execute(&format!("CREATE ROLE {role}")).await.unwrap();
    let ended = daemon.client.succeeded(&operation).await;
    judge.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
    assert!(ended.steps.iter().all(|step| step.attempts == 1), "{ended:#?}");
    daemon.terminate().await;
    fleet.finish().await;
}
