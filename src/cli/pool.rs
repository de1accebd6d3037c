//! `tenantd pool`: the daemon's pools of connections to tenants' databases.

use super::connection::{Connection, request};
use super::error::Error;
use super::mutation::Mutation;
use super::pages::{self, Limit};
use super::table::{Column, list, record};
use super::{Context, human};
use crate::proto::v1::{
    EvictPoolRequest, GetTenantStatsRequest, GetTenantStatsResponse, ListPoolsRequest, ListPoolsResponse, Pool,
};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Tenants that have a pool, with its connections and those who wait for one.
    List {
        #[command(flatten)]
        limit: Limit,
    },
    /// Close a tenant's pool. Connections in use end when they come back; the next caller opens a new one.
    Evict(Evict),
}

#[derive(Debug, clap::Args)]
pub struct Evict {
    /// A tenant's id or code.
    tenant: String,
    /// Kept in the audit log and the daemon's log.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    mutation: Mutation,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        let connection = context.connect().await?;
        match self {
            Self::List { limit } => pools_list(limit, context, &connection).await,
            Self::Evict(arguments) => evict(arguments, context, &connection).await,
        }
    }
}

async fn pools_list(limit: Limit, context: &Context, connection: &Connection) -> Result<(), Error> {
    let (pools, next_page_token) = pages::collect(limit.items_max(), async |page_size, page_token| {
        let message = ListPoolsRequest { page_size, page_token };
        let page = connection.router().list_pools(request(message)).await?.into_inner();
        Ok((page.pools, page.next_page_token))
    })
    .await?;
    let whole = ListPoolsResponse { pools, next_page_token };
    context.output.list(&whole, &whole.pools, || list_text(&whole.pools))
}

async fn evict(arguments: Evict, context: &Context, connection: &Connection) -> Result<(), Error> {
    let Evict { tenant, reason, mutation } = arguments;
    let (request_id, validate_only) = (mutation.request_id(), mutation.validate_only);
    let message = EvictPoolRequest { request_id, validate_only, tenant: tenant.clone(), reason };
    let answer = connection.router().evict_pool(request(message)).await?.into_inner();
    context.output.answer(&answer, || match &answer.pool {
        None => format!("{} has no pool.\n", human::printable(&tenant)),
        Some(pool) if validate_only => pool_text(pool),
        Some(pool) => format!(
            "The pool of {} is closed: {}, {} end when they come back.\n",
            pool.tenant_code,
            human::plural(pool.idle.into(), "idle connection"),
            pool.leased
        ),
    })
}

fn list_text(pools: &[Pool]) -> String {
    if pools.is_empty() {
        return "No tenant has a pool at the moment.\n".to_owned();
    }
    let columns = [
        Column::Text("TENANT"),
        Column::Text("SERVER"),
        Column::Number("EPOCH"),
        Column::Number("MAX"),
        Column::Number("IDLE"),
        Column::Number("LEASED"),
        Column::Number("CONNECTING"),
        Column::Number("WAITING"),
    ];
    let row = |pool: &Pool| {
        let numbers = [pool.connections_max, pool.idle, pool.leased, pool.connecting, pool.waiting];
        let texts = [pool.tenant_code.clone(), pool.server.clone(), pool.epoch.to_string()];
        texts.into_iter().chain(numbers.map(|number| number.to_string())).collect()
    };
    list(&columns, pools.iter().map(row))
}

fn pool_text(pool: &Pool) -> String {
    record(&[
        ("Tenant", pool.tenant_code.clone()),
        ("Server", pool.server.clone()),
        ("Epoch", pool.epoch.to_string()),
        ("Connections", connections(pool)),
    ])
}

fn connections(pool: &Pool) -> String {
    format!(
        "{} idle, {} leased, {} connecting, at most {}; {} wait",
        pool.idle, pool.leased, pool.connecting, pool.connections_max, pool.waiting
    )
}

/// `tenantd tenant stats`.
pub async fn tenant_stats(tenant: String, context: &Context, connection: &Connection) -> Result<(), Error> {
    let message = GetTenantStatsRequest { tenant };
    let answer = connection.router().get_tenant_stats(request(message)).await?.into_inner();
    context.output.answer(&answer, || stats_text(&answer))
}

fn stats_text(answer: &GetTenantStatsResponse) -> String {
    let Some(stats) = &answer.stats else { return String::new() };
    let counted = |count: i64, time: Option<&prost_types::Duration>| {
        let time = time.and_then(|time| std::time::Duration::try_from(*time).ok()).unwrap_or_default();
        match u32::try_from(count) {
            Ok(number @ 1..) => format!("{} (on average {})", human::count(count), human::duration(time / number)),
            Ok(0) | Err(_) => human::count(count),
        }
    };
    let errors: Vec<_> =
        stats.errors.iter().map(|error| format!("{} {}", error.cause, human::count(error.count))).collect();
    record(&[
        ("Tenant", stats.tenant_code.clone()),
        ("Connections", answer.pool.as_ref().map(connections).unwrap_or_default()),
        ("Leases", human::count(stats.acquires)),
        ("Shared", human::count(stats.shared)),
        ("Waited for", counted(stats.waits, stats.wait_time.as_ref())),
        ("Connects", counted(stats.connects, stats.connect_time.as_ref())),
        ("Evictions", human::count(stats.evictions)),
        ("Cancelled", human::count(stats.cancels)),
        ("Refused", errors.join(", ")),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::{ErrorCount, TenantStats};

    #[test]
    fn numbers_come_with_their_average() {
        let stats = TenantStats {
            tenant_code: "acme".to_owned(),
            acquires: 12_000,
            shared: 3_400,
            waits: 10,
            wait_time: Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 }),
            errors: vec![ErrorCount { cause: "budget".to_owned(), count: 2 }],
            ..TenantStats::default()
        };
        insta::assert_snapshot!(stats_text(&GetTenantStatsResponse { stats: Some(stats), pool: None }), @r"
          Tenant      acme
          Leases      12,000
          Shared      3,400
          Waited for  10 (on average 5 ms)
          Connects    0
          Evictions   0
          Cancelled   0
          Refused     budget 2
        ");
    }
}
