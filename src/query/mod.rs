//! SQL for gRPC clients over the router's pools: one statement, its parameters and its result as typed values without
//! loss, bounded in rows and bytes.
//!
//! Knows nothing of gRPC calls and of permissions. Always holds: a statement runs in a transaction of its own that is
//! committed before its result is given, or rolled back; statements that PostgreSQL does not run in a transaction
//! (`VACUUM`, `CREATE DATABASE`, `CREATE INDEX CONCURRENTLY`) are refused with SQLSTATE 25001 and belong into a
//! migration or a direct client. A call that is dropped leaves no statement running.

mod decode;
mod error;
mod execute;
mod parameter;
mod statement;

pub use error::{Error, SqlError};
pub use execute::{BYTES_MAX, Execute, Output, ROWS_DEFAULT, ROWS_MAX, execute};
