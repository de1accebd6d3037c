//! Credentials to principals, and what each method of the API needs.
//!
//! Knows nothing of tenants' states and of gRPC. Always holds: without a valid key there is no principal.

mod table;

pub use table::permission;
