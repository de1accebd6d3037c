//! Streams of answers that the drain can end: when it has taken too long, the caller gets a status and the stream is
//! dropped, and with it whatever the stream holds on the servers.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;

use super::status;

const LEFT_INTERVAL: Duration = Duration::from_millis(10);

/// A moment that comes once. Every call asks for it, several times over: a token alone takes a lock that all calls have
/// in common each time.
#[derive(Debug, Default)]
pub(super) struct Cut {
    is_made: AtomicBool,
    token: CancellationToken,
}

/// What calls have, each from its beginning until its answer is over. Made when a drain has taken too long: they are cut
/// off.
#[derive(Debug, Default)]
pub struct Cuts {
    pub(super) calls: Arc<Cut>,
    /// Of calls about health, which no drain waits for.
    pub(super) health: Arc<Cut>,
}

impl Cuts {
    /// Resolves when no call runs. Asks again and again, which costs a drain little, where counting them would cost every
    /// call.
    pub(super) async fn left(&self) {
        while Arc::strong_count(&self.calls) > 1 {
            sleep(LEFT_INTERVAL).await;
        }
    }

    pub(super) fn make(&self) {
        self.calls.make();
        self.health.make();
    }
}

impl Cut {
    pub(super) fn make(&self) {
        self.is_made.store(true, Ordering::Release);
        self.token.cancel();
    }

    pub(super) fn is_made(&self) -> bool {
        self.is_made.load(Ordering::Acquire)
    }

    /// Resolves when it has come.
    pub(super) async fn made(&self) {
        let mut waiting = pin!(self.token.cancelled());
        let mut told: Option<Waker> = None;
        poll_fn(|context| {
            if self.is_made() {
                return Poll::Ready(());
            }
            // Whoever is going to be woken need not ask again.
            if told.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                return Poll::Pending;
            }
            told = Some(context.waker().clone());
            waiting.as_mut().poll(context)
        })
        .await;
    }
}

/// An answer's body, until the cut is made.
pub(super) struct Bounded {
    /// `None` when it was cut off.
    inner: Option<Body>,
    cut: Arc<Cut>,
    /// Made when there is something to wait for, which most answers never have.
    waiting: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Bounded {
    pub(super) fn body(inner: Body, cut: Arc<Cut>) -> Body {
        Body::new(Self { inner: Some(inner), cut, waiting: None })
    }
}

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(inner).poll_frame(context) {
            return Poll::Ready(frame);
        }
        let waiting = this.waiting.get_or_insert_with(|| Box::pin(this.cut.token.clone().cancelled_owned()));
        if waiting.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        this.inner = None;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status::cut_off().add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn who_waits_for_the_cut_hears_of_it_once_it_is_made() {
        let cut = Cut::default();
        let mut waiting = pin!(cut.made());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        cut.make();
        waiting.await;
        cut.made().await;
        assert!(cut.is_made());
    }

    #[tokio::test]
    async fn a_call_has_it_until_its_answer_is_over() {
        let cuts = Cuts::default();
        let stream = tokio_stream::pending::<Result<Frame<Bytes>, Status>>();
        let inner = Body::new(http_body_util::StreamBody::new(stream));
        let body = Bounded::body(inner, Arc::clone(&cuts.calls));
        let mut left = pin!(cuts.left());
        assert!(futures_util::poll!(&mut left).is_pending());
        drop(body);
        left.await;
    }

    #[tokio::test]
    async fn a_stream_that_does_not_end_is_ended_with_a_status() {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Status>>(1);
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let cut = Arc::new(Cut::default());
        let mut body = Bounded::body(Body::new(http_body_util::StreamBody::new(stream)), Arc::clone(&cut));
        sender.send(Ok(Frame::data(Bytes::from_static(b"one")))).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
        cut.make();
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers.get("grpc-status").unwrap(), "14");
        assert!(body.frame().await.is_none());
        assert!(sender.is_closed());
    }
}
