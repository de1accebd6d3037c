//! People, and their roles in tenants.

use sea_query::{Expr, ExprTrait as _, OnConflict, Query};
use uuid::Uuid;

use super::Accounts;
use super::errors::Error;
use crate::domain::tenant::TenantId;
use crate::postgres::statement::{self, Run};

/// The role of a tenant's first administrator.
const OWNER: &str = "OWNER";

/// A tenant's first administrator.
#[derive(Debug, Clone)]
pub struct NewOwner<'a> {
    pub email: &'a str,
    pub first_name: &'a str,
    pub last_name: &'a str,
}

impl Accounts {
    /// Makes a person the tenant's owner: a new user, or the one who has this address already, whose names stay.
    /// Answers with the user's id. The same again is fine.
    pub async fn user_upsert_owner_in(&self, tenant: TenantId, owner: &NewOwner<'_>) -> Result<Uuid, Error> {
        let email = address(owner.email)?;
        let txn = self.begin().await?;
        let user = user_upsert(&txn, &email, owner).await?;
        let role = role_id(&txn, OWNER).await?;
        let row = [("user_id", user.into()), ("tenant_id", tenant.0.into()), ("role_id", role.into())];
        let grant = statement::insert("user_tenant_roles", row)
            .on_conflict(OnConflict::columns(["user_id", "tenant_id"]).update_column("role_id").to_owned())
            .take();
        statement::execute(&txn, &grant).await?;
        txn.commit().await?;
        Ok(user)
    }

    /// Takes every role in the tenant away, and deletes the users who are then in no tenant and have never signed in:
    /// the undo of [`Accounts::user_upsert_owner_in`]. Answers with the number of roles.
    pub async fn user_tenant_roles_delete(&self, tenant: TenantId) -> Result<u64, Error> {
        let txn = self.begin().await?;
        let delete = Query::delete()
            .from_table("user_tenant_roles")
            .and_where(Expr::col("tenant_id").eq(tenant.0))
            .returning_col("user_id")
            .take();
        let rows = statement::rows(&txn, &delete).await?;
        let users: Vec<Uuid> = rows.iter().map(|row| row.try_get("user_id")).collect::<Result<_, _>>()?;
        if !users.is_empty() {
            let elsewhere = Query::select().column("user_id").from("user_tenant_roles").take();
            let signed_in = Query::select().column("user_id").from("sessions").take();
            let orphans = Query::delete()
                .from_table("users")
                .and_where(Expr::col("id").is_in(users))
                .and_where(Expr::col("password_hash").is_null())
                .and_where(Expr::col("id").not_in_subquery(elsewhere))
                .and_where(Expr::col("id").not_in_subquery(signed_in))
                .take();
            statement::execute(&txn, &orphans).await?;
        }
        txn.commit().await?;
        Ok(rows.len() as u64)
    }
}

/// The address as it is kept. What an address may look like is the mail system's business; this refuses what cannot be
/// one.
fn address(email: &str) -> Result<String, Error> {
    let email = email.trim().to_lowercase();
    let parts = email.split_once('@');
    let good = parts.is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty() && !domain.contains('@'))
        && !email.chars().any(|c| c.is_whitespace() || c.is_control());
    if good { Ok(email) } else { Err(Error::EmailInvalid(email)) }
}

async fn user_upsert(on: &impl Run, email: &str, owner: &NewOwner<'_>) -> Result<Uuid, Error> {
    let row = [
        ("id", Uuid::now_v7().into()),
        ("email", email.into()),
        ("first_name", owner.first_name.into()),
        ("last_name", owner.last_name.into()),
    ];
    // An update to the same value, because only then there is a row to return.
    let upsert = statement::insert("users", row)
        .on_conflict(OnConflict::column("email").update_column("email").to_owned())
        .returning_col("id")
        .take();
    let row = statement::row(on, &upsert).await?.ok_or_else(|| Error::EmailInvalid(email.to_owned()))?;
    Ok(row.try_get("id")?)
}

async fn role_id(on: &impl Run, role: &'static str) -> Result<Uuid, Error> {
    let select = Query::select().column("id").from("roles").and_where(Expr::col("name").eq(role)).take();
    let row = statement::row(on, &select).await?.ok_or(Error::RoleUnknown { role })?;
    Ok(row.try_get("id")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_kept_in_lower_case() {
        assert_eq!(address(" Ada@Example.COM ").unwrap(), "ada@example.com");
        for bad in ["", "ada", "@example.com", "ada@", "a@b@c", "a b@c"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
