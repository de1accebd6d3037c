//! The policy under load, in virtual time: callers in a closed loop, connects that cost what they cost, and a budget that
//! is far too small. What it reaches is compared with what could be reached by knowing every tenant's frequency.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::{Ask, Give, Next, Seats};
use crate::domain::tenant::TenantId;
use crate::router::party::{ConnectionId, PartyId, Share};

/// As measured: two cores make 370 connections a second, four at a time.
const CONNECT: Duration = Duration::from_micros(10_800);
const CONNECTORS: usize = 4;
const CLOSE: Duration = Duration::from_millis(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A caller begins.
    Call(usize),
    /// A caller is done with its connection.
    Done(usize, PartyId, ConnectionId),
    Made(PartyId),
    /// A backend has gone.
    Gone,
    LookAgain,
}

/// What callers do.
struct Load {
    /// For each caller: whose it is, `None` for one drawn by Zipf; how long its statements take; its pause between them.
    callers: Vec<(Option<usize>, Duration, Duration)>,
    tenants: usize,
    places: usize,
    connections_max: usize,
}

struct Simulation {
    load: Load,
    floor: Seats<usize, usize, (), ()>,
    begun: Instant,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    sequence: u64,
    ids: Vec<PartyId>,
    pools: HashMap<PartyId, Vec<ConnectionId>>,
    free: usize,
    connectors: usize,
    /// Connectors that wait for a place.
    starving: usize,
    zipf: Vec<f64>,
    random: u64,
    called_at: Vec<Duration>,
    /// Calls done after the warm-up, and the longest wait of each caller.
    done: Vec<usize>,
    longest: Vec<Duration>,
}

impl Simulation {
    fn new(load: Load) -> Self {
        let begun = Instant::now();
        let mut floor = Seats::new(begun);
        let share = Share { connections_max: load.connections_max, queue_max: 10_000, weight: 1 };
        let ids: Vec<PartyId> = (0..load.tenants).map(|_| floor.new_id()).collect();
        for (tenant, id) in ids.iter().enumerate() {
            floor.open(*id, TenantId(Uuid::from_u128(tenant as u128)), tenant, share);
        }
        let mut sum = 0.0;
        let weights = (1..=load.tenants).map(|rank| 1.0 / f64::from(u32::try_from(rank).unwrap()));
        let zipf = weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        let callers = load.callers.len();
        let free = load.places;
        let mut simulation = Self {
            load,
            floor,
            begun,
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            sequence: 0,
            ids,
            pools: HashMap::new(),
            free,
            connectors: CONNECTORS,
            starving: 0,
            zipf,
            random: 0x9e37_79b9_7f4a_7c15,
            called_at: vec![Duration::ZERO; callers],
            done: vec![0; callers],
            longest: vec![Duration::ZERO; callers],
        };
        for caller in 0..callers {
            simulation.at(Duration::ZERO, Event::Call(caller));
        }
        simulation
    }

    fn at(&mut self, delay: Duration, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((self.now + delay, self.sequence, event)));
    }

    fn instant(&self) -> Instant {
        self.begun + self.now
    }

    fn draw(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        #[expect(clippy::cast_precision_loss, reason = "any number between 0 and 1 will do")]
        let point = (self.random >> 11) as f64 / (1_u64 << 53) as f64 * self.zipf[self.zipf.len() - 1];
        self.zipf.partition_point(|sum| *sum < point)
    }

    /// Runs for `warm_up`, and then for `time`, in which calls count.
    fn run(&mut self, warm_up: Duration, time: Duration) {
        let mut is_warm = false;
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            self.now = at;
            if at >= warm_up && !is_warm {
                is_warm = true;
                self.done.fill(0);
                self.longest.fill(Duration::ZERO);
            }
            if at >= warm_up + time {
                return;
            }
            self.handle(event);
            self.connectors();
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.instant();
        match event {
            Event::Call(caller) => {
                let tenant = self.load.callers[caller].0.unwrap_or_else(|| self.draw());
                let id = self.ids[tenant];
                self.called_at[caller] = self.now;
                self.floor.came(id, now);
                match self.floor.ask(id) {
                    Ask::Idle => {
                        let connection = self.pools.get_mut(&id).unwrap().pop().unwrap();
                        assert!(self.floor.take(id, connection, (), now));
                        self.serve(caller, id, connection);
                    }
                    Ask::Wait { .. } => {
                        self.floor.wait(id, caller, (), now);
                    }
                    other => panic!("{other:?}"),
                }
            }
            Event::Done(caller, id, connection) => {
                self.done[caller] += 1;
                self.at(self.load.callers[caller].2, Event::Call(caller));
                let given = self.floor.give(id, connection, now);
                self.settle(&given, id, connection);
            }
            Event::Made(id) => {
                self.connectors += 1;
                let connection = self.floor.new_id();
                let given = self.floor.made(id, connection, (now + CONNECT * 1_000_000, ()), now);
                self.settle(&given, id, connection);
            }
            Event::Gone => self.free += 1,
            Event::LookAgain => {}
        }
    }

    fn serve(&mut self, caller: usize, id: PartyId, connection: ConnectionId) {
        let waited = self.now.saturating_sub(self.called_at[caller]);
        self.longest[caller] = self.longest[caller].max(waited);
        self.at(self.load.callers[caller].1, Event::Done(caller, id, connection));
    }

    fn settle(&mut self, given: &Give<usize>, id: PartyId, connection: ConnectionId) {
        match given {
            Give::HandOn(caller) => self.serve(*caller, id, connection),
            Give::Idle => self.pools.entry(id).or_default().push(connection),
            Give::Close => self.close(),
        }
    }

    fn close(&mut self) {
        self.at(CLOSE, Event::Gone);
    }

    /// Does what free connectors do.
    fn connectors(&mut self) {
        let now = self.instant();
        while self.starving > 0 && self.free > 0 {
            self.starving -= 1;
            self.floor.starves(false);
            self.connect(false);
        }
        while self.connectors > 0 {
            match self.floor.is_due(now, self.free > 0) {
                Next::Connect(..) if self.free > 0 => {
                    self.connectors -= 1;
                    self.connect(true);
                }
                Next::Connect(..) => {
                    self.connectors -= 1;
                    self.starving += 1;
                    self.floor.starves(true);
                }
                Next::At(at) => {
                    self.at(at - now, Event::LookAgain);
                    break;
                }
                Next::Nobody => break,
            }
        }
        while matches!(self.floor.is_due(now, false), Next::Connect(..))
            && let Some((tenant, connection)) = self.floor.evict_for_starving()
        {
            let pool = self.pools.get_mut(&self.ids[tenant]).unwrap();
            pool.retain(|idle| *idle != connection);
            self.close();
        }
    }

    fn connect(&mut self, free: bool) {
        match self.floor.next(self.instant(), free) {
            Next::Connect(id, _) => {
                self.free -= 1;
                self.at(CONNECT, Event::Made(id));
            }
            Next::At(_) | Next::Nobody => self.connectors += 1,
        }
    }

    /// How many of the calls are for the `count` most frequent tenants.
    fn share_of(&self, count: usize) -> f64 {
        self.zipf[count - 1] / self.zipf[self.zipf.len() - 1]
    }
}

/// What a policy reaches that knows the frequencies: all but a few places hold the most frequent tenants' connections,
/// and whatever is left for the others is spent on connects, one after the other.
fn zipf(tenants: usize) -> f64 {
    const CALLERS: usize = 64;
    const SECONDS: u32 = 15;
    let statement = Duration::from_micros(150);
    let callers = vec![(None, statement, Duration::ZERO); CALLERS];
    let mut simulation = Simulation::new(Load { callers, tenants, places: 100, connections_max: 10 });
    simulation.run(Duration::from_secs(30), Duration::from_secs(SECONDS.into()));
    let calls = simulation.done.iter().sum::<usize>();
    let reached = f64::from(u32::try_from(calls).unwrap()) / f64::from(SECONDS);
    let connects = f64::from(u32::try_from(CONNECTORS).unwrap()) / CONNECT.as_secs_f64();
    let best = connects / (1.0 - simulation.share_of(95));
    reached / best
}

#[test]
fn most_of_what_a_perfect_policy_reaches_is_reached() {
    for tenants in [300, 1_000] {
        let ratio = zipf(tenants);
        assert!(ratio >= 0.85, "{tenants} tenants: {ratio:.2} of the best");
    }
}

#[test]
fn a_noisy_tenant_does_not_starve_a_quiet_one() {
    // A thousand callers of slow statements, and one that asks now and then, on six places.
    let slow = Duration::from_millis(200);
    let mut callers = vec![(Some(0), slow, Duration::ZERO); 1_000];
    callers.push((Some(1), Duration::from_millis(1), Duration::from_millis(900)));
    let mut simulation = Simulation::new(Load { callers, tenants: 2, places: 6, connections_max: 10 });
    simulation.run(Duration::from_secs(5), Duration::from_secs(30));
    let quiet = simulation.longest[1_000];
    assert!(simulation.done[1_000] >= 25, "{} calls", simulation.done[1_000]);
    assert!(quiet <= slow * 2, "the quiet tenant waited for {quiet:?}");
}

#[test]
fn more_busy_tenants_than_places_take_turns() {
    let busy = Duration::from_millis(5);
    let callers: Vec<_> = (0..60).map(|caller| (Some(caller % 20), busy, Duration::ZERO)).collect();
    let mut simulation = Simulation::new(Load { callers, tenants: 20, places: 6, connections_max: 10 });
    simulation.run(Duration::from_secs(5), Duration::from_secs(20));
    let of_tenant = |tenant: usize| (0..3).map(|round| simulation.done[tenant + 20 * round]).sum::<usize>();
    let calls: Vec<usize> = (0..20).map(of_tenant).collect();
    let (least, most) = (calls.iter().min().unwrap(), calls.iter().max().unwrap());
    assert!(*least > 0 && most <= &(least * 2), "{calls:?}");
}

/// Two tenants that always have callers and whose connections never last, so that only turns count.
struct Pair {
    floor: Seats<usize, u32, (), ()>,
    ids: [PartyId; 2],
    now: Instant,
}

impl Pair {
    fn new(weights: [u32; 2]) -> Self {
        let now = Instant::now();
        let mut floor = Seats::new(now);
        let ids = [floor.new_id(), floor.new_id()];
        for (tenant, id) in ids.into_iter().enumerate() {
            floor.open(id, TenantId(Uuid::from_u128(tenant as u128)), tenant, Self::share(weights[tenant]));
        }
        for caller in 0..6 {
            floor.wait(ids[caller % 2], 0, (), now);
        }
        Self { floor, ids, now }
    }

    fn share(weight: u32) -> Share {
        Share { connections_max: 4, queue_max: 10, weight }
    }

    /// Who has the next ones.
    fn turns(&mut self, count: usize) -> [usize; 2] {
        let mut had = [0; 2];
        for _ in 0..count {
            let Next::Connect(id, tenant) = self.floor.next(self.now, false) else { panic!("it is nobody's turn") };
            had[tenant] += 1;
            let connection = self.floor.new_id();
            assert_eq!(self.floor.made(id, connection, (self.now + CONNECT, ()), self.now), Give::HandOn(0));
            self.floor.wait(id, 0, (), self.now);
            self.floor.lose(id, connection);
        }
        had
    }
}

#[test]
fn who_weighs_more_has_more_turns_in_proportion() {
    let mut pair = Pair::new([4, 1]);
    assert_eq!(pair.turns(50), [40, 10]);
    for (id, weight) in pair.ids.into_iter().zip([1, 4]) {
        pair.floor.share_set(id, Pair::share(weight));
    }
    // Those that they wait for already are as they were.
    pair.turns(5);
    assert_eq!(pair.turns(50), [10, 40]);
    assert_eq!(Pair::new([1, 1]).turns(50), [25, 25]);
}
