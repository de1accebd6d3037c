//! Following an operation: as it is now, and again after each change, until it has ended.

use std::time::Duration;

use futures_util::Stream;
use tokio::sync::broadcast::error::RecvError;

use super::{Error, Operations};
use crate::catalog::Operation;
use crate::domain::operation::OperationId;

/// How long a change by another daemon may go unseen.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

impl Operations {
    /// The operation with its steps.
    pub async fn get(&self, id: OperationId) -> Result<Operation, Error> {
        Ok(self.parts.catalog.operation_get(id).await?)
    }

    /// Each state that the operation goes through from now on; ends with the last.
    pub fn watch(&self, id: OperationId) -> impl Stream<Item = Result<Operation, Error>> + Send + 'static + use<> {
        let this = self.clone();
        let changes = self.changed.subscribe();
        let first: (Self, _, Option<Operation>, bool) = (this, changes, None, false);
        futures_util::stream::unfold(first, move |(this, mut changes, seen, ended)| async move {
            if ended {
                return None;
            }
            loop {
                match this.get(id).await {
                    Err(error) => return Some((Err(error), (this, changes, seen, true))),
                    Ok(row) if seen.as_ref() != Some(&row) => {
                        let ended = row.state.has_ended();
                        return Some((Ok(row.clone()), (this, changes, Some(row), ended)));
                    }
                    Ok(_) => {}
                }
                let change = async {
                    loop {
                        match changes.recv().await {
                            Ok(other) if other != id => {}
                            Ok(_) | Err(RecvError::Lagged(_)) => return,
                            Err(RecvError::Closed) => std::future::pending().await,
                        }
                    }
                };
                // Running out only means that the catalog is asked again.
                drop(tokio::time::timeout(POLL_INTERVAL, change).await);
            }
        })
    }
}
