//! Compiles the proto files without protoc and writes the descriptor set that reflection serves.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;
use tonic_prost_build::FileDescriptorSet;

const FILES: [&str; 9] = [
    "tidegate/v1/value.proto",
    "tidegate/v1/row_type.proto",
    "tidegate/v1/shapes.proto",
    "tidegate/v1/changes.proto",
    "tidegate/v1/catalog.proto",
    "tidegate/v1/snapshots.proto",
    "tidegate/v1/mirror.proto",
    "google/rpc/status.proto",
    "google/rpc/error_details.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let set = protox::Compiler::new(["."])?
        .include_imports(true)
        .include_source_info(true)
        .open_files(FILES)?
        .encode_file_descriptor_set();
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out.join("descriptor_set.bin"), &set)?;
    tonic_prost_build::configure().bytes(".tidegate.v1").compile_fds(FileDescriptorSet::decode(set.as_slice())?)?;
    Ok(())
}
