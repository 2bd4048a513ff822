//! The body of the fused sum, once for all vector types.

use super::{Args, scalar};
use lampyris_comm::DType;

/// A vector of fp32 lanes. Every method is inlined into a function that enables the instructions it uses.
///
/// # Safety
/// Callers of the methods run on a processor that has those instructions, and pointers cover `LANES` elements.
pub(super) trait Lanes: Copy {
    const LANES: usize;
    unsafe fn load_f32(from: *const u8) -> Self;
    unsafe fn load_bf16(from: *const u8) -> Self;
    unsafe fn load_f16(from: *const u8) -> Self;
    unsafe fn load_fp8(from: *const u8) -> Self;
    unsafe fn store_f32(self, to: *mut u8);
    unsafe fn store_bf16(self, to: *mut u8);
    unsafe fn store_f16(self, to: *mut u8);
    unsafe fn store_fp8(self, to: *mut u8);
    /// The sum; NaN becomes the canonical one when it is stored.
    unsafe fn add(self, other: Self) -> Self;
    /// NaN lanes replaced by the canonical NaN.
    unsafe fn settle_nan(self) -> Self;
}

/// Sums whole vectors; returns the number of elements done. The tail is the scalar twin's, which gives the same bits.
///
/// # Safety
/// As [`Lanes`] and [`super::Sum::run`].
#[inline(always)]
pub(super) unsafe fn run<V: Lanes>(args: &Args<'_>) {
    use DType::{Bf16, F16, F32, Fp8E4m3};
    // SAFETY: the caller's promise.
    unsafe {
        let done = match args.types {
            (F32, F32) => by_count::<V>(args, V::load_f32, V::store_f32),
            (F32, Bf16) => by_count::<V>(args, V::load_f32, V::store_bf16),
            (F32, F16) => by_count::<V>(args, V::load_f32, V::store_f16),
            (F32, Fp8E4m3) => by_count::<V>(args, V::load_f32, V::store_fp8),
            (Bf16, Bf16) => by_count::<V>(args, V::load_bf16, V::store_bf16),
            (Bf16, F32) => by_count::<V>(args, V::load_bf16, V::store_f32),
            (F16, F16) => by_count::<V>(args, V::load_f16, V::store_f16),
            (F16, F32) => by_count::<V>(args, V::load_f16, V::store_f32),
            (Fp8E4m3, F32) => by_count::<V>(args, V::load_fp8, V::store_f32),
            (Fp8E4m3, Bf16) => by_count::<V>(args, V::load_fp8, V::store_bf16),
            (Fp8E4m3, Fp8E4m3) => by_count::<V>(args, V::load_fp8, V::store_fp8),
            _ => 0,
        };
        scalar::run(args, done);
    }
}

/// Unrolls the usual numbers of inputs, so that their vectors stay in registers.
#[inline(always)]
unsafe fn by_count<V: Lanes>(
    args: &Args<'_>,
    load: unsafe fn(*const u8) -> V,
    store: unsafe fn(V, *mut u8),
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        match args.inputs.len() {
            1 => unrolled::<V, 1>(args, load, store),
            2 => unrolled::<V, 2>(args, load, store),
            4 => unrolled::<V, 4>(args, load, store),
            8 => unrolled::<V, 8>(args, load, store),
            16 => unrolled::<V, 16>(args, load, store),
            _ => folded(args, load, store),
        }
    }
}

#[inline(always)]
unsafe fn unrolled<V: Lanes, const N: usize>(
    args: &Args<'_>,
    load: unsafe fn(*const u8) -> V,
    store: unsafe fn(V, *mut u8),
) -> usize {
    let (from, to) = (args.types.0.bytes(), args.types.1.bytes());
    let inputs: [*const u8; N] = std::array::from_fn(|i| args.inputs[i].as_ptr().cast_const());
    let mut at = 0;
    while at + V::LANES <= args.elements {
        // SAFETY: `at + LANES` elements exist in every memory (checked by `Sum::check`).
        unsafe {
            let mut values: [V; N] = inputs.map(|input| load(input.wrapping_add(at * from)));
            if args.tree {
                let mut half = N / 2;
                // values[i] + values[i + 1] into values[i / 2], level by level: consecutive inputs meet first.
                while half > 0 {
                    for i in 0..half {
                        values[i] = values[2 * i].add(values[2 * i + 1]);
                    }
                    half /= 2;
                }
            } else {
                for i in 1..N {
                    values[0] = values[0].add(values[i]);
                }
            }
            let sum = values[0].settle_nan();
            for output in args.outputs {
                store(sum, output.as_ptr().wrapping_add(at * to));
            }
        }
        at += V::LANES;
    }
    at
}

#[inline(always)]
unsafe fn folded<V: Lanes>(
    args: &Args<'_>,
    load: unsafe fn(*const u8) -> V,
    store: unsafe fn(V, *mut u8),
) -> usize {
    let (from, to) = (args.types.0.bytes(), args.types.1.bytes());
    let mut at = 0;
    while at + V::LANES <= args.elements {
        // SAFETY: as in `unrolled`.
        unsafe {
            let mut sum = load(args.inputs[0].as_ptr().wrapping_add(at * from));
            for input in &args.inputs[1..] {
                sum = sum.add(load(input.as_ptr().wrapping_add(at * from)));
            }
            let sum = sum.settle_nan();
            for output in args.outputs {
                store(sum, output.as_ptr().wrapping_add(at * to));
            }
        }
        at += V::LANES;
    }
    at
}
