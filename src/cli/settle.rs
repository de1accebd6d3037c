//! From the operation that an answer carries to what the command has to say of it.

use super::connection::Connection;
use super::error::Error;
use super::mutation::Wait;
use super::operation;
use super::{Context, wait};
use crate::proto::v1::Operation;

/// How far a command went along with the operation that it began.
#[derive(Debug)]
pub enum Settled {
    /// It was only to be validated.
    Valid,
    /// It goes on in the daemon.
    Begun(Operation),
    /// It has succeeded.
    Ended(Operation),
}

impl Settled {
    pub fn operation(&self) -> Option<&Operation> {
        match self {
            Self::Valid => None,
            Self::Begun(operation) | Self::Ended(operation) => Some(operation),
        }
    }

    /// The text for people; `ended` is what there is to say of an end.
    pub fn text(&self, context: &Context, ended: impl FnOnce(&Operation) -> String) -> String {
        match self {
            Self::Valid => "Everything is in order; nothing was changed.\n".to_owned(),
            Self::Begun(operation) => {
                let (program, id) = (&context.program, &operation.operation_id);
                format!("{}\nFollow it: {program} operation watch {id}\n", operation::text(operation))
            }
            Self::Ended(operation) => ended(operation),
        }
    }
}

/// Waits for the operation that an answer carries, unless there is none or nobody wants to wait.
pub async fn settle(
    context: &Context,
    connection: &Connection,
    wait: Wait,
    begun: Option<Operation>,
) -> Result<Settled, Error> {
    match begun {
        None => Ok(Settled::Valid),
        Some(begun) if wait.no_wait => Ok(Settled::Begun(begun)),
        Some(begun) => Ok(Settled::Ended(wait::to_the_end(context, connection, begun).await?)),
    }
}
