//! What makes a test five lines: one private PostgreSQL cluster and one S3 server per test run, a fresh fleet per
//! test, a caller over gRPC, a judge with a superuser's eyes, and proof that nothing is left over.
//!
//! ```ignore
//! let fleet = Fleet::new(Spec::default()).await;
//! let daemon = fleet.start().await;
//! daemon.client.tenant("acme").await;
//! assert_eq!(daemon.client.sql("acme", "SELECT count(*) FROM things").await, "20");
//! fleet.stop(daemon).await;
//! ```

mod authority;
mod client;
mod daemon;
mod faults;
mod fleet;
mod leftovers;
mod logs;
mod machine;
mod proxy;
mod standstill;
mod streams;

use std::time::Duration;

pub use authority::{Authority, Leaf};
pub use client::{Client, reason, result_text};
pub use daemon::{Daemon, Process, signal, tenantd};
pub use faults::{Fault, Faults};
pub use fleet::{Fleet, Spec};
pub use leftovers::Leftovers;
pub use logs::{Expectations, root_span};
pub use machine::{Machine, machine};
pub use proxy::Proxy;
pub use standstill::{Armed, Point, Standstills};
pub use streams::{Open, last};

/// How long anything may take that a test waits for; far more than it needs.
pub const PATIENCE: Duration = Duration::from_mins(2);
const POLL_INTERVAL: Duration = Duration::from_millis(15);

/// Awaits a condition that can only be asked for, bounded.
#[track_caller]
pub fn until<T, F>(what: &str, condition: impl Fn() -> F) -> impl Future<Output = T>
where
    F: Future<Output = Option<T>>,
{
    let caller = std::panic::Location::caller();
    async move {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            assert!(tokio::time::Instant::now() < deadline, "waited in vain until {what} ({caller})");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}
