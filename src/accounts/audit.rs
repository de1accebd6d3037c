//! The audit log: rows are appended, and nothing here changes or removes one. The chain of hashes is not filled in
//! here: whoever chains does it in the order of the rows.

use std::net::IpAddr;

use sea_query::{Expr, ExprTrait as _};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Accounts;
use super::errors::Error;
use crate::domain::tenant::TenantId;
use crate::postgres::statement;

/// What became of what was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    Done,
    Denied,
    Failed,
    Disclosed,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Done => "DONE",
            Self::Denied => "DENIED",
            Self::Failed => "FAILED",
            Self::Disclosed => "DISCLOSED",
        }
    }
}

/// Something that has happened. No part of it may hold a secret.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEvent {
    pub occurred_at: OffsetDateTime,
    /// As "api-key:ci".
    pub principal: String,
    pub user: Option<Uuid>,
    pub tenant: Option<TenantId>,
    /// As "RouterService/ResolveTenant".
    pub action: String,
    pub resource_type: &'static str,
    pub resource_id: String,
    pub outcome: Outcome,
    /// The caller's own name for the call.
    pub request_id: Option<Uuid>,
    pub address: Option<IpAddr>,
    pub user_agent: Option<String>,
    pub details: Value,
}

impl Accounts {
    /// Appends all of them, or none.
    pub async fn audit_append(&self, events: &[AuditEvent]) -> Result<(), Error> {
        let txn = self.begin().await?;
        for event in events {
            let row = [
                ("id", Uuid::now_v7().into()),
                ("occurred_at", event.occurred_at.into()),
                ("principal", event.principal.as_str().into()),
                ("user_id", event.user.into()),
                ("tenant_id", event.tenant.map(|tenant| tenant.0).into()),
                ("action", event.action.as_str().into()),
                ("resource_type", event.resource_type.into()),
                ("resource_id", event.resource_id.as_str().into()),
                ("outcome", event.outcome.name().into()),
                ("request_id", event.request_id.into()),
                ("ip_address", Expr::val(event.address.map(|address| address.to_string())).cast_as("inet")),
                ("user_agent", event.user_agent.as_deref().into()),
                ("details", event.details.clone().into()),
            ];
            statement::execute(&txn, &statement::insert("audit_log", row)).await?;
        }
        txn.commit().await?;
        Ok(())
    }
}
