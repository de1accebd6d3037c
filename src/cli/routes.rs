//! `tenantd routes`: where all tenants are, and what becomes of them, as it happens.

use std::fmt::Write as _;

use tonic::Code;

use super::connection::Connection;
use super::error::Error;
use super::wait::{Reconnect, read};
use super::{Context, human};
use crate::proto::v1::{Route, RouteEvent, WatchRoutesRequest, WatchRoutesResponse};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print every route, and then each change, until Ctrl-C.
    Watch(Watch),
}

#[derive(Debug, clap::Args)]
pub struct Watch {
    /// Go on after this revision instead of beginning with all routes; needs --catalog-id.
    #[arg(long, value_name = "REVISION", requires = "catalog_id")]
    after_revision: Option<i64>,
    /// The catalog that the revision is of, as this command has printed it.
    #[arg(long, value_name = "ID")]
    catalog_id: Option<String>,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        let Self::Watch(arguments) = self;
        let connection = context.connect().await?;
        let since = arguments.after_revision.map(|revision| (arguments.catalog_id.unwrap_or_default(), revision));
        follow(context, &connection, since, |message| context.output.answer(&message, || text(&message))).await
    }
}

/// Shows each message of a watch until Ctrl-C. Goes on where it was when the stream breaks, and begins anew when the
/// daemon cannot.
pub async fn follow(
    context: &Context,
    connection: &Connection,
    since: Option<(String, i64)>,
    mut show: impl FnMut(WatchRoutesResponse) -> Result<(), Error>,
) -> Result<(), Error> {
    tokio::select! {
        ended = resume(context, connection, since, &mut show) => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

async fn resume(
    context: &Context,
    connection: &Connection,
    mut since: Option<(String, i64)>,
    show: &mut impl FnMut(WatchRoutesResponse) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut reconnect = Reconnect::default();
    loop {
        let (catalog_id, after_revision) = since.clone().unzip();
        let request = WatchRoutesRequest { after_revision, catalog_id: catalog_id.unwrap_or_default() };
        let mut has_begun = false;
        let broken = match connection.router().watch_routes(request).await {
            Ok(stream) => {
                let shown = |message: WatchRoutesResponse| {
                    has_begun = true;
                    if message.event() != RouteEvent::Snapshot {
                        since = Some((message.catalog_id.clone(), message.revision));
                    }
                    show(message)
                };
                read(stream.into_inner(), &mut reconnect, shown).await?
            }
            Err(status) => Some(status),
        };
        let reason = broken.as_ref().map(tonic_types::StatusExt::get_error_details);
        let reason = reason.as_ref().and_then(|details| details.error_info()).map_or("", |info| info.reason.as_str());
        // Also in the middle of the first snapshot, when the caller reaches more tenants than at its beginning.
        if reason == "REVISION_UNKNOWN" && (since.take().is_some() || has_begun) {
            context.output.note("  the daemon cannot go on from there; every route comes anew");
            continue;
        }
        // A terminal that stood still is no reason to stop.
        let broken = broken.filter(|status| status.code() != Code::Aborted);
        reconnect.pause(broken, |text| context.output.note(text)).await?;
    }
}

fn text(message: &WatchRoutesResponse) -> String {
    let mut text = String::new();
    for route in &message.routes {
        let _infallible = writeln!(text, "{}", line(route));
    }
    for removed in &message.removed_routes {
        let _infallible = writeln!(text, "{}  removed", removed.code);
    }
    if message.event() == RouteEvent::SnapshotEnd {
        let (catalog, revision) = (&message.catalog_id, message.revision);
        let _infallible = writeln!(text, "-- all routes at revision {revision} of the catalog {catalog}");
    }
    text
}

fn line(route: &Route) -> String {
    let state = human::state(route.state().as_str_name(), "TENANT_STATE_");
    let (code, epoch, url) = (&route.code, route.epoch, &route.url);
    format!("{code}  {state}  epoch {epoch}  {url}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::{RemovedRoute, TenantState};

    #[test]
    fn a_change_is_a_line() {
        let route = Route {
            code: "acme".to_owned(),
            state: TenantState::Suspended.into(),
            epoch: 4,
            url: "postgresql://erp_acme__a@db1:5432/erp_acme".to_owned(),
            ..Route::default()
        };
        let message = WatchRoutesResponse {
            event: RouteEvent::SnapshotEnd.into(),
            catalog_id: "0193".to_owned(),
            revision: 17,
            routes: vec![route],
            removed_routes: vec![RemovedRoute { tenant_id: String::new(), code: "beta".to_owned() }],
        };
        insta::assert_snapshot!(text(&message), @r"
        acme  SUSPENDED  epoch 4  postgresql://erp_acme__a@db1:5432/erp_acme
        beta  removed
        -- all routes at revision 17 of the catalog 0193
        ");
    }
}
