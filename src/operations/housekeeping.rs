//! What nobody waits for: looked for at the start and then again and again, by every daemon. Each kind at its own pace,
//! so that a server or a store that hangs holds up no other.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Parts, failed_backups, retired};

const RETIRED_INTERVAL: Duration = Duration::from_hours(1);
const FAILED_BACKUPS_INTERVAL: Duration = Duration::from_mins(5);

/// Until the daemon goes down.
pub(super) async fn run(parts: Arc<Parts>, stop: CancellationToken) {
    let rounds = async {
        tokio::join!(
            every(RETIRED_INTERVAL, || retired::round(&parts)),
            every(FAILED_BACKUPS_INTERVAL, || failed_backups::round(&parts)),
        )
    };
    stop.run_until_cancelled(rounds).await;
}

async fn every<F: Future<Output = ()>>(interval: Duration, round: impl Fn() -> F) {
    loop {
        round().await;
        sleep(interval).await;
    }
}
