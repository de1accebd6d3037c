//! The listener's connections: a bounded number at the same moment, so that callers leave the process what it needs to
//! speak to its servers. More wait in the listener's queue. Where the process or the machine has no room for another
//! one, it is tried again after a pause, and what runs goes on.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{Stream, StreamExt as _, unfold};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};

/// More are no daemon's callers.
const CONNECTIONS_MAX: u64 = 16_384;
const TOLD_INTERVAL: Duration = Duration::from_mins(1);
const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);

/// How many connections callers may have: half of the files that the process may have open.
pub(super) fn connections_max() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from((files / 2).clamp(1, CONNECTIONS_MAX)).unwrap_or(usize::MAX)
}

/// One connection, and the place that it has as long as it is there.
#[derive(Debug)]
pub(super) struct Accepted<S> {
    pub(super) stream: S,
    pub(super) place: OwnedSemaphorePermit,
}

/// The connections as they come, while there are fewer than `max`.
pub(super) fn bounded(
    sockets: impl Stream<Item = io::Result<TcpStream>> + Send + Unpin + 'static,
    max: usize,
) -> Pin<Box<dyn Stream<Item = io::Result<Accepted<TcpStream>>> + Send>> {
    let places = Arc::new(Semaphore::new(max));
    Box::pin(unfold((sockets, None::<Instant>), move |(mut sockets, mut told_at)| {
        let places = Arc::clone(&places);
        async move {
            let place = match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => place,
                Err(_full) => {
                    if told_at.is_none_or(|at| at.elapsed() > TOLD_INTERVAL) {
                        told_at = Some(Instant::now());
                        tracing::warn!(
                            max,
                            "callers have as many connections as they may; more wait for one that is closed"
                        );
                    }
                    places.acquire_owned().await.ok()?
                }
            };
            loop {
                match sockets.next().await? {
                    Ok(stream) => return Some((Ok(Accepted { stream, place }), (sockets, told_at))),
                    Err(error) if is_no_room(&error) => {
                        tracing::warn!(%error, "no connection can be accepted; it is tried again in {NO_ROOM_PAUSE:?}");
                        sleep(NO_ROOM_PAUSE).await;
                    }
                    Err(error) => tracing::debug!(%error, "a connection was not accepted"),
                }
            }
        }
    }))
}

/// Whether the next one would fail as well.
fn is_no_room(error: &io::Error) -> bool {
    let no_room = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|error| no_room.contains(&error))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::poll_immediate;
    use tokio::net::TcpListener;
    use tonic::transport::server::TcpIncoming;

    use super::*;

    #[tokio::test]
    async fn who_is_one_too_many_waits_until_another_one_has_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut sockets = bounded(TcpIncoming::from(listener), 2);
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let first = sockets.next().await.unwrap().unwrap();
        let _second = sockets.next().await.unwrap().unwrap();
        assert!(poll_immediate(sockets.next()).await.is_none(), "two are as many as there may be");
        drop(first);
        let third = sockets.next().await.unwrap().unwrap();
        assert_eq!(third.stream.peer_addr().unwrap(), clients[2].local_addr().unwrap());
    }

    #[tokio::test]
    async fn without_a_file_to_open_it_is_tried_again_after_a_pause_and_others_errors_are_passed_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let errors = [Errno::CONNABORTED, Errno::MFILE, Errno::NFILE].map(|error| Err(io::Error::from(error)));
        let failing = futures_util::stream::iter(errors).inspect(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let mut sockets = bounded(failing.chain(TcpIncoming::from(listener)), 2);
        let mut next = sockets.next();
        assert!(poll_immediate(&mut next).await.is_none());
        assert_eq!(asked.load(Ordering::SeqCst), 2, "not again at once");
        next.await.unwrap().unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }
}
