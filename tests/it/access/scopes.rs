//! Callers whose scope is some tenants, whatever their roles: nothing that is not one of these tenants' answers them.

use std::time::Duration;

use tenantd::proto::v1::transact_request::Action;
use tenantd::proto::v1::transact_response::Outcome;
use tenantd::proto::v1::{
    BeginTransaction, CreateApiKeyRequest, ExecuteRequest, ListApiKeysRequest, ListBackupsRequest,
    ListOperationsRequest, ListTenantsRequest, RevokeApiKeyRequest, StreamQueryRequest, Target,
};
use tonic::{Code, Status};

use crate::harness::{Client, Fleet, Spec, last, reason, until};

fn wish(validate_only: bool) -> CreateApiKeyRequest {
    CreateApiKeyRequest {
        name: "more".to_owned(),
        roles: vec!["admin".to_owned()],
        validate_only,
        ..CreateApiKeyRequest::default()
    }
}

fn begin(target: Target, tenant: &str) -> Action {
    let tenant = tenant.to_owned();
    Action::Begin(BeginTransaction { target: target.into(), tenant, ..BeginTransaction::default() })
}

async fn whole(client: &Client, target: Target) -> Result<Vec<Vec<String>>, Status> {
    let sql = "SELECT 1".to_owned();
    client.rows(ExecuteRequest { sql, target: target.into(), ..ExecuteRequest::default() }).await
}

#[track_caller]
fn denied<T: std::fmt::Debug>(answer: Result<T, Status>) {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "PERMISSION_DENIED"), "{status:?}");
}

#[tokio::test]
async fn an_administrator_of_some_tenants_handles_no_keys_and_reads_no_database_as_a_whole() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let admin = &daemon.client;
    admin.tenant("acme").await;
    let narrow = admin.with_key(&admin.key_new(&["admin"], &["acme"]).await);
    let keys = admin.access().list_api_keys(ListApiKeysRequest::default()).await.unwrap().into_inner().api_keys;
    let first = keys.iter().find(|key| key.name == "first-admin").unwrap().api_key_id.clone();
    for validate_only in [true, false] {
        denied(narrow.access().create_api_key(wish(validate_only)).await);
        let revoke = RevokeApiKeyRequest { api_key_id: first.clone(), validate_only, ..RevokeApiKeyRequest::default() };
        denied(narrow.access().revoke_api_key(revoke).await);
    }
    denied(narrow.access().list_api_keys(ListApiKeysRequest::default()).await);
    for target in [Target::Shared, Target::Auth] {
        denied(whole(&narrow, target).await);
        let (sql, target_number) = ("SELECT 1".to_owned(), target.into());
        let stream = StreamQueryRequest { sql, target: target_number, ..StreamQueryRequest::default() };
        denied(narrow.query().stream_query(stream).await);
        let mut transaction = narrow.transaction_opened().await.unwrap();
        transaction.send(begin(target, "")).await;
        denied(transaction.answer().await);
        whole(admin, target).await.unwrap();
    }
    // What is its own, it may read.
    assert_eq!(narrow.sql("acme", "SELECT count(*) FROM things").await, "20");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn who_loses_the_fleet_loses_the_streams_that_read_it_whole() {
    let fleet = Fleet::new(Spec::default().setting("[query]", "transaction_idle_max", "\"1m\"")).await;
    let daemon = fleet.start().await;
    for code in ["acme", "bolt"] {
        daemon.client.tenant(code).await;
    }
    let wide = daemon.client.with_key(&daemon.client.key_new(&["admin"], &[]).await);
    let mut reads_whole = wide.transaction_opened().await.unwrap();
    reads_whole.send(begin(Target::Auth, "")).await;
    assert!(matches!(reads_whole.answer().await, Ok(Outcome::Begun(_))));
    let mut in_acme = wide.transaction("acme").await;
    let (mut late_whole, mut late_bolt) =
        (wide.transaction_opened().await.unwrap(), wide.transaction_opened().await.unwrap());

    let judge = fleet.judge(fleet.naming.auth_database().as_str()).await;
    let narrowed = "INSERT INTO api_key_tenants SELECT id, 'acme' FROM api_keys WHERE name = 'test';
        UPDATE api_keys SET all_tenants = false WHERE name = 'test'";
    judge.batch_execute(narrowed).await.unwrap();
    assert_eq!(last(&mut reads_whole.answers).await.code(), Code::PermissionDenied);
    in_acme.execute("SELECT 1").await;
    assert!(matches!(in_acme.answer().await, Ok(Outcome::Result(_))));

    // What had begun nothing is answered as its caller is by now. Each stream looks at its own once a second, which
    // nobody can see.
    until("the new scope counts", async || whole(&wide, Target::Auth).await.err()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    late_whole.send(begin(Target::Shared, "")).await;
    denied(late_whole.answer().await);
    late_bolt.send(begin(Target::Unspecified, "bolt")).await;
    denied(late_bolt.answer().await);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn lists_show_nothing_of_other_tenants_in_their_pages_tokens_either() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let admin = &daemon.client;
    for code in ["abel", "acme", "zoe"] {
        admin.tenant(code).await;
    }
    for code in ["acme", "zoe"] {
        admin.backup(code).await;
    }
    let viewer = admin.with_key(&admin.key_new(&["viewer"], &["acme"]).await);
    let page_size = 1;
    let request = ListTenantsRequest { page_size, ..ListTenantsRequest::default() };
    let listed = viewer.tenants().list_tenants(request).await.unwrap().into_inner();
    let codes: Vec<_> = listed.tenants.iter().map(|tenant| tenant.code.as_str()).collect();
    assert_eq!((codes.as_slice(), listed.next_page_token.as_str()), (["acme"].as_slice(), ""));

    let request = ListBackupsRequest { page_size, ..ListBackupsRequest::default() };
    let listed = viewer.backups().list_backups(request).await.unwrap().into_inner();
    let codes: Vec<_> = listed.backups.iter().map(|backup| backup.tenant_code.as_str()).collect();
    assert_eq!((codes.as_slice(), listed.next_page_token.as_str()), (["acme"].as_slice(), ""));

    let (mut kinds, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListOperationsRequest { page_size, page_token, ..ListOperationsRequest::default() };
        let mut listed = viewer.operations().list_operations(request).await.unwrap().into_inner();
        assert_eq!(listed.operations.len(), 1, "each page is full: {listed:?}");
        let operation = listed.operations.remove(0);
        assert_eq!(operation.tenant_code, "acme");
        kinds.push(operation.kind);
        page_token = listed.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(kinds, ["backup", "create_tenant"]);
    fleet.stop(daemon).await;
}
