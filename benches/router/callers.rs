//! Callers over gRPC, the same for the daemon and for the bare servers.

use std::net::SocketAddr;

use tenantd::proto::v1::query_service_client::QueryServiceClient;
use tenantd::proto::v1::resolve_tenant_request::Selector;
use tenantd::proto::v1::router_service_client::RouterServiceClient;
use tenantd::proto::v1::value::Kind;
use tenantd::proto::v1::{ExecuteRequest, ExecuteResponse, ResolveTenantRequest, ResolveTenantResponse, Value};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::load::Caller;

/// Connections to one server; callers take them in turn.
#[derive(Debug, Clone)]
pub struct Channels {
    channels: Vec<Channel>,
    authorization: MetadataValue<Ascii>,
}

impl Channels {
    pub async fn open(address: SocketAddr, key: &str, count: usize) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap().tcp_nodelay(true);
        let mut channels = Vec::new();
        for _ in 0..count {
            channels.push(endpoint.connect().await.unwrap());
        }
        Self { channels, authorization: format!("Bearer {key}").parse().unwrap() }
    }

    pub fn channel(&self, number: usize) -> Channel {
        self.channels[number % self.channels.len()].clone()
    }

    /// With the caller's key, as everybody's requests are.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.authorization.clone());
        request
    }

    pub fn resolver(&self, number: usize, code: &str) -> Resolver {
        Resolver {
            client: RouterServiceClient::new(self.channel(number)),
            channels: self.clone(),
            code: code.to_owned(),
        }
    }

    pub fn querier(&self, number: usize) -> Querier {
        Querier { client: QueryServiceClient::new(self.channel(number)), channels: self.clone() }
    }
}

/// Asks where a tenant is.
#[derive(Debug)]
pub struct Resolver {
    client: RouterServiceClient<Channel>,
    channels: Channels,
    code: String,
}

impl Resolver {
    pub async fn resolve(&mut self) -> Result<ResolveTenantResponse, Status> {
        let message =
            ResolveTenantRequest { selector: Some(Selector::Code(self.code.clone())), include_credentials: false };
        Ok(self.client.resolve_tenant(self.channels.request(message)).await?.into_inner())
    }
}

impl Caller for Resolver {
    async fn call(&mut self) -> Result<(), String> {
        let answer = self.resolve().await.map_err(|status| status.to_string())?;
        if answer.route.is_some_and(|route| route.code == self.code) { Ok(()) } else { Err("another route".to_owned()) }
    }
}

/// Runs statements.
#[derive(Debug, Clone)]
pub struct Querier {
    client: QueryServiceClient<Channel>,
    channels: Channels,
}

impl Querier {
    /// One statement with one number.
    pub async fn execute(&mut self, tenant: &str, sql: &str, parameter: i64) -> Result<ExecuteResponse, Status> {
        let parameters = vec![Value { kind: Some(Kind::Int64Value(parameter)) }];
        let message =
            ExecuteRequest { tenant: tenant.to_owned(), sql: sql.to_owned(), parameters, ..ExecuteRequest::default() };
        Ok(self.client.execute(self.channels.request(message)).await?.into_inner())
    }
}

/// The one value of an answer that has one row of one column, as text.
pub fn single(answer: &ExecuteResponse) -> Option<String> {
    match answer.rows.first()?.values.first()?.kind.as_ref()? {
        Kind::TextValue(text) => Some(text.clone()),
        Kind::Int64Value(number) => Some(number.to_string()),
        _ => None,
    }
}
