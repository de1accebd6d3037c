//! Making operations: every field of the request is checked, and the operation is written in one transaction with
//! what it reserves. A repeated request id answers with the operation that it made the first time.

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::contents;
use super::create_tenant::{self, Administrator};
use super::error::BadField;
use super::suspend_tenant;
use super::{Error, Operations, backup, kinds};
use crate::catalog::{Backup, Created, NewOperation, NewTenant, Operation, Tenant, TenantRef, Txn};
use crate::domain::lifecycle::{IllegalTransition, TenantState, Transition};
use crate::domain::operation::{OperationId, OperationKind};
use crate::domain::tenant::{TenantCode, TenantId};
use crate::domain::text;
use crate::domain::tier::TIER_DEFAULT;
use crate::migrator::Directory;

/// What every mutation says about itself.
#[derive(Debug, Clone)]
pub struct Request {
    /// The caller's idempotency key.
    pub request_id: Option<Uuid>,
    pub validate_only: bool,
    /// The principal's name.
    pub caller: String,
}

/// A tenant to be created, as the caller wrote it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CreateTenant {
    pub code: String,
    pub name: String,
    pub tier: String,
    pub sample_data: bool,
    /// E-mail address, first and last name.
    pub administrator: Option<(String, String, String)>,
    pub hosts: Vec<String>,
    pub legal_name: String,
    pub siret: String,
    pub vat_number: String,
}

/// Where a backup is restored to.
#[derive(Debug, Clone, Serialize)]
pub enum RestoreTarget {
    InPlace,
    /// A new tenant of this code.
    New(String),
}

/// What will be an operation's row.
pub(super) struct Draft {
    kind: OperationKind,
    tenant: Option<(TenantId, TenantCode)>,
    request_id: Uuid,
    request_hash: Vec<u8>,
    created_by: String,
    input: Value,
}

/// An operation that was made now, or earlier by the same request id; none when only validated.
pub type Submitted = Option<Operation>;

impl Operations {
    /// Reserves the code and begins to create the tenant.
    pub async fn create_tenant(&self, request: &Request, input: CreateTenant) -> Result<Submitted, Error> {
        let hash = hash_of("create_tenant", &input)?;
        self.or_earlier(request, &hash, self.tenant_creation(request, &hash, input)).await
    }

    async fn tenant_creation(&self, request: &Request, hash: &[u8], input: CreateTenant) -> Result<Submitted, Error> {
        let tenant = self.new_tenant(&input)?;
        let files = Directory::read(&self.parts.config.tenant_migrations_dir)?.files;
        let administrator =
            input.administrator.map(|(email, first_name, last_name)| Administrator { email, first_name, last_name });
        let stored = create_tenant::Input { files, sample_data: input.sample_data, administrator };
        let draft = Self::draft(OperationKind::CreateTenant, request, hash.to_vec(), &stored)?;
        self.submit_with_tenant(request, draft, tenant).await
    }

    /// Closes the tenant's route.
    pub async fn suspend_tenant(&self, request: &Request, tenant: &str, reason: &str) -> Result<Submitted, Error> {
        if reason.trim().is_empty() {
            return Err(Error::Invalid(vec![BadField::new("reason", "a suspension needs one")]));
        }
        let input = suspend_tenant::Input { reason: reason.to_owned() };
        self.submit_transition(request, tenant, OperationKind::SuspendTenant, Transition::Suspend, &input).await
    }

    /// Opens it again.
    pub async fn resume_tenant(&self, request: &Request, tenant: &str) -> Result<Submitted, Error> {
        let input = suspend_tenant::Input { reason: String::new() };
        self.submit_transition(request, tenant, OperationKind::ResumeTenant, Transition::Resume, &input).await
    }

    /// Begins to back the tenant up.
    pub async fn backup_create(&self, request: &Request, tenant: &str) -> Result<Submitted, Error> {
        let row = self.tenant(tenant).await?;
        let hash = hash_of("backup", &row.id)?;
        let begun = async {
            in_states(&row, "be backed up", &[TenantState::Active, TenantState::Suspended, TenantState::Maintenance])?;
            let input = backup::Input { backup_id: Uuid::now_v7() };
            let draft = Self::draft(OperationKind::Backup, request, hash.clone(), &input)?;
            self.submit_on_tenant(request, draft, &row).await
        };
        self.or_earlier(request, &hash, begun).await
    }

    /// Begins to restore.
    pub async fn restore(
        &self,
        request: &Request,
        backup_id: Uuid,
        target: &RestoreTarget,
        reason: &str,
    ) -> Result<Submitted, Error> {
        let hash = hash_of("restore", &(backup_id, target))?;
        self.or_earlier(request, &hash, self.restoration(request, &hash, backup_id, target, reason)).await
    }

    async fn restoration(
        &self,
        request: &Request,
        hash: &[u8],
        backup_id: Uuid,
        target: &RestoreTarget,
        reason: &str,
    ) -> Result<Submitted, Error> {
        let source = self.parts.catalog.backup_get(backup_id).await?;
        let input = contents::Input { backup_id, reason: reason.to_owned() };
        match target {
            RestoreTarget::InPlace => {
                if reason.trim().is_empty() {
                    return Err(Error::Invalid(vec![BadField::new("reason", "a restore in place needs one")]));
                }
                let row = self.parts.catalog.tenant_get(&TenantRef::Id(source.tenant)).await?;
                in_states(&row, "be restored in place", &[TenantState::Active])?;
                self.restorable(request, &source, &row.server).await?;
                let draft = Self::draft(OperationKind::RestoreInPlace, request, hash.to_vec(), &input)?;
                self.submit_on_tenant(request, draft, &row).await
            }
            RestoreTarget::New(code) => {
                let from = self.parts.catalog.tenant_get(&TenantRef::Id(source.tenant)).await?;
                let wish = CreateTenant {
                    code: code.clone(),
                    name: from.name.clone(),
                    tier: from.tier.clone(),
                    legal_name: from.legal_name.unwrap_or_default(),
                    siret: from.siret.unwrap_or_default(),
                    vat_number: from.vat_number.unwrap_or_default(),
                    ..CreateTenant::default()
                };
                let tenant = self.new_tenant(&wish).map_err(|error| rename_field(error, "code", "new_code"))?;
                self.restorable(request, &source, &tenant.server).await?;
                let draft = Self::draft(OperationKind::RestoreAsNew, request, hash.to_vec(), &input)?;
                self.submit_with_tenant(request, draft, tenant).await
            }
        }
    }

    /// What the operation's first step looks at, for who only asks.
    async fn restorable(&self, request: &Request, backup: &Backup, server: &str) -> Result<(), Error> {
        if request.validate_only {
            contents::restorable(&self.parts, backup, self.parts.server(server)?).await?;
        }
        Ok(())
    }

    /// Checks every field; nothing is reserved yet.
    fn new_tenant(&self, input: &CreateTenant) -> Result<NewTenant, Error> {
        let config = &self.parts.config;
        let mut bad = Vec::new();
        let code = match input.code.parse::<TenantCode>() {
            Ok(code) => Some(code),
            Err(error) => {
                bad.push(BadField::new("code", error.to_string()));
                None
            }
        };
        let database = code.as_ref().and_then(|code| match config.naming.tenant_database(code) {
            Ok(database) => Some(database),
            Err(error) => {
                bad.push(BadField::new("code", error.to_string()));
                None
            }
        });
        let name = input.name.trim();
        if name.is_empty() || name.chars().count() > 255 {
            bad.push(BadField::new("name", "1 to 255 characters are needed"));
        }
        let tier = if input.tier.is_empty() { TIER_DEFAULT } else { &input.tier };
        let limits = self.parts.live.current();
        let tiers = &limits.tiers;
        if !tiers.contains_key(tier) {
            let known = tiers.keys().cloned().collect::<Vec<_>>().join(", ");
            bad.push(BadField::new("tier", format!("{tier:?} is none of {known}")));
        }
        if !input.siret.is_empty() && !is_siret(&input.siret) {
            bad.push(BadField::new("siret", "14 digits are needed"));
        }
        if let Some((email, ..)) = &input.administrator
            && !text::is_email(email)
        {
            bad.push(BadField::new("administrator.email", format!("{email:?} is no e-mail address")));
        }
        let mut hosts = Vec::new();
        for host in &input.hosts {
            match limits.own_hosts.tenant_host(host) {
                Ok(host) if hosts.contains(&host) => {
                    bad.push(BadField::new("hosts", format!("{host} is there twice")));
                }
                Ok(host) => hosts.push(host),
                Err(error) => bad.push(BadField::new("hosts", error.to_string())),
            }
        }
        match (code, database) {
            (Some(code), Some(database)) if bad.is_empty() => {
                let optional = |text: &str| (!text.is_empty()).then(|| text.to_owned());
                let tenant = NewTenant {
                    id: TenantId(Uuid::now_v7()),
                    code,
                    name: name.to_owned(),
                    legal_name: optional(&input.legal_name),
                    siret: optional(&input.siret),
                    vat_number: optional(&input.vat_number),
                    tier: tier.to_owned(),
                    server: config.servers.first().map_or_else(String::new, |server| server.name.clone()),
                    database,
                    hosts,
                };
                Ok(tenant)
            }
            _ => Err(Error::Invalid(bad)),
        }
    }

    pub(super) async fn tenant(&self, tenant: &str) -> Result<Tenant, Error> {
        let unknown = || crate::catalog::Error::TenantUnknown { tenant: tenant.to_owned() };
        let wanted = match Uuid::parse_str(tenant) {
            Ok(id) => TenantRef::Id(TenantId(id)),
            Err(_) => TenantRef::Code(tenant.parse().map_err(|_| unknown())?),
        };
        Ok(self.parts.catalog.tenant_get(&wanted).await?)
    }

    pub(super) fn draft(
        kind: OperationKind,
        request: &Request,
        request_hash: Vec<u8>,
        input: &impl Serialize,
    ) -> Result<Draft, Error> {
        Ok(Draft {
            kind,
            tenant: None,
            request_id: request.request_id.unwrap_or_else(Uuid::now_v7),
            request_hash,
            created_by: request.caller.clone(),
            input: serde_json::to_value(input)?,
        })
    }

    /// Writes the operation's row.
    pub(super) async fn create_in_txn(&self, txn: &Txn, draft: Draft) -> Result<Created, Error> {
        let (tenant, tenant_code) = draft.tenant.unzip();
        let new = NewOperation {
            id: OperationId(Uuid::now_v7()),
            kind: draft.kind,
            tenant,
            tenant_code,
            request_id: draft.request_id,
            request_hash: &draft.request_hash,
            created_by: &draft.created_by,
            input: draft.input,
            steps: &kinds::step_names(draft.kind),
        };
        Ok(self.parts.catalog.operation_create_in_txn(txn, &new).await?)
    }

    async fn submit_transition(
        &self,
        request: &Request,
        tenant: &str,
        kind: OperationKind,
        transition: Transition,
        input: &(impl Serialize + Sync),
    ) -> Result<Submitted, Error> {
        let row = self.tenant(tenant).await?;
        let hash = hash_of(kind.name(), &(row.id, input))?;
        let begun = async {
            row.state.after(transition)?;
            let draft = Self::draft(kind, request, hash.clone(), input)?;
            self.submit_on_tenant(request, draft, &row).await
        };
        self.or_earlier(request, &hash, begun).await
    }

    /// What the same request made before, or else what `begin` makes. The request itself changes what is allowed next,
    /// so it is asked for first; and again after a refusal, because the same request may be on its way twice.
    async fn or_earlier(
        &self,
        request: &Request,
        hash: &[u8],
        begin: impl Future<Output = Result<Submitted, Error>> + Send,
    ) -> Result<Submitted, Error> {
        if let Some(earlier) = self.replay(request, hash).await? {
            return Ok(Some(earlier));
        }
        match begin.await {
            Err(refused) => match self.replay(request, hash).await {
                Ok(Some(earlier)) => Ok(Some(earlier)),
                _ => Err(refused),
            },
            begun => begun,
        }
    }

    /// What the same request id made before: asked first where the request itself changes what is allowed next.
    pub(super) async fn replay(&self, request: &Request, hash: &[u8]) -> Result<Submitted, Error> {
        match request.request_id {
            Some(id) => Ok(self.parts.catalog.operation_by_request(id, hash).await?),
            None => Ok(None),
        }
    }

    async fn submit_on_tenant(&self, request: &Request, mut draft: Draft, tenant: &Tenant) -> Result<Submitted, Error> {
        if request.validate_only {
            return Ok(None);
        }
        draft.tenant = Some((tenant.id, tenant.code.clone()));
        let txn = self.parts.catalog.begin().await?;
        let created = self.create_in_txn(&txn, draft).await?;
        txn.commit().await?;
        self.wake.notify_one();
        Ok(Some(created.into_operation()))
    }

    /// The tenant's row and the operation that fills it, in one transaction.
    async fn submit_with_tenant(
        &self,
        request: &Request,
        mut draft: Draft,
        tenant: NewTenant,
    ) -> Result<Submitted, Error> {
        let catalog = &self.parts.catalog;
        if request.validate_only {
            // Rolled back: only whether it could be reserved is asked.
            let txn = catalog.begin().await?;
            catalog.tenant_reserve_in_txn(&txn, &tenant).await?;
            return Ok(None);
        }
        draft.tenant = Some((tenant.id, tenant.code.clone()));
        let txn = catalog.begin().await?;
        catalog.tenant_reserve_in_txn(&txn, &tenant).await?;
        let created = self.create_in_txn(&txn, draft).await?;
        txn.commit().await?;
        self.wake.notify_one();
        Ok(Some(created.into_operation()))
    }
}

pub(super) fn in_states(tenant: &Tenant, verb: &'static str, allowed: &[TenantState]) -> Result<(), Error> {
    if allowed.contains(&tenant.state) {
        return Ok(());
    }
    Err(IllegalTransition { state: tenant.state, verb, allowed: allowed.to_vec() }.into())
}

fn rename_field(error: Error, from: &str, to: &'static str) -> Error {
    match error {
        Error::Invalid(mut fields) => {
            fields.iter_mut().filter(|bad| bad.field == from).for_each(|bad| bad.field = to);
            Error::Invalid(fields)
        }
        other => other,
    }
}

/// What a request asks for, so that a request id is not used for something else.
pub(super) fn hash_of(kind: &str, input: &impl Serialize) -> Result<Vec<u8>, Error> {
    Ok(Sha256::digest(serde_json::to_vec(&(kind, input))?).to_vec())
}

/// A SIRET has 14 digits.
fn is_siret(text: &str) -> bool {
    text.len() == 14 && text.bytes().all(|byte| byte.is_ascii_digit())
}
