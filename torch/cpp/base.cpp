// Errors, the kernel choice, the gradient sink and grad() with grad-outputs.
#include "shim.h"

namespace lampyris {

#define DECLARE_ISA(isa)                  \
  namespace isa {                         \
  extern const Kernels<float> kFp32;      \
  extern const Kernels<bf16> kBf16;       \
  extern const CommonKernels kCommon;     \
  }
DECLARE_ISA(avx512)
DECLARE_ISA(avx2)
DECLARE_ISA(baseline)
#undef DECLARE_ISA

namespace {

thread_local std::string last_error;
std::atomic<bool> plain_only{false};

enum class Isa { kAvx512, kAvx2, kBaseline };

Isa detect() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::kAvx512;
  return __builtin_cpu_supports("avx2") ? Isa::kAvx2 : Isa::kBaseline;
}

Isa isa() {
  static const Isa found = detect();
  return found;
}

}  // namespace

template <>
const Kernels<float>& kernels<float>() {
  return isa() == Isa::kAvx512 ? avx512::kFp32 : isa() == Isa::kAvx2 ? avx2::kFp32 : baseline::kFp32;
}
template <>
const Kernels<bf16>& kernels<bf16>() {
  return isa() == Isa::kAvx512 ? avx512::kBf16 : isa() == Isa::kAvx2 ? avx2::kBf16 : baseline::kBf16;
}
const CommonKernels& common_kernels() {
  return isa() == Isa::kAvx512 ? avx512::kCommon : isa() == Isa::kAvx2 ? avx2::kCommon : baseline::kCommon;
}
const char* kernel_name() {
  return isa() == Isa::kAvx512 ? "avx512" : isa() == Isa::kAvx2 ? "avx2" : "baseline";
}

bool use_kernels(const at::Tensor& x) { return x.is_cpu() && !plain_only.load(std::memory_order_relaxed); }

void set_error(const char* what) { last_error = what; }

}  // namespace lampyris

using namespace lampyris;

extern "C" {

const char* lampyris_last_error() { return lampyris::last_error.c_str(); }
const char* lampyris_kernel_name() { return kernel_name(); }
void lampyris_plain_only(bool on) { plain_only.store(on); }

Sink* lampyris_sink_new() { return new Sink(); }
void lampyris_sink_free(Sink* sink) { delete sink; }
int64_t lampyris_sink_len(const Sink* sink) { return int64_t(sink->entries.size()); }

// Moves entry i out: its tensors belong to the caller (b may be null).
void lampyris_sink_take(Sink* sink, int64_t i, int64_t* parameter, int32_t* kind, at::Tensor** a, at::Tensor** b) {
  Entry& entry = sink->entries[size_t(i)];
  *parameter = entry.parameter;
  *kind = entry.kind;
  *a = new at::Tensor(std::move(entry.a));
  *b = entry.b.defined() ? new at::Tensor(std::move(entry.b)) : nullptr;
}
void lampyris_sink_clear(Sink* sink) { sink->entries.clear(); }

// results[i] = gradient of sum(outputs * grads) to inputs[i], or null if it does not depend on it.
int32_t lampyris_grad(at::Tensor** outputs, at::Tensor** grads, int64_t n_outputs, at::Tensor** inputs,
                      int64_t n_inputs, at::Tensor** results) {
  return checked([&] {
    torch::autograd::variable_list outs, grad_outs, ins;
    for (int64_t i = 0; i < n_outputs; ++i) {
      outs.push_back(*outputs[i]);
      grad_outs.push_back(*grads[i]);
    }
    for (int64_t i = 0; i < n_inputs; ++i) ins.push_back(*inputs[i]);
    auto out = torch::autograd::grad(outs, ins, grad_outs, /*retain_graph=*/false, /*create_graph=*/false,
                                     /*allow_unused=*/true);
    for (int64_t i = 0; i < n_inputs; ++i)
      results[i] = out[size_t(i)].defined() ? new at::Tensor(std::move(out[size_t(i)])) : nullptr;
  });
}
}
