//! Calls whose message comes late, or never: what a caller may do is what it may do when the message is there.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper_util::client::legacy::Client as Transport;
use hyper_util::rt::TokioExecutor;
use prost::Message as _;
use tenantd::proto::v1::{CreateApiKeyRequest, RevokeApiKeyRequest, WhoAmIRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;

use crate::harness::{Daemon, Fleet, PATIENCE, Spec};

const HEALTH: &str = "grpc.health.v1.Health/Check";
const WHO_AM_I: &str = "tenantd.v1.AccessService/WhoAmI";

/// A call that has begun.
struct Call {
    message: mpsc::Sender<Result<Frame<Bytes>, Status>>,
    status: tokio::task::JoinHandle<String>,
}

impl Call {
    fn begin(daemon: &Daemon, method: &str, key: Option<&str>) -> Self {
        let transport = Transport::builder(TokioExecutor::new()).http2_only(true).build_http::<Body>();
        let (message, parts) = mpsc::channel(16);
        let mut request = Request::post(format!("http://{}/{method}", daemon.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.body(Body::new(StreamBody::new(ReceiverStream::new(parts)))).unwrap();
        let status = tokio::spawn(async move { read(transport.request(request).await.unwrap()).await });
        Self { message, status }
    }

    async fn send(&self, bytes: Vec<u8>) {
        self.message.send(Ok(Frame::data(bytes.into()))).await.unwrap();
    }

    /// The status that the daemon answers with, while the call is still open.
    async fn status(self) -> String {
        tokio::time::timeout(PATIENCE, self.status).await.expect("an answer").unwrap()
    }

    async fn sent(self) -> String {
        drop(self.message);
        self.status.await.unwrap()
    }
}

async fn read<B: http_body::Body<Error: std::fmt::Debug>>(answer: Response<B>) -> String {
    let status = |headers: &HeaderMap| headers.get("grpc-status").map(|status| status.to_str().unwrap().to_owned());
    if let Some(status) = status(answer.headers()) {
        return status;
    }
    let collected = answer.into_body().collect().await.unwrap();
    collected.trailers().and_then(status).expect("a status")
}

/// As gRPC sends a message of this length.
fn prefix(length: usize) -> Vec<u8> {
    let length = u32::try_from(length).unwrap();
    [&[0], length.to_be_bytes().as_slice()].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_was_begun_before_its_key_was_revoked_is_refused_when_its_message_comes() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let wish = CreateApiKeyRequest {
        name: "slow".to_owned(),
        roles: vec!["viewer".to_owned()],
        ..CreateApiKeyRequest::default()
    };
    let made = daemon.client.access().create_api_key(wish).await.unwrap().into_inner();
    let (key, api_key_id) = (made.secret, made.api_key.unwrap().api_key_id);
    let message = [prefix(0), WhoAmIRequest {}.encode_to_vec()].concat();
    let slow = Call::begin(&daemon, WHO_AM_I, Some(&key));
    // Longer than anybody is believed without being asked again.
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    slow.send(message.clone()).await;
    assert_eq!(slow.sent().await, "0", "the key is good");

    let late = Call::begin(&daemon, WHO_AM_I, Some(&key));
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    assert!(!late.status.is_finished());
    let request = RevokeApiKeyRequest { api_key_id, ..RevokeApiKeyRequest::default() };
    daemon.client.access().revoke_api_key(request).await.unwrap();
    late.send(message).await;
    assert_eq!(late.sent().await, "16", "UNAUTHENTICATED");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn who_asks_for_health_has_no_more_bytes_kept_than_that_needs() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let call = Call::begin(&daemon, HEALTH, None);
    call.send(prefix(4 << 20)).await;
    call.send(vec![0; 2 << 10]).await;
    assert_eq!(call.status().await, "11", "OUT_OF_RANGE, though more is announced");
    let call = Call::begin(&daemon, HEALTH, None);
    call.send(prefix(0)).await;
    assert_eq!(call.sent().await, "0");
    fleet.stop(daemon).await;
}
