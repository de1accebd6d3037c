//! One tenant's statements of one stream. While it has any, it holds a lease, for at most [`HOLD_MAX`]; plain reads are
//! sent as they come, and their answers taken in order. One that turns out to write is run beside the lane, as all do
//! that are no plain reads.
//!
//! A plain read changes nothing and leaves nothing, so one whose connection was lost to another statement is sent again.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;

use super::flight::{Flight, Plain};
use super::job::{BYTES_MAX, Job, answer};
use super::{Caller, Shared};
use crate::domain::tenant::TenantId;
use crate::proto::v1::pipeline_answer::Outcome;
use crate::proto::v1::{self, PipelineAnswer, PipelineResponse};
use crate::query::error::Error;
use crate::query::execute::Execute;
use crate::query::harmless::Reading;
use crate::query::rows::columns;
use crate::query::session::Session;
use crate::router::{Lease, Residue};

/// How long a lane keeps a lease before it stands in line again.
const HOLD_MAX: Duration = Duration::from_millis(50);
/// Plain reads on one connection.
const DEPTH_MAX: usize = 128;
/// Answers of one message, and bytes of values after which it is sent.
const BATCH_ANSWERS: usize = 128;
const BATCH_BYTES: usize = 256 << 10;
/// Of one message, unless a single answer has more: clients take 4 MiB if they are not told otherwise.
const MESSAGE_BYTES: usize = 1 << 20;
/// How long a lane with a lease waits for a slow reader; then it gives the lease back first.
const READER_WAIT: Duration = Duration::from_millis(20);
/// Bytes of values that are kept for a slow reader until the lease is given back.
const PARKED_BYTES: usize = 4 << 20;
/// Statements that a lane knows while it holds a lease, by their numbers.
const READY_MAX: usize = 64;

/// How a statement is sent, as long as the lease is held.
enum Ready {
    Plain(Arc<Plain>),
    /// On a lease of its own.
    Beside,
}

/// What ended the sending.
struct Landing {
    /// To be looked at before anything else: it is not ready, or its time was up.
    next: VecDeque<Job>,
    /// How many were sent. The first is whatever the time is, so that one which takes longer to be prepared than the lease
    /// lasts is not prepared for ever.
    sent: usize,
    /// The connection's statements are to be prepared anew.
    stale: bool,
    /// The connection is not to be used again.
    condemned: bool,
    /// The reader is slow: nothing more is sent.
    full: bool,
    /// Since when the first of those on their way has had the connection to itself.
    first_since: Instant,
}

impl Landing {
    fn new() -> Self {
        Self {
            next: VecDeque::new(),
            sent: 0,
            stale: false,
            condemned: false,
            full: false,
            first_since: Instant::now(),
        }
    }
}

pub(super) struct Lane<C, E> {
    shared: Arc<Shared<C, E>>,
    tenant: TenantId,
    jobs: mpsc::Receiver<Job>,
    /// Before those in `jobs`.
    backlog: VecDeque<Job>,
    /// The first of the backlog runs beside the lane, once there is a place.
    is_first_beside: bool,
    /// Answers that wait for a slow reader, and the bytes of their values.
    parked: Vec<PipelineAnswer>,
    parked_bytes: usize,
}

impl<C: Caller, E: Send + 'static> Lane<C, E> {
    /// Begins a lane; it ends when the sender is dropped and everything is answered, or with the stream.
    pub(super) fn spawn(shared: &Arc<Shared<C, E>>, tenant: TenantId, jobs_max: usize) -> mpsc::Sender<Job> {
        let (sender, jobs) = mpsc::channel(jobs_max);
        let mut lane = Self {
            shared: Arc::clone(shared),
            tenant,
            jobs,
            backlog: VecDeque::new(),
            is_first_beside: false,
            parked: Vec::new(),
            parked_bytes: 0,
        };
        let (over, token) = (shared.over.clone(), shared.tracker.token());
        shared.queries.0.tasks.spawn("pipeline lane", async move {
            tokio::select! {
                biased;
                () = over.cancelled() => {}
                // An error says that the caller has gone.
                _ended = lane.run() => {}
            }
            drop(token);
        });
        sender
    }

    async fn run(&mut self) -> Result<(), Error> {
        loop {
            self.unpark().await?;
            if self.backlog.is_empty() {
                let Some(job) = self.jobs.recv().await else { return Ok(()) };
                self.backlog.push_back(job);
            }
            if std::mem::take(&mut self.is_first_beside) {
                let place = Arc::clone(&self.shared.beside).acquire_owned().await;
                self.first_beside(place.map_err(|_closed| Error::CallerGone)?);
                continue;
            }
            match self.shared.lease(self.tenant).await {
                Ok(lease) => match self.only_read(&lease) {
                    Some(job) => {
                        let outcome = run(&self.shared, lease, &job).await;
                        self.parked.push(answer(job.statement.id, outcome));
                    }
                    None => self.hold(lease.into()).await?,
                },
                Err(error) => {
                    let error = self.shared.caller.explain_router(error);
                    while let Some(job) = self.next() {
                        self.parked.push(answer(job.statement.id, Outcome::Error(error.clone())));
                    }
                }
            }
        }
    }

    /// Hands on what waits for the reader.
    async fn unpark(&mut self) -> Result<(), Error> {
        self.parked_bytes = 0;
        while !self.parked.is_empty() {
            let answers = self.message();
            self.shared.answer(answers).await?;
        }
        Ok(())
    }

    /// As many of the answers that wait as one message takes.
    fn message(&mut self) -> Vec<PipelineAnswer> {
        let mut bytes = 0;
        let fits = |answer: &&PipelineAnswer| {
            bytes += answer.encoded_len();
            bytes <= MESSAGE_BYTES
        };
        // One that is larger goes by itself.
        let count = self.parked.iter().take(BATCH_ANSWERS).take_while(fits).count().max(1);
        let rest = self.parked.split_off(count.min(self.parked.len()));
        std::mem::replace(&mut self.parked, rest)
    }

    fn next(&mut self) -> Option<Job> {
        self.backlog.pop_front().or_else(|| self.jobs.try_recv().ok())
    }

    /// The one statement that there is for a new connection, if it is a plain read: such a connection's first needs no
    /// guard, and most of them have no second.
    fn only_read(&mut self, lease: &Lease) -> Option<Job> {
        if !lease.is_new() || self.backlog.len() != 1 || !self.jobs.is_empty() {
            return None;
        }
        let is_plain = self.backlog.front()?.known.analysis.residue == Residue::Nothing;
        if is_plain { self.backlog.pop_front() } else { None }
    }

    fn refuse(&mut self, job: &Job, error: Error) {
        self.parked.push(answer(job.statement.id, Outcome::Error(self.shared.caller.explain(error))));
    }

    /// One lease's time.
    async fn hold(&mut self, mut session: Session) -> Result<(), Error> {
        let until = Instant::now() + HOLD_MAX;
        let mut ready = HashMap::new();
        let mut sent = 0;
        while let Some(job) = self.next() {
            if Instant::now() >= until {
                self.backlog.push_front(job);
                break;
            }
            let number = job.known.number;
            if !ready.contains_key(&number) {
                if ready.len() == READY_MAX {
                    ready.clear();
                }
                match self.prepare(&mut session, &job).await {
                    Ok(known) => ready.insert(number, known),
                    Err(error) => {
                        let error = session.told(error);
                        let is_broken = error.ends_session();
                        self.refuse(&job, error);
                        if is_broken {
                            return Ok(());
                        }
                        continue;
                    }
                };
            }
            self.backlog.push_front(job);
            self.hand_on().await?;
            let landing = self.fly(&session, &ready, until).await?;
            sent += landing.sent;
            for job in landing.next.into_iter().rev() {
                if job.changes {
                    ready.insert(job.known.number, Ready::Beside);
                }
                self.backlog.push_front(job);
            }
            if landing.condemned {
                return Ok(());
            }
            if landing.stale {
                session.statements_forget();
                ready.clear();
            }
            if landing.full || !self.is_beside_done(&ready) {
                break;
            }
        }
        if let Session::Tenant(lease) = &session {
            lease.came_with(u32::try_from(sent).unwrap_or(u32::MAX));
        }
        session.release(Residue::Nothing);
        Ok(())
    }

    /// Whether the statement is a plain read, and then its prepared form.
    async fn prepare(&self, session: &mut Session, job: &Job) -> Result<Ready, Error> {
        let (statements, known) = (&self.shared.queries.0.statements, &job.known);
        if job.changes || known.analysis.residue != Residue::Nothing {
            return Ok(Ready::Beside);
        }
        let reading = statements.reading(session, known).await?;
        let statement = match reading {
            Reading::AsIs => session.prepare(&known.sql).await?,
            Reading::Guarded => match session.prepare_guarded(&known.sql).await {
                Err(error) if error.is_read_only() => {
                    statements.changed(self.tenant, known);
                    return Ok(Ready::Beside);
                }
                prepared => prepared?,
            },
            Reading::Changes => return Ok(Ready::Beside),
        };
        let columns = columns(statement.columns())?;
        Ok(Ready::Plain(Arc::new(Plain { statement, columns, reading })))
    }

    /// Begins the first statement beside the lane, if it is of that kind; false when there is no place.
    fn is_beside_done(&mut self, ready: &HashMap<u64, Ready>) -> bool {
        let Some(job) = self.backlog.front() else { return true };
        if !matches!(ready.get(&job.known.number), Some(Ready::Beside)) {
            return true;
        }
        match Arc::clone(&self.shared.beside).try_acquire_owned() {
            Ok(place) => self.first_beside(place),
            Err(_full) => self.is_first_beside = true,
        }
        !self.is_first_beside
    }

    fn first_beside(&mut self, place: OwnedSemaphorePermit) {
        if let Some(job) = self.backlog.pop_front() {
            self.run_beside(job, place);
        }
    }

    fn run_beside(&self, job: Job, place: OwnedSemaphorePermit) {
        let (shared, tenant, token) = (Arc::clone(&self.shared), self.tenant, self.shared.tracker.token());
        self.shared.queries.0.tasks.spawn("pipeline statement", async move {
            let outcome = tokio::select! {
                outcome = alone(&shared, tenant, &job) => outcome,
                () = shared.over.cancelled() => return,
            };
            drop(place);
            // Whoever has gone needs no answer.
            let _sent = shared.answer(vec![answer(job.statement.id, outcome)]).await;
            drop(token);
        });
    }

    /// Sends plain reads as they come until one is something else, until the time is up, or until there are none; and
    /// answers all that were sent.
    async fn fly(&mut self, session: &Session, ready: &HashMap<u64, Ready>, until: Instant) -> Result<Landing, Error> {
        let mut flights: VecDeque<Flight<'_>> = VecDeque::new();
        let mut landing = Landing::new();
        loop {
            let answers = poll_fn(|cx| {
                self.send(cx, session.client(), ready, until, &mut flights, &mut landing);
                let answers = self.collect(cx, session, &mut flights, &mut landing);
                if answers.is_empty() && !flights.is_empty() && !landing.condemned {
                    return Poll::Pending;
                }
                Poll::Ready(answers)
            })
            .await;
            self.parked.extend(answers);
            if !self.hand_on().await? {
                landing.full = true;
                landing.condemned |= self.parked_bytes > PARKED_BYTES;
            }
            if landing.condemned {
                // Behind what was read before, in their order.
                let lost: Vec<Job> = flights.drain(..).map(|flight| flight.job).collect();
                for job in lost.into_iter().rev() {
                    landing.next.push_front(job);
                }
            }
            if flights.is_empty() {
                return Ok(landing);
            }
        }
    }

    /// Gives the reader what there is; false when it takes nothing.
    async fn hand_on(&mut self) -> Result<bool, Error> {
        let answers = self.shared.answers.clone();
        while !self.parked.is_empty() {
            match timeout(READER_WAIT, answers.reserve()).await {
                Ok(Ok(room)) => room.send(Ok(PipelineResponse { answers: self.message() })),
                Ok(Err(_gone)) => return Err(Error::CallerGone),
                Err(_elapsed) => return Ok(false),
            }
        }
        self.parked_bytes = 0;
        Ok(true)
    }

    fn send<'a>(
        &mut self,
        cx: &mut Context<'_>,
        client: &'a Client,
        ready: &HashMap<u64, Ready>,
        until: Instant,
        flights: &mut VecDeque<Flight<'a>>,
        landing: &mut Landing,
    ) {
        while landing.next.is_empty() && flights.len() < DEPTH_MAX && !landing.full && !landing.condemned {
            let job = match self.backlog.pop_front() {
                Some(job) => job,
                None => match self.jobs.poll_recv(cx) {
                    Poll::Ready(Some(job)) => job,
                    Poll::Ready(None) | Poll::Pending => return,
                },
            };
            let plain = match ready.get(&job.known.number) {
                Some(Ready::Plain(plain)) if landing.sent == 0 || Instant::now() < until => Arc::clone(plain),
                _other => {
                    landing.next.push_back(job);
                    return;
                }
            };
            landing.sent += 1;
            flights.push_back(Flight::begin(cx, client, plain, job));
        }
    }

    fn collect(
        &mut self,
        cx: &mut Context<'_>,
        session: &Session,
        flights: &mut VecDeque<Flight<'_>>,
        landing: &mut Landing,
    ) -> Vec<PipelineAnswer> {
        let (mut answers, mut bytes) = (Vec::new(), 0);
        while answers.len() < BATCH_ANSWERS && bytes < BATCH_BYTES && !landing.condemned {
            let Some(flight) = flights.front_mut() else { break };
            let Poll::Ready(result) = flight.result.as_mut().poll(cx) else { break };
            let Some(mut flight) = flights.pop_front() else { break };
            let id = flight.job.statement.id;
            let now = Instant::now();
            let elapsed = now - landing.first_since.max(flight.sent_at);
            landing.first_since = now;
            self.shared.queries.tell_if_slow(session, &flight.job.known.sql, elapsed);
            match result {
                Ok(rows) => {
                    bytes += rows.bytes;
                    answers.push(answer(id, Outcome::Result(flight.response(rows))));
                }
                Err(error) if error.is_stale_statement() && !flight.job.again => {
                    flight.job.again = true;
                    landing.stale = true;
                    landing.next.push_back(flight.job);
                }
                Err(error) if error.is_read_only() && flight.is_guarded() => {
                    // Nothing of it has stayed: it is run beside the lane.
                    flight.job.changes = true;
                    self.shared.queries.0.statements.changed(self.tenant, &flight.job.known);
                    landing.next.push_back(flight.job);
                }
                Err(error) => {
                    let error = session.told(error);
                    // Rows may still be on their way, and would keep those behind waiting.
                    landing.condemned = error.leaves_rows();
                    answers.push(answer(id, Outcome::Error(self.shared.caller.explain(error))));
                }
            }
        }
        self.parked_bytes += bytes;
        answers
    }
}

/// A statement on a lease of its own.
async fn alone<C: Caller, E: Send + 'static>(shared: &Shared<C, E>, tenant: TenantId, job: &Job) -> Outcome {
    match shared.lease(tenant).await {
        Ok(lease) => run(shared, lease, job).await,
        Err(error) => Outcome::Error(shared.caller.explain_router(error)),
    }
}

/// A statement on this lease, which is given back.
async fn run<C: Caller, E: Send + 'static>(shared: &Shared<C, E>, lease: Lease, job: &Job) -> Outcome {
    let statement = &job.statement;
    let input = Execute {
        sql: &job.known.sql,
        parameters: &statement.parameters,
        rows_max: statement.max_rows,
        bytes_max: BYTES_MAX,
        user: job.user,
    };
    match shared.queries.execute_known(lease.into(), input, &job.known).await {
        Ok(output) => Outcome::Result(v1::ExecuteResponse {
            columns: if statement.omit_columns { Vec::new() } else { output.columns },
            rows: output.rows,
            row_count: i64::try_from(output.row_count).unwrap_or(i64::MAX),
        }),
        Err(error) => Outcome::Error(shared.caller.explain(error)),
    }
}
