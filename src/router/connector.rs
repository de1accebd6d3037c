//! Opens the connections that tenants want. A server has as many connectors as connects may go on at the same moment;
//! each goes round: waits until somebody wants a connection, passes the connect gate, gets a place in the budget
//! (closing the least valuable idle connection when there is none), and only then asks whose turn it is. What callers
//! do meanwhile changes nothing for it: a connect that has begun is finished, and goes to whoever waits by then.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::error::Failure;
use super::party::PartyId;
use super::place::{Floor, Place, Slot};
use super::pool::{Given, PooledObject};
use super::seats::Next;
use super::slot::AT_ONCE;
use crate::postgres::{self, Kind, Lane, Pass, Permit};
use crate::shutdown::Tasks;

/// When no place has come free for so long after a connection was closed for it, the backend is slow to go, and another
/// goes as well.
const EVICT_AGAIN: Duration = Duration::from_millis(250);
/// How long the budget's queue is waited in before looking again whether anybody still wants a connection.
const BUDGET_WAIT_MAX: Duration = Duration::from_secs(5);
/// After a connect that failed for a reason that is nobody's, its tenant's next begins so much later.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// Connects in a row that fail for a reason which may be theirs alone, until it is taken to be the server's.
const DOUBTS_MAX: u32 = 3;

/// Runs until the daemon goes down.
pub(super) async fn run(place: Arc<Place>, tasks: Tasks) {
    let round = async {
        loop {
            let (given, id, slot) = order(&place).await;
            connect(&place, given, id, &slot).await;
        }
    };
    tokio::select! {
        () = tasks.token().cancelled() => {}
        () = round => {}
    }
}

/// Whom to connect for, with everything that is needed for it.
async fn order(place: &Place) -> ((Pass, Permit), PartyId, Arc<Slot>) {
    loop {
        wait_for_work(place).await;
        if place.has_work_for_more() {
            place.wanted.notify_one();
        }
        let pass = place.server.gate_pass(Lane::Tenant).await;
        let is_free = place.has_room();
        let permit = match place.server.budget().try_acquire(Lane::Tenant) {
            Some(permit) => permit,
            None => match place_of_another(place).await {
                Some(permit) => permit,
                None => continue,
            },
        };
        if let Next::Connect(id, slot) = place.change(|floor| floor.next(Instant::now(), is_free)) {
            place.spare.notify_one();
            return ((pass, permit), id, slot);
        }
    }
}

/// Resolves when somebody may be connected for.
async fn wait_for_work(place: &Place) {
    loop {
        let wanted = place.wanted.notified();
        match place.is_due(place.has_room()) {
            Next::Connect(..) => return,
            Next::At(at) => tokio::select! {
                () = wanted => {}
                () = sleep_until(at) => {}
            },
            Next::Nobody => wanted.await,
        }
    }
}

/// A place in a budget that is used up. `None` when nobody wants it any more.
async fn place_of_another(place: &Place) -> Option<Permit> {
    let _starving = Starving::new(place);
    let mut acquire = pin!(place.server.budget().acquire(Lane::Tenant, Instant::now() + BUDGET_WAIT_MAX));
    loop {
        let idled = place.idled.notified();
        let due_at = match place.is_due(false) {
            Next::Connect(..) => {
                place.evict_for_starving();
                None
            }
            Next::At(at) => Some(at),
            Next::Nobody => None,
        };
        tokio::select! {
            biased;
            permit = &mut acquire => return permit.ok(),
            () = idled => {}
            () = async { sleep_until(due_at.unwrap_or_else(Instant::now)).await }, if due_at.is_some() => {}
            () = sleep(EVICT_AGAIN) => place.change(Floor::starves_on),
        }
    }
}

/// A connector that has nothing to connect with.
struct Starving<'a>(&'a Place);

impl<'a> Starving<'a> {
    fn new(place: &'a Place) -> Self {
        place.change(|floor| floor.starves(true));
        Self(place)
    }
}

impl Drop for Starving<'_> {
    fn drop(&mut self) {
        self.0.change(|floor| floor.starves(false));
    }
}

/// A connect that ends in a panic has failed as any other.
struct Unfinished<'a>(Option<(&'a Place, PartyId)>);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let Some((place, id)) = self.0 else { return };
        for caller in place.change(|floor| floor.failed(id, false, None)) {
            let _gone = caller.send(Err(Failure::Closed));
        }
    }
}

/// Makes one connection and gives it to whoever waits longest.
async fn connect(place: &Place, (pass, permit): (Pass, Permit), id: PartyId, slot: &Arc<Slot>) {
    let begun = Instant::now();
    let mut unfinished = Unfinished(Some((place, id)));
    let made = tokio::select! {
        biased;
        () = slot.closed.cancelled() => Err(Failure::Closed),
        made = make(place, (pass, permit), id, slot) => made,
    };
    unfinished.0 = None;
    match made {
        Ok(object) => {
            let now = Instant::now();
            slot.account.connected(now - begun);
            works(place, slot);
            let connection = object.id;
            let ended = place.change(|floor| {
                let given = floor.made(id, connection, (object.retires_at, object.client.cancel_token()), now);
                slot.settle(floor, given, object, slot.seat(connection), now)
            });
            drop(ended);
        }
        Err(failure) => failed(place, id, slot, failure).await,
    }
}

/// Lets the pool make a connection. It looks for an idle one first, which cannot be there at that moment.
async fn make(
    place: &Place,
    (pass, permit): (Pass, Permit),
    id: PartyId,
    slot: &Arc<Slot>,
) -> Result<PooledObject, Failure> {
    // Whatever is left of the task's budget, the first poll goes as far as taking what was given.
    let mut get = pin!(slot.pool.timeout_get(&AT_ONCE));
    let mut given = Some((pass, permit));
    poll_fn(|context| {
        let Some((pass, permit)) = given.take() else { return get.as_mut().poll(context) };
        place.change(|floor| {
            if floor.party(id).is_none_or(super::party::Party::has_idle) {
                return Poll::Ready(Err(deadpool::managed::PoolError::Closed));
            }
            let connection = floor.new_id();
            slot.pool.manager().give(Given { pass, permit, connection });
            let polled = get.as_mut().poll(context);
            drop(slot.pool.manager().given());
            polled
        })
    })
    .await
    .map_err(Failure::from)
}

/// Whose fault it is that there is no connection.
enum Blame {
    Tenant,
    Server,
    /// The server's if it goes on like this.
    Doubt,
    Nobody,
}

fn blame(error: &postgres::Error) -> Blame {
    match (error.kind(), error) {
        // Refused, and not for a reason that ends with this session: a right, a closed database, a setting.
        (Kind::DatabaseMissing | Kind::Authentication | Kind::LimitReached, _)
        | (Kind::Permission | Kind::InUse | Kind::Other, postgres::Error::Connect { .. }) => Blame::Tenant,
        (Kind::ServerFull, _) | (_, postgres::Error::Unreachable { .. } | postgres::Error::ShareUncertain { .. }) => {
            Blame::Server
        }
        // Starting or going down; the other codes of this kind end one session.
        (Kind::Shutdown, error) if error.code().is_some_and(|code| code.code() == "57P03") => Blame::Server,
        (Kind::Unreachable, _) => Blame::Doubt,
        _ => Blame::Nobody,
    }
}

fn works(place: &Place, slot: &Slot) {
    place.doubts.store(0, Ordering::Relaxed);
    if slot.account.breaker.reset() {
        tracing::info!(tenant = %slot.route.code, "the tenant can be reached again");
    }
    server_works(place);
}

fn server_works(place: &Place) {
    if place.breaker.reset() {
        place.change(super::seats::Seats::unblock);
        tracing::info!(server = place.server.name(), "the server takes connections again");
    }
}

/// Tells those who wait, and keeps others from trying what cannot work.
async fn failed(place: &Place, id: PartyId, slot: &Slot, mut failure: Failure) {
    let now = Instant::now();
    let blame = match &failure {
        Failure::Connect(error) => blame(error),
        Failure::Identity { .. } => Blame::Tenant,
        Failure::Closed => Blame::Nobody,
    };
    let is_servers = match blame {
        Blame::Server => true,
        Blame::Doubt => place.doubts.fetch_add(1, Ordering::Relaxed) + 1 >= DOUBTS_MAX,
        Blame::Tenant => {
            server_works(place);
            false
        }
        Blame::Nobody => false,
    };
    if matches!(&failure, Failure::Connect(error) if error.kind() == Kind::Authentication) {
        slot.pool.manager().access_forget().await;
    }
    let told = if is_servers {
        let (until, was_whole) = place.breaker.failed(failure.of_server(), now);
        if was_whole {
            tracing::warn!(server = place.server.name(), error = %failure, "the server takes no connections; what needs one is refused until it does");
        }
        failure = failure.of_server();
        place.change(|floor| {
            let mut told = floor.failed(id, true, None);
            told.append(&mut floor.block(until));
            told
        })
    } else if matches!(blame, Blame::Tenant) {
        let (until, was_whole) = slot.account.breaker.failed(failure.clone(), now);
        // Of a database that is another's, the callers hear first: the route that led there may be an old one.
        if was_whole && matches!(failure, Failure::Connect(_)) {
            tracing::warn!(tenant = %slot.route.code, error = %failure, "the tenant cannot be reached; its callers are refused until it can");
        }
        place.change(|floor| floor.failed(id, is_limit(&failure), Some(until)))
    } else {
        // Whoever waits for connections that come back need not hear of one more that could not be had.
        let is_connect = matches!(failure, Failure::Connect(_));
        place.change(|floor| floor.failed(id, is_connect, is_connect.then(|| now + TRY_AGAIN)))
    };
    for caller in told {
        let _gone = caller.send(Err(failure.clone()));
    }
}

/// With a limit reached, the tenant's connections are there, and will come back.
fn is_limit(failure: &Failure) -> bool {
    matches!(failure, Failure::Connect(error) if error.kind() == Kind::LimitReached)
}
