//! Who holds a tenant's connection through QueryService for long is named in the log, whatever method it uses.

use tenantd::proto::v1::transact_request::Action;
use tenantd::proto::v1::{
    BeginTransaction, PipelineRequest, PipelineStatement, StreamQueryRequest, TransactRequest, TransactionStatement,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::harness::{Fleet, Spec, until};

const LONG: &str = "SELECT pg_sleep(600)";

#[tokio::test]
async fn who_holds_a_connection_for_long_is_named_with_its_method() {
    let spec = Spec::default().setting("[router]", "lease_warn_after", "\"300ms\"").setting(
        "[router]",
        "connection_idle_timeout",
        "\"1s\"",
    );
    let fleet = Fleet::new(spec).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let client = daemon.client.with_key(&daemon.client.key_new(&["resolver"], &["acme"]).await);
    let tenant = || "acme".to_owned();
    let told = async |method: &str| {
        let holder = format!("holder=api-key:test in {method} ");
        fleet.expect_log(&holder);
        until(&format!("{method} is told"), async || fleet.has_logged(&holder).then_some(())).await;
    };

    // A transaction that does nothing.
    let (requests, stream) = mpsc::channel(8);
    let begin = BeginTransaction { tenant: tenant(), ..BeginTransaction::default() };
    requests.send(TransactRequest { action: Some(Action::Begin(begin)) }).await.unwrap();
    let mut answers = client.query().transact(ReceiverStream::new(stream)).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    let work = TransactionStatement { sql: "SELECT 1".to_owned(), ..TransactionStatement::default() };
    requests.send(TransactRequest { action: Some(Action::Execute(work)) }).await.unwrap();
    answers.message().await.unwrap().unwrap();
    told("Transact").await;
    drop((requests, answers));

    let (requests, stream) = mpsc::channel(8);
    let statement = PipelineStatement { tenant: tenant(), sql: LONG.to_owned(), ..PipelineStatement::default() };
    requests.send(PipelineRequest { statements: vec![statement] }).await.unwrap();
    let answers = client.query().pipeline(ReceiverStream::new(stream)).await.unwrap().into_inner();
    told("Pipeline").await;
    drop((requests, answers));

    let request = StreamQueryRequest { tenant: tenant(), sql: LONG.to_owned(), ..StreamQueryRequest::default() };
    let answers = client.query().stream_query(request).await.unwrap();
    told("StreamQuery").await;
    drop(answers);

    let mut call = Box::pin(client.execute("acme", LONG));
    tokio::select! {
        ended = &mut call => panic!("{ended:?}"),
        () = told("Execute") => {}
    }
    drop(call);
    fleet.stop(daemon).await;
}
