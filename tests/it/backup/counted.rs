//! What a restore compares: partitions as one table, manifests of the former format by their rows, and sequences that
//! go round.

use tenantd::backup::{BackupRef, Error, manifest_read, manifest_write};
use tenantd::domain::backup::{MANIFEST_FORMAT_MIN, Manifest, TableDigest};
use tenantd::domain::tenant::TenantId;
use tenantd::secrets::ManifestSigner;
use uuid::Uuid;

use super::place::Place;
use super::restored_is_what_was_dumped;
use crate::harness::{Fleet, Spec};

/// Rows lie by the hash of an enum, which a restore makes anew.
const BY_ENUM: &str = "
CREATE TYPE kind AS ENUM ('a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l');
CREATE TABLE parted (kind kind, n int) PARTITION BY HASH (kind);
CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE parted_1 (n int, gone int, kind kind);
ALTER TABLE parted_1 DROP COLUMN gone;
ALTER TABLE parted ATTACH PARTITION parted_1 FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE SCHEMA aside;
CREATE TABLE aside.parted_2 PARTITION OF parted FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE parted_3 PARTITION OF parted FOR VALUES WITH (MODULUS 4, REMAINDER 3) PARTITION BY LIST (n);
CREATE TABLE parted_3_rest PARTITION OF parted_3 DEFAULT;
CREATE TABLE no_parts (a int) PARTITION BY LIST (a);
CREATE TABLE plain (a int);
INSERT INTO plain VALUES (1), (2);
INSERT INTO parted SELECT k, n FROM unnest(enum_range(NULL::kind)) k, generate_series(1, 30) n";

#[tokio::test]
async fn rows_that_change_their_partition_are_no_difference() {
    let place = Place::new(Spec::default()).await;
    place.run(BY_ENUM).await;
    let (_backup, manifest) = place.backup_new().await;
    let counts: Vec<_> = manifest.tables.iter().map(|table| (table.name.as_str(), table.row_count)).collect();
    assert_eq!(counts, [("no_parts", 0), ("parted", 360), ("plain", 2)]);
    restored_is_what_was_dumped(&place, &manifest).await;
    place.finish().await;
}

#[tokio::test]
async fn a_manifest_of_the_former_format_is_compared_by_its_rows() {
    let place = Place::new(Spec::default()).await;
    place.run(BY_ENUM).await;
    let (_backup, manifest) = place.backup_new().await;
    let judge = place.fleet.judge(place.database.as_str()).await;
    let mut tables = Vec::new();
    for (schema, name) in [
        ("aside", "parted_2"),
        ("public", "parted_0"),
        ("public", "parted_1"),
        ("public", "parted_3_rest"),
        ("public", "plain"),
    ] {
        let row_count = judge.query_one(&format!("SELECT count(*) FROM {schema}.{name}"), &[]).await.unwrap().get(0);
        let digest = "-12".to_owned();
        tables.push(TableDigest { schema: schema.to_owned(), name: name.to_owned(), row_count, digest });
    }
    let mut former = Manifest { format: MANIFEST_FORMAT_MIN, tables, ..manifest };
    place.restore(&former, &place.target().await).await.unwrap();
    former.tables[0].row_count += 1;
    let error = place.restore(&former, &place.target().await).await.unwrap_err();
    assert!(matches!(&error, Error::Differences(found) if found.len() == 1), "{error}");
    assert!(error.to_string().contains("public.parted has 360 rows instead of 361"), "{error}");
    place.finish().await;
}

#[tokio::test]
async fn a_restore_by_a_manifest_of_the_former_format_says_what_it_compared() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    let tenant = client.tenant("acme").await;
    let backup = client.backup("acme").await;
    let (config, store) = (fleet.config(), fleet.store());
    let signer = ManifestSigner::new(&config.keys.manifest_signing_key).unwrap();
    let reference =
        BackupRef { tenant: TenantId(tenant.tenant_id.parse().unwrap()), backup: backup.backup_id.parse().unwrap() };
    let manifest = manifest_read(&store, &signer, reference).await.unwrap();
    assert_eq!(manifest.schema_version, tenant.schema_version);
    let tables = manifest.tables.into_iter().map(|table| TableDigest { digest: "-12".to_owned(), ..table }).collect();
    let former = Manifest { format: MANIFEST_FORMAT_MIN, tables, ..manifest };
    manifest_write(&store, &signer, &former).await.unwrap();
    let restored = client.restore_create(Uuid::new_v4(), &backup.backup_id, Some("copy")).await.unwrap();
    let steps = client.succeeded(&restored).await.steps;
    let detail = &steps.iter().find(|step| step.name == "contents").unwrap().detail;
    assert!(detail.contains("the manifest is of the older format 1, so the rows were counted only"), "{detail}");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_sequence_that_goes_round_while_it_is_dumped_comes_back() {
    let place = Place::new(Spec::default()).await;
    place.run("CREATE SEQUENCE round MAXVALUE 50 CYCLE; SELECT nextval('round') FROM generate_series(1, 43)").await;
    // Round its end and beyond where it stood, before `pg_dump` reads it and after.
    let turn = "SELECT nextval('round') FROM generate_series(1, 44)";
    let manifest = place
        .dump(place.backup(), async |_upload| {
            place.run(turn).await;
            Ok(())
        })
        .await
        .unwrap();
    let range = &manifest.sequences[0];
    assert_eq!((range.low, range.high), (Some(1), Some(50)));
    let report = place.restore(&manifest, &place.target().await).await.unwrap();
    assert_eq!(report.rows, 0);
    place.finish().await;
}

#[tokio::test]
async fn a_table_that_was_made_a_part_of_an_extension_is_not_left_out_in_silence() {
    let place = Place::new(Spec::default()).await;
    place.run("CREATE EXTENSION citext; CREATE TABLE mine (a int); ALTER EXTENSION citext ADD TABLE mine").await;
    let error = place.dump(place.backup(), async |_upload| Ok(())).await.unwrap_err();
    assert!(matches!(error, Error::TableLeftOut { .. }), "{error}");
    assert!(error.to_string().contains("ALTER EXTENSION citext DROP TABLE public.mine"), "{error}");
    place.run("ALTER EXTENSION citext DROP TABLE mine").await;
    let (_backup, manifest) = place.backup_new().await;
    assert_eq!(manifest.tables[0].name, "mine");
    place.finish().await;
}
