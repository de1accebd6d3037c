//! What the audit log says of a call that was let in: who made it, from where, and what it is about to do or to show.
//! Written before it happens; without that it does not.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;
use time::OffsetDateTime;
use tonic::{Request, Status};
use uuid::Uuid;

use super::auth;
use super::peer::Peer;
use crate::accounts::{AuditEvent, Outcome};
use crate::domain::principal::Principal;
use crate::domain::tenant::TenantId;

const USER_AGENT_CHARACTERS_MAX: usize = 200;

/// Who calls, and from where.
pub(super) struct Author {
    principal: Arc<Principal>,
    address: Option<IpAddr>,
    user_agent: Option<String>,
}

/// What a call does, to what.
pub(super) struct Deed {
    /// As `RouterService/EvictPool`.
    pub(super) action: &'static str,
    pub(super) tenant: Option<TenantId>,
    pub(super) resource_type: &'static str,
    pub(super) resource_id: String,
    pub(super) request_id: Option<Uuid>,
    pub(super) details: Value,
}

impl Author {
    pub(super) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let agent = request.metadata().get("user-agent").and_then(|agent| agent.to_str().ok());
        Ok(Self {
            principal: auth::caller(request)?,
            address: Peer::of(request.extensions()).address,
            user_agent: agent.map(|agent| agent.chars().take(USER_AGENT_CHARACTERS_MAX).collect()),
        })
    }

    pub(super) fn event(&self, deed: Deed, outcome: Outcome) -> AuditEvent {
        AuditEvent {
            occurred_at: OffsetDateTime::now_utc(),
            principal: self.principal.name.clone(),
            user: self.principal.user,
            tenant: deed.tenant,
            action: deed.action.to_owned(),
            resource_type: deed.resource_type,
            resource_id: deed.resource_id,
            outcome,
            request_id: deed.request_id,
            address: self.address,
            user_agent: self.user_agent.clone(),
            details: deed.details,
        }
    }
}
