// What the convolutions share on the torch side: maps through what is pending on them, and back.
#pragma once
#include "common.cuh"

namespace detnas {
namespace cuda {

using ConvResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using ConvGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Defined in pointwise_ops.cu and depthwise_ops.cu; their arguments: schema.cpp.
ConvResult pointwise_conv(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                          const OptTensor& shift, bool relu, const OptTensor& bias, bool out_relu,
                          bool want_stats, int64_t groups);
ConvResult depthwise_conv(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                          const OptTensor& shift, bool relu, const OptTensor& bias, bool out_relu,
                          bool want_stats, int64_t stride, int64_t dilation);

inline Stats stats_of(const Tensor& y) {
  const int64_t pixels = pixel_count(y), channels = y.size(1);
  Tensor mean = floats(channels, y), m2 = floats(channels, y);
  if (y.numel() == 0) return {count_of(y, pixels), mean.zero_(), m2.zero_()};
  const int64_t chunks = chunk_count(pixels, ceil_div(channels, 128));
  Tensor partial = floats(moments_size(chunks, channels), y);
  DETNAS_DISPATCH(y, "bn_stats", [&] {
    launch_stats(source<scalar_t>(y, {}, {}, false), pixels, channels, chunks,
                 partial.data_ptr<float>(), mean.data_ptr<float>(), m2.data_ptr<float>(), stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {count_of(y, pixels), mean, m2};
}

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
  const Tensor none = floats(0, x);
  if (!scale && !relu) return {grad, none, none};
  const Tensor g = as_map(grad);
  const int64_t c = x.size(1), pixels = pixel_count(x);
  Tensor out = empty_map(x.sizes(), x), sums = at::zeros({2, c}, x.options().dtype(at::kFloat));
  if (x.numel() > 0) {
    const int64_t chunks = chunk_count(pixels, ceil_div(c, kLanes));
    Tensor partial = floats(chunks * 2 * c, x);
    DETNAS_DISPATCH(x, "pending", [&] {
      AffineGrad<scalar_t> a{g.const_data_ptr<scalar_t>(), nullptr, c, 0, static_cast<int>(c), 0,
                             static_cast<int>(c), 0, x.const_data_ptr<scalar_t>(), c, pointer(scale),
                             pointer(shift), relu, out.data_ptr<scalar_t>()};
      launch_affine_grad(a, pixels, static_cast<int>(c), chunks, partial.data_ptr<float>(),
                         sums.data_ptr<float>(), stream());
    });
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (!scale) return {out, none, none};
  return {out, sums.select(0, 0).clone(), sums.select(0, 1).clone()};
}

}  // namespace cuda
}  // namespace detnas
