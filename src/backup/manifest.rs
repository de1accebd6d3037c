//! The manifest as an object in the bucket: `{"manifest": {…}, "signature": "…"}`, written last.
//!
//! The signature is over the exact bytes of the manifest member, which are kept as they are from writing to reading.
//! Nothing of a manifest is believed before its signature, its format and its ids have been checked.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Check, Error};
use crate::domain::backup::{BackupKeys, MANIFEST_FORMAT, MANIFEST_FORMAT_MIN, Manifest};
use crate::domain::tenant::TenantId;
use crate::secrets::ManifestSigner;
use crate::store::Store;

/// The largest manifest that is read: some hundred thousand tables.
const MANIFEST_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Which backup is meant: two backups whose objects were swapped are told apart by this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupRef {
    pub tenant: TenantId,
    pub backup: Uuid,
}

impl BackupRef {
    pub fn keys(&self) -> BackupKeys {
        BackupKeys::new(self.tenant, self.backup)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    manifest: Box<RawValue>,
    signature: String,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Signs the manifest and puts it into the bucket: from now on the backup exists.
pub async fn manifest_write(store: &Store, signer: &ManifestSigner, manifest: &Manifest) -> Result<(), Error> {
    let reference = BackupRef { tenant: manifest.tenant_id, backup: manifest.backup_id };
    let document = document_write(signer, manifest)?;
    Ok(store.put(&reference.keys().manifest, document).await?)
}

/// Reads and checks the manifest of `reference`.
pub async fn manifest_read(store: &Store, signer: &ManifestSigner, reference: BackupRef) -> Result<Manifest, Error> {
    let document = store.get(&reference.keys().manifest, MANIFEST_BYTES_MAX).await?;
    document_read(signer, reference, &document)
}

/// As [`manifest_read`], and looks whether the archive is there, as long as it should be. Reads none of it.
pub async fn manifest_read_whole(
    store: &Store,
    signer: &ManifestSigner,
    reference: BackupRef,
) -> Result<Manifest, Error> {
    let manifest = manifest_read(store, signer, reference).await?;
    let bytes = manifest.archive.bytes;
    let reason = match store.head(&manifest.archive.key).await? {
        Some(found) if found == bytes => return Ok(manifest),
        Some(found) => format!("it has {found} bytes instead of {bytes}"),
        None => "it is missing".to_owned(),
    };
    Err(Error::Archive { check: Check::Size, reason })
}

fn document_write(signer: &ManifestSigner, manifest: &Manifest) -> Result<Bytes, Error> {
    let refused = |error: serde_json::Error| Error::Manifest { reason: error.to_string() };
    let text = serde_json::to_string(manifest).map_err(refused)?;
    let signature = signer.sign(text.as_bytes());
    let document = Document { manifest: RawValue::from_string(text).map_err(refused)?, signature };
    Ok(Bytes::from(serde_json::to_vec(&document).map_err(refused)?))
}

fn document_read(signer: &ManifestSigner, reference: BackupRef, document: &[u8]) -> Result<Manifest, Error> {
    let refused = |reason: String| Error::Manifest { reason };
    let document: Document =
        serde_json::from_slice(document).map_err(|error| refused(format!("it is no document of ours: {error}")))?;
    let text = document.manifest.get();
    signer.verify(text.as_bytes(), &document.signature).map_err(|error| refused(error.to_string()))?;
    let Format { format } = serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
    if !(MANIFEST_FORMAT_MIN..=MANIFEST_FORMAT).contains(&format) {
        let readable = format!("{MANIFEST_FORMAT_MIN} to {MANIFEST_FORMAT}");
        return Err(refused(format!("its format is {format}, and this daemon reads {readable}")));
    }
    let manifest: Manifest = serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
    belongs(&manifest, reference)?;
    Ok(manifest)
}

fn belongs(manifest: &Manifest, reference: BackupRef) -> Result<(), Error> {
    let found = BackupRef { tenant: manifest.tenant_id, backup: manifest.backup_id };
    if found != reference {
        return Err(Error::Manifest {
            reason: format!("it belongs to the backup {} of the tenant {}", found.backup, found.tenant),
        });
    }
    if manifest.archive.key != reference.keys().archive {
        return Err(Error::Manifest { reason: "it names another backup's archive".to_owned() });
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::backup::{Archive, Extension, SequenceRange, TableDigest};
    use crate::domain::tenant::DatabaseName;
    use crate::secrets::keys_new;

    pub(in crate::backup) fn sample(reference: BackupRef) -> Manifest {
        Manifest {
            format: MANIFEST_FORMAT,
            backup_id: reference.backup,
            operation_id: Uuid::from_u128(3),
            catalog_id: Uuid::from_u128(4),
            tenant_id: reference.tenant,
            tenant_code: "acme".parse().unwrap(),
            database: DatabaseName::new("erp_acme").unwrap(),
            snapshot_time: time::OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap(),
            server_version: "15.18 (Debian 15.18-0+deb12u1)".to_owned(),
            server_version_num: 150_018,
            dump_version: "15.18".to_owned(),
            schema_version: 4,
            schema_fingerprint: "f00d".to_owned(),
            encoding: "UTF8".to_owned(),
            collate: "C.UTF-8".to_owned(),
            ctype: "C.UTF-8".to_owned(),
            extensions: vec![Extension { name: "plpgsql".into(), version: "1.0".into(), schema: "pg_catalog".into() }],
            tables: vec![TableDigest {
                schema: "public".into(),
                name: "a \"quoted\"\nname é".into(),
                row_count: 2,
                digest: "-12".into(),
            }],
            privileges: None,
            sequences: vec![SequenceRange { schema: "public".into(), name: "s".into(), low: Some(1), high: Some(2) }],
            archive: Archive { key: reference.keys().archive, bytes: 10, sha256: "00".into(), dump_bytes: 20 },
        }
    }

    fn reference() -> BackupRef {
        BackupRef { tenant: TenantId(Uuid::from_u128(1)), backup: Uuid::from_u128(2) }
    }

    fn signer() -> ManifestSigner {
        ManifestSigner::new(&keys_new().manifest_signing_key).unwrap()
    }

    #[test]
    fn a_manifest_reads_back_as_it_was_written() {
        let (signer, manifest) = (signer(), sample(reference()));
        let document = document_write(&signer, &manifest).unwrap();
        assert_eq!(document_read(&signer, reference(), &document).unwrap(), manifest);
    }

    #[test]
    fn a_manifest_cut_or_changed_anywhere_is_refused() {
        let (signer, manifest) = (signer(), sample(reference()));
        let document = document_write(&signer, &manifest).unwrap();
        for position in 0..document.len() {
            assert!(document_read(&signer, reference(), &document[..position]).is_err(), "cut at {position}");
        }
        // Checking a signature takes milliseconds here, so not every bit has its turn.
        for position in (0..document.len()).step_by(3) {
            let mut changed = document.to_vec();
            changed[position] ^= 1 << (position % 8);
            assert!(document_read(&signer, reference(), &changed).is_err(), "byte {position}");
        }
    }

    #[test]
    fn another_keys_signature_another_backup_and_another_format_are_refused() {
        let signer = signer();
        let document = document_write(&signer, &sample(reference())).unwrap();
        assert!(document_read(&self::signer(), reference(), &document).is_err());
        let other_backup = BackupRef { backup: Uuid::from_u128(9), ..reference() };
        let other_tenant = BackupRef { tenant: TenantId(Uuid::from_u128(9)), ..reference() };
        for other in [other_backup, other_tenant] {
            let error = document_read(&signer, other, &document).unwrap_err().to_string();
            assert!(error.contains("belongs to the backup"), "{error}");
        }
        let older = Manifest { format: MANIFEST_FORMAT_MIN, ..sample(reference()) };
        assert_eq!(document_read(&signer, reference(), &document_write(&signer, &older).unwrap()).unwrap(), older);
        let newer = Manifest { format: MANIFEST_FORMAT + 1, ..sample(reference()) };
        let error = document_read(&signer, reference(), &document_write(&signer, &newer).unwrap()).unwrap_err();
        assert!(error.to_string().contains("format"), "{error}");
    }
}
