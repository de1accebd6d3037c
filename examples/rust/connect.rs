//! How an application reaches its tenants' databases, both ways: (a) it asks where a tenant is and connects with its own
//! driver, (b) it sends the statement to the daemon.
//!
//! ```sh
//! cargo run --example connect -- http://127.0.0.1:7432 .tenantd/admin.key acme
//! ```
//!
//! An application of your own generates the clients from `proto/` with tonic-prost-build; here they come from tenantd's
//! library.
#![expect(clippy::print_stdout, reason = "it is an example")]
#![expect(clippy::disallowed_methods, reason = "an application starts its tasks as it likes")]

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tenantd::proto::v1::query_service_client::QueryServiceClient;
use tenantd::proto::v1::resolve_tenant_request::Selector;
use tenantd::proto::v1::router_service_client::RouterServiceClient;
use tenantd::proto::v1::value::Kind;
use tenantd::proto::v1::{
    ExecuteRequest, ResolveTenantRequest, Route, RouteEvent, TenantState, WatchRoutesRequest, WatchRoutesResponse,
};
use tokio::sync::Mutex;
use tokio_postgres::NoTls;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long the daemon may take for a call that answers at once.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Before the watch is begun again.
const PAUSE: Duration = Duration::from_secs(1);

/// The tenants, as an application sees them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tenants {
    channel: Channel,
    key: MetadataValue<Ascii>,
    /// By code.
    open: Arc<Mutex<HashMap<String, Open>>>,
}

/// A connection to a tenant's database; a real application keeps a pool here.
#[derive(Debug)]
struct Open {
    /// Of the route that it was opened for.
    epoch: i64,
    client: Arc<tokio_postgres::Client>,
}

impl Tenants {
    /// Connects with the first call. For https, give the endpoint a `ClientTlsConfig`.
    pub fn new(endpoint: &str, key: &str) -> Result<Self> {
        let channel = Channel::from_shared(endpoint.to_owned())?.connect_lazy();
        let mut key: MetadataValue<Ascii> = format!("Bearer {key}").parse()?;
        key.set_sensitive(true);
        Ok(Self { channel, key, open: Arc::default() })
    }

    /// The key goes along with every call, and so does a deadline.
    fn call<T>(&self, message: T) -> Request<T> {
        let mut request = self.watch(message);
        request.set_timeout(CALL_TIMEOUT);
        request
    }

    fn watch<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.key.clone());
        request
    }

    /// (a) A connection to the tenant's own database.
    pub async fn connection(&self, code: &str) -> Result<Arc<tokio_postgres::Client>> {
        let mut open = self.open.lock().await;
        if let Some(Open { client, .. }) = open.get(code)
            && !client.is_closed()
        {
            return Ok(Arc::clone(client));
        }
        let selector = Some(Selector::Code(code.to_owned()));
        let request = self.call(ResolveTenantRequest { selector, include_credentials: true });
        let answer = RouterServiceClient::new(self.channel.clone()).resolve_tenant(request).await?.into_inner();
        let route = answer.route.ok_or("the daemon gave no route")?;
        // The URL says sslmode=verify-full where the server has TLS, and a connector for that goes here.
        let (client, connection) = tokio_postgres::connect(&route.url, NoTls).await?;
        tokio::spawn(connection);
        let client = Arc::new(client);
        open.insert(route.code, Open { epoch: route.epoch, client: Arc::clone(&client) });
        Ok(client)
    }

    /// (a) Drops the connections of every tenant that has changed, for as long as the application runs: its epoch has
    /// grown (a migration, a restore), it is not active any more, or it is gone.
    pub async fn follow(self) {
        let mut since = None;
        loop {
            let broken = self.follow_once(&mut since).await;
            if broken.is_err_and(|status| status.code() == Code::OutOfRange) {
                // What happened meanwhile cannot be told any more.
                since = None;
                self.open.lock().await.clear();
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn follow_once(&self, since: &mut Option<(String, i64)>) -> std::result::Result<(), Status> {
        let (catalog_id, after_revision) = since.clone().unzip();
        let request = WatchRoutesRequest { after_revision, catalog_id: catalog_id.unwrap_or_default() };
        let mut routes = RouterServiceClient::new(self.channel.clone());
        let mut stream = routes.watch_routes(self.watch(request)).await?.into_inner();
        while let Some(message) = stream.message().await? {
            self.apply(&message).await;
            if message.event() != RouteEvent::Snapshot {
                *since = Some((message.catalog_id, message.revision));
            }
        }
        Ok(())
    }

    async fn apply(&self, message: &WatchRoutesResponse) {
        let mut open = self.open.lock().await;
        let is_over = |route: &Route, open: &Open| route.epoch > open.epoch || route.state() != TenantState::Active;
        for route in &message.routes {
            if open.get(&route.code).is_some_and(|open| is_over(route, open)) {
                open.remove(&route.code);
            }
        }
        for removed in &message.removed_routes {
            open.remove(&removed.code);
        }
    }

    /// (b) One number, by a statement that the daemon runs over its own pool.
    pub async fn number(&self, code: &str, sql: &str) -> Result<i64> {
        let message = ExecuteRequest { tenant: code.to_owned(), sql: sql.to_owned(), ..ExecuteRequest::default() };
        let mut queries = QueryServiceClient::new(self.channel.clone());
        let rows = queries.execute(self.call(message)).await?.into_inner().rows;
        match rows.into_iter().flat_map(|row| row.values).next().and_then(|value| value.kind) {
            Some(Kind::Int64Value(number)) => Ok(number),
            other => Err(format!("the statement gave {other:?}").into()),
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, key_file, tenant] = arguments.as_slice() else {
        return Err("usage: connect <endpoint> <key-file> <tenant>".into());
    };
    let tenants = Tenants::new(endpoint, std::fs::read_to_string(key_file)?.trim())?;
    tokio::spawn(tenants.clone().follow());

    let sql = "SELECT count(*) FROM pg_catalog.pg_class";
    let client = tenants.connection(tenant).await?;
    let direct: i64 = client.query_one(sql, &[]).await?.get(0);
    println!("{tenant}, directly: {direct} relations");
    println!("{tenant}, through the daemon: {} relations", tenants.number(tenant, sql).await?);
    Ok(())
}
