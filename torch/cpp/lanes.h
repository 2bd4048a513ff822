// Vectors of fp32 for the row kernels: as wide as a register of the instruction set, so that every operation is one
// instruction. Sums and maxima use 16 lanes whatever the width is. For kernels.cpp alone, which includes this once per
// build inside a namespace of its own.
#pragma once
#include "kernels.h"

namespace lampyris {
namespace KERNEL_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kWidth = 16;
#elif defined(__AVX2__)
constexpr int64_t kWidth = 8;
#else
constexpr int64_t kWidth = 4;
#endif
constexpr int64_t kLanes = 16;
constexpr int64_t kParts = kLanes / kWidth;

typedef float Floats __attribute__((vector_size(kWidth * 4)));
typedef int32_t Ints __attribute__((vector_size(kWidth * 4)));
typedef uint32_t Words __attribute__((vector_size(kWidth * 4)));
typedef uint16_t Halves __attribute__((vector_size(kWidth * 2)));

template <typename To, typename From>
inline To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits in another type");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

inline float load(float x) { return x; }
inline float load(bf16 x) { return bits_of<float>(uint32_t(x.bits) << 16); }

template <typename T>
inline T store(float x);
template <>
inline float store<float>(float x) {
  return x;
}
// To nearest, ties to even.
template <>
inline bf16 store<bf16>(float x) {
  uint32_t bits = bits_of<uint32_t>(x);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return bf16{uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
}

inline Floats widen(const float* x) {
  Floats out;
  __builtin_memcpy(&out, x, sizeof(out));
  return out;
}
inline Floats widen(const bf16* x) {
  Halves halves;
  __builtin_memcpy(&halves, x, sizeof(halves));
  return bits_of<Floats>(__builtin_convertvector(halves, Words) << 16);
}

inline void narrow(Floats x, float* out) { __builtin_memcpy(out, &x, sizeof(x)); }
inline void narrow(Floats x, bf16* out) {
  Words bits = bits_of<Words>(x);
  Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  // Without the sign both are positive: AVX2 compares signed numbers only.
  Ints nan = bits_of<Ints>(bits & 0x7fffffffu) > 0x7f800000;
  Halves halves = __builtin_convertvector(nan ? Words{} + 0x7fc0u : rounded, Halves);
  __builtin_memcpy(out, &halves, sizeof(halves));
}

// The elements at x, of which `left` exist: zeros after them.
template <typename T>
inline Floats load(const T* x, int64_t left) {
  if (left >= kWidth) return widen(x);
  T part[kWidth] = {};
  for (int64_t i = 0; i < left; ++i) part[i] = x[i];
  return widen(part);
}

// Writes the first `left` elements.
template <typename T>
inline void store(Floats x, T* out, int64_t left) {
  if (left >= kWidth) return narrow(x, out);
  T part[kWidth];
  narrow(x, part);
  for (int64_t i = 0; i < left; ++i) out[i] = part[i];
}

// x in the first `left` lanes, `other` after them.
inline Floats first_lanes(Floats x, int64_t left, float other) {
  if (left >= kWidth) return x;
  Ints index;
  for (int32_t i = 0; i < kWidth; ++i) index[i] = i;
  return index < int32_t(left) ? x : Floats{} + other;
}

inline int32_t whole(float x) { return int32_t(x); }
inline Ints whole(Floats x) { return __builtin_convertvector(x, Ints); }

// exp(x) = 2^n p(r), r = x - n ln 2, p of degree 6 (the Cephes expf coefficients): about 1 ulp. NaN stays NaN. F is
// float or Floats: the same operations, the same bits.
template <typename F>
inline F exp_approx(F x) {
  const F zero{}, low = zero - 87.0f, high = zero + 88.0f;
  F clamped = x < low ? low : x;
  clamped = clamped > high ? high : clamped;
  float magic = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer
  F n = (clamped * 1.44269504088896341f + magic) - magic;
  F r = clamped - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  F p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  F power = bits_of<F>((whole(n) + 127) << 23);
  F out = x < low ? zero : p * power;
  return x != x ? x : out;
}

template <typename F>
inline F sigmoid(F x) {
  return 1.0f / (1.0f + exp_approx(-x));
}

// Adds 16 lanes as a fixed tree.
inline float fold(const float* lane) {
  float a[8], b[4];
  for (int i = 0; i < 8; ++i) a[i] = lane[i] + lane[i + 8];
  for (int i = 0; i < 4; ++i) b[i] = a[i] + a[i + 4];
  return (b[0] + b[2]) + (b[1] + b[3]);
}

// Calls step(lanes, values, left) for all elements [0, n), where f(i, left) gives the values of elements i to
// i + kWidth and only `left` of them are in the range; element i goes to lane i % 16. Whole vectors come with a constant
// `left`, so that their loop has no branches.
template <typename F, typename Step>
inline void by_lane(Floats* lane, int64_t n, F f, Step step) {
  int64_t body = n - n % kLanes;
  for (int64_t i = 0; i < body; i += kLanes)
    for (int64_t p = 0; p < kParts; ++p) step(lane[p], f(i + p * kWidth, kWidth), kWidth);
  for (int64_t p = 0; body + p * kWidth < n; ++p) {
    int64_t i = body + p * kWidth;
    step(lane[p], f(i, n - i), n - i);
  }
}

// Sum of the elements [0, n).
template <typename F>
inline float lane_sum(int64_t n, F f) {
  Floats lane[kParts] = {};
  by_lane(lane, n, f, [](Floats& sum, Floats x, int64_t left) { sum += first_lanes(x, left, 0.0f); });
  float flat[kLanes];
  __builtin_memcpy(flat, lane, sizeof(flat));
  return fold(flat);
}

// Largest of the elements [0, n) that are numbers; -inf if there is none.
template <typename F>
inline float lane_max(int64_t n, F f) {
  const float lowest = -__builtin_inff();
  Floats lane[kParts];
  for (int64_t p = 0; p < kParts; ++p) lane[p] = Floats{} + lowest;
  by_lane(lane, n, f, [=](Floats& top, Floats x, int64_t left) {
    x = first_lanes(x, left, lowest);
    top = x > top ? x : top;
  });
  float flat[kLanes];
  __builtin_memcpy(flat, lane, sizeof(flat));
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) flat[l] = flat[l + half] > flat[l] ? flat[l + half] : flat[l];
  return flat[0];
}

}  // namespace
}  // namespace KERNEL_ISA
}  // namespace lampyris
