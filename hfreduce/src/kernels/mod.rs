//! The fused N-way sum: read one vector of each input, add in registers, round once, write it to every output.
//!
//! Fire-Flyer section IV-D1: FP32, FP16, BF16 and FP8 in, fp32 accumulation. Pairwise passes would move three streams
//! per addition; fused, N inputs and M outputs are moved once: at 256 MiB the fused four-way sum reads 23 GB/s where
//! the pairwise one yields 8 (docs/collectives.md).
//!
//! One generic body ([`lanes`]) over three vector types: AVX-512, AVX2, and one lane in plain Rust. The instruction set
//! is chosen at run time; all give the same bits, NaN and denormals included, and `scalar` is the slow twin.

#![allow(unsafe_code, reason = "SIMD over raw memories, some of them written by other processes")]

mod avx2;
mod avx512;
mod lanes;
pub mod scalar;
#[cfg(test)]
mod tests;

use lampyris_comm::{DType, Memory};

/// In which order the inputs of one element are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// Left to right.
    Fold,
    /// Balanced binary tree over consecutive inputs; their number is a power of two, at most [`MAX_TREE`].
    Tree,
}

/// Most inputs of a [`Order::Tree`] sum: they are held in registers.
pub const MAX_TREE: usize = 16;

/// Which instructions to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust.
    Scalar,
    /// 8 lanes, with F16C.
    Avx2,
    /// 16 lanes.
    Avx512,
    /// 16 lanes and the hardware's bf16 conversion.
    Avx512Bf16,
}

impl Level {
    /// The best that this processor has.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rev().find(|level| level.available()).unwrap_or(Self::Scalar)
    }

    /// All, the plainest first.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// Whether this processor has it.
    pub fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            match self {
                Self::Scalar => true,
                Self::Avx2 => avx2,
                Self::Avx512 => avx512,
                Self::Avx512Bf16 => avx512 && is_x86_feature_detected!("avx512bf16"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Scalar
        }
    }
}

/// A checked sum, as the bodies take it.
struct Args<'a> {
    inputs: &'a [Memory],
    outputs: &'a [Memory],
    /// Of inputs and outputs.
    types: (DType, DType),
    tree: bool,
    elements: usize,
}

/// One fused sum.
#[derive(Debug, Clone, Copy)]
pub struct Sum<'a> {
    /// In rank order; each holds `elements` of `input`.
    pub inputs: &'a [Memory],
    /// Each gets the whole result. May be inputs: an element is read from all inputs before it is written.
    pub outputs: &'a [Memory],
    /// Type of the inputs.
    pub input: DType,
    /// Type of the outputs.
    pub output: DType,
    /// Order of addition.
    pub order: Order,
}

impl Sum<'_> {
    /// Runs it with these instructions.
    ///
    /// Panics when the memories are not equally long or the order does not fit the number of inputs.
    ///
    /// # Safety
    /// All memories are alive, and nobody else writes an input or touches an output meanwhile. The processor has
    /// `level`.
    pub unsafe fn run(&self, level: Level) {
        let elements = self.check();
        let args = Args {
            inputs: self.inputs,
            outputs: self.outputs,
            types: (self.input, self.output),
            tree: self.order == Order::Tree,
            elements,
        };
        // SAFETY: the caller's promise; lengths are checked.
        unsafe {
            match level {
                Level::Scalar => scalar::run(&args, 0),
                Level::Avx2 => avx2::run(&args),
                Level::Avx512 => avx512::run(&args),
                Level::Avx512Bf16 => avx512::run_bf16(&args),
            }
        }
    }

    fn check(&self) -> usize {
        let first = self.inputs.first().expect("a sum has an input");
        let elements = first.len() / self.input.bytes();
        assert!(self.inputs.iter().all(|m| m.len() == elements * self.input.bytes()), "{self:?}");
        assert!(self.outputs.iter().all(|m| m.len() == elements * self.output.bytes()), "{self:?}");
        let n = self.inputs.len();
        let fits = self.order == Order::Fold || (n.is_power_of_two() && n <= MAX_TREE);
        assert!(fits, "a balanced tree over {n} inputs");
        for dtype in [self.input, self.output] {
            let float = matches!(dtype, DType::F32 | DType::Bf16 | DType::F16 | DType::Fp8E4m3);
            assert!(float, "{dtype:?} is not summed here");
        }
        elements
    }

    /// Bytes read and written by one run.
    pub fn bytes(&self) -> usize {
        self.inputs.iter().chain(self.outputs).map(|memory| memory.len()).sum()
    }
}
