// The torch side of the CUDA kernels: maps from tensors, dtypes, partial sums.
//
// Every entry point checks its arguments, sets the device guard, returns early when empty, launches
// on the current stream and checks the launch; none synchronises, so all can be captured in graphs.
#pragma once
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#ifdef DETNAS_EMULATE  // tests/emulator: the same entry points, reached by tensors on the CPU
#include "cuda_torch_emulator.h"
#define DETNAS_DEVICE CPU
#else
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#define DETNAS_DEVICE CUDA
#endif

#include "../batches.h"
#include "../checks.h"
#include "stats_out.cuh"
#include "tickets.h"

namespace detnas {
namespace cuda {

#define DETNAS_DISPATCH(x, op, ...)                                                            \
  AT_DISPATCH_SWITCH((x).scalar_type(), op,                                                    \
                     AT_DISPATCH_CASE(at::kFloat, __VA_ARGS__)                                 \
                         AT_DISPATCH_CASE(at::kHalf, __VA_ARGS__)                              \
                             AT_DISPATCH_CASE(at::kBFloat16, __VA_ARGS__))

inline Stream stream() { return at::cuda::getCurrentCUDAStream(); }

inline Tensor as_map(const Tensor& x) { return x.contiguous(at::MemoryFormat::ChannelsLast); }
// The same for sources: a range of channels of a channels_last map is read where it lies.
inline Tensor as_source(const Tensor& x) { return pixel_stride(x, 1) != 0 ? x : as_map(x); }
inline Tensor empty_map(at::IntArrayRef size, const Tensor& like) {
  return at::empty(size, like.options().memory_format(at::MemoryFormat::ChannelsLast));
}
inline int64_t pixel_count(const Tensor& x) { return x.size(0) * x.size(2) * x.size(3); }

// A per-channel vector in float32.
inline OptTensor vector(const OptTensor& t) {
  if (!t || (t->scalar_type() == at::kFloat && t->is_contiguous())) return t;
  return t->to(at::kFloat).contiguous();
}
inline const float* pointer(const OptTensor& t) { return t ? t->const_data_ptr<float>() : nullptr; }
inline Tensor floats(int64_t size, const Tensor& like) {
  return at::empty({size}, like.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous));
}

// map: from as_map or as_source.
template <typename S>
Source<S> source(const Tensor& map, const OptTensor& scale, const OptTensor& shift, bool relu) {
  Source<S> s;
  s.data = map.const_data_ptr<S>();
  s.ld = map.numel() == 0 ? map.size(1) : pixel_stride(map, 1);
  s.scale = pointer(scale);
  s.shift = pointer(shift);
  s.relu = relu;
  return s;
}

using Stats = std::tuple<Tensor, Tensor, Tensor>;

// For a kernel to write; where no statistics are wanted, nothing writes it and nothing reads it.
inline Tensor empty_count(const Tensor& x) {
  return at::empty({}, x.options().dtype(at::kDouble).memory_format(at::MemoryFormat::Contiguous));
}

// The affine map of a BatchNorm with given statistics; defined in bn_ops.cu.
std::tuple<Tensor, Tensor> bn_fold(const Tensor& count, const Tensor& mean, const Tensor& m2,
                                   const OptTensor& gamma, const OptTensor& beta, double eps);

// Statistics that a launch makes, and, where a BatchNorm follows, its affine map; of each batch where there
// are several.
struct Statistics {
  Tensor count, mean, m2, scale, shift;
  int64_t batches;

  Statistics(int64_t channels, const Tensor& like) : Statistics(channels, like, false, 1) {}
  // gamma, beta: null, or of `channels` channels.
  Statistics(int64_t channels, const Tensor& like, const OptTensor& gamma, const OptTensor& beta, double eps,
             int64_t batches_)
      : Statistics(channels, like, true, batches_) {
    gamma_ = vector(gamma), beta_ = vector(beta), eps_ = eps;
  }

  StatsOut out() const {
    const auto to = [](const Tensor& t) { return t.defined() ? t.data_ptr<float>() : nullptr; };
    return {to(mean), to(m2), count.data_ptr<double>(), pointer(gamma_), pointer(beta_), eps_, to(scale), to(shift)};
  }
  // Those of no values, without a kernel that makes them; of one batch.
  void of_nothing() {
    count.zero_(), mean.zero_(), m2.zero_();
    if (scale.defined()) std::tie(scale, shift) = bn_fold(count, mean, m2, gamma_, beta_, eps_);
  }
  Stats stats() const { return {count, mean, m2}; }

 private:
  OptTensor gamma_, beta_;
  double eps_ = 0;
  Statistics(int64_t channels, const Tensor& like, bool fold, int64_t batches_)
      : count(empty_count(like)), batches(batches_) {
    const auto vectors = [&] {
      const Tensor all = floats(batches * channels, like);
      return batches == 1 ? all : all.view({batches, channels});
    };
    mean = vectors(), m2 = vectors();
    if (fold) scale = vectors(), shift = vectors();
  }
};

// Of maps with the same channels together; empty ones count nothing. Several batches are those of one map,
// which is not empty.
// Defined in bn_ops.cu.
void stats_of(at::TensorList maps, const OptTensor& scale, const OptTensor& shift, bool relu, Statistics& statistics);

// The gradient of a convolution's raw output from those of its output and statistics.
struct GradArgs {
  Tensor grad, y;
  OptTensor add, mul, mean;
  bool out_relu;
  GradArgs(const Tensor& grad_y, const OptTensor& grad_mean, const OptTensor& grad_m2,
           const OptTensor& y_in, const OptTensor& mean_in, bool relu)
      : grad(as_map(grad_y)), out_relu(relu) {
    const bool stats = grad_mean.has_value();
    if (!stats && !relu) return;
    y = as_map(*y_in);
    if (!stats) return;
    add = vector(grad_mean), mul = vector(grad_m2);
    mean = vector(mean_in);
  }
  template <typename S>
  Source<S> get() const {
    Source<S> s = source<S>(grad, {}, {}, false);
    if (!y.defined()) return s;
    s.y = y.const_data_ptr<S>();
    s.ld_y = y.size(1);
    s.add = pointer(add);
    s.mul = pointer(mul);
    s.mean = pointer(mean);
    s.add_factor = static_cast<float>(1. / static_cast<double>(pixel_count(grad)));
    s.mul_factor = 2.f;
    return s;
  }
};

}  // namespace cuda
}  // namespace detnas
