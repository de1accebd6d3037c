//! Makes changes of rights count within milliseconds on every daemon: what the auth database announces is forgotten
//! here, and read anew when it is next needed. While nobody can be heard, the bounded age of what is known has to do.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::known::Known;
use crate::accounts::{Accounts, Change};

const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Listens until the daemon goes down.
pub(super) async fn listen(accounts: &Accounts, known: &Known, down: &CancellationToken) {
    let mut pause = RETRY_MIN;
    loop {
        let heard = async {
            let mut changes = accounts.changes().await?;
            // Whatever was announced before this was not heard. It is read anew, as soon as that can be read.
            known.forget(Change::All);
            pause = RETRY_MIN;
            while let Some(change) = changes.next().await {
                known.forget(change);
            }
            Ok::<_, crate::accounts::Error>(())
        };
        tokio::select! {
            () = down.cancelled() => return,
            ended = heard => match ended {
                Ok(()) => tracing::info!("changes of rights are not announced any more; listening again"),
                Err(error) => tracing::debug!(%error, "changes of rights cannot be heard"),
            },
        }
        tokio::select! {
            () = down.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(RETRY_MAX);
    }
}
