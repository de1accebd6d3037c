//! Who holds a tenant's connection through QueryService for long is named in the log, whatever method it uses.

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
    let told = async |method: &str| {
        let holder = format!("holder=api-key:test in {method} ");
        fleet.expect_log(&holder);
        until(&format!("{method} is told"), async || fleet.has_logged(&holder).then_some(())).await;
    };

    // A transaction that does nothing.
    let open = client.transaction("acme").await;
    told("Transact").await;
    drop(open);
    let open = client.pipeline().await;
    open.execute(1, "acme", LONG).await;
    told("Pipeline").await;
    drop(open);
    let open = client.stream("acme", LONG).await;
    told("StreamQuery").await;
    drop(open);
    let mut call = Box::pin(client.execute("acme", LONG));
    tokio::select! {
        ended = &mut call => panic!("{ended:?}"),
        () = told("Execute") => {}
    }
    drop(call);
    fleet.stop(daemon).await;
}
