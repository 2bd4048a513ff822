// Packing of heads with RoPE, and causal attention that keeps its probabilities (the faster choice on a CPU up to about
// a thousand positions; longer sequences go through ATen's flash attention, see model/).
#include "shim.h"

namespace lampyris {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor causal_mask(int64_t rows, int64_t sequence, const at::TensorOptions& options) {
  auto row = at::arange(rows, options.dtype(at::kLong)).remainder(sequence).view({rows, 1});
  return at::arange(sequence, options.dtype(at::kLong)).view({1, sequence}).gt(row);
}

// scores [n, rows, keys]; the plain twin knows whole sequences only.
void causal_softmax_(at::Tensor& scores, double scale, CausalBlock block) {
  int64_t rows = scores.size(0) * scores.size(1);
  if (!use_kernels(scores)) {
    auto masked = (scores.to(at::kFloat) * scale)
                      .masked_fill(causal_mask(scores.size(1), block.keys, scores.options()), -INFINITY);
    scores.copy_(masked.softmax(-1));
    return;
  }
  by_type(scores, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    auto* sp = data<T>(scores);
    parallel(rows, rows_per_task(block.keys), [&](int64_t first, int64_t last) {
      kernels<T>().causal_softmax(sp + first * block.keys, float(scale), first, last - first, block);
    });
  });
}

void causal_softmax_backward_(at::Tensor& dp, const at::Tensor& p, double scale, CausalBlock block) {
  int64_t rows = p.size(0) * p.size(1);
  if (!use_kernels(p)) {
    auto pf = p.to(at::kFloat), df = dp.to(at::kFloat);
    dp.copy_(pf * (df - (df * pf).sum(-1, true)) * scale);
    return;
  }
  by_type(p, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    auto *dpp = data<T>(dp), *pp = data<T>(p);
    parallel(rows, rows_per_task(block.keys), [&](int64_t first, int64_t last) {
      kernels<T>().causal_softmax_backward(dpp + first * block.keys, pp + first * block.keys, float(scale), first,
                                           last - first, block);
    });
  });
}

// Positions of a block of queries. Their scores need the keys up to the block's end only, so that B blocks save
// (B - 1) / 2B of the products; smaller blocks would make products too small to be fast.
constexpr int64_t kQueryBlock = 128;

// The blocks of queries [n, rows, d] over `sequence` keys; one where heads share keys, or where blocks would be uneven.
std::vector<CausalBlock> query_blocks(const at::Tensor& q, int64_t sequence) {
  if (!use_kernels(q) || q.size(1) != sequence || sequence % kQueryBlock != 0) return {{0, sequence, sequence}};
  std::vector<CausalBlock> blocks;
  for (int64_t first = 0; first < sequence; first += kQueryBlock)
    blocks.push_back({first, kQueryBlock, first + kQueryBlock});
  return blocks;
}

// The block's rows of x [n, rows, d].
at::Tensor rows_of(const at::Tensor& x, CausalBlock block, int64_t sequence) {
  return block.period == sequence ? x : x.narrow(1, block.first, block.period);
}

// q [n, g*S, d], k [n, S, d], v [n, S, d_v] -> [n, g*S, d_v]: g query heads share a key/value head; row r of a block is
// position r % S.
struct Attention : torch::autograd::Function<Attention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            double scale) {
    auto out = at::empty({q.size(0), q.size(1), v.size(2)}, v.options());
    variable_list saved{q, k, v};
    for (auto block : query_blocks(q, k.size(1))) {
      auto p = at::bmm(rows_of(q, block, k.size(1)), k.narrow(1, 0, block.keys).transpose(1, 2));
      causal_softmax_(p, scale, block);
      auto rows = rows_of(out, block, k.size(1));
      at::bmm_out(rows, p, v.narrow(1, 0, block.keys));
      saved.push_back(p);
    }
    ctx->save_for_backward(saved);
    ctx->saved_data["scale"] = scale;
    return out;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto &q = saved[0], &k = saved[1], &v = saved[2];
    double scale = ctx->saved_data["scale"].toDouble();
    auto dout = grads[0].contiguous();
    auto dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
    auto blocks = query_blocks(q, k.size(1));
    // The last block sees all keys: it sets their gradients, and those before it add to their part.
    for (size_t i = blocks.size(); i-- > 0;) {
      auto block = blocks[i];
      bool adds = i + 1 < blocks.size();
      auto &p = saved[3 + i];
      auto rows = rows_of(dout, block, k.size(1)), dq_rows = rows_of(dq, block, k.size(1));
      auto dk_part = dk.narrow(1, 0, block.keys), dv_part = dv.narrow(1, 0, block.keys);
      at::baddbmm_out(dv_part, dv_part, p.transpose(1, 2), rows, adds);
      auto dp = at::bmm(rows, v.narrow(1, 0, block.keys).transpose(1, 2));
      causal_softmax_backward_(dp, p, scale, block);
      at::bmm_out(dq_rows, dp, k.narrow(1, 0, block.keys));
      at::baddbmm_out(dk_part, dk_part, dp.transpose(1, 2), rows_of(q, block, k.size(1)), adds);
    }
    return {dq, dk, dv, {}};
  }
};

// x [..., 2 * half]: rotates its pairs; cos and sin broadcast to [..., half].
at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool interleaved, double direction) {
  int64_t half = x.size(-1) / 2;
  auto f = x.to(at::kFloat), s = sin * direction;
  auto a = interleaved ? f.slice(-1, 0, 2 * half, 2) : f.narrow(-1, 0, half);
  auto b = interleaved ? f.slice(-1, 1, 2 * half, 2) : f.narrow(-1, half, half);
  auto ra = a * cos - b * s, rb = b * cos + a * s;
  auto out = interleaved ? at::stack({ra, rb}, -1).flatten(-2) : at::cat({ra, rb}, -1);
  return out.to(x.scalar_type());
}

at::Tensor heads_first(const at::Tensor& x) { return x.transpose(1, 2).flatten(0, 1).contiguous(); }

at::Tensor tokens_first(const at::Tensor& x, int64_t heads) {
  return x.view({-1, heads, x.size(1), x.size(2)}).transpose(1, 2);
}

void check_angles(const at::Tensor& cos, const at::Tensor& sin, int64_t sequence, int64_t half) {
  TORCH_CHECK(cos.sizes() == sin.sizes() && cos.size(0) >= sequence && cos.size(1) == half, "angles of ", cos.sizes(),
              " do not serve ", sequence, " positions of ", half, " pairs");
}

// x has `rows` rows of `cols` elements.
void check_rows(const at::Tensor& x, int64_t rows, int64_t cols, const char* what) {
  TORCH_CHECK(x.dim() == 2 && x.size(0) == rows && x.size(1) == cols, what, " is ", x.sizes(), ", not [", rows, ", ",
              cols, "]");
}

struct MlaPack : torch::autograd::Function<MlaPack> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& q_raw, const at::Tensor& kv,
                               const at::Tensor& k_rope, const at::Tensor& cos, const at::Tensor& sin,
                               const MlaShape& s) {
    int64_t tokens = kv.size(0), batch = tokens / s.sequence, head = s.nope + s.rope;
    check_angles(cos, sin, s.sequence, s.rope / 2);
    check_rows(q_raw, batch * s.sequence, s.heads * head, "q_raw");
    check_rows(kv, batch * s.sequence, s.heads * (s.nope + s.value), "kv");
    check_rows(k_rope, batch * s.sequence, s.rope, "k_rope");
    TORCH_CHECK(k_rope.scalar_type() == kv.scalar_type(), "k_rope and kv have one element type");
    ctx->save_for_backward({cos, sin});
    ctx->saved_data["shape"] = std::vector<int64_t>{s.sequence, s.heads, s.nope, s.rope, s.value};
    if (!use_kernels(kv)) {
      auto c = cos.narrow(0, 0, s.sequence).unsqueeze(1), n = sin.narrow(0, 0, s.sequence).unsqueeze(1);
      auto q4 = q_raw.view({batch, s.sequence, s.heads, head});
      auto kv4 = kv.view({batch, s.sequence, s.heads, s.nope + s.value});
      auto q = at::cat({q4.narrow(-1, 0, s.nope), rope(q4.narrow(-1, s.nope, s.rope), c, n, true, 1)}, -1);
      auto kr = rope(k_rope.reshape({batch, s.sequence, 1, s.rope}), c, n, true, 1);
      auto k = at::cat({kv4.narrow(-1, 0, s.nope), kr.expand({batch, s.sequence, s.heads, s.rope})}, -1);
      return {heads_first(q), heads_first(k), heads_first(kv4.narrow(-1, s.nope, s.value))};
    }
    auto q = at::empty({batch * s.heads, s.sequence, head}, kv.options());
    auto k = at::empty_like(q);
    auto v = at::empty({batch * s.heads, s.sequence, s.value}, kv.options());
    auto q_in = q_raw.contiguous(), kv_in = kv.contiguous();
    TORCH_CHECK(k_rope.stride(1) == 1, "k_rope needs unit column stride");
    by_type(kv, [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      auto *qi = data<T>(q_in), *kvi = data<T>(kv_in), *qp = data<T>(q), *kp = data<T>(k), *vp = data<T>(v);
      auto* kr = static_cast<T*>(k_rope.data_ptr());
      auto *c = data<float>(cos), *n = data<float>(sin);
      parallel(tokens, rows_per_task(s.heads * head), [&](int64_t first, int64_t last) {
        kernels<T>().mla_pack(qi, kvi, kr, k_rope.stride(0), c, n, qp, kp, vp, first, last - first, s);
      });
    });
    return {q, k, v};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto &cos = saved[0], &sin = saved[1];
    auto dims = ctx->saved_data["shape"].toIntVector();
    MlaShape s{dims[0], dims[1], dims[2], dims[3], dims[4]};
    auto dq = grads[0].contiguous(), dk = grads[1].contiguous(), dv = grads[2].contiguous();
    int64_t batch = dq.size(0) / s.heads, tokens = batch * s.sequence, head = s.nope + s.rope;
    if (!use_kernels(dq)) {
      auto c = cos.narrow(0, 0, s.sequence).unsqueeze(1), n = sin.narrow(0, 0, s.sequence).unsqueeze(1);
      auto q4 = tokens_first(dq, s.heads), k4 = tokens_first(dk, s.heads), v4 = tokens_first(dv, s.heads);
      auto dq_raw = at::cat({q4.narrow(-1, 0, s.nope), rope(q4.narrow(-1, s.nope, s.rope), c, n, true, -1)}, -1);
      auto kr = k4.narrow(-1, s.nope, s.rope).to(at::kFloat).sum(2, true);
      auto dk_rope = rope(kr, c, n, true, -1).to(dk.scalar_type());
      return {dq_raw.reshape({tokens, s.heads * head}),
              at::cat({k4.narrow(-1, 0, s.nope), v4}, -1).reshape({tokens, s.heads * (s.nope + s.value)}),
              dk_rope.reshape({tokens, s.rope}), {}, {}, {}};
    }
    auto dq_raw = at::empty({tokens, s.heads * head}, dq.options());
    auto dkv = at::empty({tokens, s.heads * (s.nope + s.value)}, dq.options());
    auto dk_rope = at::empty({tokens, s.rope}, dq.options());
    by_type(dq, [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      auto *qp = data<T>(dq), *kp = data<T>(dk), *vp = data<T>(dv);
      auto *qo = data<T>(dq_raw), *kvo = data<T>(dkv), *kro = data<T>(dk_rope);
      auto *c = data<float>(cos), *n = data<float>(sin);
      parallel(tokens, rows_per_task(s.heads * head), [&](int64_t first, int64_t last) {
        kernels<T>().mla_unpack(qp, kp, vp, c, n, qo, kvo, kro, first, last - first, s);
      });
    });
    return {dq_raw, dkv, dk_rope, {}, {}, {}};
  }
};

struct GqaPack : torch::autograd::Function<GqaPack> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& qkv, const at::Tensor& cos,
                               const at::Tensor& sin, const GqaShape& s) {
    int64_t tokens = qkv.size(0), batch = tokens / s.sequence, d = s.head_dim;
    check_angles(cos, sin, s.sequence, d / 2);
    check_rows(qkv, batch * s.sequence, (s.heads + 2 * s.kv_heads) * d, "qkv");
    ctx->save_for_backward({cos, sin});
    ctx->saved_data["shape"] =
        std::vector<int64_t>{s.sequence, s.heads, s.kv_heads, s.head_dim, int64_t(s.interleaved)};
    if (!use_kernels(qkv)) {
      auto c = cos.narrow(0, 0, s.sequence).unsqueeze(1), n = sin.narrow(0, 0, s.sequence).unsqueeze(1);
      auto all = qkv.view({batch, s.sequence, s.heads + 2 * s.kv_heads, d});
      auto q = rope(all.narrow(2, 0, s.heads), c, n, s.interleaved, 1);
      auto k = rope(all.narrow(2, s.heads, s.kv_heads), c, n, s.interleaved, 1);
      return {heads_first(q), heads_first(k), heads_first(all.narrow(2, s.heads + s.kv_heads, s.kv_heads))};
    }
    auto q = at::empty({batch * s.heads, s.sequence, d}, qkv.options());
    auto k = at::empty({batch * s.kv_heads, s.sequence, d}, qkv.options());
    auto v = at::empty_like(k);
    auto in = qkv.contiguous();
    by_type(qkv, [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      auto *ip = data<T>(in), *qp = data<T>(q), *kp = data<T>(k), *vp = data<T>(v);
      auto *c = data<float>(cos), *n = data<float>(sin);
      parallel(tokens, rows_per_task(qkv.size(1)), [&](int64_t first, int64_t last) {
        kernels<T>().gqa_pack(ip, c, n, qp, kp, vp, first, last - first, s);
      });
    });
    return {q, k, v};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto &cos = saved[0], &sin = saved[1];
    auto dims = ctx->saved_data["shape"].toIntVector();
    GqaShape s{dims[0], dims[1], dims[2], dims[3], dims[4] != 0};
    auto dq = grads[0].contiguous(), dk = grads[1].contiguous(), dv = grads[2].contiguous();
    int64_t tokens = dq.size(0) / s.heads * s.sequence, cols = (s.heads + 2 * s.kv_heads) * s.head_dim;
    if (!use_kernels(dq)) {
      auto c = cos.narrow(0, 0, s.sequence).unsqueeze(1), n = sin.narrow(0, 0, s.sequence).unsqueeze(1);
      auto q4 = rope(tokens_first(dq, s.heads), c, n, s.interleaved, -1);
      auto k4 = rope(tokens_first(dk, s.kv_heads), c, n, s.interleaved, -1);
      return {at::cat({q4, k4, tokens_first(dv, s.kv_heads)}, 2).reshape({tokens, cols}), {}, {}, {}};
    }
    auto dqkv = at::empty({tokens, cols}, dq.options());
    by_type(dq, [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      auto *qp = data<T>(dq), *kp = data<T>(dk), *vp = data<T>(dv), *out = data<T>(dqkv);
      auto *c = data<float>(cos), *n = data<float>(sin);
      parallel(tokens, rows_per_task(cols), [&](int64_t first, int64_t last) {
        kernels<T>().gqa_unpack(qp, kp, vp, c, n, out, first, last - first, s);
      });
    });
    return {dqkv, {}, {}, {}};
  }
};

int32_t give_three(const variable_list& from, at::Tensor** out) {
  for (size_t i = 0; i < 3; ++i) out[i] = new at::Tensor(from[i]);
  return 0;
}

}  // namespace
}  // namespace lampyris

using namespace lampyris;

extern "C" {

at::Tensor* lampyris_attention(const at::Tensor* q, const at::Tensor* k, const at::Tensor* v, double scale) {
  return guarded([&] { return Attention::apply(*q, *k, *v, scale); });
}

int32_t lampyris_mla_pack(const at::Tensor* q_raw, const at::Tensor* kv, const at::Tensor* k_rope,
                          const at::Tensor* cos, const at::Tensor* sin, MlaShape shape, at::Tensor** out) {
  return checked([&] { give_three(MlaPack::apply(*q_raw, *kv, *k_rope, *cos, *sin, shape), out); });
}

int32_t lampyris_gqa_pack(const at::Tensor* qkv, const at::Tensor* cos, const at::Tensor* sin, GqaShape shape,
                          at::Tensor** out) {
  return checked([&] { give_three(GqaPack::apply(*qkv, *cos, *sin, shape), out); });
}
}
