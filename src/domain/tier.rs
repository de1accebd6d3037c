//! Tiers: what a tenant of each kind may use, as data. The defaults are the seeds' table.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The limits of one tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    /// Connections of the tenant's own programs, per login role.
    pub direct_connections_max: u32,
    /// Connections in the router's pool for one tenant.
    pub pool_connections_max: u32,
    /// Places in the fair queue for connections: twice the weight, twice the turns.
    #[serde(default = "weight_default")]
    pub weight: u32,
    /// Callers of one tenant that may wait for a connection; more are refused.
    #[serde(default = "queue_max_default")]
    pub queue_max: u32,
    /// Calls per second for one tenant, over all callers.
    #[serde(default = "calls_per_second_max_default")]
    pub calls_per_second_max: u32,
    /// Users in the license of a new tenant.
    pub users_max: u32,
    /// Sites in the license of a new tenant.
    pub sites_max: u32,
    /// Bytes on disk. Nothing enforces it.
    pub storage_bytes_max: u64,
}

/// The tiers by name.
pub type Tiers = BTreeMap<String, Tier>;

/// The tier of a tenant that names none.
pub const TIER_DEFAULT: &str = "standard";

const GIB: u64 = 1 << 30;

fn weight_default() -> u32 {
    2
}

fn queue_max_default() -> u32 {
    2_000
}

fn calls_per_second_max_default() -> u32 {
    5_000
}

/// `free`, `standard`, `premium` and `enterprise`.
pub fn defaults() -> Tiers {
    let tier = |direct, pool, weight, users, sites, storage_gib| Tier {
        direct_connections_max: direct,
        pool_connections_max: pool,
        weight,
        queue_max: 1_000 * weight,
        calls_per_second_max: 2_500 * weight,
        users_max: users,
        sites_max: sites,
        storage_bytes_max: storage_gib * GIB,
    };
    BTreeMap::from([
        ("free".to_owned(), tier(5, 2, 1, 5, 1, 1)),
        ("standard".to_owned(), tier(100, 10, 2, 50, 5, 100)),
        ("premium".to_owned(), tier(500, 20, 4, 500, 50, 1_024)),
        ("enterprise".to_owned(), tier(1_000, 40, 8, 10_000, 1_000, 10_240)),
    ])
}
