// A block made of operators, each called through the dispatcher: one implementation for every device.
#pragma once
#include <c10/core/ScalarType.h>

#include <utility>

#include "handles.h"
#include "shuffle_block_stats.h"

namespace detnas {

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

  // Layers [first, last), the first depthwise convolution with `stride`; keep(layer, its results).
  template <typename F>
  Pending run(Pending p, size_t first, size_t last, int64_t stride, F&& keep) const {
    static const auto pointwise = handle<Pointwise>("detnas_d2::pointwise_conv_bn");
    static const auto depthwise = handle<Depthwise>("detnas_d2::depthwise_conv_bn");
    for (size_t i = first; i < last; ++i) {
      const Tensor& w = weights[i];
      const bool spatial = w.size(2) > 1;
      const ConvNorm made = spatial
          ? depthwise.call(p.x, w, p.scale, p.shift, p.relu, {}, stride, 1, gammas[i], betas[i], eps[i], batches)
          : pointwise.call(p.x, w, p.scale, p.shift, p.relu, {}, 1, gammas[i], betas[i], eps[i], batches);
      if (spatial) stride = 1;
      p = {std::get<0>(made), std::get<4>(made), std::get<5>(made), !spatial};
      keep(i, made);
    }
    return p;
  }
};

// The block's output, or with an out_method its halves.
template <typename F>
std::tuple<Tensor, Tensor> run_block(const Layers& layers, const Pending& left, const OptTensor& right, int64_t kernel,
                                     int64_t stride, int64_t out_method, F&& keep) {
  static const auto shuffle = handle<Shuffle>("detnas_d2::shuffle_concat");
  const size_t main = main_layers(kernel), count = block_layers(kernel, stride);
  Pending l = left;
  Pending r = layers.run(right ? Pending{*right, {}, {}, false} : l, 0, main, stride, keep);
  if (stride == 2) l = layers.run(l, main, count, 2, keep);
  if (l.x.scalar_type() != r.x.scalar_type()) {  // under autocast; as torch.cat
    const auto type = c10::promoteTypes(l.x.scalar_type(), r.x.scalar_type());
    l.x = l.x.to(type);
    r.x = r.x.to(type);
  }
  return shuffle.call(l.x, r.x, l.scale, l.shift, r.scale, r.shift, l.relu, r.relu, out_method, out_method != 0,
                      layers.batches);
}

}  // namespace detnas
