//! Pools and statistics as callers over gRPC see them, and as the command line shows them.

use std::time::SystemTime;

use tenantd::proto::v1::{EvictPoolRequest, GetTenantStatsRequest, GetTenantStatsResponse, ListPoolsRequest, Pool};
use tonic::Code;

use crate::harness::{Client, Fleet, Spec, reason};

async fn pools(client: &Client, page_size: i32, page_token: &str) -> (Vec<Pool>, String) {
    let message = ListPoolsRequest { page_size, page_token: page_token.to_owned() };
    let page = client.router().list_pools(message).await.unwrap().into_inner();
    (page.pools, page.next_page_token)
}

async fn stats(client: &Client, tenant: &str) -> GetTenantStatsResponse {
    let message = GetTenantStatsRequest { tenant: tenant.to_owned() };
    client.router().get_tenant_stats(message).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_are_listed_and_closed_and_their_statistics_stay() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    for code in ["acme", "beta", "gamma"] {
        client.tenant(code).await;
        for _ in 0..3 {
            assert_eq!(client.sql(code, "SELECT count(*) FROM things").await, "20");
        }
    }
    let (first, token) = pools(client, 2, "").await;
    let (second, end) = pools(client, 2, &token).await;
    let codes: Vec<_> = first.iter().chain(&second).map(|pool| pool.tenant_code.as_str()).collect();
    assert_eq!((codes, end.as_str()), (vec!["acme", "beta", "gamma"], ""));
    let acme = &first[0];
    assert_eq!((acme.idle, acme.leased, acme.waiting, acme.connections_max), (1, 0, 0, 10));

    let before = stats(client, "acme").await;
    let counted = before.stats.clone().unwrap();
    assert_eq!((counted.acquires, counted.connects, counted.evictions), (3, 1, 0));
    assert!(counted.connect_time.unwrap().nanos > 0 && before.pool.is_some());

    let evict = |reason: &str, validate_only| EvictPoolRequest {
        request_id: String::new(),
        validate_only,
        tenant: "acme".to_owned(),
        reason: reason.to_owned(),
    };
    let refusal = client.router().evict_pool(evict(" ", false)).await.unwrap_err();
    assert_eq!((refusal.code(), reason(&refusal).as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"));
    client.router().evict_pool(evict("a test", true)).await.unwrap();
    assert_eq!(pools(client, 0, "").await.0.len(), 3);
    let evicted = client.router().evict_pool(evict("a test", false)).await.unwrap().into_inner();
    assert_eq!(evicted.pool.unwrap().idle, 1);
    assert_eq!(pools(client, 0, "").await.0.len(), 2);
    assert!(client.router().evict_pool(evict("a test", false)).await.unwrap().into_inner().pool.is_none());

    let after = stats(client, "acme").await;
    assert_eq!((after.stats, after.pool), (before.stats, None));
    assert_eq!(client.sql("acme", "SELECT count(*) FROM things").await, "20");
    assert_eq!(stats(client, "acme").await.stats.unwrap().connects, 2);
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_begins_opens_nothing_for_a_tenant_until_somebody_asks() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    for code in ["acme", "beta", "gamma"] {
        daemon.client.tenant(code).await;
    }
    daemon.stop().await;
    let judge = fleet.judge("postgres").await;
    let begun: SystemTime = judge.query_one("SELECT clock_timestamp()", &[]).await.unwrap().get(0);
    let prefix = fleet.naming.prefix();
    // Whatever has been opened since in a tenant's database, by whomever.
    let opened = async || -> Vec<String> {
        let sql = "SELECT datname::text FROM pg_stat_activity WHERE backend_start > $1 AND datname <> ALL ($2) \
                   AND starts_with(datname, $3 || '_') AND backend_type = 'client backend'";
        let own = [fleet.naming.shared_database(), fleet.naming.auth_database()].map(|name| name.to_string());
        let rows = judge.query(sql, &[&begun, &own.as_slice(), &prefix]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let daemon = fleet.start().await;
    assert!(pools(&daemon.client, 0, "").await.0.is_empty());
    assert_eq!(opened().await, [""; 0]);
    assert_eq!(daemon.client.sql("beta", "SELECT count(*) FROM things").await, "20");
    let pools = pools(&daemon.client, 0, "").await.0;
    assert_eq!(pools.iter().map(|pool| pool.tenant_code.as_str()).collect::<Vec<_>>(), ["beta"]);
    let beta = fleet.naming.tenant_database(&"beta".parse().unwrap()).unwrap();
    assert_eq!(opened().await, [beta.as_str()]);
    fleet.stop(daemon).await;
}
