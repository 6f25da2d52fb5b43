// The gradient of statistics, on devices without a kernel for it (CUDA has one: cuda/bn_ops.cu).
#include <ATen/ATen.h>
#include <torch/library.h>

#include "checks.h"

namespace detnas {
namespace {

// Rarely needed, since convolutions take the gradient of their statistics themselves.
std::tuple<Tensor, Tensor, Tensor> bn_stats_backward(const Tensor& grad_mean, const Tensor& grad_m2,
                                                     const Tensor& x, const Tensor& mean,
                                                     const OptTensor& scale, const OptTensor& shift,
                                                     bool relu) {
  check_stats_backward(grad_mean, grad_m2, x, mean, scale, shift);
  const auto type = stats_type(x);
  const double n = std::max<double>(1, static_cast<double>(x.numel()) / std::max<int64_t>(1, x.size(1)));
  auto wide = [&](const Tensor& t) { return t.to(type).view({1, -1, 1, 1}); };
  const Tensor raw = x.to(type);
  Tensor v = scale ? raw * wide(*scale) + wide(*shift) : raw;
  const Tensor passed = v;
  if (relu) v = v.relu();
  Tensor g = wide(grad_mean) / n + 2 * wide(grad_m2) * (v - wide(mean));
  if (relu) g = g * (passed > 0);
  const Tensor none = at::empty({0}, grad_mean.options());
  if (!scale) return {g.to(x.scalar_type()), none, none};
  return {(g * wide(*scale)).to(x.scalar_type()), (g * raw).sum({0, 2, 3}), g.sum({0, 2, 3})};
}

}  // namespace
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CompositeExplicitAutograd, m) {
  m.impl("bn_stats_backward", &detnas::bn_stats_backward);
}
