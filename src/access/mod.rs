//! Credentials to principals, what each method of the API needs, and how often it may be called.
//!
//! Knows nothing of tenants' states and of gRPC. Always holds: without usable credentials there is no principal, a
//! method that is not in the table is nobody's, and what is kept in memory is bounded in number and in age.

mod authenticate;
mod certificates;
mod denials;
mod error;
mod fetch;
mod key_sets;
mod known;
mod limits;
mod needs;
mod news;
mod outage;
mod rights;
mod table;
mod tokens;
mod usage;

pub use authenticate::{Access, Credentials};
pub use denials::Denial;
pub use error::{Error, Whose};
pub use known::Caller;
pub use needs::Needs;
pub use table::permission;
