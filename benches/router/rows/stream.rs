//! The same statements over open streams, against PgBouncer in transaction mode under pgbench.

use crate::report::Report;
use crate::stage::Stage;

#[expect(clippy::unused_async, reason = "as the other rows; the streams come with their RPC")]
pub async fn run(_stage: &Stage, report: &mut Report) {
    report.note("statements over open streams: not measured yet");
}
