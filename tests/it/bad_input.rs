//! What people and machines get wrong: each gives a clear error, and nothing is left over.

use prost_reflect::DescriptorPool;
use tenantd::proto::DESCRIPTORS;
use tenantd::proto::v1::{
    CreateApiKeyRequest, GetOperationRequest, Operation, OperationState, OperationStepState, VerifyBackupRequest,
    WhoAmIRequest,
};
use tonic::client::Grpc;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::harness::{Client, Fault, Faults, Fleet, Machine, Proxy, Spec, machine, reason, signal, until};

/// A refusal with the field that it names and what it says of it.
fn bad_field(status: &Status) -> (String, String) {
    assert_eq!((status.code(), reason(status).as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"), "{status:?}");
    let details = status.get_error_details();
    let violation = details.bad_request().expect("BadRequest").field_violations[0].clone();
    (violation.field, violation.description)
}

#[tokio::test]
async fn a_bad_code_is_refused_with_the_reason() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let before = fleet.inventory().await;
    let long = "a".repeat(64);
    let bad = [
        ("ac'me", "'\\''"),
        ("ac me", "' '"),
        ("Acme", "lower-case"),
        (long.as_str(), "64 bytes"),
        ("postgres", "reserved"),
        ("a__b", "underscore"),
        ("", "empty"),
        ("acme\"; DROP DATABASE postgres; --", "'\"'"),
    ];
    for (code, explanation) in bad {
        let refusal = daemon.client.tenant_create(Uuid::new_v4(), code).await.unwrap_err();
        let (field, text) = bad_field(&refusal);
        assert!(field == "code" && text.contains(explanation), "{code:?}: {field}: {text}");
    }
    assert_eq!(fleet.inventory().await, before);
    fleet.stop(daemon).await;
}

/// A table that takes no more rows, as PostgreSQL says it when the disk is full.
const FULL: &str = "CREATE FUNCTION is_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                    RAISE EXCEPTION 'could not extend file \"base/1/2\": No space left on device' \
                    USING ERRCODE = '53100'; END $$; \
                    CREATE TRIGGER is_full BEFORE INSERT ON ";
const FREE: &str = "DROP FUNCTION is_full CASCADE";

#[tokio::test]
async fn a_full_disk_is_told_and_nothing_is_half_done() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let shared = fleet.judge(fleet.naming.shared_database().as_str()).await;
    let auth = fleet.judge(fleet.naming.auth_database().as_str()).await;
    let told = |refusal: &Status| {
        assert_eq!((refusal.code(), reason(refusal).as_str()), (Code::ResourceExhausted, "SERVER_NO_ROOM"));
        // Whose files are where is nobody's business.
        assert!(refusal.message().contains("free some") && !refusal.message().contains("base/"), "{refusal:?}");
    };
    fleet.expect_log("the shared database has no room");
    fleet.expect_log("the auth database has no room");
    shared.batch_execute(&format!("{FULL} operations FOR EACH ROW EXECUTE FUNCTION is_full()")).await.unwrap();
    auth.batch_execute(&format!("{FULL} api_keys FOR EACH ROW EXECUTE FUNCTION is_full()")).await.unwrap();
    let before = fleet.inventory().await;
    let request = Uuid::new_v4();
    told(&daemon.client.tenant_create(request, "bolt").await.unwrap_err());
    let key = CreateApiKeyRequest { name: "ci".to_owned(), roles: vec!["viewer".to_owned()], ..Default::default() };
    told(&daemon.client.access().create_api_key(key).await.unwrap_err());
    assert_eq!(fleet.inventory().await, before);
    // Reading goes on.
    assert_eq!(daemon.client.sql("acme", "SELECT 1").await, "1");
    shared.batch_execute(FREE).await.unwrap();
    auth.batch_execute(FREE).await.unwrap();
    // A backup's row does not fit.
    shared.batch_execute(&format!("{FULL} backups FOR EACH ROW EXECUTE FUNCTION is_full()")).await.unwrap();
    let operation = daemon.client.backup_create(Uuid::new_v4(), "acme").await.unwrap();
    let failed = daemon.client.ended(&operation.operation_id).await;
    assert_eq!((failed.state(), failed.error.unwrap().reason.as_str()), (OperationState::Failed, "SERVER_NO_ROOM"));
    shared.batch_execute(FREE).await.unwrap();
    let operation = daemon.client.tenant_create(request, "bolt").await.unwrap();
    daemon.client.succeeded(&operation).await;
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn without_a_known_key_nothing_answers() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    for key in [None, Some("tnd_nobody"), Some("")] {
        let stranger = Client::new(daemon.address, key);
        let refusals = [
            stranger.access().who_am_i(WhoAmIRequest {}).await.unwrap_err(),
            stranger.tenant_create(Uuid::new_v4(), "acme").await.unwrap_err(),
            stranger.execute("acme", "SELECT 1").await.unwrap_err(),
        ];
        for refusal in refusals {
            assert_eq!((refusal.code(), reason(&refusal).as_str()), (Code::Unauthenticated, "UNAUTHENTICATED"));
        }
    }
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn no_method_answers_a_stranger_and_all_but_one_need_a_role() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let stranger = Client::new(daemon.address, None);
    let nobody = daemon.client.with_key(&daemon.client.key_new(&["viewer"], &[]).await);
    let auth = fleet.judge(fleet.naming.auth_database().as_str()).await;
    let taken = auth.execute("DELETE FROM api_key_roles WHERE role = 'viewer'", &[]).await.unwrap();
    assert_eq!(taken, 1);
    let call = async |caller: &Client, method: &str| {
        let mut grpc = Grpc::new(caller.keyed());
        grpc.ready().await.unwrap();
        // An empty message and nothing after it, whatever the method takes.
        let answer = grpc.unary(Request::new(()), method.parse().unwrap(), ProstCodec::<(), ()>::default()).await;
        answer.map_or_else(|refusal| (refusal.code(), reason(&refusal)), |_answer| (Code::Ok, String::new()))
    };
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let services = pool.services().filter(|service| service.package_name() == "tenantd.v1");
    let methods: Vec<_> = services.flat_map(|service| service.methods().collect::<Vec<_>>()).collect();
    assert!(methods.len() > 30, "{methods:?}");
    for method in methods {
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        assert_eq!(call(&stranger, &path).await, (Code::Unauthenticated, "UNAUTHENTICATED".to_owned()), "{path}");
        let expected = match method.name() {
            "WhoAmI" => (Code::Ok, String::new()),
            _ => (Code::PermissionDenied, "PERMISSION_DENIED".to_owned()),
        };
        assert_eq!(call(&nobody, &path).await, expected, "{path}");
    }
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_code_that_is_taken_is_refused() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let before = fleet.inventory().await;
    let refusal = daemon.client.tenant_create(Uuid::new_v4(), "acme").await.unwrap_err();
    assert_eq!((refusal.code(), reason(&refusal).as_str()), (Code::AlreadyExists, "TENANT_ALREADY_EXISTS"));
    assert!(refusal.message().contains("acme"), "{refusal:?}");
    assert_eq!(fleet.inventory().await, before);
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_want_a_code_at_the_same_moment_one_gets_it() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let wishes = (0..8).map(|_| {
        let client = daemon.client.clone();
        tokio::spawn(async move { client.tenant_create(Uuid::new_v4(), "acme").await })
    });
    let mut made = Vec::new();
    for wish in wishes.collect::<Vec<_>>() {
        match wish.await.unwrap() {
            Ok(operation) => made.push(operation),
            Err(refusal) => assert_eq!(reason(&refusal), "TENANT_ALREADY_EXISTS", "{refusal:?}"),
        }
    }
    assert_eq!(made.len(), 1, "{made:#?}");
    daemon.client.succeeded(&made[0]).await;
    assert_eq!(daemon.client.sql("acme", "SELECT count(*) FROM things").await, "20");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_repeated_request_is_the_same_operation_and_another_under_its_id_is_refused() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let request = Uuid::new_v4();
    let first = daemon.client.tenant_create(request, "acme").await.unwrap();
    let second = daemon.client.tenant_create(request, "acme").await.unwrap();
    assert_eq!(first.operation_id, second.operation_id);
    let refusal = daemon.client.tenant_create(request, "other").await.unwrap_err();
    assert_eq!(reason(&refusal), "REQUEST_ID_REUSED", "{refusal:?}");
    daemon.client.succeeded(&first).await;
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_request_many_times_at_once_is_one_operation() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let same =
        async |what: &str, call: &dyn Fn() -> futures_util::future::BoxFuture<'static, Result<Operation, Status>>| {
            let calls = (0..12).map(|_| tokio::spawn(call()));
            let answers = futures_util::future::join_all(calls).await;
            let ids: std::collections::BTreeSet<String> = answers
                .into_iter()
                .map(|answer| answer.unwrap().unwrap_or_else(|refused| panic!("{what}: {refused:?}")).operation_id)
                .collect();
            assert_eq!(ids.len(), 1, "{what}");
            client.ended(ids.first().unwrap()).await
        };
    let (request, caller) = (Uuid::new_v4(), client.clone());
    let call = move || -> futures_util::future::BoxFuture<'static, _> {
        let caller = caller.clone();
        Box::pin(async move { caller.tenant_create(request, "bolt").await })
    };
    assert_eq!(same("create", &call).await.state(), OperationState::Succeeded);
    // Also once the directory is no good any more.
    fleet.migration("v9_wrong.sql", "");
    assert_eq!(same("create again", &call).await.state(), OperationState::Succeeded);
    let (request, caller) = (Uuid::new_v4(), client.clone());
    let backed_up = same("backup", &move || {
        let caller = caller.clone();
        Box::pin(async move { caller.backup_create(request, "acme").await })
    })
    .await;
    let backup = crate::harness::result_text(&backed_up, "backup_id");
    for new in [None, Some("copy")] {
        let (request, caller, backup) = (Uuid::new_v4(), client.clone(), backup.clone());
        same("restore", &move || {
            let (caller, backup) = (caller.clone(), backup.clone());
            Box::pin(async move { caller.restore_create(request, &backup, new).await })
        })
        .await;
    }
    for suspend in [true, false] {
        let (request, caller) = (Uuid::new_v4(), client.clone());
        let ended = same("suspend or resume", &move || {
            let caller = caller.clone();
            Box::pin(async move {
                if suspend {
                    caller.tenant_suspend(request, "acme", "unpaid").await
                } else {
                    caller.tenant_resume(request, "acme").await
                }
            })
        })
        .await;
        assert_eq!(ended.state(), OperationState::Succeeded);
    }
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_name_that_is_on_the_server_is_told_before_the_work() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let (judge, prefix) = (fleet.judge("postgres").await, fleet.naming.prefix());
    judge.batch_execute(&format!("CREATE ROLE {prefix}_acme__m")).await.unwrap();
    judge.batch_execute(&format!("CREATE DATABASE {prefix}_bolt")).await.unwrap();
    for (code, name) in [("acme", "acme__m"), ("bolt", "bolt")] {
        let operation = daemon.client.tenant_create(Uuid::new_v4(), code).await.unwrap();
        let error = failed(&daemon.client, &operation).await.error.unwrap();
        assert_eq!((error.reason.as_str(), error.step.as_str()), ("TENANT_ALREADY_EXISTS", "roles"), "{error:?}");
        assert!(error.message.contains(&format!("{prefix}_{name}")), "{error:?}");
    }
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_key_for_a_tenant_that_is_not_there_is_refused() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let wish = |tenants: &[&str], default_tenant: &str| CreateApiKeyRequest {
        name: "ci".to_owned(),
        roles: vec!["viewer".to_owned()],
        tenants: tenants.iter().map(|&code| code.to_owned()).collect(),
        default_tenant: default_tenant.to_owned(),
        ..CreateApiKeyRequest::default()
    };
    for (wish, field) in [(wish(&["acme", "nobody"], ""), "tenants"), (wish(&[], "nobody"), "default_tenant")] {
        let refused = daemon.client.access().create_api_key(wish).await.unwrap_err();
        assert_eq!(bad_field(&refused), (field.to_owned(), "there is no tenant nobody".to_owned()));
    }
    daemon.client.access().create_api_key(wish(&["acme"], "acme")).await.unwrap();
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_bad_migration_directory_is_refused_whole_before_any_tenant_is_touched() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let before = fleet.inventory().await;
    let bad = [
        ("v2_wrong.sql", "SELECT 1;\n", "v2_wrong.sql"),
        ("V1__again.sql", "SELECT 1;\n", "V1__again.sql"),
        ("V2__commits.sql", "CREATE TABLE a (b int);\nCOMMIT;\n", "V2__commits.sql:2"),
    ];
    for (file, text, place) in bad {
        fleet.migration("V3__good.sql", "CREATE TABLE good (id int);\n");
        fleet.migration(file, text);
        let refusal = daemon.client.rollout_create(Uuid::new_v4(), 0).await.unwrap_err();
        assert_eq!(reason(&refusal), "MIGRATION_DIRECTORY_INVALID", "{refusal:?}");
        let all = format!("{refusal:?}");
        assert!(all.contains(place), "{place} is not named in {all}");
        assert_eq!(daemon.client.tenant_get("acme").await.unwrap().schema_version, 1);
        fleet.migration_remove(file);
    }
    let left = fleet.inventory().await.since(&before);
    assert!(left.is_empty(), "{left}");
    fleet.stop(daemon).await;
}

/// A tenant with a backup.
async fn backed_up(client: &Client) -> BackedUp {
    client.tenant("acme").await;
    let backup = client.backup("acme").await;
    BackedUp { id: backup.backup_id, archive: backup.archive_key, manifest: backup.manifest_key }
}

struct BackedUp {
    id: String,
    archive: String,
    manifest: String,
}

/// The backup is refused by everything that reads it, and nothing comes of the restores.
async fn refused_as_corrupt(fleet: &Fleet, client: &Client, backup: &str, what: &str) {
    let before = fleet.inventory().await;
    let refusal = client.backups().verify_backup(VerifyBackupRequest { backup_id: backup.to_owned() }).await;
    let refusal = refusal.expect_err(what);
    assert_eq!(reason(&refusal), "BACKUP_CORRUPT", "{what}: {refusal:?}");
    for new in [None, Some("copy")] {
        let operation = client.restore_create(Uuid::new_v4(), backup, new).await.unwrap();
        let ended = failed(client, &operation).await;
        assert_eq!(ended.error.as_ref().unwrap().reason, "BACKUP_CORRUPT", "{what}: {ended:#?}");
    }
    let left = fleet.inventory().await.since(&before);
    assert!(left.is_empty(), "{what}: {left}");
    assert_eq!(client.sql("acme", "SELECT count(*) FROM things").await, "20", "{what}");
}

async fn failed(client: &Client, operation: &Operation) -> Operation {
    let ended = client.ended(&operation.operation_id).await;
    assert_eq!(ended.state(), OperationState::Failed, "{ended:#?}");
    ended
}

/// Waits until the operation's failure is being undone.
async fn undoing(client: &Client, operation: &Operation) {
    until("a step is being undone", || async {
        let request = GetOperationRequest { operation_id: operation.operation_id.clone() };
        let now = match client.operations().get_operation(request).await {
            Ok(answer) => answer.into_inner().operation.unwrap(),
            // A server without room may keep the daemon from asking its catalog, too.
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                return None;
            }
        };
        now.steps.iter().any(|step| step.state() == OperationStepState::Undoing).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_truncated_or_flipped_object_is_never_restored() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let backup = backed_up(&daemon.client).await;
    let store = fleet.store();
    for key in [&backup.archive, &backup.manifest] {
        let good = store.get(key, 64 << 20).await.unwrap();
        let last = good.len() - 1;
        let mut damaged: Vec<(String, Vec<u8>)> =
            [0, 1, last].iter().map(|cut| (format!("{key} cut to {cut}"), good[..*cut].to_vec())).collect();
        for at in [0, last / 2, last] {
            let mut flipped = good.to_vec();
            flipped[at] ^= 1;
            damaged.push((format!("{key} flipped at {at}"), flipped));
        }
        for (what, bytes) in damaged {
            store.put(key, bytes.into()).await.unwrap();
            refused_as_corrupt(&fleet, &daemon.client, &backup.id, &what).await;
        }
        store.delete(key).await.unwrap();
        let gone = VerifyBackupRequest { backup_id: backup.id.clone() };
        daemon.client.backups().verify_backup(gone).await.expect_err("it is gone");
        store.put(key, good).await.unwrap();
    }
    daemon.client.backups().verify_backup(VerifyBackupRequest { backup_id: backup.id.clone() }).await.unwrap();
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn another_backups_objects_are_not_taken_for_these() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let mine = backed_up(&daemon.client).await;
    daemon.client.tenant("other").await;
    let theirs = daemon.client.backup("other").await;
    let store = fleet.store();
    for (to, from) in [(&mine.archive, &theirs.archive_key), (&mine.manifest, &theirs.manifest_key)] {
        let good = store.get(to, 64 << 20).await.unwrap();
        store.put(to, store.get(from, 64 << 20).await.unwrap()).await.unwrap();
        refused_as_corrupt(&fleet, &daemon.client, &mine.id, "swapped").await;
        store.put(to, good).await.unwrap();
    }
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_spool_that_cannot_be_written_is_named_and_leaves_nothing() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let backup = backed_up(&daemon.client).await;
    let before = fleet.inventory().await;
    // As a full disk, for whoever may write everywhere: nothing can be made below a file.
    let spool = fleet.dir.join("spool");
    let _none_yet = std::fs::remove_dir_all(&spool);
    std::fs::write(&spool, "").unwrap();
    let request = VerifyBackupRequest { backup_id: backup.id.clone() };
    let refused = daemon.client.backups().verify_backup(request).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "SPOOL"), "{refused:?}");
    let operation = daemon.client.restore_create(Uuid::new_v4(), &backup.id, None).await.unwrap();
    let ended = failed(&daemon.client, &operation).await;
    let error = ended.error.as_ref().unwrap();
    assert!(error.reason == "SPOOL" && error.message.contains("spool_dir"), "{error:?}");
    let problems = tenantd::config::load(&fleet.config_file()).unwrap_err().to_string();
    assert!(problems.contains(&format!("spool_dir: {} is no directory", spool.display())), "{problems}");
    std::fs::remove_file(&spool).unwrap();
    let left = fleet.inventory().await.since(&before);
    assert!(left.is_empty(), "{left}");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_wrong_s3_secret_is_told_at_the_start() {
    let fleet = Fleet::new(Spec::default()).await;
    fleet.configure(&[("[store]", "secret_access_key", "\"not the secret\"".to_owned())]);
    let refusal = fleet.start_refused().await;
    assert!(refusal.contains("object store") && refusal.contains("secret"), "{refusal}");
    assert!(!refusal.contains("not the secret"), "a secret is in {refusal}");
    fleet.finish().await;
}

#[tokio::test]
async fn an_s3_secret_that_turns_wrong_fails_the_backup_and_leaves_nothing() {
    let proxy = Proxy::start(machine().s3).await;
    let fleet = Fleet::new(Spec { store: Some(proxy.address), ..Spec::default() }).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let before = fleet.inventory().await;
    proxy.redirect(machine().s3_with_another_secret().await);
    let operation = daemon.client.backup_create(Uuid::new_v4(), "acme").await.unwrap();
    // Nothing can have been sent, so the undo asks nothing of the store.
    let ended = failed(&daemon.client, &operation).await;
    let error = ended.error.as_ref().unwrap();
    assert!(error.reason == "OBJECT_STORE" && error.message.contains("secret"), "{error:?}");
    proxy.redirect(machine().s3);
    let left = fleet.inventory().await.since(&before);
    assert!(left.is_empty(), "{left}");
    daemon.client.backup("acme").await;
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_store_that_goes_away_holds_no_tenant_and_is_cleared_when_it_is_back() {
    const AWAY: Fault = Fault::Answer(503, "");
    let faults = Faults::start(machine().s3).await;
    let fleet = Fleet::new(Spec { store: Some(faults.address), ..Spec::default() }).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let before = fleet.inventory().await;
    fleet.allow_log("a failed backup's upload could not be given up");
    fleet.expect_log("what a failed backup has left in the bucket is removed later");
    for method in ["PUT", "DELETE"] {
        faults.add(method, "/", usize::MAX, AWAY);
    }
    let operation = daemon.client.backup_create(Uuid::new_v4(), "acme").await.unwrap();
    let ended = failed(&daemon.client, &operation).await;
    assert_eq!(ended.error.unwrap().reason, "OBJECT_STORE");
    // The operation is over, and so others have their turn.
    let operation = daemon.client.tenant_suspend(Uuid::new_v4(), "acme", "unpaid").await.unwrap();
    daemon.client.succeeded(&operation).await;
    let operation = daemon.client.tenant_resume(Uuid::new_v4(), "acme").await.unwrap();
    daemon.client.succeeded(&operation).await;
    daemon.stop().await;
    let left = fleet.inventory().await.since(&before).to_string();
    assert!(left.contains("backups") && left.contains("Upload"), "{left}");
    faults.heal();
    let daemon = fleet.start().await;
    until("the bucket is cleared", || async { fleet.inventory().await.since(&before).is_empty().then_some(()) }).await;
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_room_refuses_with_the_cause_and_recovers() {
    let machine = Machine::with_room_for(24);
    let fleet = Fleet::new(Spec { machine: Some(machine), ..Spec::default() }).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let before = fleet.inventory().await;
    let crowd = machine.crowd().await;
    let refusal = daemon.client.execute("acme", "SELECT 1").await.unwrap_err();
    assert_eq!(reason(&refusal), "CONNECTION_UNAVAILABLE", "{refusal:?}");
    let metadata = refusal.get_error_details().error_info().unwrap().metadata.clone();
    assert!(metadata.contains_key("server") && metadata.contains_key("cause"), "{metadata:?}");
    fleet.expect_log("the server takes no connections");
    // The daemon's own database is on that server: where its pool wanted to grow, the operation waits for its next claim,
    // and whoever asks for it is told to ask again.
    fleet.allow_log("the operation stands still until a daemon claims it again");
    fleet.allow_log("the shared database does not answer");
    fleet.allow_log("the auth database does not answer");
    fleet.allow_log("no operation can be claimed");
    let operation = daemon.client.tenant_create(Uuid::new_v4(), "other").await.unwrap();
    undoing(&daemon.client, &operation).await;
    drop(crowd);
    let ended = failed(&daemon.client, &operation).await;
    let error = ended.error.as_ref().unwrap();
    assert!(error.reason == "CONNECTION_UNAVAILABLE" && error.message.contains("53300"), "{error:?}");
    let left = fleet.inventory().await.since(&before);
    assert!(left.is_empty(), "{left}");
    until("the tenant can be reached again", || async { daemon.client.execute("acme", "SELECT 1").await.ok() }).await;
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pg_dump_killed_half_way_fails_the_backup_and_leaves_nothing() {
    let proxy = Proxy::start(machine().s3).await;
    let fleet = Fleet::new(Spec { store: Some(proxy.address), ..Spec::default() }).await;
    let daemon = fleet.spawn();
    daemon.client.tenant("acme").await;
    let judge = fleet.judge(&format!("{}_acme", fleet.naming.prefix())).await;
    judge.batch_execute(crate::kill::BLOBS).await.unwrap();
    // More than is read ahead of the upload: pg_dump is still there when that stands still.
    judge.batch_execute("CREATE TABLE again AS TABLE blobs; CREATE TABLE once_more AS TABLE blobs").await.unwrap();
    let before = fleet.inventory().await;
    proxy.stall_after(6 << 20);
    let operation = daemon.client.backup_create(Uuid::new_v4(), "acme").await.unwrap();
    proxy.stalled().await;
    signal("KILL", daemon.child("pg_dump").await);
    proxy.flow();
    let ended = failed(&daemon.client, &operation).await;
    let error = ended.error.as_ref().unwrap();
    assert!(error.message.contains("pg_dump"), "{error:?}");
    let left = fleet.inventory().await.since(&before);
    assert!(left.is_empty(), "{left}");
    daemon.terminate().await;
    fleet.finish().await;
}
