//! tenantd: one daemon for fleets in which every customer has its own PostgreSQL database.
//!
//! Imports go strictly downwards; `tests/architecture.rs` holds the table of ranks. This file re-exports nothing.

pub mod access;
pub mod accounts;
pub mod api;
pub mod app;
pub mod backup;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod domain;
pub mod embedded;
pub mod migrator;
pub mod operations;
pub mod postgres;
pub mod proto;
pub mod query;
pub mod router;
pub mod secrets;
pub mod shares;
pub mod shutdown;
pub mod store;
pub mod telemetry;
