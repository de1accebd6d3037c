//! `tenantd resolve`: where a tenant is, by its code, its id or one of its host names.

use uuid::Uuid;

use super::connection::request;
use super::error::Error;
use super::table::record;
use super::{Context, human, routes};
use crate::proto::v1::resolve_tenant_request::Selector;
use crate::proto::v1::{ResolveTenantRequest, Route};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A tenant's code or id, or a host name (with a dot, as acme.example.com).
    #[arg(value_name = "TENANT|HOST")]
    tenant: String,
    /// Show the tenant's own login too, its password included.
    #[arg(long)]
    credentials: bool,
    /// Show the route again whenever it changes, until Ctrl-C.
    #[arg(long, conflicts_with = "credentials")]
    watch: bool,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<(), Error> {
    let message =
        ResolveTenantRequest { include_credentials: arguments.credentials, selector: Some(selector(arguments.tenant)) };
    let connection = context.connect().await?;
    let answer = connection.router().resolve_tenant(request(message)).await?.into_inner();
    let route = answer.route.as_ref().ok_or(Error::Incomplete("route"))?;
    if let (true, Some(age)) = (answer.stale, answer.age) {
        let age = human::duration(std::time::Duration::try_from(age).unwrap_or_default());
        context.output.note(&format!("  the shared database is away; this is what the daemon knew {age} ago"));
    }
    if !arguments.watch {
        return context.output.answer(&answer, || text(route));
    }
    let mut shown = None;
    routes::follow(context, &connection, None, |message| {
        if let Some(removed) = message.removed_routes.iter().find(|removed| removed.tenant_id == route.tenant_id) {
            context.output.note(&format!("  the tenant {} is no more", removed.code));
        }
        match message.routes.into_iter().rfind(|changed| changed.tenant_id == route.tenant_id) {
            Some(changed) if shown.as_ref() != Some(&changed) => {
                context.output.answer(&changed, || format!("{}\n", text(&changed)))?;
                shown = Some(changed);
            }
            _ => {}
        }
        Ok(())
    })
    .await
}

/// Codes have no dots, colons or hyphens; ids and host names do.
fn selector(text: String) -> Selector {
    if text.parse::<Uuid>().is_ok() {
        Selector::TenantId(text)
    } else if text.contains(['.', ':']) {
        Selector::Host(text)
    } else {
        Selector::Code(text)
    }
}

fn text(route: &Route) -> String {
    record(&[
        ("Tenant", route.code.clone()),
        ("Id", route.tenant_id.clone()),
        ("State", human::state(route.state().as_str_name(), "TENANT_STATE_")),
        ("Tier", route.tier.clone()),
        ("Server", format!("{} ({}:{})", route.server, route.host, route.port)),
        ("Database", route.database.clone()),
        ("Role", route.role.clone()),
        ("Schema version", route.schema_version.to_string()),
        ("Epoch", route.epoch.to_string()),
        ("URL", route.url.clone()),
        ("Password", route.password.clone()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_tells_what_is_meant() {
        assert_eq!(selector("acme".to_owned()), Selector::Code("acme".to_owned()));
        assert_eq!(selector("acme.example.com".to_owned()), Selector::Host("acme.example.com".to_owned()));
        assert_eq!(selector("localhost:80".to_owned()), Selector::Host("localhost:80".to_owned()));
        let id = "0193f3a0-0000-7000-8000-000000000001".to_owned();
        assert_eq!(selector(id.clone()), Selector::TenantId(id));
    }
}
