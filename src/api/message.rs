//! A call's message, read whole before its method begins, within a bounded time. Inside of the method it would be waited
//! for as long as the caller likes, and then run with the rights that the caller had when the call began.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;

use super::status;

/// Methods whose callers send any number of messages: these look at their callers' rights as long as they run.
const STREAMS: [&str; 2] = ["/tenantd.v1.QueryService/Transact", "/tenantd.v1.QueryService/Pipeline"];
/// How long a message may take to come.
const TIME_MAX: Duration = Duration::from_secs(30);
/// Who took longer than this to send it is asked again who it is.
pub(super) const STALE_AFTER: Duration = Duration::from_secs(1);
/// Before a message, its kind and its length.
const PREFIX_BYTES: usize = 5;

/// Whether the method takes one message.
pub(super) fn is_single(path: &str) -> bool {
    !STREAMS.contains(&path)
}

/// Reads the message, of which no more than `bytes_max` are looked at.
///
/// # Errors
/// When it does not come in time, or its caller has gone.
pub(super) async fn whole(body: Body, bytes_max: usize) -> Result<Body, Status> {
    within(TIME_MAX, body, bytes_max).await
}

async fn within(time_max: Duration, mut body: Body, bytes_max: usize) -> Result<Body, Status> {
    let read = async {
        let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
        while first.len() + rest.len() <= bytes_max + PREFIX_BYTES
            && let Some(frame) = body.frame().await
        {
            match frame?.into_data() {
                // Most come in one piece.
                Ok(data) if first.is_empty() => first = data,
                Ok(data) => rest.extend_from_slice(&data),
                Err(_trailers) => {}
            }
        }
        if rest.is_empty() {
            return Ok(first);
        }
        Ok([first.as_ref(), rest.as_ref()].concat().into())
    };
    match timeout(time_max, read).await {
        Ok(Ok(message)) => Ok(Body::new(Full::new(message))),
        Ok(Err(status)) => Err(status),
        Err(_elapsed) => Err(status::message_slow(time_max)),
    }
}

#[cfg(test)]
mod tests {
    use http_body::Frame;
    use http_body_util::StreamBody;
    use prost_reflect::DescriptorPool;

    use super::*;
    use crate::proto::DESCRIPTORS;

    fn body(parts: Vec<&'static [u8]>) -> Body {
        let frames = parts.into_iter().map(|part| Ok::<_, Status>(Frame::data(Bytes::from_static(part))));
        Body::new(StreamBody::new(tokio_stream::iter(frames.collect::<Vec<_>>())))
    }

    #[test]
    fn every_method_that_takes_many_messages_is_known() {
        let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
        for service in pool.services().filter(|service| service.package_name() == "tenantd.v1") {
            for method in service.methods() {
                let path = format!("/{}/{}", service.full_name(), method.name());
                assert_eq!(is_single(&path), !method.is_client_streaming(), "{path}");
            }
        }
    }

    #[tokio::test]
    async fn a_message_is_put_together_and_no_more_is_read_than_one_may_have() {
        for parts in [vec![], vec![b"one".as_slice()], vec![b"on", b"", b"e and", b" more"]] {
            let expected = parts.concat();
            let message = whole(body(parts), 100).await.unwrap().collect().await.unwrap().to_bytes();
            assert_eq!(message, expected);
        }
        let endless =
            tokio_stream::iter(std::iter::repeat_with(|| Ok::<_, Status>(Frame::data(Bytes::from_static(b"more")))));
        let message = whole(Body::new(StreamBody::new(endless)), 7).await.unwrap();
        assert_eq!(message.collect().await.unwrap().to_bytes().len(), 16);
    }

    #[tokio::test]
    async fn a_message_that_does_not_come_is_not_waited_for() {
        let silent = StreamBody::new(tokio_stream::pending::<Result<Frame<Bytes>, Status>>());
        let refused = within(Duration::from_millis(10), Body::new(silent), 100).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::DeadlineExceeded);
    }
}
