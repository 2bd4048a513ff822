//! `validate`: does this machine compute what it should, and how fast? Matrix products with known results, in both
//! compute types; the fused kernels against their plain twins.

use crate::machine;
use anyhow::{Result, ensure};
use lampyris_plan::train_plan::Compute;
use lampyris_torch::ops;
use serde::Serialize;
use tch::{Cuda, Device, Kind, Tensor};

/// How to report.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// What was found on one device.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Device.
    pub device: String,
    /// Compute threads.
    pub threads: i32,
    /// Speed of a large fp32 matrix product, GFLOP/s.
    pub fp32_gflops: f64,
    /// Speed of a large bf16 matrix product, GFLOP/s.
    pub bf16_gflops: f64,
}

/// Checks the CPU and every CUDA device that libtorch sees.
///
/// # Errors
/// A result that is wrong: names the device and the operation.
pub fn run() -> Result<Vec<Report>> {
    let cuda = usize::try_from(Cuda::device_count())?;
    let devices = std::iter::once(Device::Cpu).chain((0..cuda).map(Device::Cuda));
    devices.map(check).collect()
}

fn check(device: Device) -> Result<Report> {
    let name = machine::device_name(device);
    for kind in [Kind::Float, Kind::BFloat16] {
        // Small integers: exact in both types, whatever the order of the sums.
        let a = Tensor::arange(64 * 96, (Kind::Int64, device)).remainder(3).view([64, 96]);
        let b = Tensor::arange(96 * 80, (Kind::Int64, device)).remainder(2).view([96, 80]);
        let exact = a.to_kind(Kind::Double).matmul(&b.to_kind(Kind::Double));
        let product = a.to_kind(kind).matmul(&b.to_kind(kind)).to_kind(Kind::Double);
        ensure!(
            exact.equal(&product),
            "{name}: a {kind:?} matrix product is wrong; do not train on it"
        );
    }
    let rows = Tensor::arange(40 * 50, (Kind::Float, device)).view([40, 50]) / 100.0 - 10.0;
    let fused = ops::swiglu(&rows, None)?;
    lampyris_torch::plain_only(true);
    let plain = ops::swiglu(&rows, None)?;
    lampyris_torch::plain_only(false);
    ensure!(
        fused.allclose(&plain, 1e-5, 1e-6, false),
        "{name}: a fused kernel differs from its twin"
    );
    Ok(Report {
        threads: tch::get_num_threads(),
        fp32_gflops: machine::peak_flops(Compute::Fp32, device) / 1e9,
        bf16_gflops: machine::peak_flops(Compute::Bf16, device) / 1e9,
        device: name,
    })
}

impl Report {
    /// The report for people.
    pub fn text(&self) -> String {
        format!(
            "{}: matrix products and kernels are right; {:.0} GFLOP/s fp32, {:.0} GFLOP/s bf16 ({} threads)\n",
            self.device, self.fp32_gflops, self.bf16_gflops, self.threads
        )
    }
}
