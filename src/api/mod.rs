//! The gRPC API: thin methods over the rooms below, one file for each service. Before a method runs, `auth` has made
//! the caller a principal; `status` alone turns errors into statuses. Must not hold state, and nothing it decides may
//! be left to the caller.

mod access;
mod audit;
mod auth;
mod backups;
mod called;
mod convert;
mod cut;
mod incoming;
mod message;
mod migrations;
mod ongoing;
mod operations;
mod peer;
mod pools;
mod prompt;
mod queries;
mod routes;
mod scope;
mod status;
mod tenants;
mod texts;
mod tls;
mod watch;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use futures_util::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService as _;
use tonic::service::RoutesBuilder;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::{HealthReporter, health_reporter};

use crate::access::Access;
use crate::accounts::Accounts;
use crate::catalog::Catalog;
use crate::config::{Config, Live};
use crate::operations::Operations;
use crate::proto::DESCRIPTORS;
use crate::proto::v1::access_service_server::AccessServiceServer;
use crate::proto::v1::backup_service_server::BackupServiceServer;
use crate::proto::v1::migration_service_server::MigrationServiceServer;
use crate::proto::v1::operation_service_server::OperationServiceServer;
use crate::proto::v1::query_service_server::QueryServiceServer;
use crate::proto::v1::router_service_server::RouterServiceServer;
use crate::proto::v1::tenant_service_server::TenantServiceServer;
use crate::query::Queries;
use crate::router::Router;
use crate::shutdown::Tasks;
use cut::{Cut, Cuts};
use prompt::Prompt;
pub use tls::Tls;

/// A request with more is refused.
const REQUEST_BYTES_MAX: usize = 4 << 20;
/// The same for who asks for health, which anybody may.
const HEALTH_BYTES_MAX: usize = 1 << 10;
/// Calls at the same moment on one connection; more wait. As many may have been given up by their callers before they
/// were looked at, without costing the others their connection.
const CALLS_PER_CONNECTION_MAX: u32 = 1_024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// What calls that were cut off may take to tell their callers.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// What the API serves.
#[derive(Debug, Clone)]
pub struct Api {
    pub config: Arc<Config>,
    /// Without it the listener speaks in clear.
    pub tls: Option<Tls>,
    pub live: Live,
    pub catalog: Catalog,
    pub accounts: Accounts,
    pub access: Access,
    pub router: Router,
    pub queries: Queries,
    pub operations: Operations,
    pub tasks: Tasks,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the listener has no address: {0}")]
    Address(std::io::Error),
    #[error("the API's own description is damaged: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("serving failed: {0}")]
    Serve(tonic::transport::Error),
}

/// One service's part of the API.
#[derive(Debug, Clone)]
struct Service {
    api: Api,
    /// Cancelled when the drain begins: watches end.
    draining: CancellationToken,
}

/// Serves until `shutdown` resolves, then drains: health says so, new calls are refused, watches end, and running calls
/// may end within the configured time; those that do not are cut off. The listener is open until then, so that whoever
/// asks hears why it is refused.
pub async fn serve(listener: TcpListener, api: Api, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
    let address = listener.local_addr().map_err(Error::Address)?;
    let (drain_timeout, tls) = (api.config.drain_timeout, api.tls.clone());
    let (draining, closing) = (CancellationToken::new(), CancellationToken::new());
    let (refusing, cuts) = (Arc::new(Cut::default()), Arc::new(Cuts::default()));
    let guard = auth::Guard {
        access: api.access.clone(),
        tasks: api.tasks.clone(),
        draining: Arc::clone(&refusing),
        cuts: Arc::clone(&cuts),
    };
    let (mut reporter, health) = health_reporter();
    let routes = routes(&Service { api, draining: draining.clone() }, health, address)?;
    health_set(&reporter, ServingStatus::Serving).await;

    let server = Server::builder()
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .http2_max_pending_accept_reset_streams(Some(CALLS_PER_CONNECTION_MAX as usize))
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT));
    let server = server.layer(guard).add_routes(routes);
    let sockets = TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(KEEPALIVE_INTERVAL));
    let incoming = incoming::bounded(sockets, incoming::connections_max());
    let stop = closing.clone().cancelled_owned();
    let mut serving: BoxFuture<'_, _> = match tls {
        None => Box::pin(server.serve_with_incoming_shutdown(incoming.map_ok(Prompt::new), stop)),
        Some(tls) => Box::pin(server.serve_with_incoming_shutdown(tls.accept(incoming).map_ok(Prompt::new), stop)),
    };
    tokio::select! {
        ended = &mut serving => return ended.map_err(Error::Serve),
        () = shutdown => {}
    }
    let deadline = Instant::now() + drain_timeout;
    health_set(&reporter, ServingStatus::NotServing).await;
    refusing.make();
    draining.cancel();
    let have_ended = tokio::select! {
        ended = &mut serving => return ended.map_err(Error::Serve),
        waited = timeout_at(deadline, cuts.left()) => waited.is_ok(),
    };
    if !have_ended {
        tracing::warn!(?drain_timeout, "calls that did not end in time are cut off");
        cuts.make();
    }
    health_end(&mut reporter).await;
    closing.cancel();
    // Some clients are still reading. Connections that are open afterwards belong to clients that do not listen.
    match timeout_at(deadline.max(Instant::now() + CUT_TIMEOUT), &mut serving).await {
        Ok(ended) => ended.map_err(Error::Serve),
        Err(_elapsed) => Ok(()),
    }
}

/// Every service; reflection only where nobody else can reach it.
fn routes(
    service: &Service,
    health: HealthServer<impl Health>,
    address: SocketAddr,
) -> Result<tonic::service::Routes, Error> {
    let mut routes = RoutesBuilder::default();
    routes.add_service(health.max_decoding_message_size(HEALTH_BYTES_MAX));
    macro_rules! add {
        ($($server:ident),+) => {
            $(routes.add_service($server::new(service.clone()).max_decoding_message_size(REQUEST_BYTES_MAX));)+
        };
    }
    add!(
        AccessServiceServer,
        BackupServiceServer,
        MigrationServiceServer,
        OperationServiceServer,
        QueryServiceServer,
        RouterServiceServer,
        TenantServiceServer
    );
    if address.ip().is_loopback() {
        let reflection = tonic_reflection::server::Builder::configure();
        routes.add_service(reflection.register_encoded_file_descriptor_set(DESCRIPTORS).build_v1()?);
    }
    Ok(routes.routes())
}

/// The daemon as a whole, and each service by its name.
const HEALTH_NAMES: [&str; 8] = [
    "",
    AccessServiceServer::<Service>::NAME,
    BackupServiceServer::<Service>::NAME,
    MigrationServiceServer::<Service>::NAME,
    OperationServiceServer::<Service>::NAME,
    QueryServiceServer::<Service>::NAME,
    RouterServiceServer::<Service>::NAME,
    TenantServiceServer::<Service>::NAME,
];

async fn health_set(reporter: &HealthReporter, status: ServingStatus) {
    for service in HEALTH_NAMES {
        reporter.set_service_status(service, status).await;
    }
}

/// Ends the streams of those who watch, once they have heard the last state: the drain would wait for them.
async fn health_end(reporter: &mut HealthReporter) {
    for service in HEALTH_NAMES {
        reporter.clear_service_status(service).await;
    }
}
