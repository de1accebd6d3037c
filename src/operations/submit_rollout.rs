//! Making a rollout: the directory is read whole, and what the catalog knows of each tenant decides who must be opened.
//! A fleet in order is answered from the catalog alone.

use serde_json::Value;

use super::submit::{Request, Submitted, hash_of, in_states};
use super::{BadField, Error, Operations};
use crate::catalog::{Created, NewRollout, NewTarget, Tenant};
use crate::domain::lifecycle::TenantState;
use crate::domain::migration::{Standing, TargetState, standing};
use crate::domain::operation::OperationKind;
use crate::domain::tenant::TenantId;
use crate::migrator::{Directory, FilesHashes, GateError};

/// What a rollout is to do.
#[derive(Debug)]
pub struct RolloutRequest<'a> {
    /// How many tenants may fail before no further one is begun.
    pub failures_max: i32,
    /// Ids or codes; all when empty.
    pub tenants: &'a [String],
    /// Every database is asked for its version.
    pub verify: bool,
    /// Each tenant is paused while it is migrated.
    pub pause: bool,
}

impl RolloutRequest<'_> {
    /// As it was before there were pauses, unless it pauses: a request may be repeated after an upgrade.
    fn hash(&self) -> Result<Vec<u8>, Error> {
        let Self { failures_max, tenants, verify, pause } = *self;
        if pause {
            return hash_of("migrate_fleet", &(failures_max, tenants, verify, pause));
        }
        hash_of("migrate_fleet", &(failures_max, tenants, verify))
    }
}

impl Operations {
    /// Reads the directory, finds who is behind or has got other files, and begins to migrate them. Answers with the
    /// operation, whose id is the rollout's.
    pub async fn rollout_create(&self, request: &Request, rollout: &RolloutRequest<'_>) -> Result<Submitted, Error> {
        if rollout.failures_max < 0 {
            return Err(Error::Invalid(vec![BadField::new("max_failures", "may not be negative")]));
        }
        let hash = rollout.hash()?;
        // A repeated request has its answer whatever has become of the directory.
        if !request.validate_only
            && let Some(earlier) = self.replay(request, &hash).await?
        {
            return Ok(Some(earlier));
        }
        let directory = Directory::read(&self.parts.config.tenant_migrations_dir)?;
        let fleet = self.migratable(rollout.tenants).await?;
        self.mounted(&directory, &fleet)?;
        if request.validate_only {
            return Ok(None);
        }
        let targets = plan(&directory, fleet, rollout.verify);
        let draft = Self::draft(OperationKind::MigrateFleet, request, hash, &Value::Null)?;
        let catalog = &self.parts.catalog;
        // Whoever holds a session here asks for no second one: callers who did would wait for each other.
        let txn = catalog.begin().await?;
        let row = match self.create_in_txn(&txn, draft).await? {
            Created::Earlier(row) => return Ok(Some(row)),
            Created::New(row) => row,
        };
        let new = NewRollout {
            id: row.id,
            files: &directory.files,
            directory_hash: &directory.hash,
            target_version: directory.version(),
            failures_max: rollout.failures_max,
            pause: rollout.pause,
            targets: &targets,
        };
        catalog.rollout_create_in_txn(&txn, &new).await?;
        txn.commit().await?;
        self.wake.notify_one();
        Ok(Some(row))
    }

    /// The chosen tenants, or all that have a database or are about to have one.
    async fn migratable(&self, chosen: &[String]) -> Result<Vec<Tenant>, Error> {
        let states: Vec<_> = [TenantState::Provisioning].into_iter().chain(TenantState::MIGRATABLE).collect();
        let mut ids: Vec<TenantId> = Vec::new();
        for tenant in chosen {
            let row = self.tenant(tenant).await?;
            in_states(&row, "be migrated", &states)?;
            ids.push(row.id);
        }
        let all = self.parts.catalog.tenant_all().await?;
        let wanted = |tenant: &Tenant| chosen.is_empty() || ids.contains(&tenant.id);
        Ok(all.into_iter().filter(|tenant| states.contains(&tenant.state) && wanted(tenant)).collect())
    }

    /// A directory without a file, where there were some, is a volume that is not there.
    fn mounted(&self, directory: &Directory, fleet: &[Tenant]) -> Result<(), GateError> {
        match fleet.iter().find(|tenant| tenant.schema_version > 0) {
            Some(tenant) if directory.files.is_empty() => Err(GateError::Empty {
                path: self.parts.config.tenant_migrations_dir.clone(),
                tenant: tenant.code.clone(),
                version: tenant.schema_version,
            }),
            _ => Ok(()),
        }
    }
}

/// What each tenant is in the rollout, as far as the catalog can tell.
fn plan(directory: &Directory, fleet: Vec<Tenant>, verify: bool) -> Vec<NewTarget> {
    let expected = FilesHashes::of(&directory.files);
    let target = |tenant: Tenant| {
        let has_expected = tenant.schema_files_hash.as_deref() == Some(expected.up_to(tenant.schema_version));
        let state = match standing(tenant.schema_version, directory.version()) {
            _ if verify || tenant.state == TenantState::Provisioning => TargetState::Pending,
            Standing::Ahead => TargetState::Ahead,
            Standing::Current if has_expected => TargetState::Current,
            // Its database says which file is another one.
            Standing::Current | Standing::Behind => TargetState::Pending,
        };
        NewTarget { tenant: tenant.id, code: tenant.code, state, from_version: tenant.schema_version }
    };
    fleet.into_iter().map(target).collect()
}
