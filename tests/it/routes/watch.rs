//! Following the routes: a snapshot and then each change, for readers of every pace, until there is a reason to end.

use std::collections::BTreeMap;
use std::time::Duration;

use tenantd::catalog::{NewTenant, RouteChange};
use tenantd::domain::principal::Scope;
use tenantd::domain::tenant::{TenantCode, TenantId};
use tenantd::proto::v1::{
    RouteEvent as RouteEventKind, SuspendTenantRequest, TenantState, WatchRoutesRequest, WatchRoutesResponse,
};
use tenantd::router::{Error, Mark, RouteEvent, RouteWatch};
use tonic::{Code, Status};
use uuid::Uuid;

use super::{Shared, unreserve};
use crate::harness::{Client, Fleet, Spec, reason, until};
use crate::tenants::Rooms;

/// A table of routes as a client keeps it: code and epoch.
type Seen = BTreeMap<TenantId, (String, i64)>;

/// Hears one message, and keeps the table.
async fn hear(watch: &mut RouteWatch, seen: &mut Seen) -> Option<Mark> {
    match watch.next().await.unwrap() {
        RouteEvent::Snapshot { routes, complete_at } => {
            seen.extend(routes.into_iter().map(|route| (route.tenant, (route.code.to_string(), route.epoch))));
            complete_at
        }
        RouteEvent::Changes { changes, mark } => {
            for change in changes {
                match change {
                    RouteChange::Set(route) => drop(seen.insert(route.tenant, (route.code.to_string(), route.epoch))),
                    RouteChange::Removed { tenant, .. } => drop(seen.remove(&tenant)),
                }
            }
            Some(mark)
        }
        RouteEvent::Quiet { mark } => Some(mark),
    }
}

async fn in_catalog(rooms: &Rooms) -> (Seen, i64) {
    let revision = rooms.catalog.position().await.unwrap().revision;
    let all = rooms.catalog.tenant_all().await.unwrap();
    (all.into_iter().map(|tenant| (tenant.id, (tenant.code.to_string(), tenant.epoch))).collect(), revision)
}

async fn epoch_bump(rooms: &Rooms, tenant: TenantId) {
    let txn = rooms.catalog.begin().await.unwrap();
    rooms.catalog.tenant_epoch_bump_in_txn(&txn, tenant).await.unwrap();
    txn.commit().await.unwrap();
}

/// Reserves a tenant.
async fn reserve(rooms: &Rooms, code: &str) -> TenantId {
    let code: TenantCode = code.parse().unwrap();
    let new = NewTenant {
        id: TenantId(Uuid::now_v7()),
        code: code.clone(),
        name: code.to_string(),
        legal_name: None,
        siret: None,
        vat_number: None,
        tier: "standard".to_owned(),
        server: "main".to_owned(),
        database: rooms.config.naming.tenant_database(&code).unwrap(),
        hosts: Vec::new(),
    };
    let txn = rooms.catalog.begin().await.unwrap();
    rooms.catalog.tenant_reserve_in_txn(&txn, &new).await.unwrap();
    txn.commit().await.unwrap();
    new.id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_begins_again_and_again_misses_nothing() {
    const CHANGES: usize = 400;
    let rooms = Rooms::new(Spec::default()).await;
    let mut tenants = Vec::new();
    for number in 0..5 {
        tenants.push(reserve(&rooms, &format!("t{number}")).await);
    }
    let (mut seen, mut mark) = (Seen::new(), None);
    let mut sleeper = rooms.router.routes_watch(&Scope::All, None).await.unwrap();
    let mut late = Seen::new();
    while hear(&mut sleeper, &mut late).await.is_none() {}
    let changes = async {
        for number in 0..CHANGES {
            epoch_bump(&rooms, tenants[number % tenants.len()]).await;
            if number % 7 == 0 {
                let brief = reserve(&rooms, &format!("brief{number}")).await;
                if number % 2 == 0 {
                    unreserve(&rooms, brief).await;
                }
            }
        }
        in_catalog(&rooms).await
    };
    // The reader leaves after a few messages and comes back, until it has heard the last revision.
    let (last, told) = tokio::sync::watch::channel(None);
    let reader = async {
        for stay in (1..=4).cycle() {
            if mark.is_none() {
                // What a snapshot showed that was left in its middle may be gone by the next one.
                seen.clear();
            }
            let mut watch = rooms.router.routes_watch(&Scope::All, mark).await.unwrap();
            for _ in 0..stay {
                let heard = hear(&mut watch, &mut seen).await;
                assert!(heard.is_none() || heard.map(|mark| mark.revision) >= mark.map(|mark: Mark| mark.revision));
                mark = heard.or(mark);
                if mark.is_some() && mark.map(|mark| mark.revision) == *told.borrow() {
                    return;
                }
            }
        }
    };
    let writer = async {
        let (_, revision) = changes.await;
        // One more, so that a reader who has heard everything by then does not wait for long.
        last.send_replace(Some(revision + 1));
        epoch_bump(&rooms, tenants[0]).await;
    };
    tokio::join!(writer, async {
        tokio::time::timeout(Duration::from_secs(100), reader).await.expect("the reader hears the last revision");
    });
    let (now, revision) = in_catalog(&rooms).await;
    assert_eq!(mark.map(|mark| mark.revision), Some(revision));
    assert_eq!(seen, now);
    // One who did not read all the while finds the ring overtaken, and misses nothing either.
    while late != now {
        hear(&mut sleeper, &mut late).await;
    }
    rooms.finish().await;
}

#[tokio::test]
async fn a_revision_that_cannot_be_gone_on_from_is_told() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = reserve(&rooms, "acme").await;
    let start = rooms.catalog.position().await.unwrap();
    let mark = |revision| Mark { catalog_id: start.catalog_id, revision };
    let begin = async |since: Mark| {
        let mut watch = rooms.router.routes_watch(&Scope::All, Some(since)).await?;
        watch.next().await
    };
    let refused = |error: Error| matches!(error, Error::Catalog(error) if matches!(*error, tenantd::catalog::Error::RevisionUnknown { .. }));
    let gone = reserve(&rooms, "gone").await;
    unreserve(&rooms, gone).await;
    let event = begin(mark(start.revision)).await.unwrap();
    assert!(
        matches!(&event, RouteEvent::Changes { changes, mark } if mark.revision == start.revision + 2
            && matches!(changes.as_slice(), [RouteChange::Removed { tenant, .. }] if *tenant == gone)),
        "{event:?}"
    );
    // What was removed before is forgotten; who has not heard of it must begin anew.
    let txn = rooms.catalog.begin().await.unwrap();
    rooms.catalog.removals_compact_in_txn(&txn, start.revision + 2).await.unwrap();
    txn.commit().await.unwrap();
    assert!(refused(begin(mark(start.revision)).await.unwrap_err()));
    epoch_bump(&rooms, acme).await;
    assert!(matches!(begin(mark(start.revision + 2)).await.unwrap(), RouteEvent::Changes { .. }));
    // Ahead of the catalog, and of another one.
    assert!(refused(begin(mark(start.revision + 100)).await.unwrap_err()));
    assert!(refused(begin(Mark { catalog_id: Uuid::new_v4(), revision: 0 }).await.unwrap_err()));
    rooms.finish().await;
}

/// Far more than a silent reader waits for a word.
const WORD_MAX: Duration = Duration::from_mins(1);

#[tokio::test]
async fn changes_that_a_reader_may_not_see_keep_no_word_from_it() {
    let rooms = Rooms::new(Spec::default()).await;
    let (acme, other) = (reserve(&rooms, "acme").await, reserve(&rooms, "other").await);
    let own = Scope::Tenants(["acme".parse().unwrap()].into());
    let mut watch = rooms.router.routes_watch(&own, None).await.unwrap();
    let mut seen = Seen::new();
    let begun = loop {
        if let Some(mark) = hear(&mut watch, &mut seen).await {
            break mark;
        }
    };
    let changes = async {
        loop {
            epoch_bump(&rooms, other).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let event = tokio::select! {
        event = tokio::time::timeout(WORD_MAX, watch.next()) => event.expect("a word in time").unwrap(),
        () = changes => panic!("changes go on"),
    };
    assert!(matches!(event, RouteEvent::Quiet { mark } if mark.revision > begun.revision), "{event:?}");
    // Nothing of its own was passed over.
    epoch_bump(&rooms, acme).await;
    let event = watch.next().await.unwrap();
    assert!(
        matches!(&event, RouteEvent::Changes { changes, .. }
            if matches!(changes.as_slice(), [RouteChange::Set(route)] if route.tenant == acme)),
        "{event:?}"
    );
    rooms.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silence_that_is_no_news_ends_the_watch_and_a_short_one_does_not() {
    const CHANGE: &str = "UPDATE catalog_meta SET revision = revision + 1;
        UPDATE tenants SET epoch = epoch + 1, revision = (SELECT revision FROM catalog_meta) WHERE code = 'acme'";
    let rooms = Rooms::new(Spec::default()).await;
    rooms.fleet.expect_log("the shared database cannot be followed");
    let acme = reserve(&rooms, "acme").await;
    let mut watch = rooms.router.routes_watch(&Scope::All, None).await.unwrap();
    let mut seen = Seen::new();
    while hear(&mut watch, &mut seen).await.is_none() {}
    // Whoever has heard of the second one hears changes from the feed, and is behind no more.
    for _ in 0..2 {
        epoch_bump(&rooms, acme).await;
        hear(&mut watch, &mut seen).await;
    }
    let epoch = seen[&acme].1;

    let shared = Shared::take_away(&rooms).await;
    shared.change(CHANGE).await;
    let back = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        shared.give_back().await;
    };
    let (mark, ()) = tokio::join!(hear(&mut watch, &mut seen), back);
    assert_eq!(seen[&acme].1, epoch + 1, "what was changed meanwhile is told");

    let shared = Shared::take_away(&rooms).await;
    shared.change(CHANGE).await;
    let ended = tokio::time::timeout(WORD_MAX, watch.next()).await.expect("a word in time").unwrap_err();
    assert!(matches!(ended, Error::CatalogAway { .. }), "{ended:?}");
    let ended = Status::from(ended);
    assert_eq!((ended.code(), reason(&ended).as_str()), (Code::Unavailable, "CONNECTION_UNAVAILABLE"));
    let again = rooms.router.routes_watch(&Scope::All, mark).await.unwrap_err();
    assert!(matches!(again, Error::CatalogAway { .. }), "{again:?}");
    shared.give_back().await;
    let mut resumed =
        until("the watch goes on", async || rooms.router.routes_watch(&Scope::All, mark).await.ok()).await;
    hear(&mut resumed, &mut seen).await;
    assert_eq!(seen, in_catalog(&rooms).await.0);
    assert_eq!(seen[&acme].1, epoch + 2);
    rooms.finish().await;
}

type Routes = tonic::Streaming<WatchRoutesResponse>;

/// The codes of a whole snapshot, and what its last message says.
async fn snapshot(stream: &mut Routes) -> (Vec<String>, WatchRoutesResponse) {
    let mut codes = Vec::new();
    loop {
        let message = stream.message().await.unwrap().unwrap();
        assert!(message.routes.iter().all(|route| route.password.is_empty() && route.url.starts_with("postgresql://")));
        codes.extend(message.routes.iter().map(|route| route.code.clone()));
        match message.event() {
            RouteEventKind::Snapshot => {}
            RouteEventKind::SnapshotEnd => return (codes, message),
            other => panic!("{other:?} before the snapshot was complete"),
        }
    }
}

#[tokio::test]
async fn a_watch_shows_what_the_caller_may_see_until_the_daemon_goes_down() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let admin = &daemon.client;
    for code in ["acme", "beta"] {
        admin.tenant(code).await;
    }
    let watch = async |client: &Client, request: WatchRoutesRequest| {
        client.router().watch_routes(request).await.map(tonic::Response::into_inner)
    };
    let mut all = watch(admin, WatchRoutesRequest::default()).await.unwrap();
    let (codes, end) = snapshot(&mut all).await;
    assert_eq!(codes, ["acme", "beta"]);
    let own = admin.with_key(&admin.key_new(&["resolver"], &["beta"]).await);
    let mut some = watch(&own, WatchRoutesRequest::default()).await.unwrap();
    assert_eq!(snapshot(&mut some).await.0, ["beta"]);
    for tenant in ["acme", "beta"] {
        let reason = "unpaid".to_owned();
        let request = SuspendTenantRequest { tenant: tenant.to_owned(), reason, ..Default::default() };
        let begun = admin.tenants().suspend_tenant(request).await.unwrap().into_inner();
        admin.succeeded(&begun.operation.unwrap()).await;
    }
    let message = some.message().await.unwrap().unwrap();
    assert_eq!(message.event(), RouteEventKind::Changes);
    assert!(message.routes.iter().all(|route| route.code == "beta" && route.state() == TenantState::Suspended));
    // From the snapshot on, as if the stream had broken.
    let since = WatchRoutesRequest { after_revision: Some(end.revision), catalog_id: end.catalog_id.clone() };
    let mut resumed = watch(admin, since).await.unwrap();
    for stream in [&mut all, &mut resumed] {
        let mut suspended = std::collections::BTreeSet::new();
        while suspended.len() < 2 {
            let message = stream.message().await.unwrap().unwrap();
            let states = message.routes.iter().filter(|route| route.state() == TenantState::Suspended);
            suspended.extend(states.map(|route| route.code.clone()));
        }
    }
    let other = WatchRoutesRequest { after_revision: Some(1), catalog_id: Uuid::new_v4().to_string() };
    let refusal = watch(admin, other).await.unwrap_err();
    assert_eq!((refusal.code(), reason(&refusal).as_str()), (Code::OutOfRange, "REVISION_UNKNOWN"));
    let viewer = admin.with_key(&admin.key_new(&["viewer"], &[]).await);
    let refusal = watch(&viewer, WatchRoutesRequest::default()).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);

    fleet.stop(daemon).await;
    let last = async |mut stream: Routes| loop {
        match stream.message().await {
            Ok(message) => assert!(message.is_some(), "a watch says why it ends"),
            Err(status) => return status.code(),
        }
    };
    assert_eq!(last(all).await, Code::Unavailable);
    assert_eq!(last(some).await, Code::Unavailable);
}

#[tokio::test]
async fn a_watch_without_changes_is_told_how_far_the_catalog_is() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let mut stream = daemon.client.routes().await;
    let (_, end) = snapshot(&mut stream).await;
    let quiet = loop {
        let message = stream.message().await.unwrap().unwrap();
        if message.event() == RouteEventKind::Keepalive {
            break message;
        }
    };
    assert!(quiet.routes.is_empty() && quiet.removed_routes.is_empty());
    assert_eq!(quiet.catalog_id, end.catalog_id);
    assert!(quiet.revision >= end.revision);
    // It is a mark like others.
    let since = WatchRoutesRequest { after_revision: Some(quiet.revision), catalog_id: quiet.catalog_id };
    let mut resumed = daemon.client.router().watch_routes(since).await.unwrap().into_inner();
    daemon.client.tenant("beta").await;
    let message = resumed.message().await.unwrap().unwrap();
    assert_eq!(message.event(), RouteEventKind::Changes);
    assert!(message.routes.iter().all(|route| route.code == "beta"), "{message:?}");
    fleet.stop(daemon).await;
}
