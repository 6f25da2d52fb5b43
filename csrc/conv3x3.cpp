// conv3x3 on devices without a kernel for it: the library's convolution, and what follows it.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "conv_checks.h"
#include "handles.h"

namespace detnas {
namespace {

Conv conv3x3(const Tensor& x, const Tensor& weight, const OptTensor& bias, bool out_relu, bool want_stats) {
  check_conv3x3(x, weight, bias, out_relu, want_stats);
  const at::AutoDispatchBelowAutograd guard;
  Tensor y = at::conv2d(x, weight, to_type(bias, x.scalar_type()), 1, 1)
                 .contiguous(at::MemoryFormat::ChannelsLast);
  if (out_relu) at::relu_(y);
  if (!want_stats) {
    const auto options = x.options().dtype(stats_type(x)).memory_format(at::MemoryFormat::Contiguous);
    return {y, at::zeros({}, options.dtype(at::kDouble)), at::empty({0}, options), at::empty({0}, options)};
  }
  using Stats = std::tuple<Tensor, Tensor, Tensor>;
  static const auto op = handle<Stats(const Tensor&, const OptTensor&, const OptTensor&, bool)>(
      "detnas_d2::bn_stats");
  auto [count, mean, m2] = op.call(y, {}, {}, false);
  return {y, count, mean, m2};
}

}  // namespace
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CompositeExplicitAutograd, m) { m.impl("conv3x3", &detnas::conv3x3); }
