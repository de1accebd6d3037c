//! `tenantd whoami`.

use super::Context;
use super::connection::request;
use super::error::Error;
use super::table::record;
use crate::proto::v1::{WhoAmIRequest, WhoAmIResponse};

pub async fn run(context: &Context) -> Result<(), Error> {
    let mut access = context.connect().await?.access();
    let answer = access.who_am_i(request(WhoAmIRequest {})).await?.into_inner();
    context.output.answer(&answer, || text(&answer))
}

fn text(answer: &WhoAmIResponse) -> String {
    let tenants = match answer.tenants.as_slice() {
        [] if answer.all_tenants => "all".to_owned(),
        [] => "none".to_owned(),
        codes => codes.join(", "),
    };
    record(&[
        ("Principal", answer.principal.clone()),
        ("Roles", answer.roles.join(", ")),
        ("Tenants", tenants),
        ("Default tenant", answer.default_tenant.clone()),
        ("User", answer.user_id.clone()),
    ])
}
