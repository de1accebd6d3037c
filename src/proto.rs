//! The generated protobuf and gRPC types of `proto/`, and their descriptors (for reflection and for JSON).
#![expect(clippy::pedantic, reason = "generated code follows its generator's taste")]

pub mod v1 {
    //! Package `tenantd.v1`.
    tonic::include_proto!("tenantd.v1");
}

/// The encoded `FileDescriptorSet` of `proto/` with everything that it imports.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tenantd_descriptor.bin"));
