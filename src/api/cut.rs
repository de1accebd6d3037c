//! Streams of answers that the drain can end: when it has taken too long, the caller gets a status and the stream is
//! dropped, and with it whatever the stream holds on the servers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;

use super::status;

/// An answer's body, until `cut` is cancelled.
pub(super) struct Bounded {
    /// `None` when it was cut off.
    inner: Option<Body>,
    cut: Arc<CancellationToken>,
    /// Made when there is something to wait for, which most answers never have.
    waiting: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Bounded {
    pub(super) fn body(inner: Body, cut: Arc<CancellationToken>) -> Body {
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
        let waiting =
            this.waiting.get_or_insert_with(|| Box::pin(CancellationToken::clone(&this.cut).cancelled_owned()));
        if waiting.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        this.inner = None;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status::draining().add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
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
    async fn a_stream_that_does_not_end_is_ended_with_a_status() {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Status>>(1);
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let cut = Arc::new(CancellationToken::new());
        let mut body = Bounded::body(Body::new(http_body_util::StreamBody::new(stream)), Arc::clone(&cut));
        sender.send(Ok(Frame::data(Bytes::from_static(b"one")))).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
        cut.cancel();
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers.get("grpc-status").unwrap(), "14");
        assert!(body.frame().await.is_none());
        assert!(sender.is_closed());
    }
}
