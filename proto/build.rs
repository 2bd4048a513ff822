//! Compiles the message definitions with protox, so that no protoc is needed, and keeps the descriptor for the build id.

use prost::Message;
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    const FILE: &str = "lampyris/rank/v1/rank.proto";
    println!("cargo::rerun-if-changed=proto");
    let mut descriptor = protox::compile([FILE], ["proto"])?;
    prost_build::Config::new().compile_fds(descriptor.clone())?;
    // Comments are documentation, not wire format: they stay out of the build id.
    for file in &mut descriptor.file {
        file.source_code_info = None;
    }
    let out = PathBuf::from(env::var("OUT_DIR")?).join("descriptor.bin");
    fs::write(out, descriptor.encode_to_vec())?;
    Ok(())
}
