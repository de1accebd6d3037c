//! How often: callers, tenants and guessers have limits, and are told whose it is and when to come back.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use tenantd::proto::v1::resolve_tenant_request::Selector;
use tenantd::proto::v1::transact_request::Action;
use tenantd::proto::v1::{
    BeginTransaction, CreateApiKeyRequest, ErrorReason, PipelineRequest, PipelineStatement, ResolveTenantRequest,
    StreamQueryRequest, WhoAmIRequest, pipeline_answer,
};
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::harness::{Client, Daemon, Fleet, Spec, reason, until};

/// Far more calls at once than the limits of these tests let through.
const CALLS: usize = 60;

async fn key(daemon: &Daemon, role: &str) -> Client {
    let wish = CreateApiKeyRequest {
        name: format!("a {role}"),
        roles: vec![role.to_owned()],
        ..CreateApiKeyRequest::default()
    };
    let made = daemon.client.access().create_api_key(wish).await.unwrap().into_inner();
    Client::new(daemon.address, Some(&made.secret))
}

/// Whose limit it is, and that it is told when to come back.
fn limit(status: &Status) -> String {
    assert_eq!((status.code(), reason(status).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"), "{status:?}");
    let details = status.get_error_details();
    assert!(!details.retry_info().unwrap().retry_delay.unwrap().is_zero());
    details.quota_failure().unwrap().violations[0].subject.clone()
}

#[tokio::test]
async fn a_caller_has_its_own_limit_and_health_has_none() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let (hasty, calm) = (key(&daemon, "viewer").await, key(&daemon, "resolver").await);
    daemon.stop().await;
    fleet.configure(&[("[callers]", "calls_per_second_max", "2".to_owned())]);
    let daemon = fleet.start().await;
    let (hasty, calm) = (hasty.moved(daemon.address), calm.moved(daemon.address));

    let calls = join_all((0..CALLS).map(|_| async { hasty.access().who_am_i(WhoAmIRequest {}).await })).await;
    let refused: Vec<Status> = calls.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty() && refused.len() < CALLS);
    for status in &refused {
        assert_eq!(limit(status), "principal:api-key:a viewer");
    }
    calm.access().who_am_i(WhoAmIRequest {}).await.unwrap();
    let channel = Endpoint::from_shared(format!("http://{}", daemon.address)).unwrap().connect().await.unwrap();
    let health = HealthClient::new(channel);
    for answer in join_all((0..CALLS).map(|_| {
        let mut health = health.clone();
        async move { health.check(HealthCheckRequest::default()).await }
    }))
    .await
    {
        answer.unwrap();
    }
    fleet.stop(daemon).await;
}

/// A tenant may make two calls per second.
fn two_calls() -> Spec {
    let tier = [
        ("direct_connections_max", "100"),
        ("pool_connections_max", "10"),
        ("users_max", "50"),
        ("sites_max", "5"),
        ("storage_bytes_max", "1000000000"),
        ("calls_per_second_max", "2"),
    ];
    tier.into_iter().fold(Spec::default(), |spec, (name, value)| spec.setting("[tiers.standard]", name, value))
}

#[tokio::test]
async fn a_tenant_has_a_limit_over_all_of_its_callers() {
    let fleet = Fleet::new(two_calls()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    daemon.client.tenant("bolt").await;
    let callers = [key(&daemon, "resolver").await, key(&daemon, "admin").await];
    let resolve = async |caller: &Client, code: &str| {
        let request =
            ResolveTenantRequest { selector: Some(Selector::Code(code.to_owned())), ..ResolveTenantRequest::default() };
        caller.router().resolve_tenant(request).await
    };
    let answers = join_all((0..CALLS).map(|number| resolve(&callers[number % 2], "acme"))).await;
    let refused: Vec<Status> = answers.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty() && refused.len() < CALLS);
    for status in &refused {
        assert_eq!(limit(status), "tenant:acme");
    }
    resolve(&callers[0], "bolt").await.unwrap();
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_that_are_read_again_count_at_once() {
    let fleet = Fleet::new(Spec::default().setting("[router]", "slow_statement_threshold", "\"1h\"")).await;
    let daemon = fleet.spawn();
    let admin = &daemon.client;
    admin.tenant("acme").await;
    let hasty = admin.with_key(&admin.key_new(&["resolver"], &[]).await);
    let refused = async || {
        let calls = join_all((0..CALLS).map(|_| async {
            let request = ResolveTenantRequest {
                selector: Some(Selector::Code("acme".to_owned())),
                ..ResolveTenantRequest::default()
            };
            hasty.router().resolve_tenant(request).await
        }));
        let refused = calls.await.into_iter().filter_map(Result::err).map(|status| limit(&status));
        refused.collect::<BTreeSet<String>>()
    };
    let slow = async || {
        admin.sql("acme", "SELECT pg_sleep(0.01)").await;
        fleet.latest().contains("slow statement")
    };
    assert!(refused().await.is_empty() && !slow().await);

    fleet.configure(&[("[callers]", "calls_per_second_max", "2".to_owned())]);
    daemon.hang_up();
    let of_the_caller = BTreeSet::from(["principal:api-key:test".to_owned()]);
    until("the caller has its limit", async || (refused().await == of_the_caller).then_some(())).await;

    let tier = "{ direct_connections_max = 100, pool_connections_max = 10, users_max = 50, sites_max = 5, \
                storage_bytes_max = 1000000000, calls_per_second_max = 2 }";
    fleet.configure(&[("[tiers]", "standard", tier.to_owned())]);
    daemon.hang_up();
    let of_the_tenant = BTreeSet::from(["tenant:acme".to_owned()]);
    until("the tenant has its limit", async || (refused().await == of_the_tenant).then_some(())).await;

    fleet.configure(&[("[router]", "slow_statement_threshold", "\"5ms\"".to_owned())]);
    daemon.hang_up();
    until("nobody has", async || refused().await.is_empty().then_some(())).await;
    until("the statement is slow", async || slow().await.then_some(())).await;
    daemon.terminate().await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_tenants_limit_counts_statements_however_they_come_and_a_stream_once() {
    let fleet = Fleet::new(two_calls()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    for tenant in ["acme", "bolt"] {
        client.tenant(tenant).await;
    }
    let executed = async || client.execute("acme", "SELECT 1").await.map(drop);
    let streamed = async || {
        let (tenant, sql) = ("acme".to_owned(), "SELECT 1".to_owned());
        let request = StreamQueryRequest { tenant, sql, ..StreamQueryRequest::default() };
        client.query().stream_query(request).await.map(drop)
    };
    let transacted = async || {
        let mut open = client.transaction_opened().await.unwrap();
        let tenant = "acme".to_owned();
        open.send(Action::Begin(BeginTransaction { tenant, ..BeginTransaction::default() })).await;
        open.answer().await.map(drop)
    };
    for answers in [
        join_all((0..CALLS).map(|_| executed())).await,
        join_all((0..CALLS).map(|_| streamed())).await,
        join_all((0..CALLS).map(|_| transacted())).await,
    ] {
        let refused: Vec<Status> = answers.into_iter().filter_map(Result::err).collect();
        assert!(!refused.is_empty());
        for status in &refused {
            assert_eq!(limit(status), "tenant:acme");
        }
    }

    // In a pipeline the tenants whose statements it has are counted, and not the statements.
    let piped = join_all((0..CALLS).map(|_| async {
        let mut open = client.pipeline().await;
        let statement = |id| {
            let (tenant, sql) = ("acme".to_owned(), "SELECT 1".to_owned());
            PipelineStatement { id, tenant, sql, ..PipelineStatement::default() }
        };
        let statements = (0..3).map(statement).collect();
        open.requests.send(PipelineRequest { statements }).await.unwrap();
        let mut outcomes = Vec::new();
        while outcomes.len() < 3 {
            let answers = open.answers.message().await.unwrap().unwrap().answers;
            outcomes.extend(answers.into_iter().map(|answer| answer.outcome.unwrap()));
        }
        outcomes
    }))
    .await;
    let errors: Vec<_> = piped
        .into_iter()
        .flatten()
        .filter_map(|outcome| match outcome {
            pipeline_answer::Outcome::Error(error) => Some(error),
            pipeline_answer::Outcome::Result(_) => None,
        })
        .collect();
    assert!(!errors.is_empty());
    for error in errors {
        assert_eq!((error.code, error.reason()), (i32::from(Code::ResourceExhausted), ErrorReason::RateLimited));
        assert!(error.retry_delay.is_some_and(|delay| delay.seconds > 0 || delay.nanos > 0));
    }
    client.execute("bolt", "SELECT 1").await.unwrap();
    until("the tenant may call again", async || executed().await.ok()).await;
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_search_for_keys_is_slow_and_keeps_nobody_out_who_is_known() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.access().who_am_i(WhoAmIRequest {}).await.unwrap();
    let guesses = join_all((0..200).map(|number| {
        let guess = Client::new(daemon.address, Some(&format!("tnd_{number}")));
        async move { guess.access().who_am_i(WhoAmIRequest {}).await.unwrap_err() }
    }))
    .await;
    let limited = guesses.iter().filter(|status| reason(status) == "RATE_LIMITED").count();
    let unknown = guesses.iter().filter(|status| reason(status) == "UNAUTHENTICATED").count();
    assert_eq!(limited + unknown, 200);
    assert!(limited > 0 && unknown > 0, "{limited} {unknown}");
    daemon.client.access().who_am_i(WhoAmIRequest {}).await.unwrap();
    fleet.stop(daemon).await;
}
