//! Credentials to principals, and what each method of the API needs.
//!
//! Knows nothing of tenants' states and of gRPC. Always holds: without a usable key there is no principal, and a method
//! that is not in the table is nobody's.

mod authenticate;
mod error;
mod table;

pub use authenticate::Access;
pub use error::Error;
pub use table::permission;
