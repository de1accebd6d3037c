//! `tenantd tenant host`: the host names that resolve to a tenant.

use super::Context;
use super::connection::{Connection, request};
use super::error::Error;
use super::mutation::Mutation;
use crate::proto::v1::{AddTenantHostRequest, RemoveTenantHostRequest, Tenant};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Let a host name resolve to the tenant.
    Add(Arguments),
    /// Take a host name from the tenant.
    Remove(Arguments),
}

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A tenant's id or code.
    tenant: String,
    /// Whole, as acme.example.com.
    host: String,
    #[command(flatten)]
    mutation: Mutation,
}

impl Command {
    pub async fn run(self, context: &Context, connection: &Connection) -> Result<(), Error> {
        match self {
            Self::Add(Arguments { tenant, host, mutation }) => {
                let (request_id, validate_only) = (mutation.request_id(), mutation.validate_only);
                let message = AddTenantHostRequest { request_id, validate_only, tenant, host };
                let answer = connection.tenants().add_tenant_host(request(message)).await?.into_inner();
                context.output.answer(&answer, || text(answer.tenant.as_ref()))
            }
            Self::Remove(Arguments { tenant, host, mutation }) => {
                let (request_id, validate_only) = (mutation.request_id(), mutation.validate_only);
                let message = RemoveTenantHostRequest { request_id, validate_only, tenant, host };
                let answer = connection.tenants().remove_tenant_host(request(message)).await?.into_inner();
                context.output.answer(&answer, || text(answer.tenant.as_ref()))
            }
        }
    }
}

fn text(tenant: Option<&Tenant>) -> String {
    let hosts = tenant.map(|tenant| tenant.hosts.as_slice()).unwrap_or_default();
    if hosts.is_empty() { "The tenant has no host names.\n".to_owned() } else { hosts.join("\n") + "\n" }
}
