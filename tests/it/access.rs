//! Keys: who gets in, and who no longer does.

use std::collections::BTreeSet;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tenantd::access::{Access, Error};
use tenantd::accounts::{Accounts, NewApiKey};
use tenantd::domain::permission::Role;
use tenantd::domain::principal::Scope;
use tenantd::secrets::ApiKeySecret;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::harness::{Spec, until};
use crate::tenants::Rooms;

async fn key(accounts: &Accounts, name: &str, expires_at: Option<OffsetDateTime>) -> (Uuid, String) {
    let (secret, hash) = ApiKeySecret::new();
    let id = Uuid::now_v7();
    let (roles, scope) = (BTreeSet::from([Role::Viewer]), Scope::Tenants(["acme".parse().unwrap()].into()));
    let new = NewApiKey { id, name, hash, roles: &roles, scope: &scope, created_by: "test", expires_at };
    accounts.api_key_insert(&new).await.unwrap();
    (id, format!("Bearer {}", secret.expose_secret()))
}

#[tokio::test]
async fn a_key_gets_in_until_it_is_revoked_or_expired() {
    let rooms = Rooms::new(Spec::default()).await;
    let accounts = Accounts::new(&rooms.server, &rooms.config.naming.auth_database()).unwrap();
    accounts.migrate().await.unwrap();
    let access = Access::new(accounts.clone(), &rooms.tasks);
    let (id, header) = key(&accounts, "ci", None).await;
    let principal = access.authenticate(Some(&header)).await.unwrap();
    assert_eq!(principal.name, "api-key:ci");
    assert!(principal.reaches(&"acme".parse().unwrap()) && !principal.reaches(&"beta".parse().unwrap()));
    assert!(access.authorize(&principal, "/tenantd.v1.TenantService/GetTenant").is_ok());
    let denied = access.authorize(&principal, "/tenantd.v1.TenantService/CreateTenant");
    assert!(matches!(denied, Err(Error::Denied { .. })));
    assert!(matches!(access.authorize(&principal, "/x/Y"), Err(Error::MethodUnknown { .. })));
    until("the use is noted", async || accounts.api_key_get(id).await.unwrap().last_used_at).await;

    accounts.api_key_revoke(id).await.unwrap();
    access.key_forget(id);
    assert!(matches!(access.authenticate(Some(&header)).await, Err(Error::KeyRefused)));

    let soon = OffsetDateTime::now_utc() + Duration::from_millis(700);
    let (_, header) = key(&accounts, "short", Some(soon)).await;
    assert!(access.authenticate(Some(&header)).await.is_ok());
    until("the key expires", async || access.authenticate(Some(&header)).await.err().map(|_| ())).await;

    assert!(matches!(access.authenticate(None).await, Err(Error::Missing)));
    assert!(matches!(access.authenticate(Some("Bearer tnd_unknown")).await, Err(Error::KeyRefused)));
    accounts.close();
    rooms.finish().await;
}
