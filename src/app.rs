//! The wiring: the only place that knows every room. A daemon is built and run in `app/daemon.rs`; what begins one
//! (`serve`, `dev`) and what prepares a server for it (`bootstrap`) have a file each.

mod admin_key;
mod bootstrap;
mod daemon;
mod dev;
mod error;
mod open_files;
mod reload;
mod serve;

pub use admin_key::AdminKey;
pub use bootstrap::{BootstrapRequest, bootstrap};
pub use daemon::{App, Running};
pub use dev::{DevReady, DevRequest, dev};
pub use error::Error;
pub use serve::serve;
