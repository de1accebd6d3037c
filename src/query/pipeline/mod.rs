//! Many independent statements over one stream. A lane per tenant takes a lease for as long as it has statements on
//! their way, and a bounded time; plain reads travel on it one behind the other without waiting for each other's
//! answers, and everything else runs beside them on a lease of its own.
//!
//! Always holds: at most [`IN_FLIGHT_MAX`] statements of a stream, and about [`BYTES_IN_FLIGHT_MAX`] of them, are between their request and their answer's place
//! in the outgoing queue, and that queue is short, so that a caller who does not read is not read from.

mod flight;
mod job;
mod lane;

use std::collections::HashMap;
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use lru::LruCache;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::Queries;
use super::error::Error;
use crate::domain::tenant::TenantId;
use crate::proto::v1::pipeline_answer::Outcome;
use crate::proto::v1::{self, PipelineAnswer, PipelineRequest, PipelineResponse, PipelineStatement};
use crate::router::{self, Holder, Lease};
use job::{Job, Slot, answer};
use lane::Lane;

/// Statements of one stream that are on their way.
const IN_FLIGHT_MAX: u32 = 256;
/// Bytes of one stream's statements that are on their way; it is not read from until there is room.
const BYTES_IN_FLIGHT_MAX: u32 = 16 << 20;
/// A statement that is no larger is only counted.
const SMALL_BYTES_MAX: usize = 4 << 10;
/// Tenants of one stream that have a lane at the same moment.
const LANES_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// Statements of one stream that run beside its lanes.
const BESIDE_MAX: usize = 8;
/// How long the caller's right to a tenant counts without another look.
const TENANT_AGE_MAX: Duration = Duration::from_secs(1);
/// Tenants whose names are remembered for so long.
const TENANTS_MAX: usize = 1_024;

/// Who sends the statements: says what they mean and how refusals are told.
pub trait Caller: Send + Sync + 'static {
    /// The tenant of that name, if this caller may reach it.
    fn tenant(&self, name: &str) -> impl Future<Output = Result<TenantId, Box<v1::StatementError>>> + Send;

    /// As whom the lanes hold their leases.
    fn holder(&self) -> Holder;

    /// The user on whose behalf a statement runs, if it may.
    fn user(&self, id: &str) -> impl Future<Output = Result<Option<Uuid>, Box<v1::StatementError>>> + Send;

    fn explain(&self, error: Error) -> v1::StatementError;

    fn explain_router(&self, error: router::Error) -> v1::StatementError;
}

/// What the lanes of one stream share.
struct Shared<C, E> {
    queries: Queries,
    caller: C,
    holder: Holder,
    answers: mpsc::Sender<Result<PipelineResponse, E>>,
    beside: Arc<Semaphore>,
    /// When the stream must have ended.
    deadline: Instant,
    /// Cancelled when the stream ends before its statements.
    over: CancellationToken,
    /// Lanes, and statements beside them, that have not ended.
    tracker: TaskTracker,
}

impl<C: Caller, E: Send + 'static> Shared<C, E> {
    async fn lease(&self, tenant: TenantId) -> Result<Lease, router::Error> {
        self.queries.0.router.acquire_as(&self.holder, tenant, self.deadline).await
    }

    /// Hands answers on; an error when nobody takes them any more.
    async fn answer(&self, answers: Vec<PipelineAnswer>) -> Result<(), Error> {
        self.answers.send(Ok(PipelineResponse { answers })).await.map_err(|_gone| Error::CallerGone)
    }
}

impl Queries {
    /// Runs what comes until `requests` ends or `draining` resolves, and answers all of it. What `draining` resolves with
    /// is the last word: what has no answer by then was not run.
    pub async fn pipeline<C: Caller, E: Send + 'static>(
        &self,
        caller: C,
        requests: impl Stream<Item = Result<PipelineRequest, E>> + Unpin + Send,
        answers: mpsc::Sender<Result<PipelineResponse, E>>,
        deadline: Instant,
        draining: impl Future<Output = E> + Send,
    ) {
        let over = CancellationToken::new();
        let _over = over.clone().drop_guard();
        let shared = Shared {
            queries: self.clone(),
            holder: caller.holder(),
            caller,
            answers,
            beside: Arc::new(Semaphore::new(BESIDE_MAX)),
            deadline,
            over,
            tracker: TaskTracker::new(),
        };
        let mut dispatch = Dispatch {
            shared: Arc::new(shared),
            slots: Arc::new(Semaphore::new(IN_FLIGHT_MAX as usize)),
            bytes: Arc::new(Semaphore::new(BYTES_IN_FLIGHT_MAX as usize)),
            lanes: LruCache::new(LANES_MAX),
            tenants: HashMap::new(),
        };
        // An error says that the caller has gone.
        let _gone = dispatch.run(requests, draining).await;
    }
}

/// Gives each statement to its tenant's lane.
struct Dispatch<C, E> {
    shared: Arc<Shared<C, E>>,
    slots: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    lanes: LruCache<TenantId, mpsc::Sender<Job>>,
    tenants: HashMap<String, (TenantId, Instant)>,
}

impl<C: Caller, E: Send + 'static> Dispatch<C, E> {
    async fn run(
        &mut self,
        mut requests: impl Stream<Item = Result<PipelineRequest, E>> + Unpin + Send,
        draining: impl Future<Output = E> + Send,
    ) -> Result<(), Error> {
        let mut draining = pin!(draining);
        let broken = loop {
            let request = tokio::select! {
                request = requests.next() => request,
                last_word = &mut draining => break Some(last_word),
                () = self.shared.answers.closed() => return Err(Error::CallerGone),
            };
            let request = match request {
                Some(Ok(request)) => request,
                // The caller broke off, or what it sent is no request.
                Some(Err(error)) => break Some(error),
                None => break None,
            };
            for statement in request.statements {
                let slot = self.slot(&statement).await?;
                self.dispatch(statement, slot).await?;
            }
        };
        // Lanes end when they have answered everything.
        self.lanes.clear();
        self.shared.tracker.close();
        tokio::select! {
            () = self.shared.tracker.wait() => {}
            () = self.shared.answers.closed() => return Err(Error::CallerGone),
        }
        match broken {
            Some(error) => self.shared.answers.send(Err(error)).await.map_err(|_gone| Error::CallerGone),
            None => Ok(()),
        }
    }

    async fn slot(&self, statement: &PipelineStatement) -> Result<Slot, Error> {
        let bytes = statement.encoded_len();
        Ok(Slot {
            _place: self.room(&self.slots, 1).await?,
            _bytes: if bytes <= SMALL_BYTES_MAX {
                None
            } else {
                // One that is larger than all may be goes by itself.
                let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(BYTES_IN_FLIGHT_MAX);
                Some(self.room(&self.bytes, bytes).await?)
            },
        })
    }

    async fn room(&self, of: &Arc<Semaphore>, much: u32) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(room) = Arc::clone(of).try_acquire_many_owned(much) {
            return Ok(room);
        }
        tokio::select! {
            room = Arc::clone(of).acquire_many_owned(much) => room.map_err(|_closed| Error::CallerGone),
            () = self.shared.answers.closed() => Err(Error::CallerGone),
        }
    }

    async fn dispatch(&mut self, statement: PipelineStatement, slot: Slot) -> Result<(), Error> {
        let id = statement.id;
        let checked = match self.shared.caller.user(&statement.user_id).await {
            Ok(user) => self.tenant(&statement.tenant).await.map(|tenant| (tenant, user)),
            Err(error) => Err(error),
        };
        let (tenant, user) = match checked {
            Ok(checked) => checked,
            Err(error) => return self.shared.answer(vec![answer(id, Outcome::Error(*error))]).await,
        };
        let known = match self.shared.queries.0.statements.known(&statement.sql) {
            Ok(known) => known,
            Err(error) => {
                let outcome = Outcome::Error(self.shared.caller.explain(error));
                return self.shared.answer(vec![answer(id, outcome)]).await;
            }
        };
        let job = Job::new(statement, known, user, slot);
        let lane = self.lanes.get_or_insert(tenant, || Lane::spawn(&self.shared, tenant, IN_FLIGHT_MAX as usize));
        // There is room for every slot.
        lane.send(job).await.map_err(|_over| Error::CallerGone)
    }

    async fn tenant(&mut self, name: &str) -> Result<TenantId, Box<v1::StatementError>> {
        if let Some((tenant, since)) = self.tenants.get(name)
            && since.elapsed() <= TENANT_AGE_MAX
        {
            return Ok(*tenant);
        }
        let tenant = self.shared.caller.tenant(name).await?;
        if self.tenants.len() >= TENANTS_MAX {
            self.tenants.clear();
        }
        self.tenants.insert(name.to_owned(), (tenant, Instant::now()));
        Ok(tenant)
    }
}
