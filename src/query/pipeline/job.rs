//! One statement of a stream, from its request to its answer.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use crate::proto::v1::pipeline_answer::Outcome;
use crate::proto::v1::{PipelineAnswer, PipelineStatement};
use crate::query::harmless::Known;

/// The most bytes of values of one answer.
pub(super) const BYTES_MAX: usize = 1 << 20;

/// A statement's part of what may be on its way of one stream.
pub(super) struct Slot {
    pub(super) _place: OwnedSemaphorePermit,
    /// None of small ones.
    pub(super) _bytes: Option<OwnedSemaphorePermit>,
}

/// A statement with its place among those on their way.
pub(super) struct Job {
    /// Without its text, which is in `known`.
    pub(super) statement: PipelineStatement,
    /// Looked at once, however often its lane has to begin anew.
    pub(super) known: Arc<Known>,
    pub(super) user: Option<Uuid>,
    /// It was sent before, and its statement had to be prepared anew.
    pub(super) again: bool,
    /// It was sent before as a plain read, and tried to change something.
    pub(super) changes: bool,
    _slot: Slot,
}

impl Job {
    pub(super) fn new(mut statement: PipelineStatement, known: Arc<Known>, user: Option<Uuid>, slot: Slot) -> Self {
        statement.sql = String::new();
        Self { statement, known, user, again: false, changes: false, _slot: slot }
    }
}

/// The answer to the statement of that id.
pub(super) fn answer(id: u64, outcome: Outcome) -> PipelineAnswer {
    PipelineAnswer { id, outcome: Some(outcome) }
}
