//! Closes connections and pools that nobody has used for their time. One task for all tenants; what is not due is not
//! looked at.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Inner;
use super::place::Place;
use crate::shutdown::Tasks;

const INTERVAL_MIN: Duration = Duration::from_millis(50);
/// What a new connection takes until its first statement is answered, with some room.
const SPARE_DELAY: Duration = Duration::from_millis(20);
const INTERVAL_MAX: Duration = Duration::from_secs(5);

/// Runs until the daemon goes down, and closes every pool then.
pub(super) async fn run(inner: Arc<Inner>) {
    let shared = &inner.shared;
    loop {
        let config = &shared.limits().router;
        let shortest = config.connection_idle_timeout.min(config.pool_idle_timeout);
        let interval = (shortest / 4).clamp(INTERVAL_MIN, INTERVAL_MAX);
        tokio::select! {
            () = shared.tasks.token().cancelled() => break,
            () = sleep(interval) => {}
        }
        let now = Instant::now();
        for place in shared.servers.values() {
            place.expire(now.checked_sub(config.connection_idle_timeout));
            place.clean();
            if let Some(then) = now.checked_sub(config.lease_warn_after) {
                warn_of_leases(place, then, now);
            }
        }
        if let Some(then) = now.checked_sub(config.pool_idle_timeout) {
            inner.slots.close_before(then);
        }
        inner.routes.sweep();
    }
    inner.slots.close_all();
}

/// Closes what idles on one server whenever its budget becomes smaller than what is in use, and lets in who waits for a
/// long lease when it becomes larger. Runs until the daemon goes down.
pub(super) async fn resize(place: Arc<Place>, tasks: Tasks) {
    loop {
        tokio::select! {
            () = tasks.token().cancelled() => return,
            () = place.server.budget().resized() => {
                place.evict_surplus();
                place.long.serve();
            }
        }
    }
}

/// Keeps a few places of one server free. Not at once: a backend that ends takes its time from one that begins, unless
/// others wait for it already. Runs until the daemon goes down.
pub(super) async fn spare(place: Arc<Place>, tasks: Tasks) {
    loop {
        tokio::select! {
            () = tasks.token().cancelled() => return,
            () = place.spare.notified() => {}
        }
        if !place.has_callers_without() {
            sleep(SPARE_DELAY).await;
        }
        place.keep_spare();
    }
}

/// Says who has held a connection for too long, once.
fn warn_of_leases(place: &Place, then: Instant, now: Instant) {
    for (slot, holder, since) in place.overdue(then) {
        let seconds = (now - since).as_secs();
        tracing::warn!(tenant = %slot.route.code, %holder, seconds, "a connection has been held for long");
    }
}
