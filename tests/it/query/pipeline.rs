//! Pipeline as a caller over gRPC sees it: an answer for each statement, whatever became of the others.

use std::collections::BTreeMap;
use std::time::Duration;

use tenantd::proto::v1::pipeline_answer::Outcome;
use tenantd::proto::v1::value::Kind;
use tenantd::proto::v1::{EvictPoolRequest, PipelineRequest, PipelineResponse, PipelineStatement, Value};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use uuid::Uuid;

use super::ends::Running;
use crate::harness::{Client, Fleet, Spec, until};

/// A caller with an open stream.
struct Caller {
    requests: mpsc::Sender<PipelineRequest>,
    answers: Streaming<PipelineResponse>,
}

fn statement(id: u64, tenant: &str, sql: &str) -> PipelineStatement {
    PipelineStatement { id, tenant: tenant.to_owned(), sql: sql.to_owned(), ..PipelineStatement::default() }
}

fn number(value: i64) -> Value {
    Value { kind: Some(Kind::Int64Value(value)) }
}

impl Caller {
    async fn open(client: &Client) -> Self {
        let (requests, stream) = mpsc::channel(1_024);
        let answers = client.query().pipeline(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Self { requests, answers }
    }

    async fn send(&self, statements: Vec<PipelineStatement>) {
        self.requests.send(PipelineRequest { statements }).await.unwrap();
    }

    /// So many answers, by their ids.
    async fn take(&mut self, count: usize) -> BTreeMap<u64, Outcome> {
        let mut answers = BTreeMap::new();
        while answers.len() < count {
            let response = self.answers.message().await.unwrap().expect("more answers");
            for answer in response.answers {
                assert!(
                    answers.insert(answer.id, answer.outcome.unwrap()).is_none(),
                    "{} is answered twice",
                    answer.id
                );
            }
        }
        answers
    }

    /// Says that nothing more comes, and takes the rest.
    async fn rest(mut self) -> BTreeMap<u64, Outcome> {
        drop(self.requests);
        let mut answers = BTreeMap::new();
        while let Some(response) = self.answers.message().await.unwrap() {
            answers.extend(response.answers.into_iter().map(|answer| (answer.id, answer.outcome.unwrap())));
        }
        answers
    }
}

fn value(outcome: &Outcome) -> &Value {
    match outcome {
        Outcome::Result(result) => &result.rows[0].values[0],
        Outcome::Error(error) => panic!("{error:?}"),
    }
}

fn sqlstate(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Error(error) => &error.sqlstate,
        Outcome::Result(result) => panic!("{result:?}"),
    }
}

/// SQLSTATE, and where in the statement it is wrong.
fn position(outcome: &Outcome) -> (&str, i32) {
    match outcome {
        Outcome::Error(error) => (&error.sqlstate, error.position),
        Outcome::Result(result) => panic!("{result:?}"),
    }
}

async fn quiet(fleet: &Fleet) {
    let judge = fleet.judge("postgres").await;
    let name = format!("{}_%", fleet.naming.prefix());
    until("no statement and no transaction is left", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE $1 AND state <> 'idle'";
        (judge.query_one(sql, &[&name]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}

/// A connection that nobody has had yet.
async fn evict(client: &Client, tenant: &str) {
    let reason = "a test wants a new connection".to_owned();
    let request = EvictPoolRequest { tenant: tenant.to_owned(), reason, ..EvictPoolRequest::default() };
    client.router().evict_pool(request).await.unwrap();
}

#[tokio::test]
async fn the_only_read_on_a_new_connection_takes_one_round_trip_and_leaves_nothing() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let setting = "CREATE VIEW setting AS SELECT set_config('app.kept', 'yes', false)";
    client.execute("acme", setting).await.unwrap();

    evict(client, "acme").await;
    let mut caller = Caller::open(client).await;
    // A statement that is prepared sees itself.
    let prepared = "SELECT count(*) FROM pg_prepared_statements";
    caller.send(vec![statement(1, "acme", prepared)]).await;
    assert_eq!(value(&caller.take(1).await[&1]), &number(0));
    caller.send(vec![statement(2, "acme", prepared)]).await;
    assert_eq!(value(&caller.take(1).await[&2]), &number(1));

    let kept = "SELECT current_setting('app.kept', true) IS NOT DISTINCT FROM 'yes'";
    let no = Value { kind: Some(Kind::BoolValue(false)) };
    for next in ["on the same stream", "beside it"] {
        evict(client, "acme").await;
        caller.send(vec![statement(3, "acme", "SELECT * FROM setting")]).await;
        assert!(matches!(caller.take(1).await[&3], Outcome::Result(_)));
        if next == "beside it" {
            assert_eq!(client.sql("acme", kept).await, "false", "{next}");
        } else {
            caller.send(vec![statement(4, "acme", kept)]).await;
            assert_eq!(value(&caller.take(1).await[&4]), &no, "{next}");
        }
    }

    // What is refused is refused as ever.
    evict(client, "acme").await;
    caller.send(vec![statement(5, "acme", "SELECT * FROM missing")]).await;
    assert_eq!(position(&caller.take(1).await[&5]), ("42P01", 15));
    evict(client, "acme").await;
    caller.send(vec![PipelineStatement { max_rows: -1, ..statement(6, "acme", "SELECT 1") }]).await;
    assert!(matches!(caller.take(1).await[&6], Outcome::Error(_)));
    assert!(caller.rest().await.is_empty());
    quiet(&fleet).await;
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn what_a_tenants_code_says_in_an_error_has_a_bound() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let mut caller = Caller::open(&daemon.client).await;
    let raise = "DO $$ BEGIN RAISE EXCEPTION USING MESSAGE = repeat('x', 6000000); END $$";
    caller.send(vec![statement(1, "acme", raise)]).await;
    let answers = caller.take(1).await;
    assert_eq!(sqlstate(&answers[&1]), "P0001");
    assert!(matches!(&answers[&1], Outcome::Error(error) if error.message.len() < 70_000));
    assert!(caller.rest().await.is_empty());
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_reads_share_a_connection() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let mut caller = Caller::open(&daemon.client).await;
    let requests = caller.requests.clone();
    let sender = tokio::spawn(async move {
        for batch in 0..100_u64 {
            let read = |n: u64| PipelineStatement {
                parameters: vec![number(i64::try_from(n).unwrap())],
                omit_columns: n.is_multiple_of(2),
                ..statement(n, "acme", "SELECT $1::int8 + 1")
            };
            requests
                .send(PipelineRequest { statements: (batch * 50..(batch + 1) * 50).map(read).collect() })
                .await
                .unwrap();
        }
    });
    let answers = caller.take(5_000).await;
    sender.await.unwrap();
    for (id, outcome) in &answers {
        assert_eq!(value(outcome), &number(i64::try_from(*id).unwrap() + 1));
        let Outcome::Result(result) = outcome else { panic!("{outcome:?}") };
        assert_eq!(result.columns.len(), usize::from(id % 2 == 1));
    }
    // One connection did it, and it is back.
    let judge = fleet.judge("postgres").await;
    let sql =
        "SELECT count(*), count(*) FILTER (WHERE state = 'idle') FROM pg_stat_activity WHERE application_name = $1";
    until("the lease is back", async || {
        let row = judge.query_one(sql, &[&format!("{}_acme", fleet.naming.prefix())]).await.unwrap();
        let (all, idle): (i64, i64) = (row.get(0), row.get(1));
        assert!(all <= 2, "{all} connections");
        (all == idle).then_some(())
    })
    .await;
    assert!(caller.rest().await.is_empty());
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_never_done_leave_a_place_to_a_tenant_that_has_none() {
    let spec = Spec::default().setting("[[servers]]", "connections_max", "10");
    let fleet = Fleet::new(spec.setting("[[servers]]", "connections_reserved", "4")).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("busy").await;
    client.tenant("quiet").await;
    let mut streams = JoinSet::new();
    for _ in 0..6 {
        let mut caller = Caller::open(client).await;
        streams.spawn(async move {
            let statements = || vec![statement(1, "busy", "SELECT pg_sleep(0.002)"); 16];
            caller.send(statements()).await;
            loop {
                // There are always some that wait.
                caller.send(statements()).await;
                let mut answered = 0;
                while answered < 16 {
                    answered += caller.answers.message().await.unwrap().unwrap().answers.len();
                }
            }
        });
    }
    let judge = fleet.judge("postgres").await;
    let database = format!("{}_busy", fleet.naming.prefix());
    until("all places are taken", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND right(usename, 3) = '__r'";
        (judge.query_one(sql, &[&database]).await.unwrap().get::<_, i64>(0) == 6).then_some(())
    })
    .await;
    for _ in 0..3 {
        client.execute("quiet", "SELECT 1").await.unwrap();
        evict(client, "quiet").await;
    }
    streams.shutdown().await;
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_statement_stands_for_itself() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    for code in ["acme", "other"] {
        daemon.client.tenant(code).await;
        daemon.client.sql(code, &format!("CREATE TABLE mine AS SELECT '{code}' AS name")).await;
    }
    let user = Uuid::new_v4();
    let mut caller = Caller::open(&daemon.client).await;
    let mut as_user = statement(5, "acme", "SELECT current_setting('app.current_user_id')");
    as_user.user_id = user.to_string();
    let mut too_many =
        statement(7, "acme", "SELECT a, b FROM generate_series(1, 100000) AS a, generate_series(1, 100000) AS b");
    too_many.max_rows = 10;
    let mut no_user = statement(12, "acme", "SELECT 1");
    no_user.user_id = "somebody".to_owned();
    caller
        .send(vec![
            statement(1, "acme", "SELECT name FROM mine"),
            statement(2, "other", "SELECT name FROM mine"),
            statement(3, "acme", "SELECT nothing FROM mine"),
            statement(4, "acme", "INSERT INTO things (name) VALUES ('new')"),
            as_user,
            statement(6, "nobody", "SELECT 1"),
            too_many,
            statement(8, "acme", "SELECT id FROM things WHERE id = 8"),
            statement(9, "acme", "BEGIN"),
            statement(10, "acme", "SELECT 1 / (id - id) FROM things"),
            statement(11, "acme", "SELECT $1::int"),
            no_user,
            statement(13, "acme", "SELECT id FROM things WHERE id = 13"),
            statement(14, "acme", "SELECT * FORM things"),
        ])
        .await;
    let answers = caller.take(14).await;
    let text = |text: &str| Value { kind: Some(Kind::TextValue(text.to_owned())) };
    assert_eq!(value(&answers[&1]), &text("acme"));
    assert_eq!(value(&answers[&2]), &text("other"));
    assert_eq!(position(&answers[&3]), ("42703", 8));
    assert_eq!(position(&answers[&14]), ("42601", 10));
    assert!(matches!(&answers[&4], Outcome::Result(result) if result.row_count == 1));
    assert_eq!(value(&answers[&5]), &text(&user.to_string()));
    let code = |id: u64| match &answers[&id] {
        Outcome::Error(error) => Code::from(error.code),
        Outcome::Result(result) => panic!("{id}: {result:?}"),
    };
    assert_eq!(code(6), Code::NotFound);
    assert_eq!(code(7), Code::OutOfRange);
    assert_eq!(value(&answers[&8]), &number(8), "what was behind a result too large is read again");
    assert_eq!(code(9), Code::InvalidArgument);
    assert_eq!(sqlstate(&answers[&10]), "22012");
    assert_eq!((code(11), code(12)), (Code::InvalidArgument, Code::InvalidArgument));
    assert_eq!(value(&answers[&13]), &number(13));

    // The stream goes on, also after the tables have changed.
    caller.send(vec![statement(20, "acme", "SELECT * FROM mine")]).await;
    caller.take(1).await;
    daemon.client.sql("acme", "ALTER TABLE mine ADD COLUMN more int").await;
    caller.send(vec![statement(21, "acme", "SELECT * FROM mine"), statement(22, "acme", "SELECT * FROM mine")]).await;
    for outcome in caller.take(2).await.values() {
        assert!(matches!(outcome, Outcome::Result(result) if result.columns.len() == 2), "{outcome:?}");
    }
    assert!(caller.rest().await.is_empty());
    quiet(&fleet).await;
    assert_eq!(daemon.client.sql("acme", "SELECT count(*) FROM things").await, "21");
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_and_goes_leaves_nothing_and_who_reads_nothing_is_not_read_from() {
    let fleet = Fleet::new(Spec::default().setting("[router]", "statement_timeout", "\"10m\"")).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    daemon.client.sql("acme", "CREATE SEQUENCE made").await;
    let gone = Caller::open(&daemon.client).await;
    gone.send((0..20).map(|id| statement(id, "acme", "SELECT pg_sleep(600)")).collect()).await;
    let judge = fleet.judge("postgres").await;
    let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND state = 'active' AND datname = $1";
    let database = format!("{}_acme", fleet.naming.prefix());
    until("the statements run, some at a time", async || {
        let count: i64 = judge.query_one(running, &[&database]).await.unwrap().get(0);
        assert!(count <= 8, "{count} at a time");
        (count == 8).then_some(())
    })
    .await;
    let running = Running::find(&fleet, "pg_sleep(600)", 8).await;
    drop(gone);
    running.cancelled().await;
    quiet(&fleet).await;

    // 500 results of half a MiB, of which nobody reads one: few are made, and the lease is free.
    daemon.client.sql("acme", "CREATE TABLE wide AS SELECT repeat('x', 500000) AS a").await;
    let silent = Caller::open(&daemon.client).await;
    let requests = silent.requests.clone();
    for id in 0..500 {
        requests.send(PipelineRequest { statements: vec![statement(id, "acme", "SELECT a FROM wide")] }).await.unwrap();
    }
    quiet(&fleet).await;
    let made = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'wide'";
    let scans: i64 = daemon.client.sql("acme", made).await.parse().unwrap();
    assert!(scans < 300, "{scans} results were made for nobody");
    let Caller { requests: own, answers } = silent;
    drop((own, requests));
    let rest = Caller { requests: mpsc::channel(1).0, answers }.rest().await;
    assert_eq!(rest.len(), 500, "whoever reads at last gets all");
    assert!(rest.values().all(|outcome| matches!(outcome, Outcome::Result(_))));
    quiet(&fleet).await;
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_that_take_longer_to_prepare_than_a_lease_lasts_are_answered() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let mut caller = Caller::open(&daemon.client).await;
    caller.send(vec![statement(0, "acme", "SELECT 0")]).await;
    caller.take(1).await;
    let long = format!("SELECT length('{}')", "x".repeat(3_900_000));
    for id in 0..3 {
        caller.send(vec![statement(10 + id, "acme", &long)]).await;
        caller.send(vec![statement(20 + id, "acme", &format!("SELECT 1{}", ";".repeat(800_000)))]).await;
        caller.send(vec![statement(30 + id, "acme", "SELECT 1")]).await;
    }
    let answers = tokio::time::timeout(Duration::from_mins(1), caller.take(9)).await.unwrap();
    for (id, outcome) in &answers {
        assert_eq!(value(outcome), &number(if *id < 20 { 3_900_000 } else { 1 }), "{id}");
    }
    assert!(caller.rest().await.is_empty());
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_slow_read_of_a_stream_is_logged_with_its_tenant_and_without_values() {
    let fleet = Fleet::new(Spec::default().setting("[router]", "slow_statement_threshold", "\"100ms\"")).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let mut caller = Caller::open(&daemon.client).await;
    // The first on a new connection has it to itself.
    caller.send(vec![statement(1, "acme", "SELECT 1")]).await;
    caller.take(1).await;
    let slow = "SELECT count(*), 'confidential' FROM generate_series(1, 3000) a, generate_series(1, 3000) b";
    caller.send(vec![statement(2, "acme", slow)]).await;
    assert_eq!(value(&caller.take(1).await[&2]), &number(9_000_000));
    let said = fleet.latest();
    // On a slow machine there may be others.
    let of_it = |line: &&str| line.contains("slow statement") && line.contains("generate_series");
    let line = said.lines().find(of_it).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains("acme") && !said.contains("confidential"), "{said}");
    assert!(caller.rest().await.is_empty());
    fleet.stop(daemon).await;
}
