//! Compiles the protocol's messages and services.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["discovery.proto", "certificate.proto", "mesh.proto"];
    for file in files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        // Shared, so that what is encoded once is sent to many.
        .bytes(".")
        // In order, so that the same content gives the same bytes.
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
