//! The fence in front of every write of the engine: nothing is written with the fence of an older claim.
//!
//! It is looked up without a lock, by the writing statement itself: a daemon that takes over first ends the sessions of
//! the one before, so that no statement that looked earlier is still on its way.

use sea_query::{Expr, ExprTrait as _, Query};

use super::errors::Error;
use crate::domain::operation::{OperationId, OperationState};

/// No row hit means that another daemon has the operation by now.
pub(super) fn claimed(hit: u64, id: OperationId) -> Result<(), Error> {
    if hit == 0 { Err(Error::ClaimLost { id }) } else { Ok(()) }
}

/// True while the operation is claimed with this fence.
pub(super) fn fence_holds(id: OperationId, fence: i64) -> Expr {
    let claim = Query::select()
        .expr(Expr::val(1_i32))
        .from("operations")
        .and_where(Expr::col(("operations", "id")).eq(id.0))
        .and_where(Expr::col(("operations", "fence")).eq(fence))
        .and_where(Expr::col(("operations", "state")).eq(OperationState::Running.name()))
        .take();
    Expr::exists(claim)
}
