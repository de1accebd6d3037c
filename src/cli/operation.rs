//! `tenantd operation`: what goes on in the daemon, and what went on.

use super::connection::{Connection, request};
use super::error::Error;
use super::mutation::{Mutation, Wait};
use super::pages::{self, Limit};
use super::table::{Column, list, record};
use super::{Context, human, wait};
use crate::proto::v1::{
    AbandonOperationRequest, GetOperationResponse, ListOperationsRequest, ListOperationsResponse, Operation,
    OperationState, RetryOperationRequest, RetryOperationResponse,
};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Operations, newest first.
    List(List),
    /// One operation with its steps.
    Show { operation_id: String },
    /// Follow an operation to its end.
    Watch { operation_id: String },
    /// Have an operation that is stuck go on being undone, once what was in the way is mended.
    Retry(Retry),
    /// Give up an operation that is stuck: it lets go of its tenant, and what it has left stays.
    Abandon(Abandon),
}

#[derive(Debug, clap::Args)]
pub struct Retry {
    operation_id: String,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    mutation: Mutation,
}

#[derive(Debug, clap::Args)]
pub struct Abandon {
    operation_id: String,
    /// Why; kept with the operation.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    mutation: Mutation,
}

#[derive(Debug, clap::Args)]
pub struct List {
    /// Only operations on this tenant (id or code).
    #[arg(long)]
    tenant: Option<String>,
    /// Only operations in this state.
    #[arg(long, value_enum)]
    state: Option<State>,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum State {
    Pending,
    Running,
    Succeeded,
    Failed,
    Cancelled,
    Stuck,
}

impl From<State> for OperationState {
    fn from(state: State) -> Self {
        match state {
            State::Pending => Self::Pending,
            State::Running => Self::Running,
            State::Succeeded => Self::Succeeded,
            State::Failed => Self::Failed,
            State::Cancelled => Self::Cancelled,
            State::Stuck => Self::Stuck,
        }
    }
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        let connection = context.connect().await?;
        match self {
            Self::List(arguments) => operations_list(arguments, context, &connection).await,
            Self::Show { operation_id } => {
                let operation = wait::operation_get(&connection, &operation_id).await?;
                show(context, &operation)
            }
            Self::Watch { operation_id } => {
                let operation = wait::operation_get(&connection, &operation_id).await?;
                let operation = wait::to_the_end(context, &connection, operation).await?;
                show(context, &operation)
            }
            Self::Retry(arguments) => retry(arguments, context, &connection).await,
            Self::Abandon(arguments) => abandon(arguments, context, &connection).await,
        }
    }
}

async fn retry(arguments: Retry, context: &Context, connection: &Connection) -> Result<(), Error> {
    let validate_only = arguments.mutation.validate_only;
    let message = RetryOperationRequest {
        request_id: arguments.mutation.request_id(),
        validate_only,
        operation_id: arguments.operation_id,
    };
    let answer = connection.operations().retry_operation(request(message)).await?.into_inner();
    let mut operation = answer.operation.ok_or(Error::Incomplete("operation"))?;
    if !validate_only && !arguments.wait.no_wait {
        operation = wait::to_an_end(context, connection, operation).await?;
        // What was undone to the end has failed: that is what was asked for.
        if operation.state() == OperationState::Stuck {
            return Err(Error::Operation(Box::new(operation)));
        }
    }
    let answer = RetryOperationResponse { operation: Some(operation) };
    context.output.answer(&answer, || changed_text(validate_only, answer.operation.as_ref()))
}

async fn abandon(arguments: Abandon, context: &Context, connection: &Connection) -> Result<(), Error> {
    let validate_only = arguments.mutation.validate_only;
    let message = AbandonOperationRequest {
        request_id: arguments.mutation.request_id(),
        validate_only,
        operation_id: arguments.operation_id,
        reason: arguments.reason,
    };
    let answer = connection.operations().abandon_operation(request(message)).await?.into_inner();
    context.output.answer(&answer, || changed_text(validate_only, answer.operation.as_ref()))
}

fn changed_text(validate_only: bool, operation: Option<&Operation>) -> String {
    match operation {
        Some(operation) if !validate_only => text(operation),
        _ => "Everything is in order; nothing was changed.\n".to_owned(),
    }
}

async fn operations_list(arguments: List, context: &Context, connection: &Connection) -> Result<(), Error> {
    let state = arguments.state.map_or(OperationState::Unspecified, OperationState::from).into();
    let tenant = arguments.tenant.unwrap_or_default();
    let (operations, next_page_token) = pages::collect(arguments.limit.items_max(), async |page_size, page_token| {
        let message = ListOperationsRequest { page_size, page_token, tenant: tenant.clone(), state };
        let page = connection.operations().list_operations(request(message)).await?.into_inner();
        Ok((page.operations, page.next_page_token))
    })
    .await?;
    let whole = ListOperationsResponse { operations, next_page_token };
    context.output.list(&whole, &whole.operations, || list_text(&whole.operations))
}

fn list_text(operations: &[Operation]) -> String {
    if operations.is_empty() {
        return "There are no such operations.\n".to_owned();
    }
    let columns = [
        Column::Text("OPERATION"),
        Column::Text("KIND"),
        Column::Text("TENANT"),
        Column::State("STATE"),
        Column::Text("BEGUN"),
        Column::Number("TOOK"),
        Column::Text("BY"),
    ];
    let row = |operation: &Operation| {
        vec![
            operation.operation_id.clone(),
            operation.kind.clone(),
            operation.tenant_code.clone(),
            state(operation),
            human::time(operation.create_time.as_ref()),
            human::elapsed(operation.create_time.as_ref(), operation.end_time.as_ref()),
            operation.created_by.clone(),
        ]
    };
    list(&columns, operations.iter().map(row))
}

fn state(operation: &Operation) -> String {
    human::state(operation.state().as_str_name(), "OPERATION_STATE_")
}

/// One operation, as an answer.
fn show(context: &Context, operation: &Operation) -> Result<(), Error> {
    let answer = GetOperationResponse { operation: Some(operation.clone()) };
    context.output.answer(&answer, || text(operation))
}

/// What an operation has done, after its steps were shown one by one.
pub fn summary(operation: &Operation) -> String {
    let took = human::elapsed(operation.create_time.as_ref(), operation.end_time.as_ref());
    format!("{} {} in {took}.\n{}", operation.kind, state(operation).to_lowercase(), result_text(operation))
}

fn result_text(operation: &Operation) -> String {
    let result = operation.result.iter().flat_map(|result| &result.fields);
    let result: Vec<_> = result.map(|(name, value)| (name.as_str(), human::value(value))).collect();
    if result.is_empty() { String::new() } else { format!("\n{}", record(&result)) }
}

/// One operation with its steps and its result.
pub fn text(operation: &Operation) -> String {
    let error = operation.error.as_ref();
    let mut text = record(&[
        ("Operation", operation.operation_id.clone()),
        ("Kind", operation.kind.clone()),
        ("Tenant", operation.tenant_code.clone()),
        ("State", state(operation)),
        ("Begun", human::time(operation.create_time.as_ref())),
        ("Ended", human::time(operation.end_time.as_ref())),
        ("Took", human::elapsed(operation.create_time.as_ref(), operation.end_time.as_ref())),
        ("By", operation.created_by.clone()),
        ("Request", operation.request_id.clone()),
        ("Failed at", error.map(|error| error.step.clone()).unwrap_or_default()),
        ("Error", error.map(|error| error.message.clone()).unwrap_or_default()),
    ]);
    if !operation.steps.is_empty() {
        let columns = [
            Column::Text("STEP"),
            Column::State("STATE"),
            Column::Number("ATTEMPTS"),
            Column::Number("TOOK"),
            Column::Text("DETAIL"),
        ];
        let rows = operation.steps.iter().map(|step| {
            vec![
                step.name.clone(),
                human::state(step.state().as_str_name(), "OPERATION_STEP_STATE_"),
                step.attempts.to_string(),
                human::elapsed(step.start_time.as_ref(), step.end_time.as_ref()),
                step.detail.clone(),
            ]
        });
        text = format!("{text}\n{}", list(&columns, rows));
    }
    text + &result_text(operation)
}
