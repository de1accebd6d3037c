//! What `tenantd dev` and the tests bring along: an S3 server over a folder, and a private PostgreSQL cluster. Not for
//! production, and unknown to every other room but the ones that start it.

mod objects;
mod s3;

pub use s3::{Error as S3Error, S3Server};
