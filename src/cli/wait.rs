//! Following what goes on in the daemon. An operation is persisted, so a daemon that goes away for a while is waited
//! for, and an interrupted command leaves the operation running.

use std::time::Duration;

use tonic::{Code, Status, Streaming};

use super::Context;
use super::connection::Connection;
use super::error::{Error, sources};
use super::human;
use super::output::Output;
use super::progress::Progress;
use crate::proto::v1::{
    GetOperationRequest, Operation, OperationState, OperationStep, OperationStepState, WatchOperationRequest,
    WatchOperationResponse,
};

/// A daemon that restarts is back within this many attempts, one second apart.
const RECONNECTS_MAX: u32 = 60;
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// Waits until the operation has ended, and shows each step as it is done.
///
/// # Errors
/// When it ended in another state than SUCCEEDED.
pub async fn to_the_end(context: &Context, connection: &Connection, operation: Operation) -> Result<Operation, Error> {
    let operation = to_an_end(context, connection, operation).await?;
    match operation.state() {
        OperationState::Succeeded => Ok(operation),
        _ => Err(Error::Operation(Box::new(operation))),
    }
}

/// As [`to_the_end`], whatever its end is.
pub async fn to_an_end(context: &Context, connection: &Connection, operation: Operation) -> Result<Operation, Error> {
    let id = operation.operation_id.clone();
    let mut view = View::new(context.output, operation);
    tokio::select! {
        ended = follow(connection, &id, &mut view) => ended.map_err(|error| gone(context, &id, error))?,
        _ = tokio::signal::ctrl_c() => return Err(Error::Interrupted { program: context.program.clone(), id }),
    }
    Ok(view.finish())
}

/// A daemon that stays away says nothing of the operation.
fn gone(context: &Context, id: &str, error: Error) -> Error {
    let cause = match &error {
        Error::Silent => error.to_string(),
        Error::Broken { cause } => cause.clone(),
        Error::Refused { status, .. } if is_away(status) => {
            sources(status.as_ref()).last().unwrap_or_else(|| status.message().to_owned())
        }
        _ => return error,
    };
    Error::Gone { program: context.program.clone(), id: id.to_owned(), cause }
}

/// Watches, and begins again when the stream breaks.
async fn follow(connection: &Connection, id: &str, view: &mut View) -> Result<(), Error> {
    let mut reconnect = Reconnect::default();
    while !has_ended(&view.operation) {
        let request = WatchOperationRequest { operation_id: id.to_owned() };
        let broken = match connection.operations().watch_operation(request).await {
            Ok(stream) => {
                let show = |update: WatchOperationResponse| {
                    view.output.event(&update)?;
                    view.show(update.operation.ok_or(Error::Incomplete("operation"))?);
                    Ok(())
                };
                read(stream.into_inner(), &mut reconnect, show).await?
            }
            Err(status) => Some(status),
        };
        if !has_ended(&view.operation) {
            reconnect.pause(broken, |text| view.progress.line(text)).await?;
        }
    }
    Ok(())
}

/// Counts the attempts to reach a daemon that went away.
#[derive(Debug, Default)]
pub struct Reconnect {
    attempts: u32,
}

impl Reconnect {
    /// The daemon answers.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Waits a little before the next attempt, and says so at the first. A stream that is cut off on the way may end
    /// without a status.
    ///
    /// # Errors
    /// When what broke is not the connection, or the daemon has been away for too long.
    pub async fn pause(&mut self, broken: Option<Status>, note: impl FnOnce(&str)) -> Result<(), Error> {
        self.attempts += 1;
        let is_over = self.attempts > RECONNECTS_MAX;
        match broken {
            Some(status) if is_over || !is_away(&status) => return Err(status.into()),
            None if is_over => return Err(Error::Silent),
            _ => {}
        }
        if self.attempts == 1 {
            note("  the daemon is away; waiting for it to come back");
        }
        tokio::time::sleep(RECONNECT_INTERVAL).await;
        Ok(())
    }
}

/// Reads one stream to its end and shows each message. Answers with what broke it, if something did.
pub async fn read<M>(
    mut stream: Streaming<M>,
    reconnect: &mut Reconnect,
    mut show: impl FnMut(M) -> Result<(), Error>,
) -> Result<Option<Status>, Error> {
    loop {
        match stream.message().await {
            Ok(Some(message)) => {
                reconnect.reset();
                show(message)?;
            }
            Ok(None) => return Ok(None),
            Err(status) => return Ok(Some(status)),
        }
    }
}

/// Whether another attempt may find the daemon back.
fn is_away(status: &Status) -> bool {
    // A connection that breaks in the middle of a stream is reported as Unknown, Cancelled or Internal without details.
    match status.code() {
        Code::Unavailable => true,
        Code::Unknown | Code::Internal | Code::Cancelled => status.details().is_empty(),
        _ => false,
    }
}

/// The operation as it is now.
pub async fn operation_get(connection: &Connection, id: &str) -> Result<Operation, Error> {
    let request = super::connection::request(GetOperationRequest { operation_id: id.to_owned() });
    let response = connection.operations().get_operation(request).await?.into_inner();
    response.operation.ok_or(Error::Incomplete("operation"))
}

fn has_ended(operation: &Operation) -> bool {
    matches!(
        operation.state(),
        OperationState::Succeeded | OperationState::Failed | OperationState::Cancelled | OperationState::Stuck
    )
}

/// What was shown of an operation so far.
struct View {
    output: Output,
    progress: Progress,
    operation: Operation,
    /// The state in which each step was last seen.
    seen: Vec<OperationStepState>,
}

impl View {
    fn new(output: Output, operation: Operation) -> Self {
        let subject = match operation.tenant_code.as_str() {
            "" => operation.kind.clone(),
            code => format!("{} {code}", operation.kind),
        };
        output.note(&format!("{subject} (operation {})", operation.operation_id));
        let progress = Progress::new(output);
        Self { output, progress, seen: Vec::new(), operation }
    }

    /// Takes the bar away, and leaves a line between the steps and what follows.
    fn finish(self) -> Operation {
        drop(self.progress);
        self.output.note("");
        self.operation
    }

    fn show(&mut self, operation: Operation) {
        self.seen.resize(operation.steps.len(), OperationStepState::Pending);
        for (step, seen) in operation.steps.iter().zip(&mut self.seen) {
            if step.state() != *seen {
                *seen = step.state();
                if let Some(line) = step_line(step) {
                    self.progress.line(&line);
                }
            }
        }
        let done = operation.steps.iter().filter(|step| step.state() == OperationStepState::Done).count();
        let now = operation
            .steps
            .iter()
            .find(|step| matches!(step.state(), OperationStepState::Running | OperationStepState::Undoing));
        self.progress.at(done, operation.steps.len(), now.map_or("", |step| step.name.as_str()));
        self.operation = operation;
    }
}

/// What there is to say when a step has come to this state.
fn step_line(step: &OperationStep) -> Option<String> {
    let mark = match step.state() {
        OperationStepState::Done => "✓",
        OperationStepState::Failed => "✗",
        OperationStepState::Undone => "↩",
        _ => return None,
    };
    let took = human::elapsed(step.start_time.as_ref(), step.end_time.as_ref());
    let detail = match step.state() {
        OperationStepState::Undone => "undone".to_owned(),
        _ => human::printable(&step.detail),
    };
    let line = format!("  {mark} {:<24} {took:>10}  {detail}", step.name);
    Some(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_line() {
        let time = |milliseconds: i32| Some(prost_types::Timestamp { seconds: 7, nanos: milliseconds * 1_000_000 });
        let mut step = OperationStep {
            name: "database".to_owned(),
            state: OperationStepState::Done.into(),
            attempts: 1,
            start_time: time(0),
            end_time: time(112),
            detail: String::new(),
        };
        assert_eq!(step_line(&step).unwrap(), "  ✓ database                     112 ms");
        step.detail = "erp_topsteel_acme".to_owned();
        assert_eq!(step_line(&step).unwrap(), "  ✓ database                     112 ms  erp_topsteel_acme");
        step.state = OperationStepState::Running.into();
        assert_eq!(step_line(&step), None);
    }

    #[test]
    fn only_a_broken_connection_is_tried_again() {
        assert!(is_away(&Status::unavailable("")) && is_away(&Status::unknown("h2 protocol error")));
        assert!(!is_away(&Status::not_found("")) && !is_away(&Status::permission_denied("")));
    }
}
