// pointwise_conv on CUDA.
//
// The matrix products are the library's (cuDNN or cuBLAS through ATen); what is pending on the input
// is applied in one pass before it, statistics are one pass after it.
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <torch/library.h>

#include "conv.cuh"

namespace detnas {
namespace cuda {
namespace {

OptTensor as_type(const OptTensor& t, const Tensor& like) {
  return t ? OptTensor(t->to(like.scalar_type())) : OptTensor();
}

}  // namespace

ConvResult pointwise_conv(const Tensor& x_in, const Tensor& weight, const OptTensor& scale,
                          const OptTensor& shift, bool relu, const OptTensor& bias, bool out_relu,
                          bool want_stats, int64_t groups) {
  check_map(x_in, "x");
  check_like(weight, x_in, "weight", "x");
  TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 1 && weight.size(3) == 1 &&
                  weight.size(1) * groups == x_in.size(1),
              "weight: expected shape (out_channels, ", x_in.size(1) / groups, ", 1, 1), got ",
              weight.sizes());
  check_affine(scale, shift, x_in);
  check_channels(bias, x_in, weight.size(0), "bias");
  TORCH_CHECK(!(out_relu && want_stats), "want_stats: statistics are of the raw output, not with out_relu");
  const c10::cuda::CUDAGuard guard(x_in.device());
  const Tensor z = materialise(as_map(x_in), vector(scale), vector(shift), relu);
  Tensor y = as_map(at::conv2d(z, weight, as_type(bias, x_in), at::IntArrayRef({1, 1}), at::IntArrayRef({0, 0}),
                             at::IntArrayRef({1, 1}), groups));
  if (out_relu) y = y.relu_();
  auto [count, mean, m2] = want_stats ? stats_of(y) : no_stats(y);
  return {y, count, mean, m2};
}

namespace {

ConvGradients pointwise_conv_backward(const Tensor& grad_y, const OptTensor& grad_mean,
                                      const OptTensor& grad_m2, const Tensor& x_in,
                                      const Tensor& weight, const OptTensor& scale_in,
                                      const OptTensor& shift_in, bool relu, const OptTensor& y,
                                      const OptTensor& mean, bool out_relu, int64_t groups,
                                      std::array<bool, 3> mask) {
  const c10::cuda::CUDAGuard guard(x_in.device());
  const Tensor x = as_map(x_in);
  const OptTensor scale = vector(scale_in), shift = vector(shift_in);
  const Tensor g = materialise(GradArgs(grad_y, grad_mean, grad_m2, y, mean, out_relu));
  const Tensor z = materialise(x, scale, shift, relu);
  const int64_t out_channels[] = {weight.size(0)};
  auto [dz, dw, dbias] = at::convolution_backward(g, z, weight, at::IntArrayRef(out_channels), {1, 1},
                                                  {0, 0}, {1, 1}, false, {0, 0}, groups, mask);
  Tensor dx, da, db;
  if (mask[0]) std::tie(dx, da, db) = through_pending(dz, x, scale, shift, relu);
  if (dbias.defined()) dbias = dbias.to(at::kFloat);
  return {dx, dw, da, db, dbias};
}

}  // namespace
}  // namespace cuda
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CUDA, m) {
  m.impl("pointwise_conv", &detnas::cuda::pointwise_conv);
  m.impl("pointwise_conv_backward", &detnas::cuda::pointwise_conv_backward);
}
