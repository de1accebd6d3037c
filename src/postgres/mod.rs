//! Speaks to any PostgreSQL server: sessions under one budget per server, databases, roles, identity rows, locks,
//! fingerprints, and PostgreSQL's own programs.
//!
//! Knows nothing of the catalog: what it creates and drops is told by its callers, by name. No SQL here holds a
//! caller's text: names are quoted types, and everything else is a parameter.

pub mod admin;
mod anchor;
pub mod bootstrap;
pub mod budget;
pub mod connect;
pub mod embedded_migrations;
pub mod errors;
pub mod fingerprint;
pub mod identity;
pub mod lane;
pub mod locks;
pub mod programs;
pub mod properties;
pub mod read;
pub mod readers;
pub mod roles;
pub mod server;
mod session;
pub mod sessions;
mod socket;
pub mod statement;
mod tls;
pub mod types;

pub use anchor::{Anchor, AnchorLoss, Gone, anchors_held, strangers};
pub use budget::{Budget, Permit};
pub use connect::{ConnectRequest, Connection, Pass, SessionOptions};
pub use errors::{Error, Kind};
pub use lane::Lane;
pub use server::Server;
pub use session::Encoding;
