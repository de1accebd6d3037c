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
    record(&[
        ("Principal", answer.principal.clone()),
        ("Roles", answer.roles.join(", ")),
        ("Tenants", if answer.tenants.is_empty() { "all".to_owned() } else { answer.tenants.join(", ") }),
    ])
}
