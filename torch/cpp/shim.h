// Shared by the shim's files: the gradient sink, error passing, row parallelism.
#pragma once
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "kernels.h"

namespace lampyris {

// A weight gradient that backward has left for later.
struct Entry {
  enum Kind : int32_t { kMatmul = 0, kDirect = 1, kEmbedding = 2 };
  int64_t parameter;
  Kind kind;
  at::Tensor a;  // matmul: x [n, in]; direct: the gradient; embedding: token ids [n]
  at::Tensor b;  // matmul: dy [n, out]; direct: undefined; embedding: dy [n, hidden]
};

struct Sink {
  std::vector<Entry> entries;
};

// The row kernels, or plain ATen where they do not apply: another device, or the slow twin asked for by a test.
bool use_kernels(const at::Tensor& x);

void set_error(const char* what);

// Runs f(first, last) over [0, n) in parallel; a chunk has at least `grain` items.
template <typename F>
void parallel(int64_t n, int64_t grain, F f) {
  at::parallel_for(0, n, std::max<int64_t>(grain, 1), f);
}

// Chunks of about 16 Ki elements are worth a thread.
inline int64_t rows_per_task(int64_t cols) { return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(cols, 1)); }

// Calls f with a null pointer of the kernel element type of x: float or bf16.
template <typename F>
void by_type(const at::Tensor& x, F f) {
  if (x.scalar_type() == at::kFloat) return f(static_cast<float*>(nullptr));
  if (x.scalar_type() == at::kBFloat16) return f(static_cast<bf16*>(nullptr));
  TORCH_CHECK(false, "element type ", x.scalar_type(), " has no kernel; use float32 or bfloat16");
}

template <typename T>
constexpr at::ScalarType kTypeOf = at::kLong;
template <>
constexpr at::ScalarType kTypeOf<float> = at::kFloat;
template <>
constexpr at::ScalarType kTypeOf<bf16> = at::kBFloat16;

template <typename T>
T* data(const at::Tensor& x) {
  TORCH_CHECK(x.is_contiguous(), "kernel needs a contiguous tensor");
  TORCH_CHECK(x.scalar_type() == kTypeOf<T>, "kernel needs ", kTypeOf<T>, ", not ", x.scalar_type());
  return static_cast<T*>(x.data_ptr());
}

// Runs f and returns its tensor to Rust; an exception becomes null and a message.
template <typename F>
at::Tensor* guarded(F f) {
  try {
    return new at::Tensor(f());
  } catch (const c10::Error& error) {
    set_error(error.what_without_backtrace());
  } catch (const std::exception& error) {
    set_error(error.what());
  }
  return nullptr;
}

// The same for functions without a result: 0 or 1.
template <typename F>
int32_t checked(F f) {
  try {
    f();
    return 0;
  } catch (const c10::Error& error) {
    set_error(error.what_without_backtrace());
  } catch (const std::exception& error) {
    set_error(error.what());
  }
  return 1;
}

at::Tensor rms_norm_forward(const at::Tensor& x, const at::Tensor& w, double eps, at::Tensor& rstd);
// Returns (dx, dw).
std::pair<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w,
                                                    const at::Tensor& rstd);
// The normalised rows again, from saved inputs.
at::Tensor rms_norm_again(const at::Tensor& x, const at::Tensor& w, const at::Tensor& rstd);

}  // namespace lampyris
