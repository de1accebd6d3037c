//! The policy, sentence by sentence. Callers are numbers, and so is who holds a lease.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::{Ask, Give, HAND_ON_MAX, Next, Seats};
use crate::domain::tenant::TenantId;
use crate::router::party::{ConnectionId, GROW_WAIT, LEASE_LONG, PartyId, Share};

type Floor = Seats<&'static str, u32, u32, ()>;

const SHARE: Share = Share { connections_max: 4, queue_max: 3, weight: 1 };
const LONG: Duration = Duration::from_secs(1 << 30);

struct Scene {
    floor: Floor,
    now: Instant,
    begun: Instant,
}

impl Scene {
    fn new() -> Self {
        let now = Instant::now();
        Self { floor: Seats::new(now), now, begun: now }
    }

    fn tenant(&mut self, name: &'static str, share: Share) -> PartyId {
        let id = self.floor.new_id();
        self.floor.open(id, TenantId(Uuid::from_u128(u128::from(id))), name, share);
        id
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// A caller that finds nothing idle.
    fn waits(&mut self, id: PartyId, caller: u32) -> u64 {
        self.floor.came(id, self.now);
        assert!(matches!(self.floor.ask(id), Ask::Wait { .. }));
        self.floor.wait(id, caller, caller, self.now)
    }

    /// A connection that idles.
    fn idle(&mut self, id: PartyId) -> ConnectionId {
        let connection = self.connected(id);
        assert_eq!(self.floor.give(id, connection, self.now), Give::Idle);
        connection
    }

    /// A connection that a caller holds.
    fn connected(&mut self, id: PartyId) -> ConnectionId {
        let waiter = self.floor.wait(id, 0, 0, self.now);
        self.begin(id);
        let connection = self.floor.new_id();
        assert_eq!(self.floor.made(id, connection, (self.begun + LONG, ()), self.now), Give::HandOn(0));
        self.floor.leave(id, waiter);
        connection
    }

    /// The next connect, whoever has to make room, is this tenant's.
    fn begin(&mut self, id: PartyId) {
        assert!(matches!(self.floor.next(self.now, true), Next::Connect(next, _) if next == id));
    }

    /// A caller that takes the idle one and gives it back.
    fn uses(&mut self, id: PartyId, connection: ConnectionId, times: usize) {
        for _ in 0..times {
            self.floor.came(id, self.now);
            assert!(self.floor.take(id, connection, 0, self.now));
            assert_eq!(self.floor.give(id, connection, self.now), Give::Idle);
        }
    }

    /// A connector got the place that came free, and another waits for one.
    fn starves_again(&mut self) {
        self.floor.starves(false);
        self.floor.starves(true);
    }

    fn evicted(&mut self) -> Vec<ConnectionId> {
        std::iter::from_fn(|| self.floor.evict()).map(|(_, connection)| connection).collect()
    }
}

#[test]
fn the_least_frequent_tenant_goes_first_however_fresh_it_is() {
    let mut scene = Scene::new();
    let (hot, cold) = (scene.tenant("hot", SHARE), scene.tenant("cold", SHARE));
    let (of_hot, of_cold) = (scene.idle(hot), scene.idle(cold));
    scene.uses(hot, of_hot, 10);
    scene.pass(Duration::from_secs(1));
    scene.uses(cold, of_cold, 1);
    assert_eq!(scene.evicted(), [of_cold, of_hot]);
}

#[test]
fn who_comes_while_a_connection_is_cleaned_wants_no_other() {
    let mut scene = Scene::new();
    let acme = scene.tenant("acme", SHARE);
    let connection = scene.connected(acme);
    scene.floor.returning(acme, connection, true);
    scene.waits(acme, 1);
    assert_eq!(scene.floor.next(scene.now, true), Next::Nobody);
    // For a second caller it is not enough.
    let second = scene.waits(acme, 2);
    assert_eq!(scene.floor.is_due(scene.now, true), Next::Connect(acme, ()));
    scene.floor.leave(acme, second);
    assert_eq!(scene.floor.give(acme, connection, scene.now), Give::HandOn(1));
    // It is in use again, and its cleaning may take long, or fail.
    scene.waits(acme, 3);
    assert_eq!(scene.floor.is_due(scene.now, true), Next::Connect(acme, ()));
    scene.floor.returning(acme, connection, true);
    assert_eq!(scene.floor.is_due(scene.now, true), Next::Nobody);
    scene.floor.returning(acme, connection, false);
    assert_eq!(scene.floor.is_due(scene.now, true), Next::Connect(acme, ()));
    scene.floor.returning(acme, connection, true);
    scene.floor.lose(acme, connection);
    assert_eq!(scene.floor.is_due(scene.now, true), Next::Connect(acme, ()));
}

#[test]
fn tenants_without_connections_cost_nothing_to_look_at() {
    let mut scene = Scene::new();
    let all: Vec<PartyId> = (0..10_000).map(|_| scene.tenant("idle", SHARE)).collect();
    let (held, idled) = (scene.connected(all[5]), scene.idle(all[7]));
    scene.floor.wait(all[9], 1, 1, scene.now);
    scene.begin(all[9]);
    let looked_at = |scene: &mut Scene| {
        let mut ids = Vec::new();
        scene.floor.each_holding(|party| ids.push((party.connections.len(), party.connecting)));
        ids
    };
    assert_eq!(looked_at(&mut scene), [(1, 0), (1, 0), (0, 1)]);
    assert_eq!(scene.floor.connection_count(), 3);
    scene.pass(Duration::from_secs(1));
    assert_eq!(scene.floor.expire(Some(scene.now), scene.now), [("idle", idled)]);
    scene.floor.lose(all[5], held);
    scene.floor.failed(all[9], false, None);
    assert_eq!(looked_at(&mut scene), []);
    let again = scene.idle(all[7]);
    assert_eq!(scene.evicted(), [again]);
    assert_eq!((looked_at(&mut scene), scene.floor.connection_count()), (Vec::new(), 0));
}

#[test]
fn a_tenant_that_was_hot_long_ago_goes_before_one_that_is_lukewarm() {
    let mut scene = Scene::new();
    let (once, now) = (scene.tenant("once", SHARE), scene.tenant("now", SHARE));
    let (of_once, of_now) = (scene.idle(once), scene.idle(now));
    scene.uses(once, of_once, 100);
    scene.pass(Duration::from_mins(5));
    scene.uses(now, of_now, 2);
    assert_eq!(scene.evicted(), [of_once, of_now]);
}

#[test]
fn a_surplus_connection_goes_before_the_only_one_of_another() {
    let mut scene = Scene::new();
    let (busy, quiet) = (scene.tenant("busy", SHARE), scene.tenant("quiet", SHARE));
    let (first, second) = (scene.connected(busy), scene.connected(busy));
    let of_quiet = scene.idle(quiet);
    for connection in [first, second] {
        assert_eq!(scene.floor.give(busy, connection, scene.now), Give::Idle);
    }
    scene.uses(busy, second, 100);
    scene.uses(quiet, of_quiet, 1);
    assert_eq!(scene.evicted(), [first, of_quiet, second]);
}

#[test]
fn a_connection_that_is_used_beside_a_long_report_stays() {
    let mut scene = Scene::new();
    let (busy, quiet) = (scene.tenant("busy", SHARE), scene.tenant("quiet", SHARE));
    let (_report, short) = (scene.connected(busy), scene.connected(busy));
    let of_quiet = scene.idle(quiet);
    scene.pass(LEASE_LONG);
    assert_eq!(scene.floor.give(busy, short, scene.now), Give::Idle);
    scene.uses(busy, short, 20);
    scene.uses(quiet, of_quiet, 3);
    assert_eq!(scene.evicted(), [of_quiet, short]);
}

#[test]
fn rates_survive_the_end_of_a_pool() {
    let mut scene = Scene::new();
    let (hot, cold) = (scene.tenant("hot", SHARE), scene.tenant("cold", SHARE));
    let of_hot = scene.idle(hot);
    scene.uses(hot, of_hot, 10);
    let tenant = scene.floor.party(hot).unwrap().tenant;
    assert!(scene.floor.close(hot).is_empty());
    assert!(scene.floor.party(hot).is_none(), "nothing is left of a closed pool");
    let again = scene.floor.new_id();
    scene.floor.open(again, tenant, "hot again", SHARE);
    let (of_cold, of_hot) = (scene.idle(cold), scene.idle(again));
    scene.uses(cold, of_cold, 5);
    assert_eq!(scene.evicted(), [of_cold, of_hot]);
}

#[test]
fn one_connect_serves_all_who_wait() {
    let mut scene = Scene::new();
    let acme = scene.tenant("acme", Share { connections_max: 1, ..SHARE });
    for caller in 1..=3 {
        scene.waits(acme, caller);
    }
    assert_eq!(scene.floor.ask(acme), Ask::Full { queue_max: 3 });
    scene.begin(acme);
    assert_eq!(scene.floor.next(scene.now, true), Next::Nobody);
    let connection = scene.floor.new_id();
    assert_eq!(scene.floor.made(acme, connection, (scene.now + LONG, ()), scene.now), Give::HandOn(1));
    assert_eq!(scene.floor.give(acme, connection, scene.now), Give::HandOn(2));
    assert_eq!(scene.floor.give(acme, connection, scene.now), Give::HandOn(3));
    assert_eq!(scene.floor.give(acme, connection, scene.now), Give::Idle);
    assert_eq!(scene.floor.ask(acme), Ask::Idle);
}

#[test]
fn a_caller_that_goes_away_wants_nothing() {
    let mut scene = Scene::new();
    let acme = scene.tenant("acme", SHARE);
    let (first, second) = (scene.waits(acme, 1), scene.waits(acme, 2));
    scene.floor.leave(acme, first);
    scene.begin(acme);
    scene.floor.leave(acme, second);
    assert_eq!(scene.floor.next(scene.now, true), Next::Nobody);
    // The connect goes on, and is there for the next.
    let connection = scene.floor.new_id();
    assert_eq!(scene.floor.made(acme, connection, (scene.now + LONG, ()), scene.now), Give::Idle);
}

#[test]
fn a_second_connection_at_anothers_expense_takes_a_wait() {
    let mut scene = Scene::new();
    let acme = scene.tenant("acme", SHARE);
    scene.connected(acme);
    scene.waits(acme, 1);
    let grows_at = scene.now + GROW_WAIT;
    assert_eq!(scene.floor.is_due(scene.now, false), Next::At(grows_at));
    assert_eq!(scene.floor.is_due(scene.now, true), Next::Connect(acme, ()), "a free place costs nobody anything");
    scene.pass(GROW_WAIT);
    assert_eq!(scene.floor.is_due(scene.now, false), Next::Connect(acme, ()));
}

#[test]
fn a_pool_grows_by_as_many_as_wait_up_to_its_bound() {
    let mut scene = Scene::new();
    let acme = scene.tenant("acme", Share { connections_max: 2, ..SHARE });
    for caller in 1..=3 {
        scene.waits(acme, caller);
    }
    scene.begin(acme);
    scene.begin(acme);
    assert_eq!(scene.floor.next(scene.now, true), Next::Nobody);
}

#[test]
fn who_holds_more_than_its_share_gives_way() {
    let mut scene = Scene::new();
    let (busy, other) = (scene.tenant("busy", SHARE), scene.tenant("other", SHARE));
    let (first, second) = (scene.connected(busy), scene.connected(busy));
    scene.waits(busy, 1);
    scene.waits(busy, 2);
    scene.floor.starves(true);
    scene.waits(other, 3);
    assert_eq!(scene.floor.give(busy, first, scene.now), Give::Close);
    // Now it has one, and the other has none yet: equals, so the callers are served for a while.
    scene.starves_again();
    assert_eq!(scene.floor.give(busy, second, scene.now), Give::HandOn(1));
    scene.pass(HAND_ON_MAX);
    assert_eq!(scene.floor.give(busy, second, scene.now), Give::Close);
    assert_eq!(scene.floor.party(busy).unwrap().waiting.len(), 1);
}

/// Gives connections back, one after the other, while everybody has callers that have waited for long: until it is this
/// tenant's turn to have the place that somebody gave up.
fn turn_comes(scene: &mut Scene, held: &mut [(PartyId, ConnectionId)], to: PartyId) -> bool {
    for index in (0..held.len()).cycle().take(3 * held.len()) {
        scene.pass(GROW_WAIT);
        let holding = &mut held[index];
        if scene.floor.give(holding.0, holding.1, scene.now) == Give::Close {
            let Next::Connect(next, _) = scene.floor.next(scene.now, false) else { panic!("the place is nobody's") };
            scene.starves_again();
            if next == to {
                return true;
            }
            *holding = (next, scene.floor.new_id());
            scene.floor.made(next, holding.1, (scene.begun + LONG, ()), scene.now);
        }
        scene.waits(holding.0, 4);
    }
    false
}

#[test]
fn who_has_none_gets_its_turn_behind_tenants_that_hold_equally_many_and_want_more() {
    let mut scene = Scene::new();
    let (one, other) = (scene.tenant("one", SHARE), scene.tenant("other", SHARE));
    let mut held = [one, one, other, other].map(|id| (id, scene.connected(id)));
    for id in [one, other, one, other] {
        scene.waits(id, 1);
    }
    scene.floor.starves(true);
    let quiet = scene.tenant("quiet", SHARE);
    scene.waits(quiet, 9);
    assert!(turn_comes(&mut scene, &mut held, quiet));
}

#[test]
fn who_has_least_gets_its_turn_behind_those_that_hold_more_and_want_more() {
    let mut scene = Scene::new();
    let [most, some, least] = ["most", "some", "least"].map(|name| scene.tenant(name, SHARE));
    let mut held = [most, some, some, most, most, least].map(|id| (id, scene.connected(id)));
    scene.floor.starves(true);
    for id in [some, most, least, some, most, least] {
        scene.waits(id, 1);
    }
    assert!(turn_comes(&mut scene, &mut held, least));
}

#[test]
fn no_more_give_way_than_places_are_waited_for() {
    let mut scene = Scene::new();
    let [busy, other, quiet] = ["busy", "other", "quiet"].map(|name| scene.tenant(name, SHARE));
    let held = [busy, busy, busy, other, other, other].map(|id| (id, scene.connected(id)));
    let idled = scene.idle(other);
    for caller in 0..9 {
        scene.floor.wait(busy, caller, caller, scene.now);
        scene.floor.wait(other, caller, caller, scene.now);
    }
    scene.floor.starves(true);
    scene.waits(quiet, 9);
    let closed = |scene: &mut Scene| {
        let gives = held.iter().filter(|(id, connection)| {
            scene.floor.party(*id).unwrap().connections.iter().any(|found| found.id == *connection)
                && scene.floor.give(*id, *connection, scene.now) == Give::Close
        });
        gives.count()
    };
    assert_eq!((closed(&mut scene), scene.floor.evict_for_starving()), (1, None));
    // Its place does not come, and so another goes; then somebody else waits for one as well.
    scene.floor.starves_on();
    assert_eq!(scene.floor.evict_for_starving(), Some(("other", idled)));
    assert_eq!(closed(&mut scene), 0);
    scene.floor.starves(true);
    assert_eq!(closed(&mut scene), 1);
}

#[test]
fn what_would_idle_for_a_moment_goes_at_once_when_nothing_else_idles() {
    let mut scene = Scene::new();
    let [stream, other, quiet] = ["stream", "other", "quiet"].map(|name| scene.tenant(name, SHARE));
    let (held, more) = (scene.connected(stream), scene.connected(stream));
    let idled = scene.idle(other);
    scene.floor.starves(true);
    scene.waits(quiet, 9);
    assert_eq!(scene.floor.give(stream, held, scene.now), Give::Idle, "there is one that is worth less");
    assert!(scene.floor.take(stream, held, 1, scene.now));
    assert_eq!(scene.floor.evict_for_starving(), Some(("other", idled)));
    scene.floor.starves_on();
    assert_eq!(scene.floor.give(stream, held, scene.now), Give::Close);
    assert_eq!(scene.floor.give(stream, more, scene.now), Give::Idle, "one is enough");
}

#[test]
fn callers_of_one_lease_are_worth_that_connection() {
    let mut scene = Scene::new();
    let (shared, single) = (scene.tenant("shared", SHARE), scene.tenant("single", SHARE));
    let (of_shared, of_single) = (scene.connected(shared), scene.idle(single));
    scene.pass(LEASE_LONG);
    scene.floor.came_with(shared, of_shared, 100, scene.now);
    assert_eq!(scene.floor.give(shared, of_shared, scene.now), Give::Idle);
    scene.uses(single, of_single, 50);
    assert_eq!(scene.evicted(), [of_single, of_shared]);
}

#[test]
fn who_waited_for_a_connection_that_is_lost_wants_one_at_once() {
    let mut scene = Scene::new();
    let acme = scene.tenant("acme", SHARE);
    let held = scene.connected(acme);
    scene.waits(acme, 1);
    scene.begin(acme);
    scene.floor.failed(acme, true, Some(scene.now + LONG));
    scene.floor.take_news();
    scene.floor.lose(acme, held);
    assert!(scene.floor.take_news());
    assert_eq!(scene.floor.is_due(scene.now, true), Next::Connect(acme, ()));
}

#[test]
fn who_weighs_more_may_hold_more() {
    let mut scene = Scene::new();
    let heavy = scene.tenant("heavy", Share { weight: 8, ..SHARE });
    let light = scene.tenant("light", SHARE);
    let (first, _second) = (scene.connected(heavy), scene.connected(heavy));
    scene.waits(heavy, 1);
    scene.floor.starves(true);
    scene.waits(light, 2);
    assert_eq!(scene.floor.give(heavy, first, scene.now), Give::HandOn(1));
}

#[test]
fn nobody_gives_way_to_callers_that_have_gone() {
    let mut scene = Scene::new();
    let (busy, other) = (scene.tenant("busy", SHARE), scene.tenant("other", SHARE));
    let (first, _second) = (scene.connected(busy), scene.connected(busy));
    scene.waits(busy, 1);
    scene.floor.starves(true);
    let waiter = scene.waits(other, 2);
    scene.floor.leave(other, waiter);
    assert_eq!(scene.floor.give(busy, first, scene.now), Give::HandOn(1));
}

#[test]
fn a_closed_pool_tells_its_callers_and_takes_nothing_back() {
    let mut scene = Scene::new();
    let acme = scene.tenant("acme", SHARE);
    let held = scene.connected(acme);
    scene.waits(acme, 7);
    assert_eq!(scene.floor.close(acme), [7]);
    assert_eq!(scene.floor.ask(acme), Ask::Closed);
    assert_eq!(scene.floor.next(scene.now, true), Next::Nobody);
    assert_eq!(scene.floor.give(acme, held, scene.now), Give::Close);
    assert!(scene.floor.party(acme).is_none());
}

#[test]
fn a_limit_that_was_reached_spares_who_waits_for_what_is_there() {
    let mut scene = Scene::new();
    let acme = scene.tenant("acme", SHARE);
    scene.waits(acme, 1);
    scene.begin(acme);
    assert_eq!(scene.floor.failed(acme, true, None), [1], "nothing will come back");
    let held = scene.connected(acme);
    scene.waits(acme, 2);
    scene.begin(acme);
    let not_before = scene.now + Duration::from_secs(1);
    assert!(scene.floor.failed(acme, true, Some(not_before)).is_empty());
    assert_eq!(scene.floor.is_due(scene.now, true), Next::At(not_before));
    assert_eq!(scene.floor.give(acme, held, scene.now), Give::HandOn(2));
}

#[test]
fn a_blocked_server_fails_those_without_a_connection() {
    let mut scene = Scene::new();
    let (has, has_not) = (scene.tenant("has", SHARE), scene.tenant("has not", SHARE));
    let held = scene.connected(has);
    scene.waits(has, 1);
    scene.waits(has_not, 2);
    let until = scene.now + Duration::from_secs(1);
    assert_eq!(scene.floor.block(until), [2]);
    assert_eq!(scene.floor.is_due(scene.now, true), Next::At(until));
    assert_eq!(scene.floor.give(has, held, scene.now), Give::HandOn(1));
}

#[test]
fn what_idles_or_lives_for_too_long_expires() {
    let mut scene = Scene::new();
    let acme = scene.tenant("acme", SHARE);
    let old = scene.connected(acme);
    let fresh = scene.connected(acme);
    assert_eq!(scene.floor.give(acme, old, scene.now), Give::Idle);
    scene.pass(Duration::from_secs(2));
    assert_eq!(scene.floor.give(acme, fresh, scene.now), Give::Idle);
    let then = scene.now.checked_sub(Duration::from_secs(1));
    assert_eq!(scene.floor.expire(then, scene.now), [("acme", old)]);
    assert!(scene.floor.expire(then, scene.now).is_empty());
    assert_eq!(scene.floor.expire(None, scene.now + LONG), [("acme", fresh)]);
    assert!(scene.floor.evict().is_none());
}

#[test]
fn a_smaller_share_closes_the_surplus_as_it_comes_back() {
    let mut scene = Scene::new();
    let acme = scene.tenant("acme", SHARE);
    let (first, second) = (scene.connected(acme), scene.connected(acme));
    scene.floor.share_set(acme, Share { connections_max: 1, ..SHARE });
    assert_eq!(scene.floor.give(acme, first, scene.now), Give::Close);
    assert_eq!(scene.floor.give(acme, second, scene.now), Give::Idle);
}
