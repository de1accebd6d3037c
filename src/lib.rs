//! tenantd: one daemon for fleets in which every customer has its own PostgreSQL database.
//!
//! Imports go strictly downwards; `tests/architecture.rs` holds the table of ranks. This file re-exports nothing.

<<<<<<< 996af40
pub mod cli;
=======
pub mod catalog;
>>>>>>> 5bc76a0
pub mod config;
pub mod domain;
pub mod embedded;
pub mod postgres;
pub mod proto;
pub mod secrets;
pub mod shutdown;
pub mod store;
pub mod telemetry;
