//! What `tenantd dev` and the tests bring along: an S3 server over a folder, and a private PostgreSQL cluster. Not for
//! production, and unknown to every other room but the ones that start it.

mod cluster;
mod errors;
mod lock;
mod objects;
mod place;
mod s3;

pub use cluster::{Cluster, ClusterRequest};
pub use errors::Error as ClusterError;
pub use s3::{Error as S3Error, S3Server};
