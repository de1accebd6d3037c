//! Watches: streams of answers. Each runs as a task of the daemon's, inside its span, and ends with the caller, with the
//! drain, or when there is nothing more to say.

use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::ongoing::Ongoing;
use super::{Service, status};

/// Answers that wait for a slow caller.
const BUFFERED_MAX: usize = 8;

const BOUNDS: Bounds = Bounds { slow_max: Duration::from_secs(30), life_max: Duration::from_hours(1) };

/// What no watch may exceed.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// A caller that has read nothing for so long is dropped.
    slow_max: Duration,
    /// Connections that are open for ever would keep all callers on the daemons that were there first.
    life_max: Duration,
}

/// What a streaming method answers with.
pub(super) type Answers<T> = ReceiverStream<Result<T, Status>>;

impl Service {
    /// Sends what `source` yields until it ends. When something else ends the watch first, its last word says what. A
    /// slow caller holds up nothing but its own stream.
    pub(super) fn watch<T, S>(&self, name: &'static str, ongoing: Ongoing, source: S) -> Answers<T>
    where
        T: Send + 'static,
        S: Stream<Item = Result<T, Status>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(BUFFERED_MAX);
        let draining = self.draining.clone();
        self.api.tasks.spawn(name, async move { pump(source, sender, ongoing.lost(), draining, BOUNDS).await });
        ReceiverStream::new(receiver)
    }
}

/// Sends what `source` yields until there is a reason to end, and then the reason.
async fn pump<T>(
    source: impl Stream<Item = Result<T, Status>>,
    sender: mpsc::Sender<Result<T, Status>>,
    lost: impl Future<Output = Status>,
    draining: CancellationToken,
    bounds: Bounds,
) {
    // The place of the last word, which must not wait for the caller.
    let Ok(last) = sender.clone().reserve_owned().await else { return };
    let Bounds { slow_max, life_max } = bounds;
    let ends = Instant::now() + life_max;
    let (mut source, mut lost) = (pin!(source), pin!(lost));
    let why = loop {
        let send = async {
            match source.next().await {
                Some(Ok(answer)) => match timeout(slow_max, sender.send(Ok(answer))).await {
                    Ok(sent) => sent.map_err(|_gone| None),
                    Err(_elapsed) => Err(Some(status::reader_slow(slow_max))),
                },
                Some(Err(status)) => Err(Some(status)),
                None => Err(None),
            }
        };
        tokio::select! {
            sent = send => if let Err(why) = sent {
                break why;
            },
            () = sender.closed() => break None,
            status = &mut lost => break Some(status),
            () = draining.cancelled() => break Some(status::draining()),
            () = tokio::time::sleep_until(ends) => break Some(status::watch_over()),
        }
    };
    if let Some(why) = why {
        last.send(Err(why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tonic::Code;

    fn endless() -> impl Stream<Item = Result<u32, Status>> {
        futures_util::stream::iter(0..).map(Ok)
    }

    /// What a caller finds who reads only after the pump has ended.
    async fn found(mut receiver: mpsc::Receiver<Result<u32, Status>>) -> (Vec<u32>, Code) {
        let mut answers = Vec::new();
        loop {
            match receiver.recv().await.unwrap() {
                Ok(answer) => answers.push(answer),
                Err(status) => return (answers, status.code()),
            }
        }
    }

    #[tokio::test]
    async fn a_caller_that_reads_nothing_is_dropped_and_told() {
        let bounds = Bounds { slow_max: Duration::from_millis(5), ..BOUNDS };
        let (sender, receiver) = mpsc::channel(BUFFERED_MAX);
        pump(endless(), sender, pending(), CancellationToken::new(), bounds).await;
        assert_eq!(found(receiver).await, ((0..7).collect(), Code::Aborted));
    }

    #[tokio::test]
    async fn a_drain_is_told_even_to_a_caller_that_reads_nothing() {
        let (sender, receiver) = mpsc::channel(BUFFERED_MAX);
        let draining = CancellationToken::new();
        let pumping = pump(endless(), sender, pending(), draining.clone(), BOUNDS);
        let drain = async {
            while receiver.len() < BUFFERED_MAX - 1 {
                tokio::task::yield_now().await;
            }
            draining.cancel();
        };
        tokio::join!(pumping, drain);
        assert_eq!(found(receiver).await, ((0..7).collect(), Code::Unavailable));
    }

    #[tokio::test]
    async fn a_watch_ends_with_its_time_and_with_its_callers_rights() {
        let (sender, receiver) = mpsc::channel(BUFFERED_MAX);
        let bounds = Bounds { life_max: Duration::from_millis(5), ..BOUNDS };
        let quiet = futures_util::stream::pending::<Result<u32, Status>>;
        pump(quiet(), sender, pending(), CancellationToken::new(), bounds).await;
        assert_eq!(found(receiver).await, (Vec::new(), Code::Unavailable));
        let (sender, receiver) = mpsc::channel(BUFFERED_MAX);
        let lost = async { status::out_of_scope() };
        pump(quiet(), sender, lost, CancellationToken::new(), BOUNDS).await;
        assert_eq!(found(receiver).await, (Vec::new(), Code::PermissionDenied));
    }
}
