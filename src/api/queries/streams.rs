//! Streams of the query service: each runs as a task, ends with its caller or its caller's rights, at the call's deadline, and before the drain
//! is over; and Transact, whose first message says which session the transaction gets.

use std::future::Future;

use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use super::Answers;
use super::user::user;
use crate::api::ongoing::Ongoing;
use crate::api::{Service, auth, convert, status};
use crate::proto::v1::transact_request::Action;
use crate::proto::v1::{self, TransactRequest, TransactResponse};
use crate::query::{self, Begin};

/// Messages that wait for a slow caller, beside the place that is kept for the status at the end.
const BUFFERED_MAX: usize = 4;

impl Service {
    /// Runs a stream's task. Whatever ends it early drops `run`, and with it the session that it holds.
    pub(super) fn streaming<T, F>(
        &self,
        name: &'static str,
        ongoing: Ongoing,
        deadline: Instant,
        run: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F,
    ) -> Answers<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(BUFFERED_MAX + 1);
        let last = sender.clone().try_reserve_owned();
        let (run, cut) = (run(sender), self.drain_over());
        self.api.tasks.spawn(name, async move {
            let why = tokio::select! {
                ended = run => match ended {
                    Ok(()) => return,
                    Err(status) => ongoing.refused(status).await,
                },
                status = ongoing.lost() => status,
                () = sleep_until(deadline) => status::deadline_exceeded(),
                () = cut => status::cut_off(),
            };
            if let Ok(last) = last {
                last.send(Err(why));
            }
        });
        ReceiverStream::new(receiver)
    }

    /// Resolves when a stream has used up its part of the drain: before calls are cut off, so that it can say why.
    fn drain_over(&self) -> impl Future<Output = ()> + Send + 'static {
        let (draining, part) = (self.draining.clone(), self.api.config.drain_timeout / 2);
        async move {
            draining.cancelled().await;
            sleep(part).await;
        }
    }

    /// The first message says which session the transaction gets.
    pub(super) fn transaction(
        &self,
        request: Request<Streaming<TransactRequest>>,
    ) -> Result<Answers<TransactResponse>, Status> {
        let ongoing = Ongoing::new(self, &request, "/tenantd.v1.QueryService/Transact")?;
        let deadline = auth::call_deadline(&request);
        let (metadata, extensions, mut requests) = request.into_parts();
        let (service, call) = (self.clone(), Request::from_parts(metadata, extensions, ()));
        let who = ongoing.clone();
        Ok(self.streaming("transact", ongoing, deadline, |answers| async move {
            let first = timeout(service.api.live.current().query.transaction_idle_max, requests.next()).await;
            let Ok(Some(Ok(TransactRequest { action: Some(Action::Begin(begin)) }))) = first else {
                return Err(query::Error::NoAction.into());
            };
            let how = Begin {
                isolation: convert::isolation_level(begin.isolation_level)?,
                read_only: begin.read_only,
                user: user(&who.principal(), &begin.user_id)?,
            };
            let target = convert::target(begin.target)?;
            let session = service.stream_session(&who, &call, target, &begin.tenant, None, deadline).await?;
            let requests = requests.map_err(|error| status::undecodable::instead_of(&error).unwrap_or(error));
            Ok(service.api.queries.transact(session, how, requests, &answers, explain).await?)
        }))
    }
}

/// An error of a statement, as part of a stream.
pub(super) fn explain(error: query::Error) -> v1::StatementError {
    status::queries::explained(error)
}
