//! Quick reads of a busy tenant that share connections: each caller has its own answer, and nobody waits for others.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tenantd::domain::principal::{Principal, Scope};
use tenantd::domain::route::{Selector, Sources};
use tenantd::proto::v1::value::Kind;
use tenantd::query::{BYTES_MAX, Error, Execute, Output};
use tenantd::router::{Fresh, Holder};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{ask, only, text, value};
use crate::harness::Spec;
use crate::tenants::{Made, Rooms};

const READ: &str = "SELECT name FROM things WHERE id = $1";
const OTHER: &str = "SELECT name FROM others WHERE id = $1";
const CALLERS: usize = 48;

pub async fn located(rooms: &Rooms, tenant: &Made) -> Fresh {
    let sources = Sources { explicit: Some(Selector::Id(tenant.id)), metadata: None, host: None };
    let principal = Principal::new("test", [].into(), Scope::All);
    rooms.router.locate(sources, &principal, Instant::now() + Duration::from_secs(10)).await.unwrap()
}

async fn read(rooms: &Rooms, tenant: &Made, sql: &str, id: i64) -> Result<Output, Error> {
    let parameters = [value(Kind::Int64Value(id))];
    let input = Execute { sql, parameters: &parameters, rows_max: 0, bytes_max: BYTES_MAX, user: None };
    let located = located(rooms, tenant).await;
    rooms.queries.execute_at(&Holder::default(), &located, input, Instant::now() + Duration::from_mins(1)).await
}

/// A tenant whose reads are known to be harmless and quick.
async fn acme(rooms: &Rooms) -> Made {
    let acme = rooms.tenant("acme").await;
    for table in ["things", "others"] {
        let made =
            format!("CREATE TABLE {table} AS SELECT n AS id, '{table} ' || n AS name FROM generate_series(1, 100) n");
        ask(rooms, &acme, &made).await.unwrap();
    }
    for sql in [READ, OTHER] {
        for _ in 0..110 {
            read(rooms, &acme, sql, 1).await.unwrap();
        }
    }
    acme
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_share_connections_and_each_has_its_own_answer() {
    let rooms = Arc::new(Rooms::new(Spec::default()).await);
    let acme = acme(&rooms).await;
    let before = rooms.router.stats(acme.id);
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (rooms, acme) = (Arc::clone(&rooms), acme.clone());
        callers.spawn(async move {
            for round in 0..60 {
                let id = i64::try_from((caller * 7 + round) % 100 + 1).unwrap();
                let (sql, table) = if round % 3 == 0 { (OTHER, "others") } else { (READ, "things") };
                let output = read(&rooms, &acme, sql, id).await.unwrap();
                assert_eq!(only(&output), text(&format!("{table} {id}")));
                assert_eq!((output.columns[0].name.as_str(), output.row_count), ("name", 1));
            }
        });
    }
    callers.join_all().await;
    let after = rooms.router.stats(acme.id);
    let (leases, shared) = (after.acquires - before.acquires, after.shared - before.shared);
    // How many of them is the machine's to say: only reads that are quick are shared.
    assert!(leases < 60 * CALLERS as u64, "{leases} leases for {} reads", 60 * CALLERS);
    // Nobody is left out of the tenant's numbers.
    assert!(leases + shared >= 60 * CALLERS as u64, "{leases} leases, {shared} shared");
    assert!(rooms.sessions().await <= 10);
    // What a caller did wrong is its own to hear of, whoever shares its connection.
    let wrong = join_all((0..CALLERS).map(|number| {
        let (rooms, acme) = (Arc::clone(&rooms), acme.clone());
        async move {
            let id = if number % 2 == 0 { 1 } else { i64::MAX };
            (number, read(&rooms, &acme, READ, id).await)
        }
    }))
    .await;
    for (number, result) in wrong {
        match result {
            Ok(output) => assert!(number % 2 == 0 && output.row_count == 1),
            Err(error) => assert!(number % 2 == 1 && matches!(error, Error::Sql(_)), "{error}"),
        }
    }
    Arc::into_inner(rooms).unwrap().finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_is_stuck_holds_up_nobody_else() {
    let rooms = Arc::new(Rooms::new(Spec::default()).await);
    let acme = acme(&rooms).await;
    let mut judge = rooms.fleet.judge(&acme.database).await;
    let lock = judge.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE others IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut stuck = JoinSet::new();
    for _ in 0..4 {
        let (rooms, acme) = (Arc::clone(&rooms), acme.clone());
        stuck.spawn(async move { read(&rooms, &acme, OTHER, 5).await });
    }
    let others = (0..CALLERS).map(|_| async {
        for id in 1..=20 {
            assert_eq!(only(&read(&rooms, &acme, READ, id).await.unwrap()), text(&format!("things {id}")));
        }
    });
    timeout(Duration::from_secs(50), join_all(others)).await.expect("the others are not held up");
    assert_eq!(stuck.len(), 4);
    assert!(stuck.try_join_next().is_none(), "the table is locked");
    lock.rollback().await.unwrap();
    while let Some(result) = stuck.join_next().await {
        assert_eq!(only(&result.unwrap().unwrap()), text("others 5"));
    }
    Arc::into_inner(rooms).unwrap().finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_go_away_and_connections_that_break_take_nobody_along() {
    let rooms = Arc::new(Rooms::new(Spec::default()).await);
    let acme = acme(&rooms).await;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (rooms, acme) = (Arc::clone(&rooms), acme.clone());
        callers.spawn(async move {
            let mut lost = 0;
            for round in 0..60 {
                let id = i64::try_from((caller + round) % 100 + 1).unwrap();
                if caller % 3 == 0 {
                    // Whether it came in time does not matter.
                    let patience = Duration::from_micros(u64::try_from(round * 50).unwrap());
                    let _hasty = timeout(patience, read(&rooms, &acme, READ, id)).await;
                    continue;
                }
                match read(&rooms, &acme, READ, id).await {
                    Ok(output) => assert_eq!(only(&output), text(&format!("things {id}"))),
                    // On the ordinary way a connection that breaks in the middle is told, and so is one that breaks while
                    // it is made.
                    Err(Error::Connection(_)) => lost += 1,
                    Err(Error::Router(error)) if error.is_transient() => lost += 1,
                    Err(error) if error.to_string().contains("57P01") => lost += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            lost
        });
    }
    let judge = rooms.fleet.judge("postgres").await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 ORDER BY random() LIMIT 1";
    for _ in 0..10 {
        judge.execute(end, &[&acme.database]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let lost: usize = callers.join_all().await.into_iter().sum();
    assert!(lost < 20 * CALLERS, "{lost} reads of {} were lost with ten connections", 60 * CALLERS);
    assert!(rooms.sessions().await <= 10);
    assert_eq!(only(&read(&rooms, &acme, READ, 7).await.unwrap()), text("things 7"));
    Arc::into_inner(rooms).unwrap().finish().await;
}
