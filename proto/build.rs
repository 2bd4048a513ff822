//! Compiles the message definitions with protox, so that no protoc is needed. Keeps two descriptors: that of the rank's
//! words for the build id, and that of the whole API for gRPC reflection and its golden test.

use prost::Message;
use std::{env, error::Error, fs, path::PathBuf};

/// What a rank process and its shim say: programs of different builds must not mix here.
const RANK: &[&str] = &["lampyris/rank/v1/rank.proto"];

/// Words of ranks that are kept in a run directory as JSON.
const IN_REPORTS: [&str; 5] = ["StepDone", "Evaluated", "Saved", "Sample", "Finished"];

/// What goes over gRPC between cli, scheduler and worker, and between a worker and its shims: compatible within `v1`.
const API: &[&str] = &[
    "lampyris/v1/job.proto",
    "lampyris/v1/node.proto",
    "lampyris/v1/scheduler.proto",
    "lampyris/v1/worker.proto",
    "lampyris/v1/shim.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut rank = protox::compile(RANK, ["proto"])?;
    let mut messages = prost_build::Config::new();
    for name in IN_REPORTS {
        messages.type_attribute(name, "#[derive(serde::Serialize, serde::Deserialize)]");
    }
    messages.compile_fds(rank.clone())?;
    let mut api = protox::compile(API, ["proto"])?;
    tonic_prost_build::configure().compile_fds(api.clone())?;
    // Comments are documentation, not wire format.
    for file in rank.file.iter_mut().chain(&mut api.file) {
        file.source_code_info = None;
    }
    fs::write(out.join("descriptor.bin"), rank.encode_to_vec())?;
    fs::write(out.join("api_descriptor.bin"), api.encode_to_vec())?;
    Ok(())
}
