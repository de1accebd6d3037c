//! What the daemon is about, as values: names, states, tables of what may follow what.
//! Pure: no task, no socket, no SQL, no clock and no environment; `now` is always a parameter.

pub mod backup;
pub mod host;
pub mod lifecycle;
pub mod migration;
pub mod named;
pub mod operation;
pub mod page;
pub mod permission;
pub mod principal;
pub mod privilege;
pub mod route;
pub mod share;
pub mod tenant;
pub mod text;
pub mod tier;
