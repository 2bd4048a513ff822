// Operations without autograd: rows between tokens and experts, cross entropy with its gradient, AdamW, norms.
#include "shim.h"

namespace lampyris {
namespace {

// Kernels do not look at what they are told to read: index i64, every value in [low, rows).
void check_rows(const at::Tensor& index, int64_t low, int64_t rows) {
  auto* values = data<int64_t>(index);
  for (int64_t i = 0; i < index.numel(); ++i)
    TORCH_CHECK(values[i] >= low && values[i] < rows, "row ", values[i], " of ", rows, " does not exist");
}

at::Tensor gather_rows(const at::Tensor& x, const at::Tensor& source) {
  int64_t rows = source.size(0), cols = x.size(1);
  if (!use_kernels(x)) {
    auto picked = x.index_select(0, source.clamp_min(0));
    return picked.masked_fill(source.lt(0).view({rows, 1}), 0);
  }
  check_rows(source, INT64_MIN, x.size(0));
  auto out = at::empty({rows, cols}, x.options());
  auto in = x.contiguous();
  by_type(x, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    auto *ip = data<T>(in), *op = data<T>(out);
    auto* sp = data<int64_t>(source);
    parallel(rows, rows_per_task(cols), [&](int64_t first, int64_t last) {
      kernels<T>().gather_rows(ip, sp + first, op + first * cols, last - first, cols);
    });
  });
  return out;
}

at::Tensor sum_rows(const at::Tensor& rows, const at::Tensor& position, const at::Tensor& group) {
  int64_t tokens = position.size(0), slots = position.size(1), cols = rows.size(1);
  TORCH_CHECK(group.sizes() == position.sizes(), "every position has a group");
  if (!use_kernels(rows)) {
    auto total = at::zeros({tokens, cols}, rows.options().dtype(at::kFloat));
    int64_t groups = group.numel() ? group.max().item<int64_t>() + 1 : 0;
    for (int64_t g = 0; g < groups; ++g) {
      auto partial = at::zeros_like(total);
      for (int64_t k = 0; k < slots; ++k) {
        auto picked = rows.index_select(0, position.select(1, k)).to(at::kFloat);
        partial = partial + picked.masked_fill(group.select(1, k).ne(g).view({tokens, 1}), 0);
      }
      total = total + partial;
    }
    return total.to(rows.scalar_type());
  }
  check_rows(position, 0, rows.size(0));
  auto out = at::empty({tokens, cols}, rows.options());
  auto in = rows.contiguous();
  by_type(rows, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    auto *ip = data<T>(in), *op = data<T>(out);
    auto *pp = data<int64_t>(position), *gp = data<int64_t>(group);
    parallel(tokens, rows_per_task(cols * slots), [&](int64_t first, int64_t last) {
      kernels<T>().sum_rows(ip, pp + first * slots, gp + first * slots, op + first * cols, last - first, slots, cols);
    });
  });
  return out;
}

// In place: logits [n, V] become the gradient of scale * sum of losses. Returns the loss per row, fp32.
at::Tensor cross_entropy_(at::Tensor& logits, const at::Tensor& targets, double scale) {
  int64_t rows = logits.size(0), vocab = logits.size(1);
  TORCH_CHECK(targets.numel() == rows, rows, " rows of logits have ", targets.numel(), " targets");
  if (!use_kernels(logits)) {
    auto valid = targets.ge(0).view({rows, 1});
    auto index = targets.clamp_min(0).view({rows, 1});
    auto log_p = logits.to(at::kFloat).log_softmax(-1);
    auto loss = -log_p.gather(1, index) * valid;
    auto grad = log_p.exp().scatter_add(1, index, at::full({rows, 1}, -1.0, log_p.options())) * scale;
    logits.copy_(grad.masked_fill(valid.logical_not(), 0));
    return loss.view({rows});
  }
  check_rows(targets, INT64_MIN, vocab);
  auto loss = at::empty({rows}, logits.options().dtype(at::kFloat));
  by_type(logits, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    auto* lp = data<T>(logits);
    auto* tp = data<int64_t>(targets);
    auto* op = data<float>(loss);
    parallel(rows, rows_per_task(vocab), [&](int64_t first, int64_t last) {
      kernels<T>().cross_entropy(lp + first * vocab, tp + first, op + first, float(scale), last - first, vocab);
    });
  });
  return loss;
}

void adamw(at::Tensor& master, at::Tensor& m, at::Tensor& v, const at::Tensor& grad, at::Tensor* copy,
           const AdamW& args) {
  int64_t n = master.numel();
  TORCH_CHECK(m.numel() == n && v.numel() == n && grad.numel() == n && (!copy || copy->numel() == n),
              "the arrays of an optimizer have one length");
  if (!use_kernels(master)) {
    auto g = grad * args.grad_scale;
    m.mul_(args.beta1).add_(g * (1.0f - args.beta1));
    v.mul_(args.beta2).add_(g.square() * (1.0f - args.beta2));
    auto step = m * args.correction1 / ((v * args.correction2).sqrt() + args.eps);
    master.mul_(1.0f - args.lr * args.weight_decay).sub_(step * args.lr);
    if (copy) copy->copy_(master);
    return;
  }
  auto *p = data<float>(master), *mp = data<float>(m), *vp = data<float>(v), *gp = data<float>(grad);
  TORCH_CHECK(!copy || copy->scalar_type() == at::kBFloat16, "the compute copy is bf16");
  auto* cp = copy ? data<bf16>(*copy) : nullptr;
  parallel(master.numel(), 1 << 14, [&](int64_t first, int64_t last) {
    common_kernels().adamw(p + first, mp + first, vp + first, gp + first, cp ? cp + first : nullptr, last - first,
                           args);
  });
}

// Sum of squares of x in fp64: blocks of 4096 elements, then blocks left to right.
double square_sum(const at::Tensor& x) {
  constexpr int64_t kBlock = 4096;
  int64_t n = x.numel(), blocks = (n + kBlock - 1) / kBlock;
  if (!use_kernels(x)) return x.to(at::kDouble).square().sum().item<double>();
  std::vector<double> sums(static_cast<size_t>(blocks));
  auto* p = data<float>(x);
  parallel(blocks, 16, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b)
      sums[size_t(b)] = common_kernels().square_sum(p + b * kBlock, std::min(kBlock, n - b * kBlock));
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

}  // namespace
}  // namespace lampyris

using namespace lampyris;

extern "C" {

at::Tensor* lampyris_gather_rows(const at::Tensor* x, const at::Tensor* source) {
  return guarded([&] { return gather_rows(*x, *source); });
}

at::Tensor* lampyris_sum_rows(const at::Tensor* rows, const at::Tensor* position, const at::Tensor* group) {
  return guarded([&] { return sum_rows(*rows, *position, *group); });
}

at::Tensor* lampyris_cross_entropy(at::Tensor* logits, const at::Tensor* targets, double scale) {
  return guarded([&] { return cross_entropy_(*logits, *targets, scale); });
}

int32_t lampyris_adamw(at::Tensor* master, at::Tensor* m, at::Tensor* v, const at::Tensor* grad, at::Tensor* copy,
                       const AdamW* args) {
  return checked([&] { adamw(*master, *m, *v, *grad, copy, *args); });
}

int32_t lampyris_square_sum(const at::Tensor* x, double* out) {
  return checked([&] { *out = square_sum(*x); });
}
}
