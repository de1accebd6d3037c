//! Which tenant a login on the shared database belongs to: what the policies of the tables there go by.

use sea_query::{Expr, ExprTrait as _, OnConflict};

use super::Catalog;
use super::errors::Error;
use crate::domain::tenant::{RoleName, TenantId};
use crate::postgres::statement;

impl Catalog {
    /// Notes whose login it is. A login of that name before it was another tenant's, who has none any more.
    pub async fn tenant_login_put(&self, tenant: TenantId, login: &RoleName) -> Result<(), Error> {
        let row = [("login", Expr::val(login.as_str()).cast_as("name")), ("tenant_id", tenant.0.into())];
        let insert = statement::insert("tenant_logins", row)
            .on_conflict(OnConflict::column("login").update_column("tenant_id").to_owned())
            .take();
        statement::execute(&self.session().await?, &insert).await?;
        Ok(())
    }
}
