//! `tenantd tenant`: the tenants' life cycle.

use super::connection::{Connection, request};
use super::error::Error;
use super::mutation::{Mutation, Wait};
use super::pages::{self, Limit};
use super::settle::{Settled, settle};
use super::table::{Column, list, record};
use super::{Context, human, pool, tenant_host};
use crate::proto::v1::{
    CreateTenantRequest, GetTenantRequest, GetTenantResponse, ListTenantsRequest, ListTenantsResponse,
    ResumeTenantRequest, ResumeTenantResponse, SuspendTenantRequest, SuspendTenantResponse, Tenant,
    TenantAdministrator, TenantState,
};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Create a tenant with its own database.
    Create(Box<Create>),
    /// One tenant.
    Get {
        /// A tenant's id or code.
        tenant: String,
    },
    /// Tenants by code.
    List(List),
    /// Close a tenant's route, end its sessions and lock its logins. Its data stays.
    Suspend(Suspend),
    /// Undo a suspension.
    Resume(Resume),
    /// What happened to a tenant's callers since the daemon began: waits, connects, refusals.
    Stats {
        /// A tenant's id or code.
        tenant: String,
    },
    /// Give a tenant host names, and take them away.
    #[command(subcommand)]
    Host(tenant_host::Command),
}

#[derive(Debug, clap::Args)]
pub struct Create {
    /// Lower-case letters, digits and single underscores, beginning with a letter.
    code: String,
    /// The customer's name.
    #[arg(long)]
    name: String,
    /// free, standard, premium or enterprise, unless the daemon is configured otherwise.
    #[arg(long, default_value = "standard")]
    tier: String,
    /// Fill the sample ERP schema with demo rows.
    #[arg(long)]
    sample_data: bool,
    /// A host name that resolves to the tenant, as acme.example.com; may be repeated.
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
    /// The first user, who gets the role OWNER.
    #[arg(long, value_name = "EMAIL")]
    admin_email: Option<String>,
    /// The first user's first name.
    #[arg(long, value_name = "NAME", requires = "admin_email")]
    admin_first_name: Option<String>,
    /// The first user's last name.
    #[arg(long, value_name = "NAME", requires = "admin_email")]
    admin_last_name: Option<String>,
    /// As registered, when it is not the name.
    #[arg(long, value_name = "NAME")]
    legal_name: Option<String>,
    /// The French company number, 14 digits.
    #[arg(long, value_name = "NUMBER")]
    siret: Option<String>,
    /// As FR40303265045.
    #[arg(long, value_name = "NUMBER")]
    vat_number: Option<String>,
    #[command(flatten)]
    mutation: Mutation,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, clap::Args)]
pub struct List {
    /// Only tenants in this state.
    #[arg(long, value_enum)]
    state: Option<State>,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum State {
    Provisioning,
    Active,
    Maintenance,
    Suspended,
    Failed,
}

#[derive(Debug, clap::Args)]
pub struct Suspend {
    /// A tenant's id or code.
    tenant: String,
    /// Shown to refused callers, and kept with the tenant.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    mutation: Mutation,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, clap::Args)]
pub struct Resume {
    /// A tenant's id or code.
    tenant: String,
    #[command(flatten)]
    mutation: Mutation,
    #[command(flatten)]
    wait: Wait,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        let connection = context.connect().await?;
        match self {
            Self::Create(arguments) => create(*arguments, context, &connection).await,
            Self::Get { tenant } => {
                let tenant = tenant_get(&connection, tenant).await?;
                show(context, &tenant)
            }
            Self::List(arguments) => tenants_list(&arguments, context, &connection).await,
            Self::Suspend(arguments) => suspend(arguments, context, &connection).await,
            Self::Resume(arguments) => resume(arguments, context, &connection).await,
            Self::Stats { tenant } => pool::tenant_stats(tenant, context, &connection).await,
            Self::Host(command) => command.run(context, &connection).await,
        }
    }
}

async fn create(arguments: Create, context: &Context, connection: &Connection) -> Result<(), Error> {
    let (wait, message) = (arguments.wait, arguments.into_message());
    let code = message.code.clone();
    let mut answer = connection.tenants().create_tenant(request(message)).await?.into_inner();
    let settled = settle(context, connection, wait, answer.operation.take()).await?;
    if let Settled::Ended(_) = settled {
        answer.tenant = Some(tenant_get(connection, code).await?);
    }
    answer.operation = settled.operation().cloned();
    let tenant_text = || answer.tenant.as_ref().map(text).unwrap_or_default();
    context.output.answer(&answer, || settled.text(context, |_| tenant_text()))
}

impl Create {
    fn into_message(self) -> CreateTenantRequest {
        CreateTenantRequest {
            request_id: self.mutation.request_id(),
            validate_only: self.mutation.validate_only,
            code: self.code,
            name: self.name,
            tier: self.tier,
            sample_data: self.sample_data,
            administrator: self.admin_email.map(|email| TenantAdministrator {
                email,
                first_name: self.admin_first_name.unwrap_or_default(),
                last_name: self.admin_last_name.unwrap_or_default(),
            }),
            hosts: self.hosts,
            legal_name: self.legal_name.unwrap_or_default(),
            siret: self.siret.unwrap_or_default(),
            vat_number: self.vat_number.unwrap_or_default(),
        }
    }
}

async fn suspend(arguments: Suspend, context: &Context, connection: &Connection) -> Result<(), Error> {
    let Suspend { tenant, reason, mutation, wait } = arguments;
    let (request_id, validate_only) = (mutation.request_id(), mutation.validate_only);
    let message = SuspendTenantRequest { request_id, validate_only, tenant: tenant.clone(), reason };
    let answer = connection.tenants().suspend_tenant(request(message)).await?.into_inner();
    let settled = settle(context, connection, wait, answer.operation).await?;
    let answer = SuspendTenantResponse { operation: settled.operation().cloned() };
    let text = text_after(context, connection, tenant, &settled).await?;
    context.output.answer(&answer, || text)
}

async fn resume(arguments: Resume, context: &Context, connection: &Connection) -> Result<(), Error> {
    let Resume { tenant, mutation, wait } = arguments;
    let (request_id, validate_only) = (mutation.request_id(), mutation.validate_only);
    let message = ResumeTenantRequest { request_id, validate_only, tenant: tenant.clone() };
    let answer = connection.tenants().resume_tenant(request(message)).await?.into_inner();
    let settled = settle(context, connection, wait, answer.operation).await?;
    let answer = ResumeTenantResponse { operation: settled.operation().cloned() };
    let text = text_after(context, connection, tenant, &settled).await?;
    context.output.answer(&answer, || text)
}

/// The tenant as it is after an operation.
async fn text_after(
    context: &Context,
    connection: &Connection,
    tenant: String,
    settled: &Settled,
) -> Result<String, Error> {
    let ended = match settled {
        Settled::Ended(_) => text(&tenant_get(connection, tenant).await?),
        Settled::Valid | Settled::Begun(_) => String::new(),
    };
    Ok(settled.text(context, |_| ended))
}

/// One tenant, by id or code.
pub async fn tenant_get(connection: &Connection, tenant: String) -> Result<Tenant, Error> {
    let response = connection.tenants().get_tenant(request(GetTenantRequest { tenant })).await?.into_inner();
    response.tenant.ok_or(Error::Incomplete("tenant"))
}

async fn tenants_list(arguments: &List, context: &Context, connection: &Connection) -> Result<(), Error> {
    let state = arguments.state.map_or(TenantState::Unspecified, TenantState::from).into();
    let (tenants, next_page_token) = pages::collect(arguments.limit.items_max(), async |page_size, page_token| {
        let message = ListTenantsRequest { page_size, page_token, state };
        let page = connection.tenants().list_tenants(request(message)).await?.into_inner();
        Ok((page.tenants, page.next_page_token))
    })
    .await?;
    let whole = ListTenantsResponse { tenants, next_page_token };
    context.output.list(&whole, &whole.tenants, || list_text(&whole.tenants))
}

impl From<State> for TenantState {
    fn from(state: State) -> Self {
        match state {
            State::Provisioning => Self::Provisioning,
            State::Active => Self::Active,
            State::Maintenance => Self::Maintenance,
            State::Suspended => Self::Suspended,
            State::Failed => Self::Failed,
        }
    }
}

fn list_text(tenants: &[Tenant]) -> String {
    if tenants.is_empty() {
        return "There are no such tenants.\n".to_owned();
    }
    let columns = [
        Column::Text("CODE"),
        Column::Text("NAME"),
        Column::State("STATE"),
        Column::Text("TIER"),
        Column::Text("SERVER"),
        Column::Text("DATABASE"),
        Column::Number("SCHEMA"),
        Column::Text("CREATED"),
    ];
    let row = |tenant: &Tenant| {
        vec![
            tenant.code.clone(),
            tenant.name.clone(),
            state(tenant),
            tenant.tier.clone(),
            tenant.server.clone(),
            tenant.database.clone(),
            tenant.schema_version.to_string(),
            human::time(tenant.create_time.as_ref()),
        ]
    };
    list(&columns, tenants.iter().map(row))
}

fn show(context: &Context, tenant: &Tenant) -> Result<(), Error> {
    let answer = GetTenantResponse { tenant: Some(tenant.clone()) };
    context.output.answer(&answer, || text(tenant))
}

/// One tenant.
pub fn text(tenant: &Tenant) -> String {
    record(&[
        ("Tenant", tenant.code.clone()),
        ("Id", tenant.tenant_id.clone()),
        ("Name", tenant.name.clone()),
        ("State", state(tenant)),
        ("Suspended", tenant.suspend_reason.clone()),
        ("Tier", tenant.tier.clone()),
        ("Server", tenant.server.clone()),
        ("Database", tenant.database.clone()),
        ("Schema version", tenant.schema_version.to_string()),
        ("Epoch", tenant.epoch.to_string()),
        ("Hosts", tenant.hosts.join(", ")),
        ("Legal name", tenant.legal_name.clone()),
        ("SIRET", tenant.siret.clone()),
        ("VAT number", tenant.vat_number.clone()),
        ("Created", human::time(tenant.create_time.as_ref())),
        ("Updated", human::time(tenant.update_time.as_ref())),
    ])
}

fn state(tenant: &Tenant) -> String {
    human::state(tenant.state().as_str_name(), "TENANT_STATE_")
}
