// Linear layers whose backward returns the input gradient and leaves (x, dy) in the sink, so that the weight gradient
// can be computed later (zero-bubble schedules, 2401.10241); plain, over groups of rows, SwiGLU, embedding.
#include "shim.h"

namespace lampyris {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w, int64_t sink, int64_t id) {
    ctx->save_for_backward({x, w});
    ctx->saved_data["sink"] = sink;
    ctx->saved_data["id"] = id;
    return at::linear(x, w);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto &x = saved[0], &w = saved[1];
    auto dy = grads[0].contiguous().view({-1, w.size(0)});
    reinterpret_cast<Sink*>(ctx->saved_data["sink"].toInt())
        ->entries.push_back(
            {ctx->saved_data["id"].toInt(), Entry::kMatmul, x.contiguous().view({-1, w.size(1)}), dy});
    return {at::mm(dy, w).view(x.sizes()), {}, {}, {}};
  }
};

// One weight per group of consecutive rows; group g has rows [offsets[g], offsets[g + 1]).
struct Groups {
  std::vector<at::Tensor> weights;
  std::vector<int64_t> offsets;
  std::vector<int64_t> ids;
  Sink* sink;
};

struct Holder : torch::CustomClassHolder {
  explicit Holder(std::shared_ptr<Groups> held) : groups(std::move(held)) {}
  std::shared_ptr<Groups> groups;
};

struct GroupedLinear : torch::autograd::Function<GroupedLinear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const std::shared_ptr<Groups>& groups) {
    auto& offsets = groups->offsets;
    TORCH_CHECK(offsets.front() == 0 && offsets.back() == x.size(0) && std::is_sorted(offsets.begin(), offsets.end()),
                "groups must cover the ", x.size(0), " rows in order");
    auto y = at::empty({x.size(0), groups->weights[0].size(0)}, x.options());
    for (size_t g = 0; g < groups->weights.size(); ++g) {
      int64_t first = groups->offsets[g], count = groups->offsets[g + 1] - first;
      if (count == 0) continue;
      auto out = y.narrow(0, first, count);
      at::mm_out(out, x.narrow(0, first, count), groups->weights[g].t());
    }
    ctx->save_for_backward({x});
    ctx->saved_data["groups"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(groups));
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto groups = ctx->saved_data["groups"].toCapsule();
    const Groups& held = *static_cast<Holder*>(groups.get())->groups;
    auto x = ctx->get_saved_variables()[0];
    auto dy = grads[0].contiguous();
    auto dx = at::empty_like(x);
    for (size_t g = 0; g < held.weights.size(); ++g) {
      int64_t first = held.offsets[g], count = held.offsets[g + 1] - first;
      if (count == 0) continue;
      auto dy_rows = dy.narrow(0, first, count);
      auto dx_rows = dx.narrow(0, first, count);
      at::mm_out(dx_rows, dy_rows, held.weights[g]);
      held.sink->entries.push_back({held.ids[g], Entry::kMatmul, x.narrow(0, first, count), dy_rows});
    }
    return {dx, {}};
  }
};

std::pair<at::Tensor, at::Tensor> swiglu_backward(const at::Tensor& grad, const at::Tensor& gate_up,
                                                  const at::Tensor& weight) {
  int64_t width = gate_up.size(-1) / 2, rows = gate_up.numel() / (2 * width);
  if (!use_kernels(gate_up)) {
    auto f = gate_up.to(at::kFloat).view({rows, 2 * width});
    auto gate = f.narrow(1, 0, width), up = f.narrow(1, width, width);
    auto sigmoid = gate.sigmoid(), d = grad.to(at::kFloat).reshape({rows, width});
    at::Tensor dweight;
    if (weight.defined()) {
      dweight = (d * gate * sigmoid * up).sum(-1);
      d = d * weight.view({rows, 1});
    }
    auto dgate = d * up * (sigmoid * (1.0 + gate * (1.0 - sigmoid)));
    return {at::cat({dgate, d * gate * sigmoid}, 1).to(gate_up.scalar_type()).view(gate_up.sizes()), dweight};
  }
  auto dout = grad.contiguous();
  auto dgate_up = at::empty_like(gate_up);
  at::Tensor dweight;
  if (weight.defined()) dweight = at::empty_like(weight);
  by_type(gate_up, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    auto *dp = data<T>(dout), *gp = data<T>(gate_up), *out = data<T>(dgate_up);
    auto* wp = weight.defined() ? data<float>(weight) : nullptr;
    auto* dwp = weight.defined() ? data<float>(dweight) : nullptr;
    parallel(rows, rows_per_task(width), [&](int64_t first, int64_t last) {
      kernels<T>().swiglu_backward(dp + first * width, gp + first * 2 * width, wp ? wp + first : nullptr,
                                   out + first * 2 * width, dwp ? dwp + first : nullptr, last - first, width);
    });
  });
  return {dgate_up, dweight};
}

at::Tensor swiglu_forward(const at::Tensor& gate_up, const at::Tensor& weight) {
  TORCH_CHECK(gate_up.size(-1) > 0 && gate_up.size(-1) % 2 == 0, "gate and up have the same width");
  int64_t width = gate_up.size(-1) / 2, rows = gate_up.numel() / (2 * width);
  TORCH_CHECK(!weight.defined() || weight.numel() == rows, rows, " rows have ", weight.numel(), " weights");
  auto shape = gate_up.sizes().vec();
  shape.back() = width;
  if (!use_kernels(gate_up)) {
    auto f = gate_up.to(at::kFloat).view({rows, 2 * width});
    auto out = at::silu(f.narrow(1, 0, width)) * f.narrow(1, width, width);
    if (weight.defined()) out = out * weight.view({rows, 1});
    return out.to(gate_up.scalar_type()).view(shape);
  }
  auto out = at::empty(shape, gate_up.options());
  by_type(gate_up, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    auto *gp = data<T>(gate_up), *op = data<T>(out);
    auto* wp = weight.defined() ? data<float>(weight) : nullptr;
    parallel(rows, rows_per_task(width), [&](int64_t first, int64_t last) {
      kernels<T>().swiglu(gp + first * 2 * width, wp ? wp + first : nullptr, op + first * width, last - first, width);
    });
  });
  return out;
}

// silu(gate) * up * weight[row]: saves its inputs only and recomputes (DeepSeek-V3, section 3.2.3).
struct Swiglu : torch::autograd::Function<Swiglu> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate_up, const std::optional<at::Tensor>& weight) {
    auto input = gate_up.contiguous();
    ctx->save_for_backward({input, weight.value_or(at::Tensor())});
    return swiglu_forward(input, weight.value_or(at::Tensor()));
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto [dgate_up, dweight] = swiglu_backward(grads[0], saved[0], saved[1]);
    return {dgate_up, dweight};
  }
};

// The anchor is any tensor that requires a gradient: ids do not, and the weight's gradient goes to the sink.
struct Embedding : torch::autograd::Function<Embedding> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& w, const at::Tensor& ids, const at::Tensor&,
                            int64_t sink, int64_t id) {
    ctx->save_for_backward({ids});
    ctx->saved_data["sink"] = sink;
    ctx->saved_data["id"] = id;
    return at::embedding(w, ids);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto ids = ctx->get_saved_variables()[0].view({-1});
    auto dy = grads[0].contiguous().view({ids.size(0), -1});
    reinterpret_cast<Sink*>(ctx->saved_data["sink"].toInt())
        ->entries.push_back({ctx->saved_data["id"].toInt(), Entry::kEmbedding, ids, dy});
    return {{}, {}, {}, {}, {}};
  }
};

}  // namespace
}  // namespace lampyris

using namespace lampyris;

extern "C" {

at::Tensor* lampyris_linear(const at::Tensor* x, const at::Tensor* w, Sink* sink, int64_t id) {
  return guarded([&] { return Linear::apply(*x, *w, int64_t(sink), id); });
}

at::Tensor* lampyris_grouped_linear(const at::Tensor* x, at::Tensor** weights, const int64_t* offsets,
                                    const int64_t* ids, int64_t n, Sink* sink) {
  return guarded([&] {
    auto groups = std::make_shared<Groups>();
    for (int64_t g = 0; g < n; ++g) groups->weights.push_back(*weights[g]);
    groups->offsets.assign(offsets, offsets + n + 1);
    groups->ids.assign(ids, ids + n);
    groups->sink = sink;
    return GroupedLinear::apply(*x, groups);
  });
}

at::Tensor* lampyris_swiglu(const at::Tensor* gate_up, const at::Tensor* weight) {
  return guarded([&] { return Swiglu::apply(*gate_up, weight ? std::optional<at::Tensor>(*weight) : std::nullopt); });
}

at::Tensor* lampyris_embedding(const at::Tensor* w, const at::Tensor* ids, const at::Tensor* anchor, Sink* sink,
                               int64_t id) {
  return guarded([&] { return Embedding::apply(*w, *ids, *anchor, int64_t(sink), id); });
}
}
