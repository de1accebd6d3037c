//! The one integration binary: a file per topic, over the harness.

mod cluster;
mod store;
