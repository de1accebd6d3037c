//! Who wins when two create the same thing at the same moment.

use futures_util::future::join_all;
use tenantd::catalog::{
    Catalog, Created, Error, NewOperation, NewTenant, OperationEnd, OperationFilter, Page, TenantRef,
};
use tenantd::domain::operation::{OperationId, OperationKind, OperationState};
use uuid::Uuid;

use super::{Bench, new_operation, new_tenant};

async fn reserve(catalog: &Catalog, tenant: &NewTenant) -> Result<(), Error> {
    let txn = catalog.begin().await?;
    catalog.tenant_reserve_in_txn(&txn, tenant).await?;
    Ok(txn.commit().await?)
}

async fn create(catalog: &Catalog, new: &NewOperation<'_>) -> Result<Created, Error> {
    let txn = catalog.begin().await?;
    let created = catalog.operation_create_in_txn(&txn, new).await?;
    txn.commit().await?;
    Ok(created)
}

#[tokio::test]
async fn of_many_that_take_the_same_code_exactly_one_wins() {
    let bench = Bench::new().await;
    let tenants: Vec<_> = (0..8).map(|_| new_tenant("acme")).collect();
    let outcomes = join_all(tenants.iter().map(|tenant| reserve(&bench.catalog, tenant))).await;
    let winner = bench.catalog.tenant_get(&TenantRef::Code("acme".parse().unwrap())).await.unwrap();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for refusal in outcomes.into_iter().filter_map(Result::err) {
        assert!(matches!(refusal, Error::TenantExists { id, .. } if id == winner.id), "{refusal}");
    }
    bench.finish().await;
}

#[tokio::test]
async fn a_reservation_that_is_rolled_back_lets_the_one_that_waits_win() {
    let bench = Bench::new().await;
    let first = bench.catalog.begin().await.unwrap();
    bench.catalog.tenant_reserve_in_txn(&first, &new_tenant("acme")).await.unwrap();
    let second = new_tenant("acme");
    let (outcome, ()) = tokio::join!(reserve(&bench.catalog, &second), async {
        bench.waiting_session().await;
        drop(first);
    });
    outcome.unwrap();
    let winner = bench.catalog.tenant_get(&TenantRef::Code("acme".parse().unwrap())).await.unwrap();
    assert_eq!(winner.id, second.id);
    bench.finish().await;
}

#[tokio::test]
async fn a_taken_host_or_database_or_an_unknown_server_is_named() {
    let bench = Bench::new().await;
    let acme = NewTenant { hosts: vec!["acme.example.com".to_owned()], ..new_tenant("acme") };
    reserve(&bench.catalog, &acme).await.unwrap();
    let refusal = |tenant: NewTenant| {
        let catalog = bench.catalog.clone();
        async move { reserve(&catalog, &tenant).await.unwrap_err() }
    };
    let other = || new_tenant("other");
    assert!(matches!(refusal(NewTenant { hosts: acme.hosts.clone(), ..other() }).await, Error::HostTaken { .. }));
    assert!(matches!(refusal(NewTenant { hosts: vec!["Up.example".into()], ..other() }).await, Error::HostInvalid(_)));
    let same_database = NewTenant { database: acme.database.clone(), ..other() };
    assert!(matches!(refusal(same_database).await, Error::DatabaseTaken { .. }));
    let elsewhere = NewTenant { server: "nowhere".to_owned(), ..other() };
    assert!(matches!(refusal(elsewhere).await, Error::ServerUnknown { server } if server == "nowhere"));
    // None of them has left anything.
    reserve(&bench.catalog, &other()).await.unwrap();
    bench.finish().await;
}

#[tokio::test]
async fn the_same_request_creates_once_however_often_it_comes() {
    let bench = Bench::new().await;
    let request_id = Uuid::new_v4();
    // Each retry has an id of its own, and the same key.
    let requests: Vec<_> = (0..6).map(|_| NewOperation { request_id, ..new_operation(None) }).collect();
    let outcomes = join_all(requests.iter().map(|new| create(&bench.catalog, new))).await;
    let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
    assert_eq!(outcomes.iter().filter(|created| matches!(created, Created::New(_))).count(), 1);
    let all = bench.catalog.operation_list(&Page::default(), &OperationFilter::default()).await.unwrap().rows;
    assert_eq!(all.len(), 1);
    for created in outcomes {
        let operation = created.into_operation();
        assert_eq!(operation.id, all[0].id);
        assert_eq!(operation.steps.len(), 2);
    }

    let other = NewOperation { request_id, request_hash: b"another request", ..new_operation(None) };
    let refusal = create(&bench.catalog, &other).await.unwrap_err();
    assert!(matches!(refusal, Error::RequestIdReused { request_id: id } if id == request_id));
    bench.finish().await;
}

#[tokio::test]
async fn operations_on_one_tenant_exclude_each_other_until_they_end_well() {
    let bench = Bench::new().await;
    let tenant = bench.reserve("acme").await;
    let requests: Vec<_> = (0..6).map(|_| new_operation(Some(tenant.id))).collect();
    let outcomes = join_all(requests.iter().map(|new| create(&bench.catalog, new))).await;
    let winners: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).cloned().collect();
    let [winner] = winners.as_slice() else { panic!("{} operations on one tenant", winners.len()) };
    let holder = winner.clone().into_operation().id;
    for refusal in outcomes.into_iter().filter_map(Result::err) {
        let names_holder =
            matches!(refusal, Error::OperationConflict { id, kind: OperationKind::Backup } if id == holder);
        assert!(names_holder, "{refusal}");
    }

    let end = |id: OperationId, state| {
        let catalog = bench.catalog.clone();
        async move {
            let claim = catalog.operation_claim(Uuid::new_v4(), super::claims::LEASE, &[], &[]).await.unwrap().unwrap();
            let end = OperationEnd { state, result: None, error: None };
            catalog.operation_end(id, claim.fence, &end).await.unwrap();
        }
    };
    end(holder, OperationState::Failed).await;
    let second = create(&bench.catalog, &new_operation(Some(tenant.id))).await.unwrap().into_operation();
    // Stuck is no end: a person must look first.
    end(second.id, OperationState::Stuck).await;
    let refusal = create(&bench.catalog, &new_operation(Some(tenant.id))).await.unwrap_err();
    assert!(matches!(refusal, Error::OperationConflict { id, .. } if id == second.id));
    assert_eq!(bench.catalog.operations_active_count().await.unwrap(), 0);
    bench.finish().await;
}
