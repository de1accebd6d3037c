//! The first statement for a tenant without a pool, whose password has not been opened yet either, against a bare
//! connect and the same statement as the same role. Each tenant is asked once by either side, in turns, after PostgreSQL
//! has seen its database once, and when the backend of the turn before has gone: only a bare connect leaves one behind,
//! which takes 1.8 ms of a core to end (measured here), and either side would pay for that by its place in the order.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::callers::{Channels, single};
use crate::fleet::Tenant;
use crate::load::median;
use crate::report::{Goal, Report};
use crate::stage::{Stage, connect};

const TENANTS: usize = 300;
/// Made before the others are asked: the daemon's own first questions are not the tenant's.
const WARM_UP: usize = 5;
/// Before each turn. A backend has gone 2.3 ms after its connection was closed, nine of ten within 2.8.
const REST: Duration = Duration::from_millis(10);
const SQL: &str = "SELECT name FROM things WHERE id = $1";
const ID: i64 = 7;

pub async fn run(stage: &Stage, report: &mut Report) {
    let tenants = stage.fleet.tenants(stage, TENANTS).await;
    let daemon = stage.daemon();
    let channels = Channels::open(daemon.address, &daemon.key, 1).await;
    let mut querier = channels.querier(0);
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for (number, tenant) in tenants.iter().enumerate() {
        bare(stage, tenant).await;
        let mut first = async |tenant: &Tenant| {
            sleep(REST).await;
            let began = Instant::now();
            let answer = querier.execute(tenant.code.as_str(), SQL, ID).await.unwrap();
            assert_eq!(single(&answer).as_deref(), Some("thing 7"));
            began.elapsed()
        };
        let (our, their) = if number % 2 == 0 {
            let our = first(tenant).await;
            (our, bare(stage, tenant).await)
        } else {
            let their = bare(stage, tenant).await;
            (first(tenant).await, their)
        };
        if number >= WARM_UP {
            ours.push(our.as_secs_f64() * 1e3);
            theirs.push(their.as_secs_f64() * 1e3);
        }
    }
    report.line(
        "first statement for a cold tenant: median",
        &format!("{:.2} ms", median(ours.clone())),
        &format!("bare connect and query, {:.2} ms", median(theirs.clone())),
        median(ours.iter().zip(&theirs).map(|(our, their)| our / their)),
        "×",
        Goal::AtMost(1.3),
    );
    report.note(format!(
        "cold tenant: {} tenants, once each; bound by PostgreSQL starting a backend and filling its caches",
        ours.len()
    ));
    daemon.process.terminate().await;
}

async fn bare(stage: &Stage, tenant: &Tenant) -> Duration {
    sleep(REST).await;
    let began = Instant::now();
    let client = connect(&stage.cluster, &tenant.login, tenant.database.as_str()).await;
    let row = client.query_one(SQL, &[&ID]).await.unwrap();
    let elapsed = began.elapsed();
    assert_eq!(row.get::<_, &str>(0), "thing 7");
    elapsed
}
