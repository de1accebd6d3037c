//! Callers whose task has used up its turn: what tokio tells such a task to wait for is no reason to find nothing.

use std::time::Duration;

use futures_util::FutureExt as _;
use tenantd::router::{Holder, Residue};
use tokio::task::coop::{consume_budget, has_budget_remaining};
use tokio::time::{Instant, timeout};

use super::convoy::located;
use crate::harness::Spec;
use crate::tenants::Rooms;

fn use_up_the_turn() {
    while has_budget_remaining() {
        let _used = consume_budget().now_or_never();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_has_used_up_its_turn_gets_the_connection_that_idles() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    rooms.lease(&acme).await.unwrap().release(Residue::Nothing);
    let located = located(&rooms, &acme).await;
    let router = rooms.router.clone();
    let (first, second) = tokio::spawn(async move {
        let soon = Instant::now() + Duration::from_secs(30);
        use_up_the_turn();
        let idle = router.acquire_idle(&Holder::default(), &located).await.expect("one idles");
        idle.release(Residue::Nothing);
        use_up_the_turn();
        let idle =
            timeout(Duration::ZERO, router.acquire_at(&Holder::default(), &located, soon)).await.expect("one idles");
        // None idles now: another is made.
        use_up_the_turn();
        (idle.unwrap(), router.acquire_at(&Holder::default(), &located, soon).await.unwrap())
    })
    .await
    .unwrap();
    assert!(!first.is_new() && second.is_new());
    first.release(Residue::Nothing);
    second.release(Residue::Nothing);
    rooms.finish().await;
}
