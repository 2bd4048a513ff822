//! The slow twin: one element at a time, in plain Rust. Also the tail of the vector loops.

use super::Args;
use half::{bf16, f16};
use lampyris_comm::{CANONICAL_NAN, DType};

/// Sums the elements from `start` on.
///
/// # Safety
/// As [`super::Sum::run`].
pub(super) unsafe fn run(args: &Args<'_>, start: usize) {
    let (from, to) = args.types;
    for at in start..args.elements {
        // SAFETY: inside every memory (checked by `Sum::check`).
        let value = |i: usize| unsafe {
            load(from, args.inputs[i].as_ptr().wrapping_add(at * from.bytes()))
        };
        let sum = if args.tree { tree(&value, 0, args.inputs.len()) } else { fold(&value, args) };
        let sum = if sum.is_nan() { CANONICAL_NAN } else { sum };
        for output in args.outputs {
            // SAFETY: as above.
            unsafe { store(to, sum, output.as_ptr().wrapping_add(at * to.bytes())) };
        }
    }
}

fn fold(value: &impl Fn(usize) -> f32, args: &Args<'_>) -> f32 {
    (1..args.inputs.len()).fold(value(0), |sum, i| sum + value(i))
}

fn tree(value: &impl Fn(usize) -> f32, first: usize, count: usize) -> f32 {
    if count == 1 {
        return value(first);
    }
    let half = count / 2;
    tree(value, first, half) + tree(value, first + half, half)
}

unsafe fn load(dtype: DType, from: *const u8) -> f32 {
    // SAFETY: the caller's pointer covers one element.
    unsafe {
        match dtype {
            DType::F32 => from.cast::<f32>().read_unaligned(),
            DType::Bf16 => bf16::from_bits(from.cast::<u16>().read_unaligned()).to_f32(),
            DType::F16 => f16::from_bits(from.cast::<u16>().read_unaligned()).to_f32(),
            DType::Fp8E4m3 => from_e4m3(from.read()),
            other => unreachable!("{other:?} was refused"),
        }
    }
}

unsafe fn store(dtype: DType, value: f32, to: *mut u8) {
    // SAFETY: the caller's pointer covers one element.
    unsafe {
        match dtype {
            DType::F32 => to.cast::<f32>().write_unaligned(value),
            DType::Bf16 => to.cast::<u16>().write_unaligned(bf16::from_f32(value).to_bits()),
            DType::F16 => to.cast::<u16>().write_unaligned(f16::from_f32(value).to_bits()),
            DType::Fp8E4m3 => to.write(to_e4m3(value)),
            other => unreachable!("{other:?} was refused"),
        }
    }
}

/// The value of an fp8 e4m3 (the "fn" kind: no infinities, `S.1111.111` is NaN), exactly.
pub fn from_e4m3(byte: u8) -> f32 {
    let magnitude = byte & 0x7f;
    if magnitude == 0x7f {
        return CANONICAL_NAN;
    }
    let (exponent, mantissa) = (i32::from(magnitude >> 3), f32::from(magnitude & 7));
    let value = if exponent == 0 {
        mantissa * 2f32.powi(-9)
    } else {
        (8.0 + mantissa) * 2f32.powi(exponent - 10)
    };
    if byte & 0x80 == 0 { value } else { -value }
}

/// The nearest fp8 e4m3, ties to even; beyond 448 the largest magnitude, NaN stays NaN.
pub fn to_e4m3(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return 0x7f;
    }
    if magnitude >= 448.0 {
        return sign | 0x7e;
    }
    // One unit in the last place: 2^-9 for denormals, else 2^(exponent - 3).
    let exponent = if magnitude < 2f32.powi(-6) {
        -6
    } else {
        i32::try_from((magnitude.to_bits() >> 23) & 0xff).expect("eight bits") - 127
    };
    let units = (magnitude * 2f32.powi(3 - exponent)).round_ties_even();
    // units is 0..=16; 16 carries into the next exponent, which the encoding does by itself.
    let base = (exponent + 6) * 8;
    let code = base + units as i32;
    sign | u8::try_from(code).expect("below 0x7f: larger values were cut").min(0x7e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_e4m3_round_trips() {
        for byte in 0..=u8::MAX {
            let value = from_e4m3(byte);
            let expected = if value.is_nan() { 0x7f } else { byte };
            assert_eq!(to_e4m3(value), expected, "{byte:#x} = {value}");
        }
    }

    #[test]
    fn e4m3_rounds_to_nearest_even() {
        let all: Vec<f32> = (0..0x7f).map(from_e4m3).collect();
        for (low, pair) in all.windows(2).enumerate() {
            let middle = (pair[0] + pair[1]) / 2.0;
            let even = if low % 2 == 0 { low } else { low + 1 };
            assert_eq!(usize::from(to_e4m3(middle)), even, "{middle}");
            assert_eq!(usize::from(to_e4m3(middle * 1.001)), low + 1);
            assert_eq!(usize::from(to_e4m3(middle * 0.999)), low);
        }
        assert_eq!((to_e4m3(1e9), to_e4m3(-1e9), to_e4m3(-0.0)), (0x7e, 0xfe, 0x80));
    }
}
