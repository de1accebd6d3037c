//! Transact as a caller over gRPC sees it: one answer per request, a commit or nothing, and no transaction that is left
//! open by anybody.

use std::time::Duration;

use tenantd::proto::v1::transact_request::Action;
use tenantd::proto::v1::transact_response::Outcome;
use tenantd::proto::v1::{
    BeginTransaction, CommitTransaction, IsolationLevel, ListPoolsRequest, ReleaseSavepoint, RollbackToSavepoint,
    RollbackTransaction, SetSavepoint, StatementError, StreamQueryRequest, TransactRequest, TransactResponse,
    TransactionStatement,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};
use uuid::Uuid;

use super::ends::Running;
use crate::harness::{Client, Fleet, Spec, reason, until};

/// A caller in a transaction.
pub(super) struct Caller {
    requests: mpsc::Sender<TransactRequest>,
    answers: Streaming<TransactResponse>,
}

fn begin() -> BeginTransaction {
    BeginTransaction { tenant: "acme".to_owned(), ..BeginTransaction::default() }
}

pub(super) fn execute(sql: &str) -> Action {
    Action::Execute(TransactionStatement { sql: sql.to_owned(), ..TransactionStatement::default() })
}

impl Caller {
    async fn open(client: &Client, timeout: Option<Duration>) -> Self {
        let (requests, stream) = mpsc::channel(8);
        let mut request = Request::new(ReceiverStream::new(stream));
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        let answers = client.query().transact(request).await.unwrap().into_inner();
        Self { requests, answers }
    }

    async fn begin(client: &Client) -> Self {
        Self::begin_as(client, begin()).await
    }

    pub(super) async fn begin_as(client: &Client, begin: BeginTransaction) -> Self {
        let mut caller = Self::open(client, None).await;
        assert!(matches!(caller.ask(Action::Begin(begin)).await, Ok(Outcome::Begun(_))));
        caller
    }

    pub(super) async fn ask(&mut self, action: Action) -> Result<Outcome, Status> {
        // Of a stream that has ended, the answer says why.
        let _sent = self.requests.send(TransactRequest { action: Some(action) }).await;
        let answer = self.answers.message().await?;
        Ok(answer.expect("an answer").outcome.unwrap())
    }

    pub(super) async fn run(&mut self, sql: &str) -> String {
        match self.ask(execute(sql)).await.unwrap() {
            Outcome::Result(result) => match result.rows.first() {
                Some(row) => format!("{:?}", row.values[0].kind.as_ref().unwrap()),
                None => result.row_count.to_string(),
            },
            other => panic!("{sql}: {other:?}"),
        }
    }

    pub(super) async fn fails(&mut self, action: Action) -> StatementError {
        match self.ask(action).await.unwrap() {
            Outcome::Error(error) => error,
            other => panic!("{other:?}"),
        }
    }

    async fn ended(mut self) -> Result<(), Status> {
        match self.answers.message().await? {
            None => Ok(()),
            Some(more) => panic!("{more:?}"),
        }
    }
}

/// Sessions of the tenant that are not idle, as a superuser sees them.
async fn quiet(fleet: &Fleet) {
    let judge = fleet.judge("postgres").await;
    let name = format!("{}_acme", fleet.naming.prefix());
    until("no statement and no transaction is left", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND state <> 'idle'";
        (judge.query_one(sql, &[&name]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}

async fn things(client: &Client) -> String {
    client.sql("acme", "SELECT count(*) FROM things").await
}

#[tokio::test]
async fn a_commit_keeps_and_everything_else_does_not() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let client = &daemon.client;

    let mut one = Caller::begin(client).await;
    assert_eq!(one.run("INSERT INTO things (name) VALUES ('a'), ('b')").await, "2");
    assert_eq!(one.run("SELECT count(*) FROM things").await, "Int64Value(22)");
    assert_eq!(things(client).await, "20", "nobody else sees it yet");
    assert!(matches!(one.ask(Action::Commit(CommitTransaction {})).await, Ok(Outcome::Committed(_))));
    one.ended().await.unwrap();
    assert_eq!(things(client).await, "22");

    let mut two = Caller::begin(client).await;
    two.run("DELETE FROM things").await;
    assert!(matches!(two.ask(Action::Rollback(RollbackTransaction {})).await, Ok(Outcome::RolledBack(_))));
    two.ended().await.unwrap();

    // The end of the requests, and a caller that breaks off.
    let mut three = Caller::begin(client).await;
    three.run("DELETE FROM things").await;
    let Caller { requests, answers } = three;
    drop(requests);
    Caller { requests: mpsc::channel(1).0, answers }.ended().await.unwrap();
    let mut four = Caller::begin(client).await;
    four.run("DELETE FROM things").await;
    drop(four);
    quiet(&fleet).await;
    assert_eq!(things(client).await, "22");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_failed_request_waits_for_a_rollback() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let client = &daemon.client;
    let mut caller = Caller::begin(client).await;
    caller.run("INSERT INTO things (name) VALUES ('kept')").await;
    let Outcome::SavepointSet(savepoint) = caller.ask(Action::SetSavepoint(SetSavepoint {})).await.unwrap() else {
        panic!("no savepoint")
    };
    caller.run("INSERT INTO things (name) VALUES ('lost')").await;
    let taken = caller.fails(execute("INSERT INTO things (name) VALUES ('kept')")).await;
    assert_eq!((taken.sqlstate.as_str(), taken.constraint.as_str()), ("23505", "things_name_key"));
    assert_eq!(taken.code, i32::from(Code::FailedPrecondition));
    assert_eq!(caller.fails(execute("SELECT 1")).await.sqlstate, "25P02");
    let back = Action::RollbackToSavepoint(RollbackToSavepoint { savepoint: savepoint.savepoint });
    assert!(matches!(caller.ask(back).await, Ok(Outcome::SavepointRolledBack(_))));
    let position = caller.fails(execute("SELECT * FORM things")).await;
    assert_eq!((position.sqlstate.as_str(), position.position), ("42601", 10));
    let back = Action::RollbackToSavepoint(RollbackToSavepoint { savepoint: savepoint.savepoint });
    assert!(matches!(caller.ask(back).await, Ok(Outcome::SavepointRolledBack(_))));
    let release = Action::ReleaseSavepoint(ReleaseSavepoint { savepoint: savepoint.savepoint });
    assert!(matches!(caller.ask(release).await, Ok(Outcome::SavepointReleased(_))));
    assert_eq!(caller.run("SELECT count(*) FROM things").await, "Int64Value(21)");
    assert!(matches!(caller.ask(Action::Commit(CommitTransaction {})).await, Ok(Outcome::Committed(_))));
    caller.ended().await.unwrap();
    assert_eq!(things(client).await, "21");

    // A transaction that failed is not committed, and neither is one whose deferred constraint says no.
    let mut failed = Caller::begin(client).await;
    failed.run("DELETE FROM things").await;
    failed.fails(execute("COMMIT")).await;
    assert_eq!(failed.fails(Action::Commit(CommitTransaction {})).await.sqlstate, "25P02");
    failed.ended().await.unwrap();
    client.sql("acme", "CREATE TABLE later (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)").await;
    let mut deferred = Caller::begin(client).await;
    deferred.run("INSERT INTO later VALUES (1), (1)").await;
    assert_eq!(deferred.fails(Action::Commit(CommitTransaction {})).await.sqlstate, "23505");
    deferred.ended().await.unwrap();
    assert_eq!(things(client).await, "21");

    // A result that is too large is an error like others, and a cursor is the caller's own.
    let mut large = Caller::begin(client).await;
    let many = TransactionStatement { sql: "TABLE things".to_owned(), max_rows: 5, ..TransactionStatement::default() };
    assert_eq!(large.fails(Action::Execute(many)).await.code, i32::from(Code::OutOfRange));
    assert_eq!(large.fails(execute("SELECT 1")).await.sqlstate, "25P02");
    drop(large);
    let mut cursor = Caller::begin(client).await;
    cursor.run("DECLARE c CURSOR FOR SELECT id FROM things ORDER BY id").await;
    assert_eq!(cursor.run("FETCH 1 FROM c").await, "Int64Value(1)");
    assert_eq!(cursor.run("FETCH 1 FROM c").await, "Int64Value(2)");
    drop(cursor);
    quiet(&fleet).await;
    fleet.stop(daemon).await;
}

/// What would leave a transaction open on a connection that goes back to its pool: callers' own, and a tenant's code's.
const OPENERS: [&str; 8] = [
    "BEGIN",
    "START TRANSACTION",
    "SAVEPOINT mine",
    "COMMIT AND CHAIN",
    "ROLLBACK AND CHAIN",
    "PREPARE TRANSACTION 'mine'",
    "CALL chained()",
    "DO $$ BEGIN INSERT INTO things (name) VALUES ('lost'); ROLLBACK AND CHAIN; END $$",
];

#[tokio::test]
async fn nothing_that_is_sent_leaves_a_transaction_to_the_next_caller() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let chained = "CREATE PROCEDURE chained() LANGUAGE plpgsql AS $$ BEGIN \
                   INSERT INTO things (name) VALUES ('lost'); ROLLBACK AND CHAIN; END $$";
    client.execute("acme", chained).await.unwrap();
    let judge = fleet.judge(&format!("{}_acme", fleet.naming.prefix())).await;
    for (number, opener) in OPENERS.into_iter().enumerate() {
        // Most are refused.
        let _answer = client.execute("acme", opener).await;
        let mut caller = Caller::begin(client).await;
        let _answer = caller.ask(execute(opener)).await;
        drop(caller);
        let request = StreamQueryRequest { tenant: "acme".to_owned(), sql: opener.to_owned(), ..Default::default() };
        if let Ok(mut answers) = client.query().stream_query(request).await {
            while let Ok(Some(_)) = answers.get_mut().message().await {}
        }
        // At once, before the server ends what was left open.
        until("all connections are back", async || {
            let pools = client.router().list_pools(ListPoolsRequest::default()).await.unwrap().into_inner().pools;
            pools.iter().all(|pool| pool.leased == 0).then_some(())
        })
        .await;
        for round in 0..2 {
            client.execute("acme", &format!("INSERT INTO things (name) VALUES ('{number}/{round}')")).await.unwrap();
        }
        let kept = "SELECT count(*), count(*) FILTER (WHERE name = 'lost') FROM things";
        let kept = judge.query_one(kept, &[]).await.unwrap();
        let expected = 22 + 2 * i64::try_from(number).unwrap();
        assert_eq!((kept.get::<_, i64>(0), kept.get::<_, i64>(1)), (expected, 0), "{opener}");
    }
    quiet(&fleet).await;
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn it_begins_as_it_is_told() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let user = Uuid::new_v4();
    let mut caller = Caller::open(&daemon.client, None).await;
    let how = BeginTransaction {
        isolation_level: IsolationLevel::Serializable.into(),
        read_only: true,
        user_id: user.to_string(),
        ..begin()
    };
    assert!(matches!(caller.ask(Action::Begin(how)).await, Ok(Outcome::Begun(_))));
    let settings = "SELECT current_setting('transaction_isolation') || ' ' || current_setting('transaction_read_only') \
                    || ' ' || current_setting('app.current_user_id')";
    assert_eq!(caller.run(settings).await, format!("TextValue(\"serializable on {user}\")"));
    assert_eq!(caller.fails(execute("DELETE FROM things")).await.sqlstate, "25006");
    drop(caller);
    quiet(&fleet).await;
    let left = daemon.client.sql("acme", "SELECT coalesce(current_setting('app.current_user_id', true), '')").await;
    assert_eq!(left, "", "the user ends with the transaction");

    let mut nothing = Caller::open(&daemon.client, None).await;
    assert_eq!(nothing.ask(execute("SELECT 1")).await.unwrap_err().code(), Code::InvalidArgument);
    let mut twice = Caller::begin(&daemon.client).await;
    assert_eq!(twice.ask(Action::Begin(begin())).await.unwrap_err().code(), Code::InvalidArgument);
    let mut unknown = Caller::open(&daemon.client, None).await;
    let elsewhere = Action::Begin(BeginTransaction { tenant: "nobody".to_owned(), ..begin() });
    assert_eq!(unknown.ask(elsewhere).await.unwrap_err().code(), Code::NotFound);
    quiet(&fleet).await;
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn nobody_leaves_a_transaction_open() {
    let fleet = Fleet::new(Spec::default().setting("[router]", "statement_timeout", "\"10m\"")).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let client = &daemon.client;

    let mut late = until("it begins before its deadline", async || {
        let mut late = Caller::open(client, Some(Duration::from_millis(900))).await;
        matches!(late.ask(Action::Begin(begin())).await, Ok(Outcome::Begun(_))).then_some(late)
    })
    .await;
    let code = late.ask(execute("SELECT pg_sleep(600)")).await.unwrap_err().code();
    assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled), "{code:?}");
    quiet(&fleet).await;

    // In the middle of a statement.
    let gone = Caller::begin(client).await;
    gone.requests.send(TransactRequest { action: Some(execute("SELECT pg_sleep(600)")) }).await.unwrap();
    let running = Running::find(&fleet, "SELECT pg_sleep(600)", 1).await;
    drop(gone);
    running.cancelled().await;
    quiet(&fleet).await;
    assert_eq!(things(client).await, "20");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn who_says_nothing_for_too_long_loses_the_transaction() {
    let spec = Spec::default().setting("[query]", "transaction_idle_max", "\"500ms\"");
    let fleet = Fleet::new(spec).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    // A busy machine may make a caller say nothing for as long before it has done anything.
    let silent = until("something is done in it", async || {
        let mut silent = Caller::open(&daemon.client, None).await;
        silent.ask(Action::Begin(begin())).await.ok()?;
        matches!(silent.ask(execute("DELETE FROM things")).await, Ok(Outcome::Result(_))).then_some(silent)
    })
    .await;
    let ended = silent.ended().await.unwrap_err();
    assert_eq!((ended.code(), reason(&ended).as_str()), (Code::Aborted, "CANCELLED"));
    quiet(&fleet).await;
    assert_eq!(things(&daemon.client).await, "20");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn the_drain_ends_it() {
    let spec = Spec::default().setting("[query]", "transaction_idle_max", "\"1h\"");
    let fleet = Fleet::new(spec).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let mut caller = Caller::begin(&daemon.client).await;
    caller.run("DELETE FROM things").await;
    daemon.stop().await;
    assert_eq!(caller.ended().await.unwrap_err().code(), Code::Unavailable);
    let judge = fleet.judge(&format!("{}_acme", fleet.naming.prefix())).await;
    let row = judge.query_one("SELECT count(*) FROM things", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 20);
    fleet.finish().await;
}

#[tokio::test]
async fn the_rest_of_a_result_that_is_too_large_is_cancelled() {
    let fleet = Fleet::new(Spec::default().setting("[router]", "statement_timeout", "\"10m\"")).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let client = &daemon.client;
    let mut caller = Caller::begin(client).await;
    caller.run("INSERT INTO things (name) VALUES ('kept')").await;
    let Outcome::SavepointSet(savepoint) = caller.ask(Action::SetSavepoint(SetSavepoint {})).await.unwrap() else {
        panic!("no savepoint")
    };
    // Enough rows for the server to send some, and then none for longer than anybody waits.
    let sql = "SELECT repeat('x', 4000), pg_sleep(CASE WHEN g > 50 THEN 600 ELSE 0 END) FROM generate_series(1, 60) g";
    let endless = TransactionStatement { sql: sql.to_owned(), max_rows: 5, ..TransactionStatement::default() };
    assert_eq!(caller.fails(Action::Execute(endless)).await.code, i32::from(Code::OutOfRange));
    let rest = async {
        let back = Action::RollbackToSavepoint(RollbackToSavepoint { savepoint: savepoint.savepoint });
        assert!(matches!(caller.ask(back).await, Ok(Outcome::SavepointRolledBack(_))));
        assert_eq!(caller.run("SELECT count(*) FROM things").await, "Int64Value(21)");
        assert!(matches!(caller.ask(Action::Commit(CommitTransaction {})).await, Ok(Outcome::Committed(_))));
    };
    tokio::time::timeout(Duration::from_mins(1), rest).await.expect("the rest of the statement holds nobody up");
    assert_eq!(things(client).await, "21");
    fleet.stop(daemon).await;
}
