// shuffle_block_stats: a block normalised with the statistics of its batch, without gradients.
//
// Made of the operators' own kernels, called through the dispatcher: one implementation for every
// device, and one call from Python for a block instead of two for each convolution. The CPU has its own
// (cpu/shuffle_block_stats_kernel.cpp), with the same bits.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/ScalarType.h>
#include <torch/library.h>

#include "handles.h"
#include "shuffle_block_stats.h"

namespace detnas {
namespace {

using Pointwise = ConvNorm(const Tensor&, const Tensor&, const OptTensor&, const OptTensor&, bool,
                           const OptTensor&, int64_t, const OptTensor&, const OptTensor&, double, int64_t);
using Depthwise = ConvNorm(const Tensor&, const Tensor&, const OptTensor&, const OptTensor&, bool,
                           const OptTensor&, int64_t, int64_t, const OptTensor&, const OptTensor&, double,
                           int64_t);
using Shuffle = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const OptTensor&,
                                           const OptTensor&, const OptTensor&, const OptTensor&, bool,
                                           bool, int64_t, bool, int64_t);

// A map and what its reader applies to it.
struct Pending {
  Tensor x;
  OptTensor scale, shift;
  bool relu = false;
};

struct Layers {
  at::TensorList weights, gammas, betas;
  at::ArrayRef<double> eps;
  int64_t batches;
  std::vector<Tensor> counts, means, m2s;

  // Layers [first, last), the first depthwise convolution with `stride`.
  Pending run(Pending p, size_t first, size_t last, int64_t stride) {
    static const auto pointwise = handle<Pointwise>("detnas_d2::pointwise_conv_bn");
    static const auto depthwise = handle<Depthwise>("detnas_d2::depthwise_conv_bn");
    for (size_t i = first; i < last; ++i) {
      const Tensor& w = weights[i];
      const bool spatial = w.size(2) > 1;
      auto [y, count, mean, m2, scale, shift] = spatial
          ? depthwise.call(p.x, w, p.scale, p.shift, p.relu, {}, stride, 1, gammas[i], betas[i], eps[i], batches)
          : pointwise.call(p.x, w, p.scale, p.shift, p.relu, {}, 1, gammas[i], betas[i], eps[i], batches);
      if (spatial) stride = 1;
      p = {std::move(y), std::move(scale), std::move(shift), !spatial};
      counts[i] = std::move(count);
      means[i] = std::move(mean);
      m2s[i] = std::move(m2);
    }
    return p;
  }
};

}  // namespace

BlockStats composed_block_stats(const Tensor& left, const OptTensor& right, const OptTensor& scale,
                                const OptTensor& shift, bool relu, at::TensorList weights,
                                at::TensorList gammas, at::TensorList betas, at::ArrayRef<double> eps,
                                int64_t kernel, int64_t stride, int64_t out_method, int64_t batches) {
  check_block_stats(left, right, scale, shift, relu, weights, gammas, betas, eps, kernel, stride, out_method,
                    batches);
  const size_t main = main_layers(kernel), count = block_layers(kernel, stride);

  // The inner calls are neither differentiated nor, under autocast, cast again.
  const at::AutoDispatchBelowAutograd guard;
  static const auto shuffle = handle<Shuffle>("detnas_d2::shuffle_concat");
  Layers layers{weights, gammas, betas, eps, batches, std::vector<Tensor>(count), std::vector<Tensor>(count),
                std::vector<Tensor>(count)};
  Pending l{left, scale, shift, relu};
  Pending r = layers.run(stride == 1 ? Pending{*right, {}, {}, false} : l, 0, main, stride);
  if (stride == 2) l = layers.run(l, main, count, 2);
  if (l.x.scalar_type() != r.x.scalar_type()) {  // under autocast; as torch.cat
    const auto type = c10::promoteTypes(l.x.scalar_type(), r.x.scalar_type());
    l.x = l.x.to(type);
    r.x = r.x.to(type);
  }
  auto [a, b] = shuffle.call(l.x, r.x, l.scale, l.shift, r.scale, r.shift, l.relu, r.relu, out_method,
                             out_method != 0, batches);
  return {a, b, std::move(layers.counts), std::move(layers.means), std::move(layers.m2s)};
}

}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CompositeExplicitAutograd, m) {
  m.impl("shuffle_block_stats", &detnas::composed_block_stats);
}
