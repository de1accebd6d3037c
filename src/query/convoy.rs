//! Quick reads of one tenant that would have to wait for a connection share one instead: they are sent one behind the
//! other, and answered as they come back, so that a busy tenant's small statements cost neither a lease each nor a
//! round trip of their own.
//!
//! Only reads that the database has called harmless ([`super::harmless`]) and that were quick the last time may join.
//! They change nothing and leave nothing, so whatever goes wrong (a connection that breaks, a tenant that gets no place,
//! a statement that is slow after all) has one answer: the caller goes the ordinary way, as if it had never joined. No
//! caller waits for others longer than [`PATIENCE`].

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, Statement};

use super::Queries;
use super::error::Error;
use super::harmless::{Known, QUICK_MAX, Statements};
use super::parameter::parameters;
use super::rows::{Bounds, Fetched, Output, columns, query};
use crate::domain::tenant::TenantId;
use crate::proto::v1;
use crate::router::{Holder, Lease, Residue};

/// How long a caller waits for its answer before it goes the ordinary way.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long a convoy keeps a connection before it stands in line again.
const HOLD_MAX: Duration = Duration::from_millis(50);
/// Statements that are under way on one connection.
const DEPTH_MAX: usize = 32;
/// So many callers for each convoy are worth another one.
const CALLERS_EACH: usize = 16;
/// Callers of one tenant that wait to be sent; the next ones go the ordinary way.
const WAITING_MAX: usize = 1_024;
/// How long a convoy stands in line for a connection; its callers have lost patience long before.
const LINE_MAX: Duration = Duration::from_secs(1);

/// The tenants that have convoys.
#[derive(Debug, Default)]
pub(super) struct Convoys(Mutex<HashMap<TenantId, Arc<Convoy>>>);

/// One tenant's callers that share connections. It is in the table as long as somebody drives it.
#[derive(Debug)]
struct Convoy {
    tenant: TenantId,
    line: Mutex<Line>,
    /// Rung when somebody joins.
    joined: Notify,
}

#[derive(Debug, Default)]
struct Line {
    jobs: VecDeque<Job>,
    drivers: usize,
    /// Jobs that are in the line or under way.
    callers: usize,
}

/// One read.
#[derive(Debug)]
struct Job {
    known: Arc<Known>,
    values: Vec<v1::Value>,
    bounds: Bounds,
    /// Dropped when the caller is to go the ordinary way.
    answer: oneshot::Sender<Result<Output, Error>>,
}

/// A read that may join, and who wants it.
pub(super) struct Passenger<'a> {
    pub(super) tenant: TenantId,
    pub(super) known: &'a Arc<Known>,
    pub(super) values: &'a [v1::Value],
    pub(super) bounds: Bounds,
    pub(super) holder: &'a Holder,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Convoys {
    /// Whether the tenant's callers share connections at this moment.
    pub(super) fn is_under_way(&self, tenant: TenantId) -> bool {
        lock(&self.0).contains_key(&tenant)
    }

    /// The read's result; `None` when its caller is to go the ordinary way.
    pub(super) async fn read(&self, queries: &Queries, passenger: &Passenger<'_>) -> Option<Result<Output, Error>> {
        let (answer, answered) = oneshot::channel();
        let job = Job {
            known: Arc::clone(passenger.known),
            values: passenger.values.to_vec(),
            bounds: passenger.bounds,
            answer,
        };
        self.join(queries, passenger, job)?;
        timeout(PATIENCE, answered).await.ok()?.ok()
    }

    fn join(&self, queries: &Queries, passenger: &Passenger<'_>, job: Job) -> Option<()> {
        let mut convoys = lock(&self.0);
        let convoy = convoys.entry(passenger.tenant).or_insert_with(|| {
            Arc::new(Convoy { tenant: passenger.tenant, line: Mutex::default(), joined: Notify::new() })
        });
        let convoy = Arc::clone(convoy);
        // With the table locked, so that no convoy leaves it which somebody is about to join.
        let wants_driver = {
            let mut line = lock(&convoy.line);
            if line.jobs.len() >= WAITING_MAX {
                return None;
            }
            line.jobs.push_back(job);
            line.callers += 1;
            let wants_driver = line.drivers * CALLERS_EACH < line.callers;
            line.drivers += usize::from(wants_driver);
            wants_driver
        };
        drop(convoys);
        convoy.joined.notify_one();
        if wants_driver {
            let (own, holder) = (queries.clone(), passenger.holder.clone());
            queries.0.tasks.spawn("convoy", async move {
                let token = own.0.tasks.token().clone();
                // Cancelled, it sends its callers the ordinary way.
                let _ended = token.run_until_cancelled(convoy.drive(&own, &holder)).await;
            });
        }
        Some(())
    }

    /// The driver has nothing to do; true when it is to go.
    fn leave(&self, convoy: &Convoy) -> bool {
        let mut convoys = lock(&self.0);
        let mut line = lock(&convoy.line);
        if !line.jobs.is_empty() {
            return false;
        }
        line.drivers -= 1;
        if line.drivers == 0 {
            convoys.remove(&convoy.tenant);
        }
        true
    }
}

/// A statement as one connection has prepared it.
struct Ready {
    statement: Statement,
    columns: Vec<v1::Column>,
}

impl Ready {
    fn new(statement: Statement) -> Result<Self, Error> {
        Ok(Self { columns: columns(statement.columns())?, statement })
    }

    fn output(&self, rows: Fetched) -> Output {
        Output { columns: self.columns.clone(), rows: rows.rows, row_count: rows.count }
    }
}

/// A read under way.
struct Flight<'a> {
    job: Job,
    ready: &'a Ready,
    sent_at: Instant,
    result: Pin<Box<dyn Future<Output = Result<Fetched, Error>> + Send + 'a>>,
}

/// How a flight of reads ended.
enum Landing {
    /// With a job that is not prepared yet, if any.
    Whole(Option<Job>),
    /// The connection is not to be used again.
    Broken,
}

impl Convoy {
    /// Takes one connection after the other, as long as somebody waits.
    async fn drive(&self, queries: &Queries, holder: &Holder) {
        let inner = &queries.0;
        let mut driving = Driving { convoys: &inner.convoys, convoy: self, is_over: false };
        while !inner.convoys.leave(self) {
            let acquired = inner.router.acquire_as(holder, self.tenant, Instant::now() + LINE_MAX).await;
            // Whoever is still there hears why from the ordinary way.
            let Ok(mut lease) = acquired else {
                self.dismiss();
                continue;
            };
            let (served, is_whole) = self.hold(&mut lease, &inner.statements).await;
            lease.came_with(served);
            if is_whole {
                lease.release(Residue::Nothing);
            }
        }
        driving.is_over = true;
    }

    fn next(&self) -> Option<Job> {
        let mut line = lock(&self.line);
        while let Some(job) = line.jobs.pop_front() {
            if !job.answer.is_closed() {
                return Some(job);
            }
            line.callers -= 1;
        }
        None
    }

    fn put_back(&self, job: Job) {
        lock(&self.line).jobs.push_front(job);
    }

    /// Sends everybody who waits the ordinary way.
    fn dismiss(&self) {
        let mut line = lock(&self.line);
        line.callers -= line.jobs.len();
        line.jobs.clear();
    }

    fn answer(&self, job: Job, result: Option<Result<Output, Error>>) {
        lock(&self.line).callers -= 1;
        if let Some(result) = result {
            // Whoever has gone needs none.
            let _gone = job.answer.send(result);
        }
    }

    /// One lease's time. Answers with how many were served, and whether the connection may be used again.
    async fn hold(&self, lease: &mut Lease, statements: &Statements) -> (u32, bool) {
        let until = Instant::now() + HOLD_MAX;
        let mut ready: HashMap<u64, Ready> = HashMap::new();
        let mut served = 0;
        while let Some(job) = self.next() {
            if Instant::now() >= until {
                self.put_back(job);
                break;
            }
            let number = job.known.number;
            if let Entry::Vacant(entry) = ready.entry(number) {
                match lease.prepare(&job.known.sql).await.map_err(Error::from).and_then(Ready::new) {
                    Ok(prepared) => drop(entry.insert(prepared)),
                    // The ordinary way tells why.
                    Err(error) => {
                        self.answer(job, None);
                        if error.ends_session() {
                            return (served, false);
                        }
                        continue;
                    }
                }
            }
            match self.fly(lease, &ready, statements, job, until, &mut served).await {
                Landing::Whole(next) => next.into_iter().for_each(|job| self.put_back(job)),
                Landing::Broken => return (served, false),
            }
        }
        (served, true)
    }

    /// Sends reads as they come until one is not prepared, until the time is up, or until there are none; and answers
    /// all that were sent.
    async fn fly(
        &self,
        client: &Client,
        ready: &HashMap<u64, Ready>,
        statements: &Statements,
        first: Job,
        until: Instant,
        served: &mut u32,
    ) -> Landing {
        let mut flights: VecDeque<Flight<'_>> = VecDeque::with_capacity(DEPTH_MAX);
        let mut next = Some(first);
        // Since when the first of them has had the connection to itself.
        let mut first_since = Instant::now();
        let (mut joined, mut stalled) = (pin!(self.joined.notified()), pin!(sleep(PATIENCE)));
        let landing = poll_fn(|context| {
            loop {
                // Whoever joins from now on is heard of.
                while joined.as_mut().poll(context).is_ready() {
                    joined.set(self.joined.notified());
                }
                while flights.len() < DEPTH_MAX
                    && let Some(job) = next.take().or_else(|| self.next())
                {
                    let Some(ready) = ready.get(&job.known.number).filter(|_| Instant::now() < until) else {
                        next = Some(job);
                        break;
                    };
                    match Flight::begin(context, client, ready, job) {
                        Ok(flight) => flights.push_back(flight),
                        Err((job, error)) => self.answer(job, Some(Err(error))),
                    }
                }
                let before = flights.len();
                while let Some(flight) = flights.front_mut()
                    && let Poll::Ready(result) = flight.result.as_mut().poll(context)
                    && let Some(flight) = flights.pop_front()
                {
                    let now = Instant::now();
                    let took = now - first_since.max(flight.sent_at);
                    first_since = now;
                    if took > QUICK_MAX {
                        statements.took(self.tenant, &flight.job.known, took);
                    }
                    *served += 1;
                    match result {
                        Ok(rows) => self.answer(flight.job, Some(Ok(flight.ready.output(rows)))),
                        Err(error) if is_mended_elsewhere(&error) => {
                            self.answer(flight.job, None);
                            return Poll::Ready(Landing::Broken);
                        }
                        Err(error) => {
                            // Rows may still be on their way, and would keep those behind waiting.
                            let is_broken = error.leaves_rows();
                            self.answer(flight.job, Some(Err(error)));
                            if is_broken {
                                return Poll::Ready(Landing::Broken);
                            }
                        }
                    }
                }
                if flights.is_empty() {
                    return Poll::Ready(Landing::Whole(next.take()));
                }
                if flights.len() == before {
                    break;
                }
            }
            // One that is stuck, and whose caller has gone elsewhere, keeps the others waiting.
            while stalled.as_mut().poll(context).is_ready() {
                let is_stuck =
                    |flight: &&Flight<'_>| first_since.elapsed() >= PATIENCE && flight.job.answer.is_closed();
                if let Some(stuck) = flights.front().filter(is_stuck) {
                    statements.took(self.tenant, &stuck.job.known, first_since.elapsed());
                    return Poll::Ready(Landing::Broken);
                }
                stalled.set(sleep(PATIENCE));
            }
            Poll::Pending
        })
        .await;
        for flight in flights {
            self.answer(flight.job, None);
        }
        if let Some(job) = next {
            self.put_back(job);
        }
        landing
    }
}

/// Whether the ordinary way does better: there a stale statement is prepared anew, as after a connection that broke, and
/// one that was cancelled for an operation meets the tenant's gate.
fn is_mended_elsewhere(error: &Error) -> bool {
    error.is_stale_statement() || error.is_cancelled() || matches!(error, Error::Connection(_))
}

impl<'a> Flight<'a> {
    /// Sends it.
    fn begin(context: &mut Context<'_>, client: &'a Client, ready: &'a Ready, job: Job) -> Result<Self, (Job, Error)> {
        let values = match parameters(ready.statement.params(), &job.values) {
            Ok(values) => values,
            Err(error) => return Err((job, error)),
        };
        let (statement, bounds) = (ready.statement.clone(), job.bounds);
        let mut result: Pin<Box<dyn Future<Output = _> + Send>> =
            Box::pin(async move { query(client, &statement, &values, bounds).await });
        let sent_at = Instant::now();
        if let Poll::Ready(early) = result.as_mut().poll(context) {
            result = Box::pin(std::future::ready(early));
        }
        Ok(Self { job, ready, sent_at, result })
    }
}

/// A driver, until it has left. One that is dropped sends its callers the ordinary way.
struct Driving<'a> {
    convoys: &'a Convoys,
    convoy: &'a Convoy,
    is_over: bool,
}

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            // Somebody may join in between.
            while !self.convoys.leave(self.convoy) {
                self.convoy.dismiss();
            }
        }
    }
}
