//! Element types and the plain arithmetic of a reduction: widen, add, round once.
//!
//! 16-bit floats are summed in fp32 and rounded to nearest even at the end. NaN is made one fixed quiet NaN whenever a
//! sum is formed, because which operand's payload survives an addition depends on operand order and instruction set.
//! The fused SIMD kernels live in `hfreduce`; these are what the collectives of this crate use.

use bytemuck::Pod;
use half::{bf16, f16};

/// Type of the elements of an operation, as it travels in its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DType {
    /// Opaque bytes: cannot be summed.
    Bytes = 0,
    /// IEEE binary32.
    F32 = 1,
    /// IEEE binary64.
    F64 = 2,
    /// Two's complement 64-bit integer; sums wrap.
    I64 = 3,
    /// bfloat16, summed in fp32.
    Bf16 = 4,
    /// IEEE binary16, summed in fp32.
    F16 = 5,
    /// 8-bit float of 4 exponent and 3 mantissa bits, without infinities; summed in fp32 (by `hfreduce` only).
    Fp8E4m3 = 6,
}

impl DType {
    /// The type with this number in a header.
    pub fn from_wire(byte: u8) -> Option<Self> {
        [Self::Bytes, Self::F32, Self::F64, Self::I64, Self::Bf16, Self::F16, Self::Fp8E4m3]
            .into_iter()
            .find(|dtype| *dtype as u8 == byte)
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bytes | Self::Fp8E4m3 => 1,
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }
}

/// A type that can be summed over ranks.
pub trait Element: Pod + Send + Sync {
    /// Its name on the wire.
    const DTYPE: DType;
    /// Its arithmetic.
    const ARITHMETIC: Arithmetic;
}

/// Reads the second slice, writes or updates the first; both hold the same number of elements.
pub type Kernel = fn(&mut [u8], &[u8]);

/// How elements of one type are summed. All slices are whole elements; an accumulator is aligned to its type.
#[derive(Debug, Clone, Copy)]
pub struct Arithmetic {
    /// Type of the result.
    pub dtype: DType,
    /// Bytes of one element of the running sum.
    pub partial_bytes: usize,
    /// Running sum = input. `None` when the running sum is kept in the output itself.
    pub widen: Option<Kernel>,
    /// Running sum += what a peer sent (also a running sum).
    pub add: Kernel,
    /// Output = running sum, rounded once. `None` when the running sum is kept in the output itself.
    pub round: Option<Kernel>,
}

/// The one NaN that sums yield.
pub const CANONICAL_NAN: f32 = f32::from_bits(0x7fc0_0000);

macro_rules! in_place {
    ($type:ty, $dtype:expr, $sum:expr) => {
        impl Element for $type {
            const DTYPE: DType = $dtype;
            const ARITHMETIC: Arithmetic = Arithmetic {
                dtype: $dtype,
                partial_bytes: size_of::<$type>(),
                widen: None,
                add: |partial, came| {
                    let partial: &mut [$type] = bytemuck::cast_slice_mut(partial);
                    let came: &[$type] = bytemuck::cast_slice(came);
                    let sum: fn($type, $type) -> $type = $sum;
                    for (p, c) in partial.iter_mut().zip(came) {
                        *p = sum(*p, *c);
                    }
                },
                round: None,
            };
        }
    };
}

in_place!(f32, DType::F32, |a, b| {
    let sum = a + b;
    if sum.is_nan() { CANONICAL_NAN } else { sum }
});
in_place!(f64, DType::F64, |a, b| {
    let sum = a + b;
    if sum.is_nan() { f64::from_bits(0x7ff8_0000_0000_0000) } else { sum }
});
in_place!(i64, DType::I64, |a, b| a.wrapping_add(b));

macro_rules! widened {
    ($type:ty, $dtype:expr) => {
        impl Element for $type {
            const DTYPE: DType = $dtype;
            const ARITHMETIC: Arithmetic = Arithmetic {
                dtype: $dtype,
                partial_bytes: size_of::<f32>(),
                widen: Some(|partial, input| {
                    let partial: &mut [f32] = bytemuck::cast_slice_mut(partial);
                    let input: &[$type] = bytemuck::cast_slice(input);
                    for (p, i) in partial.iter_mut().zip(input) {
                        *p = i.to_f32();
                    }
                }),
                add: f32::ARITHMETIC.add,
                round: Some(|output, partial| {
                    let output: &mut [$type] = bytemuck::cast_slice_mut(output);
                    let partial: &[f32] = bytemuck::cast_slice(partial);
                    for (o, p) in output.iter_mut().zip(partial) {
                        *o = <$type>::from_f32(if p.is_nan() { CANONICAL_NAN } else { *p });
                    }
                }),
            };
        }
    };
}

widened!(bf16, DType::Bf16);
widened!(f16, DType::F16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_payloads_do_not_depend_on_operand_order() {
        let (a, b) = (f32::from_bits(0x7fc0_1234), f32::from_bits(0xffc0_5678));
        for (x, y) in [(a, b), (b, a), (a, 1.0), (f32::INFINITY, f32::NEG_INFINITY)] {
            let mut sum = [x];
            (f32::ARITHMETIC.add)(bytemuck::cast_slice_mut(&mut sum), bytemuck::bytes_of(&y));
            assert_eq!(sum[0].to_bits(), CANONICAL_NAN.to_bits());
        }
    }

    #[test]
    fn sixteen_bit_sums_are_rounded_once() {
        // 1 + 3 * 2^-9: each bf16 step alone would round back to 1.
        let arithmetic = bf16::ARITHMETIC;
        let small = bf16::from_f32(2f32.powi(-9));
        let mut partial = [0f32];
        let widen = arithmetic.widen.expect("bf16 is widened");
        widen(bytemuck::cast_slice_mut(&mut partial), bytemuck::bytes_of(&bf16::ONE));
        for _ in 0..3 {
            let came = small.to_f32();
            (arithmetic.add)(bytemuck::cast_slice_mut(&mut partial), bytemuck::bytes_of(&came));
        }
        let mut output = [bf16::ZERO];
        let round = arithmetic.round.expect("bf16 is rounded");
        round(bytemuck::cast_slice_mut(&mut output), bytemuck::cast_slice(&partial));
        assert_eq!(output[0].to_f32(), 1.0 + 2f32.powi(-7));
    }

    #[test]
    fn wire_numbers_round_trip() {
        for byte in 0..=u8::MAX {
            if let Some(dtype) = DType::from_wire(byte) {
                assert_eq!(dtype as u8, byte);
            }
        }
        assert_eq!(DType::from_wire(200), None);
    }
}
