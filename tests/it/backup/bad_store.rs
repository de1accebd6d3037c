//! A store that hangs, answers for nothing, or lies: nobody waits for it in the tenant's database, and nothing is called
//! a backup that cannot be restored.

use std::time::Duration;

use tenantd::backup::{Error, manifest_write};

use super::NOISE;
use super::place::Place;
use crate::harness::{Fault, Faults, Spec, machine};

const BUSY: &str = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
const BROKEN: &str = "<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>";

async fn place(setting: (&'static str, &'static str, &str)) -> (Place, Faults) {
    let faults = Faults::start(machine().s3).await;
    let spec = Spec { store: Some(faults.address), ..Spec::default() }.setting(setting.0, setting.1, setting.2);
    (Place::new(spec).await, faults)
}

/// Sessions of the dump role in the tenant's database.
async fn dumpers(place: &Place) -> i64 {
    let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND usename = $2";
    let judge = place.fleet.judge("postgres").await;
    let (database, role) = (place.database.as_str(), place.server.dump().role.as_str());
    judge.query_one(query, &[&database, &role]).await.unwrap().get(0)
}

#[tokio::test]
async fn nothing_is_locked_while_the_store_does_not_say_where_to_write() {
    let (place, faults) = place(("[store]", "request_timeout", "\"1m\"")).await;
    place.run("CREATE TABLE t AS SELECT 1 AS a").await;
    faults.add("POST", "?uploads", 1, Fault::Hang);
    let looking = async {
        faults.have_met(1).await;
        assert_eq!(dumpers(&place).await, 0, "sessions of a backup that cannot begin");
        place.run("SET lock_timeout = '2s'; ALTER TABLE t ADD COLUMN b int").await;
        faults.heal();
    };
    let (dumped, ()) = tokio::join!(place.dump(place.backup(), async |_upload| Ok(())), looking);
    super::restored_is_what_was_dumped(&place, &dumped.unwrap()).await;
    place.finish().await;
}

#[tokio::test]
async fn who_was_overtaken_takes_nothing_from_the_one_who_went_on() {
    let (place, _faults) = place(("[store]", "request_timeout", "\"1m\"")).await;
    place.run("CREATE TABLE t AS SELECT 1 AS a").await;
    let backup = place.backup();
    // Another daemon has given this one's upload up, and has made the same backup, before this one fails.
    let overtaken = async |upload| {
        place.store.upload_abort(&backup.keys().archive, &upload).await.unwrap();
        let manifest = place.dump(backup, async |_upload| Ok(())).await.unwrap();
        manifest_write(&place.store, &place.signer, &manifest).await.unwrap();
        Ok(())
    };
    let error = place.dump(backup, overtaken).await.unwrap_err();
    assert!(matches!(error, Error::Store(_)) && !error.is_damage(), "{error:?}");
    let manifest = tenantd::backup::manifest_read_whole(&place.store, &place.signer, backup).await.unwrap();
    super::restored_is_what_was_dumped(&place, &manifest).await;
    place.finish().await;
}

#[tokio::test]
async fn what_passes_is_asked_for_again() {
    let (place, faults) = place(("[store]", "request_timeout", "\"3s\"")).await;
    place.run(NOISE).await;
    faults.add("POST", "?uploads", 1, Fault::Answer(503, BUSY));
    faults.add("PUT", "partNumber=1", 1, Fault::Answer(500, BROKEN));
    faults.add("PUT", "partNumber=1", 1, Fault::Cut(0));
    faults.add("PUT", "partNumber=2", 1, Fault::Hang);
    // As S3 does when it has begun to answer.
    faults.add("POST", "uploadId=", 1, Fault::Answer(200, BROKEN));
    // It is complete, and nobody hears of it.
    faults.add("POST", "uploadId=", 1, Fault::Cut(20));
    faults.add("GET", "manifest.json", 1, Fault::Answer(503, BUSY));
    let (_backup, manifest) = place.backup_new().await;
    faults.add("GET", "archive", 1, Fault::Answer(503, BUSY));
    super::restored_is_what_was_dumped(&place, &manifest).await;
    assert_eq!(faults.met(), 7, "the manifest was not read");
    place.finish().await;
}

#[tokio::test]
async fn what_does_not_pass_fails_in_time_and_leaves_nothing() {
    let faults_of: [(&str, &str, Fault); 6] = [
        ("POST", "?uploads", Fault::Answer(503, BUSY)),
        ("POST", "?uploads", Fault::Hang),
        ("PUT", "partNumber=1", Fault::Answer(500, BROKEN)),
        ("PUT", "partNumber=1", Fault::Hang),
        ("POST", "uploadId=", Fault::Answer(200, BROKEN)),
        ("POST", "uploadId=", Fault::Answer(503, BUSY)),
    ];
    for (method, part, fault) in faults_of {
        let (mut place, faults) = place(("[store]", "request_timeout", "\"1s\"")).await;
        place.config.stall_timeout = Duration::from_secs(5);
        place.run(NOISE).await;
        faults.add(method, part, usize::MAX, fault.clone());
        let begun = std::time::Instant::now();
        let error = place.dump(place.backup(), async |_upload| Ok(())).await.unwrap_err();
        assert!(error.is_retryable() && !error.is_damage(), "{method} {part} {fault:?}: {error:?}");
        assert!(begun.elapsed() < Duration::from_mins(1), "{method} {part} {fault:?}: {:?}", begun.elapsed());
        assert_eq!(dumpers(&place).await, 0, "{method} {part} {fault:?}");
        assert_eq!(place.in_bucket().await, Vec::<String>::new(), "{method} {part} {fault:?}");
        place.finish().await;
    }
}

#[tokio::test]
async fn an_archive_that_breaks_off_on_its_way_is_not_damaged() {
    let (mut place, faults) = place(("[store]", "request_timeout", "\"1m\"")).await;
    place.run(NOISE).await;
    let (_backup, manifest) = place.backup_new().await;
    place.config.stall_timeout = Duration::from_secs(2);
    faults.add("GET", "archive", 1, Fault::Cut(1 << 20));
    let error = place.verify(&manifest).await.unwrap_err();
    assert!(error.is_retryable() && !error.is_damage(), "{error:?}");
    faults.add("GET", "archive", 1, Fault::Answer(200, "<html>Sign in to continue</html>"));
    let error = place.verify(&manifest).await.unwrap_err();
    assert!(error.is_damage(), "the store says that this is the archive: {error:?}");
    faults.add("GET", "archive", usize::MAX, Fault::Answer(403, ""));
    let error = place.verify(&manifest).await.unwrap_err();
    assert!(!error.is_retryable() && !error.is_damage() && error.to_string().contains("access_key_id"), "{error:?}");
    faults.heal();
    place.verify(&manifest).await.unwrap();
    place.finish().await;
}
