// The row kernels of kernels.h. Compiled once per instruction set with KERNEL_ISA naming the namespace. No ATen and no
// standard library here: an inline function emitted by one of these builds must never be linked into another.
#include "lanes.h"

namespace lampyris {
namespace KERNEL_ISA {
namespace {

template <typename T>
void rms_norm(const T* x, const float* w, T* y, float* rstd, int64_t rows, int64_t cols, double eps) {
  for (int64_t r = 0; r < rows; ++r, x += cols, y += cols) {
    float squares = lane_sum(cols, [=](int64_t i, int64_t left) {
      Floats xi = load(x + i, left);
      return xi * xi;
    });
    float scale = 1.0f / __builtin_sqrtf(squares / float(cols) + float(eps));
    rstd[r] = scale;
    for (int64_t i = 0; i < cols; ++i) y[i] = store<T>(load(x[i]) * scale * w[i]);
  }
}

template <typename T>
void rms_norm_backward(const T* dy, const T* x, const float* w, const float* rstd, T* dx, float* dw, int64_t rows,
                       int64_t cols) {
  for (int64_t i = 0; i < cols; ++i) dw[i] = 0.0f;
  for (int64_t r = 0; r < rows; ++r, x += cols, dy += cols, dx += cols) {
    float scale = rstd[r];
    float dot = lane_sum(
        cols, [=](int64_t i, int64_t left) { return load(dy + i, left) * load(w + i, left) * load(x + i, left); });
    float pull = dot * scale * scale / float(cols);
    for (int64_t i = 0; i < cols; ++i) {
      float xi = load(x[i]), di = load(dy[i]);
      dx[i] = store<T>(scale * (di * w[i] - xi * pull));
      dw[i] += di * (xi * scale);
    }
  }
}

template <typename T>
void swiglu(const T* gate_up, const float* weight, T* out, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r, gate_up += 2 * width, out += width) {
    float scale = weight ? weight[r] : 1.0f;
    for (int64_t i = 0; i < width; ++i) {
      float g = load(gate_up[i]);
      out[i] = store<T>(g * sigmoid(g) * load(gate_up[width + i]) * scale);
    }
  }
}

template <typename T>
void swiglu_backward(const T* dout, const T* gate_up, const float* weight, T* dgate_up, float* dweight, int64_t rows,
                     int64_t width) {
  for (int64_t r = 0; r < rows; ++r, gate_up += 2 * width, dgate_up += 2 * width, dout += width) {
    float scale = weight ? weight[r] : 1.0f;
    float dot = lane_sum(width, [=](int64_t i, int64_t left) {
      Floats g = load(gate_up + i, left), u = load(gate_up + width + i, left), raw = load(dout + i, left);
      Floats s = sigmoid(g), d = raw * scale;
      store(d * u * (s * (1.0f + g * (1.0f - s))), dgate_up + i, left);
      store(d * (g * s), dgate_up + width + i, left);
      return raw * (g * s * u);
    });
    if (dweight) dweight[r] = dot;
  }
}

// Whether T holds a value of fp32 unrounded, so that a row can keep it in place.
template <typename T>
constexpr bool kExact = sizeof(T) == sizeof(float);

// Exponentials f(i) of the elements [0, n) of a row: their sum, over unrounded values as torch's. They stay in the row
// where its type holds them; elsewhere they are computed again, which is cheaper than a buffer.
template <typename T, typename F>
inline float sum_exponentials(T* row, int64_t n, F f) {
  return lane_sum(n, [=](int64_t i, int64_t left) {
    Floats e = f(load(row + i, left));
    if (kExact<T>) store(e, row + i, left);
    return e;
  });
}

// The row of exponentials times `factor`; sum_exponentials has seen them.
template <typename T, typename F>
inline void scale_exponentials(T* row, int64_t n, F f, float factor) {
  for (int64_t i = 0; i < n; ++i) row[i] = store<T>((kExact<T> ? load(row[i]) : f(load(row[i]))) * factor);
}

template <typename T>
void causal_softmax(T* scores, float scale, int64_t first_row, int64_t rows, CausalBlock block) {
  for (int64_t r = 0; r < rows; ++r, scores += block.keys) {
    int64_t seen = block.first + (first_row + r) % block.period + 1;
    float top = lane_max(seen, [=](int64_t i, int64_t left) { return load(scores + i, left); }) * scale;
    auto exponential = [=](auto score) { return exp_approx(score * scale - top); };
    float sum = sum_exponentials(scores, seen, exponential);
    scale_exponentials(scores, seen, exponential, 1.0f / sum);
    for (int64_t i = seen; i < block.keys; ++i) scores[i] = store<T>(0.0f);
  }
}

template <typename T>
void causal_softmax_backward(T* dp, const T* p, float scale, int64_t first_row, int64_t rows, CausalBlock block) {
  for (int64_t r = 0; r < rows; ++r, dp += block.keys, p += block.keys) {
    int64_t seen = block.first + (first_row + r) % block.period + 1;
    float dot = lane_sum(seen, [=](int64_t i, int64_t left) { return load(dp + i, left) * load(p + i, left); });
    for (int64_t i = 0; i < seen; ++i) dp[i] = store<T>(load(p[i]) * (load(dp[i]) - dot) * scale);
    for (int64_t i = seen; i < block.keys; ++i) dp[i] = store<T>(0.0f);
  }
}

template <typename T>
void cross_entropy(T* logits, const int64_t* targets, float* loss, float scale, int64_t rows, int64_t vocab) {
  for (int64_t r = 0; r < rows; ++r, logits += vocab) {
    int64_t target = targets[r];
    if (target < 0) {
      loss[r] = 0.0f;
      for (int64_t i = 0; i < vocab; ++i) logits[i] = store<T>(0.0f);
      continue;
    }
    float top = lane_max(vocab, [=](int64_t i, int64_t left) { return load(logits + i, left); });
    float picked = load(logits[target]) - top;
    auto exponential = [=](auto logit) { return exp_approx(logit - top); };
    float sum = sum_exponentials(logits, vocab, exponential);
    loss[r] = float(__builtin_log(double(sum)) - double(picked));
    float factor = scale / sum;
    scale_exponentials(logits, vocab, exponential, factor);
    logits[target] = store<T>(exp_approx(picked) * factor - scale);
  }
}

// RoPE of one head: pair i is rotated by the angle whose cosine and sine are given; direction -1 rotates back.
template <typename T>
inline void rope_row(const T* __restrict in, T* __restrict out, const float* __restrict cos,
                     const float* __restrict sin, int64_t half, bool interleaved, float direction) {
  auto rotate = [=](int64_t i, int64_t first, int64_t second) {
    float x = load(in[first]), y = load(in[second]), s = direction * sin[i];
    out[first] = store<T>(x * cos[i] - y * s);
    out[second] = store<T>(y * cos[i] + x * s);
  };
  if (interleaved) {
    for (int64_t i = 0; i < half; ++i) rotate(i, 2 * i, 2 * i + 1);
  } else {
    for (int64_t i = 0; i < half; ++i) rotate(i, i, half + i);
  }
}

template <typename T>
inline void copy(const T* in, T* out, int64_t n) {
  __builtin_memcpy(out, in, uint64_t(n) * sizeof(T));
}

template <typename T>
void mla_pack(const T* q_raw, const T* kv, const T* k_rope, int64_t k_rope_stride, const float* cos, const float* sin,
              T* q, T* k, T* v, int64_t first_token, int64_t tokens, MlaShape s) {
  int64_t head = s.nope + s.rope, half = s.rope / 2;
  for (int64_t t = first_token; t < first_token + tokens; ++t) {
    int64_t batch = t / s.sequence, position = t % s.sequence;
    const float *c = cos + position * half, *n = sin + position * half;
    // The rotary key is shared by all heads: it is rotated into the first one and copied from there.
    const T* rotated = k + (batch * s.heads * s.sequence + position) * head + s.nope;
    for (int64_t h = 0; h < s.heads; ++h) {
      int64_t row = (batch * s.heads + h) * s.sequence + position;
      const T* q_in = q_raw + (t * s.heads + h) * head;
      const T* kv_in = kv + (t * s.heads + h) * (s.nope + s.value);
      copy(q_in, q + row * head, s.nope);
      rope_row(q_in + s.nope, q + row * head + s.nope, c, n, half, true, 1.0f);
      copy(kv_in, k + row * head, s.nope);
      T* k_out = k + row * head + s.nope;
      if (h == 0) {
        rope_row(k_rope + t * k_rope_stride, k_out, c, n, half, true, 1.0f);
      } else {
        copy(rotated, k_out, s.rope);
      }
      copy(kv_in + s.nope, v + row * s.value, s.value);
    }
  }
}

template <typename T>
void mla_unpack(const T* dq, const T* dk, const T* dv, const float* cos, const float* sin, T* dq_raw, T* dkv,
                T* dk_rope, int64_t first_token, int64_t tokens, MlaShape s) {
  int64_t head = s.nope + s.rope, half = s.rope / 2;
  for (int64_t t = first_token; t < first_token + tokens; ++t) {
    int64_t batch = t / s.sequence, position = t % s.sequence;
    const float *c = cos + position * half, *n = sin + position * half;
    for (int64_t h = 0; h < s.heads; ++h) {
      int64_t row = (batch * s.heads + h) * s.sequence + position;
      T* q_out = dq_raw + (t * s.heads + h) * head;
      T* kv_out = dkv + (t * s.heads + h) * (s.nope + s.value);
      copy(dq + row * head, q_out, s.nope);
      rope_row(dq + row * head + s.nope, q_out + s.nope, c, n, half, true, -1.0f);
      copy(dk + row * head, kv_out, s.nope);
      copy(dv + row * s.value, kv_out + s.nope, s.value);
    }
    // The rotary key is shared by all heads: its gradient is their sum, rotated back once.
    T* out = dk_rope + t * s.rope;
    for (int64_t i = 0; i < half; ++i) {
      float x = 0.0f, y = 0.0f;
      for (int64_t h = 0; h < s.heads; ++h) {
        const T* in = dk + ((batch * s.heads + h) * s.sequence + position) * head + s.nope;
        x += load(in[2 * i]);
        y += load(in[2 * i + 1]);
      }
      out[2 * i] = store<T>(x * c[i] + y * n[i]);
      out[2 * i + 1] = store<T>(y * c[i] - x * n[i]);
    }
  }
}

template <typename T>
void gqa_pack(const T* qkv, const float* cos, const float* sin, T* q, T* k, T* v, int64_t first_token, int64_t tokens,
              GqaShape s) {
  int64_t d = s.head_dim, half = d / 2;
  for (int64_t t = first_token; t < first_token + tokens; ++t) {
    int64_t batch = t / s.sequence, position = t % s.sequence;
    const float *c = cos + position * half, *n = sin + position * half;
    const T* in = qkv + t * (s.heads + 2 * s.kv_heads) * d;
    for (int64_t h = 0; h < s.heads; ++h, in += d)
      rope_row(in, q + ((batch * s.heads + h) * s.sequence + position) * d, c, n, half, s.interleaved, 1.0f);
    for (int64_t h = 0; h < s.kv_heads; ++h, in += d) {
      int64_t row = ((batch * s.kv_heads + h) * s.sequence + position) * d;
      rope_row(in, k + row, c, n, half, s.interleaved, 1.0f);
      copy(in + s.kv_heads * d, v + row, d);
    }
  }
}

template <typename T>
void gqa_unpack(const T* dq, const T* dk, const T* dv, const float* cos, const float* sin, T* dqkv,
                int64_t first_token, int64_t tokens, GqaShape s) {
  int64_t d = s.head_dim, half = d / 2;
  for (int64_t t = first_token; t < first_token + tokens; ++t) {
    int64_t batch = t / s.sequence, position = t % s.sequence;
    const float *c = cos + position * half, *n = sin + position * half;
    T* out = dqkv + t * (s.heads + 2 * s.kv_heads) * d;
    for (int64_t h = 0; h < s.heads; ++h, out += d)
      rope_row(dq + ((batch * s.heads + h) * s.sequence + position) * d, out, c, n, half, s.interleaved, -1.0f);
    for (int64_t h = 0; h < s.kv_heads; ++h, out += d) {
      int64_t row = ((batch * s.kv_heads + h) * s.sequence + position) * d;
      rope_row(dk + row, out, c, n, half, s.interleaved, -1.0f);
      copy(dv + row, out + s.kv_heads * d, d);
    }
  }
}

template <typename T>
void gather_rows(const T* x, const int64_t* source, T* out, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r, out += cols) {
    if (source[r] < 0) {
      for (int64_t i = 0; i < cols; ++i) out[i] = store<T>(0.0f);
    } else {
      copy(x + source[r] * cols, out, cols);
    }
  }
}

template <typename T>
void sum_rows(const T* rows, const int64_t* position, const int64_t* group, T* out, int64_t tokens, int64_t slots,
              int64_t cols) {
  constexpr int64_t kTile = 256;
  float total[kTile], partial[kTile];
  for (int64_t t = 0; t < tokens; ++t, position += slots, group += slots, out += cols) {
    for (int64_t first = 0; first < cols; first += kTile) {
      int64_t n = cols - first < kTile ? cols - first : kTile;
      for (int64_t i = 0; i < n; ++i) total[i] = 0.0f;
      for (int64_t k = 0; k < slots;) {
        for (int64_t i = 0; i < n; ++i) partial[i] = 0.0f;
        for (int64_t open = group[k]; k < slots && group[k] == open; ++k) {
          const T* row = rows + position[k] * cols + first;
          for (int64_t i = 0; i < n; ++i) partial[i] += load(row[i]);
        }
        for (int64_t i = 0; i < n; ++i) total[i] += partial[i];
      }
      for (int64_t i = 0; i < n; ++i) out[first + i] = store<T>(total[i]);
    }
  }
}

// The arguments by value, the arrays apart: a store must not force the compiler to read anything again.
void adamw(float* __restrict master, float* __restrict m, float* __restrict v, const float* __restrict grad,
           bf16* __restrict copy, int64_t n, const AdamW& args) {
  const AdamW a = args;
  float keep = 1.0f - a.lr * a.weight_decay, rest1 = 1.0f - a.beta1, rest2 = 1.0f - a.beta2;
  for (int64_t i = 0; i < n; ++i) {
    float g = grad[i] * a.grad_scale;
    float mi = a.beta1 * m[i] + rest1 * g;
    float vi = a.beta2 * v[i] + rest2 * (g * g);
    m[i] = mi;
    v[i] = vi;
    float denominator = __builtin_sqrtf(vi * a.correction2) + a.eps;
    master[i] = master[i] * keep - a.lr * (mi * a.correction1 / denominator);
  }
  if (!copy) return;
  for (int64_t i = 0; i < n; ++i) copy[i] = store<bf16>(master[i]);
}

double square_sum(const float* x, int64_t n) {
  double lane[8] = {};
  int64_t body = n - n % 8;
  for (int64_t i = 0; i < body; i += 8)
    for (int64_t l = 0; l < 8; ++l) lane[l] += double(x[i + l]) * double(x[i + l]);
  for (int64_t i = body; i < n; ++i) lane[i - body] += double(x[i]) * double(x[i]);
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

template <typename T>
constexpr Kernels<T> table() {
  return {rms_norm<T>,       rms_norm_backward<T>, swiglu<T>,     swiglu_backward<T>, causal_softmax<T>,
          causal_softmax_backward<T>, cross_entropy<T>, mla_pack<T>, mla_unpack<T>,   gqa_pack<T>,
          gqa_unpack<T>,     gather_rows<T>,       sum_rows<T>};
}

}  // namespace

extern const Kernels<float> kFp32;
extern const Kernels<bf16> kBf16;
extern const CommonKernels kCommon;
const Kernels<float> kFp32 = table<float>();
const Kernels<bf16> kBf16 = table<bf16>();
const CommonKernels kCommon = {adamw, square_sum};

}  // namespace KERNEL_ISA
}  // namespace lampyris
