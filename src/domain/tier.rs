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
    /// Users in the license of a new tenant.
    pub users_max: u32,
    /// Sites in the license of a new tenant.
    pub sites_max: u32,
    /// Bytes on disk.
    pub storage_bytes_max: u64,
}

/// The tiers by name.
pub type Tiers = BTreeMap<String, Tier>;

/// The tier of a tenant that names none.
pub const TIER_DEFAULT: &str = "standard";

const GIB: u64 = 1 << 30;

/// `free`, `standard`, `premium` and `enterprise`.
pub fn defaults() -> Tiers {
    let tier = |direct, pool, users, sites, storage_gib| Tier {
        direct_connections_max: direct,
        pool_connections_max: pool,
        users_max: users,
        sites_max: sites,
        storage_bytes_max: storage_gib * GIB,
    };
    BTreeMap::from([
        ("free".to_owned(), tier(5, 2, 5, 1, 1)),
        ("standard".to_owned(), tier(100, 10, 50, 5, 100)),
        ("premium".to_owned(), tier(500, 20, 500, 50, 1_024)),
        ("enterprise".to_owned(), tier(1_000, 40, 10_000, 1_000, 10_240)),
    ])
}
