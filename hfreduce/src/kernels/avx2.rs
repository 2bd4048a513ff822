//! 8 lanes of AVX2 with F16C.

use super::lanes::{Lanes, run as run_lanes};
use super::{Args, scalar};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// # Safety
/// As [`super::Sum::run`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn run(args: &Args<'_>) {
    // SAFETY: the caller's promise.
    unsafe { run_lanes::<V8>(args) }
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct V8(__m256);

#[cfg(target_arch = "x86_64")]
impl Lanes for V8 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> Self {
        // SAFETY: contract of the trait.
        Self(unsafe { _mm256_loadu_ps(from.cast()) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: contract of the trait.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: contract of the trait.
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_fp8(from: *const u8) -> Self {
        // SAFETY: contract of the trait; see the AVX-512 version for the arithmetic.
        unsafe {
            let wide = _mm_cvtepu8_epi16(_mm_loadl_epi64(from.cast()));
            let magnitude = _mm_and_si128(wide, _mm_set1_epi16(0x7f));
            let sign = _mm_slli_epi16::<8>(_mm_and_si128(wide, _mm_set1_epi16(0x80)));
            let half = _mm_or_si128(_mm_slli_epi16::<7>(magnitude), sign);
            let value = _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0));
            let nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f));
            let nan = _mm256_castsi256_ps(_mm256_cvtepi16_epi32(nan));
            Self(_mm256_blendv_ps(value, _mm256_set1_ps(f32::NAN), nan))
        }
    }

    #[inline(always)]
    unsafe fn store_f32(self, to: *mut u8) {
        // SAFETY: contract of the trait.
        unsafe { _mm256_storeu_ps(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u8) {
        // SAFETY: contract of the trait.
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let biased = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let high = _mm256_srli_epi32::<16>(biased);
            // Packs within halves: bring the two used quarters together.
            let packed = _mm256_packus_epi32(high, high);
            let ordered = _mm256_permute4x64_epi64::<0b1000>(packed);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(ordered));
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u8) {
        // SAFETY: contract of the trait.
        unsafe {
            let halves = _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(self.0);
            _mm_storeu_si128(to.cast(), halves);
        }
    }

    #[inline(always)]
    unsafe fn store_fp8(self, to: *mut u8) {
        let mut lanes = [0f32; 8];
        // SAFETY: contract of the trait; 8 lanes fit the array and the target.
        unsafe {
            _mm256_storeu_ps(lanes.as_mut_ptr(), self.0);
            for (at, lane) in lanes.into_iter().enumerate() {
                to.wrapping_add(at).write(scalar::to_e4m3(lane));
            }
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: contract of the trait.
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn settle_nan(self) -> Self {
        // SAFETY: contract of the trait.
        unsafe {
            let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0);
            let canonical = _mm256_set1_ps(lampyris_comm::CANONICAL_NAN);
            Self(_mm256_blendv_ps(self.0, canonical, nan))
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn run(args: &Args<'_>) {
    // SAFETY: the caller's promise.
    unsafe { scalar::run(args, 0) }
}
