//! Pools as people see them: how many connections each has, and who waits; and closing one on request.

use std::collections::BTreeMap;

use super::Router;
use super::party::State;
use crate::domain::tenant::{TenantCode, TenantId};

/// One tenant's pool at this moment. Connections of an older epoch that are still in use count as leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolView {
    pub tenant: TenantId,
    pub code: TenantCode,
    pub server: String,
    /// Of the newest pool, if several epochs have connections.
    pub epoch: i64,
    pub connections_max: usize,
    pub idle: usize,
    pub leased: usize,
    pub connecting: usize,
    /// Callers without a connection.
    pub waiting: usize,
}

impl Router {
    /// All pools, by tenant code.
    pub fn pools(&self) -> Vec<PoolView> {
        let mut pools: BTreeMap<TenantCode, PoolView> = BTreeMap::new();
        for place in self.0.shared.servers.values() {
            place.change(|floor| {
                for party in floor.parties() {
                    let route = &party.handle.route;
                    let pool = pools.entry(route.code.clone()).or_insert_with(|| PoolView {
                        tenant: route.tenant,
                        code: route.code.clone(),
                        server: route.server.clone(),
                        epoch: route.epoch,
                        connections_max: party.share.connections_max,
                        idle: 0,
                        leased: 0,
                        connecting: 0,
                        waiting: 0,
                    });
                    if route.epoch > pool.epoch {
                        pool.epoch = route.epoch;
                        pool.connections_max = party.share.connections_max;
                        pool.server.clone_from(&route.server);
                    }
                    let leased = party.connections.iter().filter(|found| matches!(found.state, State::Leased { .. }));
                    let leased = leased.count();
                    pool.leased += leased;
                    pool.idle += party.connections.len() - leased;
                    pool.connecting += party.connecting;
                    pool.waiting += party.waiting.len();
                }
            });
        }
        pools.into_values().collect()
    }

    /// One tenant's pool, if it has one.
    pub fn pool(&self, tenant: TenantId) -> Option<PoolView> {
        self.pools().into_iter().find(|pool| pool.tenant == tenant)
    }

    /// Closes the tenant's pool: connections that idle end now, those in use when they come back. Whoever waits, and
    /// whoever comes later, gets a new one. Answers whether there was one.
    pub fn pool_evict(&self, tenant: TenantId) -> bool {
        self.0.slots.evict(tenant)
    }

    /// To be called when limits have changed: whoever comes hears of them anyway, and whoever waits only by this.
    pub fn limits_follow(&self) {
        self.0.slots.limits_follow(&self.0.shared.limits());
    }

    /// As [`Router::pool_evict`], of every tenant: sessions begin with settings that have changed.
    pub fn pools_renew(&self) {
        self.0.slots.evict_all();
    }
}
