// What the convolutions share on the torch side: maps through what is pending on them, and back.
#pragma once
#include "../conv_checks.h"
#include "common.cuh"

namespace detnas {
namespace cuda {

using ConvResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
// With the affine map of the BatchNorm that follows.
using ConvNormResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using ConvGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Defined in pointwise_ops.cu and depthwise_ops.cu; their arguments: schema.cpp.
ConvResult pointwise_conv(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                          const OptTensor& shift, bool relu, const OptTensor& bias, bool out_relu,
                          bool want_stats, int64_t groups);
// relu(x * weight + bias), groups 1, at channels `offset` and on of the channels_last map y.
void pointwise_relu_into(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y,
                         int64_t offset);
ConvResult depthwise_conv(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                          const OptTensor& shift, bool relu, const OptTensor& bias, bool out_relu,
                          bool want_stats, int64_t stride, int64_t dilation);

// x through the map that is pending on it, or x itself where nothing is.
inline Tensor materialise(const Tensor& x, const OptTensor& scale, const OptTensor& shift, bool relu) {
  if ((!scale && !relu) || x.numel() == 0) return x;
  Tensor out = empty_map(x.sizes(), x);
  DETNAS_DISPATCH(x, "pending", [&] {
    launch_transform(source<scalar_t>(x, scale, shift, relu), pixel_count(x), static_cast<int>(x.size(1)),
                     out.data_ptr<scalar_t>(), stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

inline Tensor materialise(const GradArgs& g) {
  if (!g.y.defined() || g.grad.numel() == 0) return g.grad;
  Tensor out = empty_map(g.grad.sizes(), g.grad);
  DETNAS_DISPATCH(g.grad, "pending", [&] {
    launch_transform(g.get<scalar_t>(), pixel_count(out), static_cast<int>(out.size(1)),
                     out.data_ptr<scalar_t>(), stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

// Sends the gradient of a materialised input back through its pending map.
inline std::tuple<Tensor, Tensor, Tensor> through_pending(const Tensor& grad, const Tensor& x,
                                                   const OptTensor& scale, const OptTensor& shift,
                                                   bool relu) {
  if (!scale && !relu) return {grad, floats(0, x), floats(0, x)};
  const Tensor g = as_map(grad);
  const int64_t c = x.size(1), pixels = pixel_count(x);
  Tensor out = empty_map(x.sizes(), x), d_scale = floats(scale ? c : 0, x), d_shift = floats(scale ? c : 0, x);
  if (x.numel() == 0) return {out, d_scale.zero_(), d_shift.zero_()};
  DETNAS_DISPATCH(x, "pending", [&] {
    AffineGrad<scalar_t> a{};
    a.left = source<scalar_t>(x, scale, shift, relu);
    a.c_left = a.c_out_left = static_cast<int>(c);
    a.grad_left = g.const_data_ptr<scalar_t>();
    a.ld_grad_left = c;
    a.out_left = out.data_ptr<scalar_t>();
    Tensor partial;
    if (scale) {
      partial = floats(affine_grad_tiling(a, pixels).chunks * 2 * c, x);
      a.partial = partial.data_ptr<float>();
    }
    float* const sums[4] = {d_scale.data_ptr<float>(), nullptr, d_shift.data_ptr<float>(), nullptr};
    launch_affine_grad(a, pixels, sums, stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {out, d_scale, d_shift};
}

}  // namespace cuda
}  // namespace detnas
