//! 16 lanes of AVX-512, with the hardware's bf16 conversion where there is one.
//!
//! That conversion flushes denormals to zero, which no other path does; a vector that holds one is rounded with
//! integers instead, so the bits stay the same on every processor.

use super::lanes::{Lanes, run as run_lanes};
use super::{Args, scalar};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// # Safety
/// As [`super::Sum::run`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")]
pub(super) unsafe fn run(args: &Args<'_>) {
    // SAFETY: the caller's promise.
    unsafe { run_lanes::<V16<false>>(args) }
}

/// # Safety
/// As [`super::Sum::run`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,f16c")]
pub(super) unsafe fn run_bf16(args: &Args<'_>) {
    // SAFETY: the caller's promise.
    unsafe { run_lanes::<V16<true>>(args) }
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct V16<const BF16: bool>(__m512);

#[cfg(target_arch = "x86_64")]
impl<const BF16: bool> Lanes for V16<BF16> {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> Self {
        // SAFETY: contract of the trait.
        Self(unsafe { _mm512_loadu_ps(from.cast()) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: contract of the trait.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: contract of the trait.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_fp8(from: *const u8) -> Self {
        // SAFETY: contract of the trait.
        unsafe {
            // The magnitude's bits are those of a half float 256 times smaller, NaN aside.
            let wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(from.cast()));
            let magnitude = _mm256_and_si256(wide, _mm256_set1_epi16(0x7f));
            let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)));
            let half = _mm256_or_si256(_mm256_slli_epi16::<7>(magnitude), sign);
            let value = _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0));
            let nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f));
            Self(_mm512_mask_blend_ps(nan, value, _mm512_set1_ps(f32::NAN)))
        }
    }

    #[inline(always)]
    unsafe fn store_f32(self, to: *mut u8) {
        // SAFETY: contract of the trait.
        unsafe { _mm512_storeu_ps(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u8) {
        // SAFETY: contract of the trait.
        unsafe {
            // Class 0x20: denormal.
            let packed = if BF16 && _mm512_fpclass_ps_mask::<0x20>(self.0) == 0 {
                let halves: __m256bh = _mm512_cvtneps_pbh(self.0);
                std::mem::transmute::<__m256bh, __m256i>(halves)
            } else {
                round_bf16(self.0)
            };
            _mm256_storeu_si256(to.cast(), packed);
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u8) {
        // SAFETY: contract of the trait.
        unsafe {
            let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(self.0);
            _mm256_storeu_si256(to.cast(), halves);
        }
    }

    #[inline(always)]
    unsafe fn store_fp8(self, to: *mut u8) {
        let mut lanes = [0f32; 16];
        // SAFETY: contract of the trait; 16 lanes fit the array and the target.
        unsafe {
            _mm512_storeu_ps(lanes.as_mut_ptr(), self.0);
            for (at, lane) in lanes.into_iter().enumerate() {
                to.wrapping_add(at).write(scalar::to_e4m3(lane));
            }
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: contract of the trait.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn settle_nan(self) -> Self {
        // SAFETY: contract of the trait.
        unsafe {
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            Self(_mm512_mask_blend_ps(nan, self.0, _mm512_set1_ps(lampyris_comm::CANONICAL_NAN)))
        }
    }
}

/// To nearest even with integers. The one NaN there is stays one: its low half is zero.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn round_bf16(value: __m512) -> __m256i {
    // SAFETY: called where AVX-512 is enabled.
    unsafe {
        let bits = _mm512_castps_si512(value);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let biased = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(biased))
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn run(args: &Args<'_>) {
    // SAFETY: the caller's promise.
    unsafe { scalar::run(args, 0) }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) use run as run_bf16;
