//! `tenantd routes watch`, against a daemon that says what a test wants it to.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tenantd::config::write_private;
use tenantd::proto::v1::router_service_server::{RouterService, RouterServiceServer};
use tenantd::proto::v1::{
    EvictPoolRequest, EvictPoolResponse, GetTenantStatsRequest, GetTenantStatsResponse, ListPoolsRequest,
    ListPoolsResponse, ResolveTenantRequest, ResolveTenantResponse, Route, RouteEvent, WatchRoutesRequest,
    WatchRoutesResponse,
};
use tenantd::shutdown::Tasks;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::harness::tenantd;

/// Its callers reach more tenants from the middle of their first snapshot on.
#[derive(Debug, Clone, Default)]
struct Grows(Arc<AtomicUsize>);

fn message(event: RouteEvent, code: &str) -> WatchRoutesResponse {
    let route = Route { code: code.to_owned(), ..Route::default() };
    WatchRoutesResponse {
        event: event.into(),
        catalog_id: "0193".to_owned(),
        revision: 7,
        routes: vec![route],
        ..WatchRoutesResponse::default()
    }
}

#[tonic::async_trait]
impl RouterService for Grows {
    type WatchRoutesStream = BoxStream<'static, Result<WatchRoutesResponse, Status>>;

    async fn watch_routes(
        &self,
        request: Request<WatchRoutesRequest>,
    ) -> Result<Response<Self::WatchRoutesStream>, Status> {
        assert_eq!(request.get_ref().after_revision, None, "nothing is known to the end");
        let first = message(RouteEvent::Snapshot, "acme");
        let stream = if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
            let details = ErrorDetails::with_error_info("REVISION_UNKNOWN", "tenantd", []);
            let grown = Status::with_error_details(Code::OutOfRange, "this caller reaches more tenants", details);
            stream::iter([Ok(first), Err(grown)]).boxed()
        } else {
            stream::iter([Ok(first), Ok(message(RouteEvent::SnapshotEnd, "beta"))]).chain(stream::pending()).boxed()
        };
        Ok(Response::new(stream))
    }

    async fn resolve_tenant(
        &self,
        _request: Request<ResolveTenantRequest>,
    ) -> Result<Response<ResolveTenantResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_pools(&self, _request: Request<ListPoolsRequest>) -> Result<Response<ListPoolsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn evict_pool(&self, _request: Request<EvictPoolRequest>) -> Result<Response<EvictPoolResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_tenant_stats(
        &self,
        _request: Request<GetTenantStatsRequest>,
    ) -> Result<Response<GetTenantStatsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reach_that_grows_in_the_first_snapshot_begins_the_watch_anew() {
    let (dir, tasks) = (tempfile::tempdir().unwrap(), Tasks::new(tracing::Span::none()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_service(RouterServiceServer::new(Grows::default()));
    tasks.spawn("fake daemon", server.serve_with_incoming(TcpIncoming::from(listener)));
    let key_file = dir.path().join("key");
    write_private(&key_file, "tnt_key").unwrap();
    let mut command = tenantd();
    command.args(["routes", "watch", "--endpoint", &endpoint, "--key-file"]).arg(&key_file);
    let mut watch = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines().map_while(Result::ok);
    let until_whole = lines.take_while(|line| !line.contains("all routes at revision 7")).collect::<Vec<_>>();
    watch.kill().unwrap();
    watch.wait().unwrap();
    let codes: Vec<_> = until_whole.iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(codes, ["acme", "acme", "beta"], "{until_whole:?}");
}
