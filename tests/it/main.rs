//! The one integration binary: a file per topic, over the harness.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on says so")]
#![expect(clippy::disallowed_methods, reason = "tests start tasks and daemons that no daemon knows of")]
#![expect(clippy::print_stderr, reason = "a failed test shows what its daemon logged")]

mod access;
mod accounts;
mod api;
mod backup;
mod bad_input;
mod bootstrap;
mod catalog;
mod cluster;
mod drain;
mod end_to_end;
mod examples;
mod harness;
mod kill;
mod migrator;
mod postgres;
mod python;
mod query;
mod reload;
mod restores;
mod rollouts;
mod router;
mod routes;
mod shares;
mod store;
mod stuck;
mod tenants;
mod texts;
mod the_harness;
