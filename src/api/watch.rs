//! Streams of answers. Each runs as a task of the daemon's, inside its span, and ends with the caller, with the drain,
//! or when there is nothing more to say.

use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Service;

/// Answers that wait for a slow caller.
const BUFFERED_MAX: usize = 8;

/// What a streaming method answers with.
pub(super) type Answers<T> = ReceiverStream<Result<T, Status>>;

impl Service {
    /// Sends what `source` yields, until one of the three is through with it.
    pub(super) fn answers<T, S>(&self, name: &'static str, source: S) -> Answers<T>
    where
        T: Send + 'static,
        S: Stream<Item = Result<T, Status>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(BUFFERED_MAX);
        let draining = self.draining.clone();
        self.api.tasks.spawn(name, async move {
            let mut source = std::pin::pin!(source);
            loop {
                let answer = tokio::select! {
                    answer = source.next() => answer,
                    () = sender.closed() => return,
                    () = draining.cancelled() => return,
                };
                let Some(answer) = answer else { return };
                if sender.send(answer).await.is_err() {
                    return;
                }
            }
        });
        ReceiverStream::new(receiver)
    }
}
