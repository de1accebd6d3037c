//! Compiles `proto/` without a `protoc` on the machine: protox parses, tonic-prost-build generates.

use std::path::{Path, PathBuf};

use prost::Message as _;

#[expect(clippy::disallowed_methods, reason = "cargo speaks to build scripts through the environment")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("proto");
    println!("cargo:rerun-if-changed=proto/tenantd/v1");
    // Migrations are embedded by include_dir-like macros; a new file must rebuild the binary.
    println!("cargo:rerun-if-changed=shared-migrations/shared");
    println!("cargo:rerun-if-changed=shared-migrations/auth");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(root.join("tenantd/v1"))?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    files.sort();
    let descriptors = protox::compile(&files, [root])?;
    let out: PathBuf = std::env::var("OUT_DIR")?.into();
    std::fs::write(out.join("tenantd_descriptor.bin"), descriptors.encode_to_vec())?;
    // Messages know their full names, by which the JSON mapping finds their descriptors.
    let mut prost = tonic_prost_build::Config::new();
    prost.enable_type_names();
    tonic_prost_build::configure().compile_fds_with_config(descriptors, prost)?;
    Ok(())
}
