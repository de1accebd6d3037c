//! Open streams, each for any number of tasks: what is asked while the last message was sent travels together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tenantd::proto::v1::pipeline_answer::Outcome;
use tenantd::proto::v1::query_service_client::QueryServiceClient;
use tenantd::proto::v1::{ExecuteResponse, PipelineRequest, PipelineResponse, PipelineStatement};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::callers::Channels;

/// The daemon takes so many of one stream at the same moment.
const BATCH_MAX: usize = 256;

type Answer = Result<ExecuteResponse, String>;
type Asked = (PipelineStatement, oneshot::Sender<Answer>);
type Outstanding = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

/// An open stream, for any number of tasks.
#[derive(Debug, Clone)]
pub struct Pipeline {
    statements: mpsc::Sender<Asked>,
}

impl Pipeline {
    pub async fn open(channels: &Channels, number: usize) -> Self {
        let (statements, asked) = mpsc::channel(BATCH_MAX);
        let (requests, outgoing) = mpsc::channel(1);
        let outstanding = Outstanding::default();
        tokio::spawn(send(asked, requests, Arc::clone(&outstanding)));
        let mut client = QueryServiceClient::new(channels.channel(number));
        let opened = client.pipeline(channels.request(ReceiverStream::new(outgoing))).await;
        tokio::spawn(receive(opened.unwrap().into_inner(), outstanding));
        Self { statements }
    }

    pub async fn execute(&self, statement: PipelineStatement) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.statements.send((statement, answer)).await.map_err(|error| error.to_string())?;
        answered.await.map_err(|_ended| "the stream has ended".to_owned())?
    }
}

/// Puts into one message what was asked while the last one was sent.
async fn send(mut asked: mpsc::Receiver<Asked>, requests: mpsc::Sender<PipelineRequest>, outstanding: Outstanding) {
    let mut id = 0;
    let mut batch = Vec::new();
    while asked.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let mut request = PipelineRequest::default();
        {
            let mut outstanding = outstanding.lock().unwrap();
            for (mut statement, answer) in batch.drain(..) {
                id += 1;
                statement.id = id;
                outstanding.insert(id, answer);
                request.statements.push(statement);
            }
        }
        if requests.send(request).await.is_err() {
            return;
        }
    }
}

/// Gives each answer to who asked.
async fn receive(mut answers: Streaming<PipelineResponse>, outstanding: Outstanding) {
    while let Ok(Some(response)) = answers.message().await {
        let mut outstanding = outstanding.lock().unwrap();
        for answer in response.answers {
            let Some(waiting) = outstanding.remove(&answer.id) else { continue };
            drop(waiting.send(match answer.outcome {
                Some(Outcome::Result(result)) => Ok(result),
                other => Err(format!("{other:?}")),
            }));
        }
    }
    outstanding.lock().unwrap().clear();
}
