//! One statement of a stream, from its request to its answer.

use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use crate::proto::v1::pipeline_answer::Outcome;
use crate::proto::v1::{PipelineAnswer, PipelineStatement};

/// The most bytes of values of one answer.
pub(super) const BYTES_MAX: usize = 1 << 20;

/// A statement with its place among those on their way.
pub(super) struct Job {
    pub(super) statement: PipelineStatement,
    pub(super) user: Option<Uuid>,
    /// It was sent before, and its statement had to be prepared anew.
    pub(super) again: bool,
    _slot: OwnedSemaphorePermit,
}

impl Job {
    pub(super) fn new(statement: PipelineStatement, user: Option<Uuid>, slot: OwnedSemaphorePermit) -> Self {
        Self { statement, user, again: false, _slot: slot }
    }
}

/// The answer to the statement of that id.
pub(super) fn answer(id: u64, outcome: Outcome) -> PipelineAnswer {
    PipelineAnswer { id, outcome: Some(outcome) }
}
