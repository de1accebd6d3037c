//! Every type of column, written by the catalog and read by PostgreSQL itself: a value that is bound with a wrong type
//! is stored as another one, without any error. And back: what the domain refuses is named.

use serde_json::json;
use tenantd::catalog::{Error, NewLicense, NewOperation, NewTenant, OperationEnd, Secret, TenantRef};
use tenantd::domain::operation::OperationState;
use time::macros::date;
use uuid::Uuid;

use super::claims::LEASE;
use super::{Bench, new_operation, new_tenant};

impl Bench {
    /// One value as PostgreSQL prints it.
    async fn printed(&self, sql: &str) -> String {
        let row = self.judge.query_one(&format!("SELECT ({sql})::text"), &[]).await.unwrap();
        row.get::<_, Option<String>>(0).unwrap_or_else(|| "NULL".to_owned())
    }
}

#[tokio::test]
async fn integers_dates_texts_and_nulls_are_stored_as_they_are() {
    let bench = Bench::new().await;
    let catalog = &bench.catalog;
    let text = "it's \"quoted\" \\ % $1 é 漢 \u{1F980}\n";
    let new = NewTenant { name: text.to_owned(), siret: Some("123".to_owned()), ..new_tenant("acme") };
    let txn = catalog.begin().await.unwrap();
    let acme = catalog.tenant_reserve_in_txn(&txn, &new).await.unwrap();
    for generation in [i64::MAX, 3] {
        let changed = catalog.tenant_generation_set_in_txn(&txn, acme.id, generation).await.unwrap();
        assert_eq!(changed.generation, generation);
    }
    let license = |users_max, valid_until| NewLicense {
        id: Uuid::now_v7(),
        license_key: Uuid::new_v4().to_string(),
        tier: "standard".to_owned(),
        users_max,
        sites_max: 3,
        valid_from: date!(2024 - 02 - 29),
        valid_until,
    };
    let forever = license(i64::MAX, None);
    let bounded = license(0, Some(date!(9999 - 12 - 31)));
    catalog.license_put_in_txn(&txn, acme.id, &forever).await.unwrap();
    catalog.license_put_in_txn(&txn, acme.id, &bounded).await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(bench.judge.query_one("SELECT name FROM tenants", &[]).await.unwrap().get::<_, &str>(0), text);
    assert_eq!(catalog.tenant_get(&TenantRef::Id(acme.id)).await.unwrap().name, text);
    assert_eq!(bench.printed("SELECT siret || coalesce(vat_number, '-') FROM tenants").await, "123-");
    assert_eq!(bench.printed("SELECT generation FROM tenants").await, "3");
    assert_eq!(bench.printed("SELECT id FROM tenants").await, acme.id.to_string());
    let row = |id| {
        format!("SELECT (users_max, sites_max, valid_from, valid_until, is_active) FROM licenses WHERE id = '{id}'")
    };
    assert_eq!(bench.printed(&row(forever.id)).await, "(9223372036854775807,3,2024-02-29,,t)");
    assert_eq!(bench.printed(&row(bounded.id)).await, "(0,3,2024-02-29,9999-12-31,t)");
    assert_eq!(bench.printed("SELECT port FROM servers").await, "5432");
    bench.finish().await;
}

#[tokio::test]
async fn documents_bytes_fractions_and_times_are_stored_as_they_are() {
    let bench = Bench::new().await;
    let catalog = &bench.catalog;
    let acme = bench.reserve("acme").await.id;
    let bytes: Vec<u8> = (0..=255).collect();
    let txn = catalog.begin().await.unwrap();
    catalog.tenant_secret_put_in_txn(&txn, acme, "password", 1, b"old").await.unwrap();
    catalog.tenant_secret_put_in_txn(&txn, acme, "password", 2, b"half done").await.unwrap();
    catalog.tenant_secret_put_in_txn(&txn, acme, "password", 2, &bytes).await.unwrap();
    let key = catalog.tenant_data_key_put_in_txn(&txn, acme, b"first").await.unwrap();
    assert_eq!(key, catalog.tenant_data_key_put_in_txn(&txn, acme, b"second").await.unwrap());
    let input =
        json!({"text": "é\"\\", "int": 9_007_199_254_740_993_i64, "float": 0.1, "null": null, "list": [true, {}]});
    let new = NewOperation { input: input.clone(), request_hash: &bytes, ..new_operation(Some(acme)) };
    let id = catalog.operation_create_in_txn(&txn, &new).await.unwrap().into_operation().id;
    txn.commit().await.unwrap();

    let (secret, key) = catalog.tenant_secret_get(acme, "password").await.unwrap();
    assert_eq!((secret, key.as_slice()), (Secret { version: 2, ciphertext: bytes }, b"first".as_slice()));
    assert_eq!(catalog.tenant_data_key_get(acme).await.unwrap(), b"first");
    assert!(matches!(catalog.tenant_secret_get(acme, "other").await, Err(Error::SecretUnknown { .. })));
    let all_bytes = "SELECT ciphertext = decode(string_agg(lpad(to_hex(n), 2, '0'), '' ORDER BY n), 'hex') FROM generate_series(0, 255) AS n, tenant_secrets WHERE version = 2 GROUP BY ciphertext";
    assert_eq!(bench.printed(all_bytes).await, "true");
    assert_eq!(catalog.operation_get(id).await.unwrap().input, input);
    assert_eq!(bench.printed("SELECT input ->> 'int' FROM operations").await, "9007199254740993");

    let lease = std::time::Duration::from_millis(90_500);
    let claim = catalog.operation_claim(Uuid::new_v4(), lease, &[], &[]).await.unwrap().unwrap();
    assert_eq!(bench.printed("SELECT lease_until - updated_at FROM operations").await, "00:01:30.5");
    let end = OperationEnd { state: OperationState::Succeeded, result: Some(json!(null)), error: None };
    catalog.operation_end(id, claim.fence, &end).await.unwrap();
    assert_eq!(bench.printed("SELECT error IS NULL AND lease_owner IS NULL FROM operations").await, "true");
    assert!(catalog.operation_heartbeat(id, claim.fence, LEASE).await.is_ok_and(|held| !held));
    bench.finish().await;
}

#[tokio::test]
async fn a_value_that_the_domain_refuses_is_named_by_table_column_and_row() {
    let bench = Bench::new().await;
    let acme = bench.reserve("acme").await;
    let operation = bench.operation(None).await;
    bench.sql("UPDATE tenants SET code = 'Bad Code'; UPDATE operations SET kind = 'dance'").await;
    let damaged = bench.catalog.tenant_get(&TenantRef::Id(acme.id)).await.unwrap_err();
    let text = damaged.to_string();
    assert!(text.starts_with(&format!("the catalog's tenants.code of {} is damaged: ", acme.id)), "{text}");
    let Err(Error::Corrupt(damage)) = bench.catalog.operation_get(operation.id).await else { panic!("no damage") };
    assert_eq!((damage.table, damage.column, damage.id), ("operations", "kind", operation.id.to_string()));
    assert_eq!(damage.problem, "\"dance\" is no operation kind");
    bench.finish().await;
}

#[tokio::test]
async fn migrations_of_two_daemons_at_once_are_applied_once() {
    let bench = Bench::new().await;
    bench.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT ALL ON SCHEMA public TO PUBLIC").await;
    let (first, second) = tokio::join!(bench.catalog.migrate(), bench.catalog.migrate());
    let mut applied = [first.unwrap(), second.unwrap()];
    applied.sort_unstable();
    assert_eq!(applied, [0, 10]);
    assert_eq!(bench.printed("SELECT count(*) FROM refinery_schema_history").await, "10");
    let id = bench.catalog.id().await.unwrap();
    assert_eq!(bench.printed("SELECT catalog_id FROM catalog_meta").await, id.to_string());
    // A history that this binary does not know is refused, not guessed at.
    bench.sql("UPDATE refinery_schema_history SET checksum = '1' WHERE version = 2").await;
    let refusal = bench.catalog.migrate().await.unwrap_err().to_string();
    assert!(refusal.contains("the shared database"), "{refusal}");
    bench.finish().await;
}
