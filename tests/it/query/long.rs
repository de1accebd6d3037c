//! Transactions and streams last as long as their callers like: one tenant's leave places to the others', and all of
//! them leave places to statements.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tenantd::proto::v1::transact_request::Action;
use tenantd::proto::v1::transact_response::Outcome;
use tenantd::proto::v1::{
    BeginTransaction, ExecuteRequest, PipelineStatement, StreamQueryRequest, Target, TransactRequest, TransactResponse,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::{Client, Fleet, Open, PATIENCE, Spec, until};

type Transaction = Open<TransactRequest, TransactResponse>;

/// Whoever waits is refused soon, and transactions stay open longer than any of these tests takes.
fn patient() -> Spec {
    Spec::default().setting("[router]", "acquire_timeout", "\"2s\"").setting(
        "[query]",
        "transaction_idle_max",
        "\"10m\"",
    )
}

/// Five places for all tenants.
fn five_places() -> Spec {
    patient().setting("[[servers]]", "connections_max", "25").setting("[[servers]]", "connections_reserved", "20")
}

async fn begun(client: &Client, tenant: &str, target: Target) -> Result<Transaction, Status> {
    let mut open = client.transaction_opened().await?;
    let (tenant, target) = (tenant.to_owned(), target.into());
    open.send(Action::Begin(BeginTransaction { tenant, target, ..BeginTransaction::default() })).await;
    match open.answer().await? {
        Outcome::Begun(_) => Ok(open),
        other => panic!("{other:?}"),
    }
}

/// As [`begun`], of a caller who comes back when the server is slow to open a connection.
async fn answered(client: &Client, tenant: &str) -> Result<Transaction, Status> {
    until("it is answered", async || {
        let answer = begun(client, tenant, Target::Unspecified).await;
        let is_slow = answer.as_ref().is_err_and(|refused| refused.code() == Code::Unavailable);
        (!is_slow).then_some(answer)
    })
    .await
}

/// What there was no room in.
fn crowded(status: &Status) -> String {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    status.get_error_details().error_info().unwrap().metadata.get("cause").cloned().unwrap_or_default()
}

#[tokio::test]
async fn open_transactions_of_one_tenant_leave_places_to_the_others() {
    let fleet = Fleet::new(five_places()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    for tenant in ["alpha", "beta", "gamma"] {
        client.tenant(tenant).await;
    }
    let tried = futures_util::future::join_all((0..6).map(|_| answered(client, "alpha"))).await;
    let (mut held, refused): (Vec<_>, Vec<_>) = tried.into_iter().partition(Result::is_ok);
    assert_eq!((held.len(), refused.len()), (2, 4));
    for refused in refused {
        let refused = refused.unwrap_err();
        assert_eq!(crowded(&refused), "long_leases_of_tenant");
        assert!(refused.message().contains("hold 2 connections"), "{refused:?}");
    }
    let streamed = StreamQueryRequest { tenant: "alpha".to_owned(), sql: "SELECT 1".to_owned(), ..Default::default() };
    assert_eq!(crowded(&client.query().stream_query(streamed).await.unwrap_err()), "long_leases_of_tenant");
    // One more of all tenants, and statements of everybody's.
    let other = answered(client, "beta").await.unwrap();
    assert_eq!(crowded(&begun(client, "gamma", Target::Unspecified).await.unwrap_err()), "long_leases");
    for tenant in ["alpha", "beta", "gamma"] {
        until("there is a place for a statement", async || client.execute(tenant, "SELECT 1").await.ok()).await;
    }
    // Whoever waits has the place that becomes free.
    let (waiting, ()) = tokio::join!(answered(client, "gamma"), async {
        tokio::task::yield_now().await;
        drop(held.pop());
    });
    drop((waiting.unwrap(), other, held));
    fleet.stop(daemon).await;
}

/// As many as the tenant's pool has connections but one, however many wait.
#[tokio::test]
async fn open_transactions_leave_a_connection_of_the_tenants_own_pool_and_who_waits_keeps_nobody_out() {
    let narrow =
        "{ direct_connections_max = 5, pool_connections_max = 3, users_max = 5, sites_max = 1, storage_bytes_max = 1 }";
    let fleet = Fleet::new(patient().setting("[tiers]", "standard", narrow)).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    for tenant in ["alpha", "beta"] {
        client.tenant(tenant).await;
    }
    let judge = fleet.judge("postgres").await;
    let open = async |count: i64| {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND state = 'idle in transaction'";
        let name = format!("{}_alpha", fleet.naming.prefix());
        until(&format!("{count} of them have begun"), async || {
            (judge.query_one(sql, &[&name]).await.unwrap().get::<_, i64>(0) == count).then_some(())
        })
        .await;
    };
    // Again, when a busy machine has made them wait for so long that some were refused before anybody came beside them.
    let held = until("others come while they wait", async || {
        open(0).await;
        let refusals = AtomicUsize::new(0);
        let trying = futures_util::future::join_all((0..12).map(async |_| {
            let tried = answered(client, "alpha").await;
            refusals.fetch_add(usize::from(tried.is_err()), Ordering::SeqCst);
            tried
        }));
        let beside = async {
            open(2).await;
            // The others wait by now.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let other = answered(client, "beta").await.unwrap();
            until("there is a place for a statement", async || client.execute("alpha", "SELECT 1").await.ok()).await;
            drop(other);
            refusals.load(Ordering::SeqCst)
        };
        let (tried, refused_before) = tokio::join!(trying, beside);
        let (held, refused): (Vec<_>, Vec<_>) = tried.into_iter().partition(Result::is_ok);
        assert_eq!((held.len(), refused.len()), (2, 10));
        for refused in refused {
            let refused = refused.unwrap_err();
            assert_eq!(crowded(&refused), "long_leases_of_tenant", "{refused:?}");
        }
        (refused_before == 0).then_some(held)
    })
    .await;
    drop(held);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn one_tenant_leaves_the_shared_database_to_the_others() {
    // Longer than others wait.
    let fleet = Fleet::new(Spec::default().setting("[query]", "transaction_idle_max", "\"1m\"")).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    for tenant in ["alpha", "beta"] {
        client.tenant(tenant).await;
    }
    let held = begun(client, "alpha", Target::TenantShared).await.unwrap();
    let second = async {
        let refused = begun(client, "alpha", Target::TenantShared).await.unwrap_err();
        assert!(refused.message().contains("at most 1 of the tenant's callers"), "{refused:?}");
        assert_eq!(refused.code(), Code::ResourceExhausted);
    };
    let other = async {
        let request = ExecuteRequest {
            tenant: "beta".to_owned(),
            sql: "SELECT code FROM tenants".to_owned(),
            target: Target::TenantShared.into(),
            ..ExecuteRequest::default()
        };
        for _ in 0..3 {
            assert_eq!(client.rows(request.clone()).await.unwrap(), [["beta"]]);
        }
    };
    tokio::join!(second, other);
    drop(held);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_pipeline_is_not_read_from_while_many_bytes_are_on_their_way() {
    const MEBIBYTE: usize = 1 << 20;
    const COUNT: u64 = 60;
    let spec = Spec::default()
        .setting("[[servers]]", "connections_max", "21")
        .setting("[[servers]]", "connections_reserved", "20")
        .setting("[router]", "acquire_timeout", "\"60s\"");
    let fleet = Fleet::new(spec).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let held = begun(client, "acme", Target::Unspecified).await.unwrap();
    let mut open = client.pipeline().await;
    let large = "x".repeat(MEBIBYTE);
    let statement = |id| PipelineStatement {
        id,
        tenant: "acme".to_owned(),
        sql: format!("SELECT octet_length('{large}{id}')"),
        ..PipelineStatement::default()
    };
    let mut sent = 0;
    while sent < COUNT {
        let request = tenantd::proto::v1::PipelineRequest { statements: vec![statement(sent)] };
        let sending = open.requests.send(request);
        // So many are read, however long it takes; whether more are is not waited for as long.
        let patience = if sent < 16 { PATIENCE } else { Duration::from_secs(2) };
        if tokio::time::timeout(patience, sending).await.is_err() {
            break;
        }
        sent += 1;
    }
    // Those on their way, and those in buffers on the way to the daemon.
    assert!((16..50).contains(&sent), "{sent} were read");
    drop(held);
    let mut answered = 0;
    while answered < sent {
        let response = open.answers.message().await.unwrap().expect("more answers");
        answered += u64::try_from(response.answers.len()).unwrap();
    }
    fleet.stop(daemon).await;
}
