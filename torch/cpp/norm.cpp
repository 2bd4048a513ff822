// RMSNorm, and RMSNorm followed by a linear layer that saves only the norm's input (DeepSeek-V3, section 3.2.3:
// recomputation of RMSNorm).
#include "shim.h"

namespace lampyris {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor rms_norm_forward(const at::Tensor& x, const at::Tensor& w, double eps, at::Tensor& rstd) {
  int64_t cols = x.size(-1), rows = x.numel() / cols;
  TORCH_CHECK(w.numel() == cols, "a norm of ", cols, " columns has ", w.numel(), " weights");
  if (!use_kernels(x)) {
    auto xf = x.to(at::kFloat);
    rstd = at::rsqrt(xf.square().mean(-1, /*keepdim=*/true) + eps).reshape({rows});
    return rms_norm_again(x, w, rstd);
  }
  rstd = at::empty({rows}, x.options().dtype(at::kFloat));
  auto y = at::empty_like(x, at::MemoryFormat::Contiguous);
  by_type(x, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    auto *xp = data<T>(x), *yp = data<T>(y);
    auto *wp = data<float>(w), *sp = data<float>(rstd);
    parallel(rows, rows_per_task(cols), [&](int64_t first, int64_t last) {
      kernels<T>().rms_norm(xp + first * cols, wp, yp + first * cols, sp + first, last - first, cols, eps);
    });
  });
  return y;
}

at::Tensor rms_norm_again(const at::Tensor& x, const at::Tensor& w, const at::Tensor& rstd) {
  auto shape = x.sizes().vec();
  shape.back() = 1;
  return (x.to(at::kFloat) * rstd.view(shape) * w).to(x.scalar_type());
}

std::pair<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w,
                                                    const at::Tensor& rstd) {
  int64_t cols = x.size(-1), rows = x.numel() / cols;
  if (!use_kernels(x)) {
    auto xf = x.to(at::kFloat).view({rows, cols}), df = dy.to(at::kFloat).reshape({rows, cols});
    auto scale = rstd.view({rows, 1});
    auto pull = (df * w * xf).sum(-1, true) * scale.square() / double(cols);
    auto dx = (scale * (df * w - xf * pull)).to(x.scalar_type()).view(x.sizes());
    return {dx, (df * (xf * scale)).sum(0)};
  }
  auto grad = dy.contiguous();
  auto dx = at::empty_like(x, at::MemoryFormat::Contiguous);
  int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
  auto partial = at::empty({blocks, cols}, w.options());
  by_type(x, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    auto *xp = data<T>(x), *gp = data<T>(grad), *dxp = data<T>(dx);
    auto *wp = data<float>(w), *sp = data<float>(rstd), *pp = data<float>(partial);
    parallel(blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        int64_t row = b * kRowBlock, count = std::min(kRowBlock, rows - row);
        kernels<T>().rms_norm_backward(gp + row * cols, xp + row * cols, wp, sp + row, dxp + row * cols, pp + b * cols,
                                       count, cols);
      }
    });
  });
  auto dw = partial[0].clone();
  for (int64_t b = 1; b < blocks; ++b) dw.add_(partial[b]);
  return {dx, dw};
}

namespace {

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w, double eps, int64_t sink,
                            int64_t id) {
    at::Tensor rstd, input = x.contiguous();
    auto y = rms_norm_forward(input, w, eps, rstd);
    ctx->save_for_backward({input, w, rstd});
    ctx->saved_data["sink"] = sink;
    ctx->saved_data["id"] = id;
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto [dx, dw] = rms_norm_backward(grads[0], saved[0], saved[1], saved[2]);
    reinterpret_cast<Sink*>(ctx->saved_data["sink"].toInt())
        ->entries.push_back({ctx->saved_data["id"].toInt(), Entry::kDirect, dw, {}});
    return {dx, {}, {}, {}, {}};
  }
};

struct NormLinear : torch::autograd::Function<NormLinear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& norm, double eps,
                            const at::Tensor& w, int64_t sink, int64_t norm_id, int64_t id) {
    at::Tensor rstd, input = x.contiguous();
    auto y = at::linear(rms_norm_forward(input, norm, eps, rstd), w);
    ctx->save_for_backward({input, norm, rstd, w});
    ctx->saved_data["sink"] = sink;
    ctx->saved_data["norm_id"] = norm_id;
    ctx->saved_data["id"] = id;
    ctx->saved_data["eps"] = eps;
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto &x = saved[0], &norm = saved[1], &rstd = saved[2], &w = saved[3];
    auto dy = grads[0].contiguous().view({-1, w.size(0)});
    auto dn = at::mm(dy, w).view(x.sizes());
    auto [dx, dnorm] = rms_norm_backward(dn, x, norm, rstd);
    at::Tensor again_rstd;
    auto n = rms_norm_forward(x, norm, ctx->saved_data["eps"].toDouble(), again_rstd);
    auto* sink = reinterpret_cast<Sink*>(ctx->saved_data["sink"].toInt());
    sink->entries.push_back({ctx->saved_data["norm_id"].toInt(), Entry::kDirect, dnorm, {}});
    sink->entries.push_back({ctx->saved_data["id"].toInt(), Entry::kMatmul, n.view({-1, w.size(1)}), dy});
    return {dx, {}, {}, {}, {}, {}, {}};
  }
};

}  // namespace
}  // namespace lampyris

using namespace lampyris;

extern "C" {

at::Tensor* lampyris_rms_norm(const at::Tensor* x, const at::Tensor* w, double eps, Sink* sink, int64_t id) {
  return guarded([&] { return RmsNorm::apply(*x, *w, eps, int64_t(sink), id); });
}

at::Tensor* lampyris_norm_linear(const at::Tensor* x, const at::Tensor* norm, double eps, const at::Tensor* w,
                                 Sink* sink, int64_t norm_id, int64_t id) {
  return guarded([&] { return NormLinear::apply(*x, *norm, eps, *w, int64_t(sink), norm_id, id); });
}
}
