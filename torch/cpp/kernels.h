// Row kernels of the CPU path: plain pointers in, plain pointers out. kernels.cpp is compiled once per instruction set;
// floating-point contraction is off and every sum uses the same 16 lanes, so all builds give the same bits, a loop's
// tail rounds like its body, and nothing depends on the number of threads (the caller splits rows, never a sum).
#pragma once
#include <cstdint>

namespace lampyris {

struct bf16 {
  uint16_t bits;
};

// Weight gradients of norms are summed in blocks of this many rows: each block top to bottom, then block after block.
constexpr int64_t kRowBlock = 64;

// Shape of MLA packing: heads and the parts of a head.
struct MlaShape {
  int64_t sequence;  // S
  int64_t heads;     // h
  int64_t nope;      // d_n: leading part of a query/key head, without position
  int64_t rope;      // d_r: trailing part, with RoPE
  int64_t value;     // d_v
};

// Shape of GQA packing.
struct GqaShape {
  int64_t sequence;  // S
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  bool interleaved;  // RoPE pairs (0,1), (2,3), ... instead of (i, i + head_dim/2)
};

// Scores [n, rows, keys] of a run of positions: row r of each item stands at position first + r % period, and sees the
// keys up to its own.
struct CausalBlock {
  int64_t first;
  int64_t period;
  int64_t keys;
};

template <typename T>
struct Kernels {
  // y = x * rstd(x) * w; saves rstd per row.
  void (*rms_norm)(const T* x, const float* w, T* y, float* rstd, int64_t rows, int64_t cols, double eps);
  // dx, and dw[cols] summed over these rows (at most kRowBlock of them).
  void (*rms_norm_backward)(const T* dy, const T* x, const float* w, const float* rstd, T* dx, float* dw, int64_t rows,
                            int64_t cols);
  // out = silu(gate) * up * weight[row]; rows of gate_up are [gate | up]; weight may be null (1).
  void (*swiglu)(const T* gate_up, const float* weight, T* out, int64_t rows, int64_t width);
  void (*swiglu_backward)(const T* dout, const T* gate_up, const float* weight, T* dgate_up, float* dweight,
                          int64_t rows, int64_t width);
  // In place: probabilities of scale * score in the columns that a row sees, zeros elsewhere.
  void (*causal_softmax)(T* scores, float scale, int64_t first_row, int64_t rows, CausalBlock block);
  // In place: dp -> p * (dp - sum(dp * p)) * scale.
  void (*causal_softmax_backward)(T* dp, const T* p, float scale, int64_t first_row, int64_t rows, CausalBlock block);
  // In place: logits -> gradient of (summed cross entropy) * scale; rows with target < 0 become zeros. Loss per row.
  void (*cross_entropy)(T* logits, const int64_t* targets, float* loss, float scale, int64_t rows, int64_t vocab);
  // q_raw [T, h*(d_n+d_r)], kv [T, h*(d_n+d_v)], k_rope [T, d_r] with a row stride -> q, k [B*h, S, d_n+d_r], v.
  void (*mla_pack)(const T* q_raw, const T* kv, const T* k_rope, int64_t k_rope_stride, const float* cos,
                   const float* sin, T* q, T* k, T* v, int64_t first_token, int64_t tokens, MlaShape shape);
  void (*mla_unpack)(const T* dq, const T* dk, const T* dv, const float* cos, const float* sin, T* dq_raw, T* dkv,
                     T* dk_rope, int64_t first_token, int64_t tokens, MlaShape shape);
  // Rows of [q heads | k heads | v heads] -> q [B*h, S, d], k, v [B*h_kv, S, d].
  void (*gqa_pack)(const T* qkv, const float* cos, const float* sin, T* q, T* k, T* v, int64_t first_token,
                   int64_t tokens, GqaShape shape);
  void (*gqa_unpack)(const T* dq, const T* dk, const T* dv, const float* cos, const float* sin, T* dqkv,
                     int64_t first_token, int64_t tokens, GqaShape shape);
  // out[r] = x[source[r]], zeros where source[r] < 0.
  void (*gather_rows)(const T* x, const int64_t* source, T* out, int64_t rows, int64_t cols);
  // out[t] = sum of rows[position] over the token's slots, in the given order: partial sums inside a run of equal
  // `group`, then the partial sums left to right.
  void (*sum_rows)(const T* rows, const int64_t* position, const int64_t* group, T* out, int64_t tokens, int64_t slots,
                   int64_t cols);
};

struct AdamW {
  float lr, beta1, beta2, eps, weight_decay, correction1, correction2, grad_scale;
};

struct CommonKernels {
  // One pass over [0, n): moments, decoupled decay, master weight, and the bf16 copy if not null. correction1 and 2
  // are 1 / (1 - beta^t).
  void (*adamw)(float* master, float* m, float* v, const float* grad, bf16* copy, int64_t n, const AdamW& args);
  // Sum of squares in fp64, fixed lanes.
  double (*square_sum)(const float* x, int64_t n);
};

// The build for this machine: AVX-512, AVX2 or baseline.
template <typename T>
const Kernels<T>& kernels();
const CommonKernels& common_kernels();
const char* kernel_name();

}  // namespace lampyris
