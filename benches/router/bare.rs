//! What the daemon is measured against where nothing of the kind can be had: the least that does the same work, in
//! tonic, in a process of its own. One method answers with a message that it was given; the other runs its statement
//! over a deadpool-postgres pool. Neither asks who calls.

use std::convert::Infallible;
use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{ExitCode, Stdio};
use std::task::{Context, Poll};

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use http::{Request, Response};
use prost::Message as _;
use tenantd::proto::v1::value::Kind;
use tenantd::proto::v1::{
    Column, ExecuteRequest, ExecuteResponse, ResolveTenantRequest, ResolveTenantResponse, Row, Value,
};
use tokio::net::TcpListener;
use tokio_postgres::NoTls;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_prost::ProstCodec;

use crate::process::{Process, command};

/// Makes this program a bare server.
pub const ARGUMENT: &str = "--bare";

type Answer<T> = Pin<Box<dyn Future<Output = Result<tonic::Response<T>, tonic::Status>> + Send>>;
type Served = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// Starts a server that answers each ResolveTenant with this message.
pub fn echo(message: &ResolveTenantResponse) -> (Process, SocketAddr) {
    start(&["echo", &hex::encode(message.encode_to_vec())])
}

/// Starts a server that runs each Execute's statement, with so many connections to the database of this URL.
pub fn pool(url: &str, connections_max: u32) -> (Process, SocketAddr) {
    start(&["pool", url, &connections_max.to_string()])
}

fn start(arguments: &[&str]) -> (Process, SocketAddr) {
    let program = std::env::current_exe().unwrap();
    let mut process = Process::start(command(program).arg(ARGUMENT).args(arguments).stdout(Stdio::piped()));
    let address = process.stdout().next().expect("a line with the address").unwrap();
    (process, address.parse().unwrap())
}

/// The process that [`start`] starts.
pub fn main(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut next = || arguments.next().expect("an argument");
        if next() == "echo" {
            let message = ResolveTenantResponse::decode(hex::decode(next()).unwrap().as_slice()).unwrap();
            serve(Echo { message }).await;
        } else {
            let config: tokio_postgres::Config = next().parse().unwrap();
            let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
            let manager = Manager::from_config(config, NoTls, manager_config);
            let pool = Pool::builder(manager).max_size(next().parse().unwrap()).build().unwrap();
            serve(Pooled { pool }).await;
        }
    });
    ExitCode::SUCCESS
}

async fn serve<S>(service: S)
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = Served>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    std::io::stdout().flush().unwrap();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
}

/// Answers with what it was given.
#[derive(Debug, Clone)]
struct Echo {
    message: ResolveTenantResponse,
}

impl NamedService for Echo {
    const NAME: &'static str = "tenantd.v1.RouterService";
}

impl UnaryService<ResolveTenantRequest> for Echo {
    type Response = ResolveTenantResponse;
    type Future = Answer<ResolveTenantResponse>;

    fn call(&mut self, _request: tonic::Request<ResolveTenantRequest>) -> Self::Future {
        let message = self.message.clone();
        Box::pin(async move { Ok(tonic::Response::new(message)) })
    }
}

/// Runs statements that take one int4 and give columns of int4.
#[derive(Debug, Clone)]
struct Pooled {
    pool: Pool,
}

impl NamedService for Pooled {
    const NAME: &'static str = "tenantd.v1.QueryService";
}

impl UnaryService<ExecuteRequest> for Pooled {
    type Response = ExecuteResponse;
    type Future = Answer<ExecuteResponse>;

    fn call(&mut self, request: tonic::Request<ExecuteRequest>) -> Self::Future {
        let pool = self.pool.clone();
        Box::pin(async move {
            let failed = |error: &dyn std::fmt::Display| tonic::Status::internal(error.to_string());
            let request = request.into_inner();
            let Some(Kind::Int64Value(parameter)) = request.parameters.first().and_then(|value| value.kind.clone())
            else {
                return Err(tonic::Status::invalid_argument("one number is wanted"));
            };
            let parameter = i32::try_from(parameter).map_err(|error| failed(&error))?;
            let client = pool.get().await.map_err(|error| failed(&error))?;
            let statement = client.prepare_cached(&request.sql).await.map_err(|error| failed(&error))?;
            let rows = client.query(&statement, &[&parameter]).await.map_err(|error| failed(&error))?;
            let column = |column: &tokio_postgres::Column| Column {
                name: column.name().to_owned(),
                type_name: column.type_().name().to_owned(),
                type_oid: column.type_().oid(),
            };
            let value = |row: &tokio_postgres::Row, index| Value {
                kind: Some(Kind::Int64Value(row.get::<_, i32>(index).into())),
            };
            let values = |row: &tokio_postgres::Row| Row { values: (0..row.len()).map(|i| value(row, i)).collect() };
            Ok(tonic::Response::new(ExecuteResponse {
                columns: statement.columns().iter().map(column).collect(),
                row_count: i64::try_from(rows.len()).unwrap(),
                rows: rows.iter().map(values).collect(),
            }))
        })
    }
}

/// As tonic's generated code does it, for a service with one method.
macro_rules! serve {
    ($service:ty) => {
        impl tower::Service<Request<Body>> for $service {
            type Response = Response<Body>;
            type Error = Infallible;
            type Future = Served;

            fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: Request<Body>) -> Served {
                let method = self.clone();
                Box::pin(async move { Ok(Grpc::new(ProstCodec::default()).unary(method, request).await) })
            }
        }
    };
}

serve!(Echo);
serve!(Pooled);
