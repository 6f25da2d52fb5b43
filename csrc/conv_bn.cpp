// Operators followed by a BatchNorm with the statistics of their output, on devices without a kernel that
// does both: made of two.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include "batches.h"
#include "checks.h"
#include "handles.h"

namespace detnas {
namespace {

using Stats = std::tuple<Tensor, Tensor, Tensor>;
using Norm = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

std::tuple<Tensor, Tensor> fold(const Tensor& count, const Tensor& mean, const Tensor& m2,
                                const OptTensor& gamma, const OptTensor& beta, double eps) {
  static const auto op = handle<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                           const OptTensor&, const OptTensor&, double)>(
      "detnas_d2::bn_fold");
  return op.call(count, mean, m2, gamma, beta, eps);
}

Norm bn_stats_fold(const Tensor& x, const OptTensor& scale, const OptTensor& shift, bool relu,
                   const OptTensor& gamma, const OptTensor& beta, double eps, int64_t batches) {
  check_stats(x, scale, shift, batches);
  check_norm(gamma, beta, x, x.size(1));
  if (batches > 1)
    return by_batch(batches, [&](int64_t i) {
      return bn_stats_fold(batch_of(x, batches, i), vector_of(scale, i), vector_of(shift, i), relu, gamma, beta,
                           eps, 1);
    });
  const at::AutoDispatchBelowAutograd guard;
  static const auto op = handle<Stats(const Tensor&, const OptTensor&, const OptTensor&, bool)>(
      "detnas_d2::bn_stats");
  auto [count, mean, m2] = op.call(x, scale, shift, relu);
  auto [a, b] = fold(count, mean, m2, gamma, beta, eps);
  return {count, mean, m2, a, b};
}

ConvNorm pointwise_conv_bn(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                           const OptTensor& shift, bool relu, const OptTensor& bias, int64_t groups,
                           const OptTensor& gamma, const OptTensor& beta, double eps, int64_t batches) {
  if (batches != 1) {
    check_stats(x, scale, shift, batches);
    return by_batch(batches, [&](int64_t i) {
      return pointwise_conv_bn(batch_of(x, batches, i), weight, vector_of(scale, i), vector_of(shift, i), relu,
                               bias, groups, gamma, beta, eps, 1);
    });
  }
  const at::AutoDispatchBelowAutograd guard;
  static const auto op = handle<Conv(const Tensor&, const Tensor&, const OptTensor&, const OptTensor&, bool,
                                     const OptTensor&, bool, bool, int64_t)>("detnas_d2::pointwise_conv");
  auto [y, count, mean, m2] = op.call(x, weight, scale, shift, relu, bias, false, true, groups);
  check_norm(gamma, beta, x, y.size(1));
  auto [a, b] = fold(count, mean, m2, gamma, beta, eps);
  return {y, count, mean, m2, a, b};
}

ConvNorm depthwise_conv_bn(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                           const OptTensor& shift, bool relu, const OptTensor& bias, int64_t stride,
                           int64_t dilation, const OptTensor& gamma, const OptTensor& beta, double eps,
                           int64_t batches) {
  if (batches != 1) {
    check_stats(x, scale, shift, batches);
    return by_batch(batches, [&](int64_t i) {
      return depthwise_conv_bn(batch_of(x, batches, i), weight, vector_of(scale, i), vector_of(shift, i), relu,
                               bias, stride, dilation, gamma, beta, eps, 1);
    });
  }
  const at::AutoDispatchBelowAutograd guard;
  static const auto op =
      handle<Conv(const Tensor&, const Tensor&, const OptTensor&, const OptTensor&, bool, const OptTensor&,
                  bool, bool, int64_t, int64_t)>("detnas_d2::depthwise_conv");
  auto [y, count, mean, m2] = op.call(x, weight, scale, shift, relu, bias, false, true, stride, dilation);
  check_norm(gamma, beta, x, y.size(1));
  auto [a, b] = fold(count, mean, m2, gamma, beta, eps);
  return {y, count, mean, m2, a, b};
}

}  // namespace
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CompositeExplicitAutograd, m) {
  m.impl("bn_stats_fold", &detnas::bn_stats_fold);
  m.impl("pointwise_conv_bn", &detnas::pointwise_conv_bn);
  m.impl("depthwise_conv_bn", &detnas::depthwise_conv_bn);
}
