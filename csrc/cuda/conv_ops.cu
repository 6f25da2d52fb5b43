// pointwise_conv, depthwise_conv, bn_fold and shuffle_block on CUDA.
//
// The matrix products of 1x1 convolutions are the library's (cuDNN or cuBLAS through ATen); what is
// pending on the input is applied in one pass before it, statistics are one pass after it.
#include <ATen/ops/cat.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/relu.h>
#include <torch/library.h>

#include "common.cuh"
#include "depthwise_conv.cuh"

namespace detnas {
namespace cuda {
namespace {

using ConvResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using ConvGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Stats stats_of(const Tensor& y) {
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
Tensor materialise(const Tensor& x, const OptTensor& scale, const OptTensor& shift, bool relu) {
  if ((!scale && !relu) || x.numel() == 0) return x;
  Tensor out = empty_map(x.sizes(), x);
  DETNAS_DISPATCH(x, "pending", [&] {
    launch_transform(source<scalar_t>(x, scale, shift, relu), pixel_count(x), static_cast<int>(x.size(1)),
                     out.data_ptr<scalar_t>(), stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

Tensor materialise(const GradArgs& g) {
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
std::tuple<Tensor, Tensor, Tensor> through_pending(const Tensor& grad, const Tensor& x,
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

OptTensor as_type(const OptTensor& t, const Tensor& like) {
  return t ? OptTensor(t->to(like.scalar_type())) : OptTensor();
}

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

template <typename S>
Depthwise<S> geometry(const Tensor& x, const Tensor& weight, int64_t stride, int64_t dilation) {
  Depthwise<S> a{};
  a.channels = static_cast<int>(x.size(1));
  a.height = static_cast<int>(x.size(2));
  a.width = static_cast<int>(x.size(3));
  a.out_height = static_cast<int>(conv_out(x.size(2), stride));
  a.out_width = static_cast<int>(conv_out(x.size(3), stride));
  a.kernel = static_cast<int>(weight.size(2));
  a.stride = static_cast<int>(stride);
  a.dilation = static_cast<int>(dilation);
  return a;
}

// (C, 1, k, k) to (k * k, C) in float32.
Tensor pack(const Tensor& weight) {
  return weight.to(at::kFloat).permute({2, 3, 1, 0}).contiguous();
}

void check_depthwise(const Tensor& x, const Tensor& w, int64_t stride, int64_t dilation) {
  check_map(x, "x");
  check_like(w, x, "weight", "x");
  const int64_t k = w.dim() == 4 ? w.size(2) : 0;
  TORCH_CHECK((k == 3 || k == 5 || k == 7) && w.size(3) == k && w.size(1) == 1 && w.size(0) == x.size(1),
              "weight: expected shape (", x.size(1), ", 1, k, k) with k 3, 5 or 7, got ", w.sizes());
  TORCH_CHECK(stride == 1 || stride == 2, "stride: expected 1 or 2, got ", stride);
  TORCH_CHECK(dilation >= 1 && dilation <= 3, "dilation: expected 1, 2 or 3, got ", dilation);
}

ConvResult depthwise_conv(const Tensor& x_in, const Tensor& weight, const OptTensor& scale_in,
                          const OptTensor& shift_in, bool relu, const OptTensor& bias_in, bool out_relu,
                          bool want_stats, int64_t stride, int64_t dilation) {
  check_depthwise(x_in, weight, stride, dilation);
  check_affine(scale_in, shift_in, x_in);
  check_channels(bias_in, x_in, x_in.size(1), "bias");
  TORCH_CHECK(!(out_relu && want_stats), "want_stats: statistics are of the raw output, not with out_relu");
  const c10::cuda::CUDAGuard guard(x_in.device());
  const Tensor x = as_map(x_in), packed = pack(weight);
  const OptTensor scale = vector(scale_in), shift = vector(shift_in), bias = vector(bias_in);
  const int64_t n = x.size(0), c = x.size(1);
  Tensor y = empty_map({n, c, conv_out(x.size(2), stride), conv_out(x.size(3), stride)}, x);
  Tensor mean = floats(want_stats ? c : 0, x), m2 = floats(want_stats ? c : 0, x);
  const Tensor count = count_of(x, want_stats ? pixel_count(y) : 0);
  if (y.numel() == 0) return {y, count, mean.zero_(), m2.zero_()};
  DETNAS_DISPATCH(x, "depthwise_conv", [&] {
    Depthwise<scalar_t> a = geometry<scalar_t>(x, weight, stride, dilation);
    a.x = source<scalar_t>(x, scale, shift, relu);
    a.weight = packed.const_data_ptr<float>();
    a.bias = pointer(bias);
    a.out_relu = out_relu;
    a.out = y.data_ptr<scalar_t>();
    const int64_t tiles = tile_count(a, n);
    Tensor partial;
    if (want_stats) {
      partial = floats(moments_size(tiles, c), x);
      a.mean = partial.data_ptr<float>();
      a.m2 = a.mean + tiles * c;
      a.count = a.m2 + tiles * c;
    }
    launch_depthwise(a, n, stream());
    if (want_stats)
      launch_merge_moments(a.mean, tiles, static_cast<int>(c), mean.data_ptr<float>(), m2.data_ptr<float>(),
                           stream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {y, count, mean, m2};
}

ConvGradients depthwise_conv_backward(const Tensor& grad_y, const OptTensor& grad_mean,
                                      const OptTensor& grad_m2, const Tensor& x_in,
                                      const Tensor& weight, const OptTensor& scale_in,
                                      const OptTensor& shift_in, bool relu, const OptTensor& y,
                                      const OptTensor& mean, bool out_relu, int64_t stride,
                                      int64_t dilation, std::array<bool, 3> mask) {
  check_depthwise(x_in, weight, stride, dilation);
  const c10::cuda::CUDAGuard guard(x_in.device());
  const Tensor x = as_map(x_in), packed = pack(weight);
  const OptTensor scale = vector(scale_in), shift = vector(shift_in);
  const GradArgs grad(grad_y, grad_mean, grad_m2, y, mean, out_relu);
  const int64_t n = x.size(0), c = x.size(1), k = weight.size(2), pixels = pixel_count(grad.grad);
  Tensor dx, dw, da, db, dbias;
  if (mask[0]) {
    Tensor dz = empty_map(x.sizes(), x);
    if (x.numel() > 0) {
      DETNAS_DISPATCH(x, "depthwise_conv_backward", [&] {
        Depthwise<scalar_t> a = geometry<scalar_t>(x, weight, stride, dilation);
        a.x = grad.get<scalar_t>();
        a.weight = packed.const_data_ptr<float>();
        a.out = dz.data_ptr<scalar_t>();
        launch_depthwise_grad_input(a, n, stream());
      });
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
    std::tie(dx, da, db) = through_pending(dz, x, scale, shift, relu);
  }
  if (mask[1]) {
    Tensor sums = at::zeros({k, k, 1, c}, x.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous));
    if (pixels > 0 && c > 0) {
      const int64_t chunks = chunk_count(pixels, ceil_div(c, kLanes));
      Tensor partial = floats(chunks * k * k * c, x);
      DETNAS_DISPATCH(x, "depthwise_conv_backward", [&] {
        Depthwise<scalar_t> a = geometry<scalar_t>(x, weight, stride, dilation);
        a.x = source<scalar_t>(x, scale, shift, relu);
        launch_depthwise_grad_weight(a, grad.get<scalar_t>(), pixels, chunks, partial.data_ptr<float>(),
                                     sums.data_ptr<float>(), stream());
      });
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
    dw = sums.permute({3, 2, 0, 1}).contiguous().to(weight.scalar_type());
  }
  if (mask[2]) dbias = materialise(grad).to(at::kFloat).sum({0, 2, 3});
  return {dx, dw, da, db, dbias};
}

using Lists =
    std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>>;

Lists mixed_depthwise(at::TensorList x, at::TensorList weight, at::TensorList scale,
                      at::TensorList shift, bool relu, bool want_stats, int64_t stride,
                      at::IntArrayRef dilation) {
  TORCH_CHECK(x.size() == weight.size() && x.size() == dilation.size(),
              "x, weight, dilation: expected lists of one length, got ", x.size(), ", ", weight.size(),
              ", ", dilation.size());
  TORCH_CHECK((scale.empty() || scale.size() == x.size()) && scale.size() == shift.size(),
              "scale, shift: expected lists of length 0 or ", x.size(), ", got ", scale.size(), ", ",
              shift.size());
  Lists out;
  for (size_t i = 0; i < x.size(); ++i) {
    const bool affine = !scale.empty();
    auto [y, count, mean, m2] = depthwise_conv(
        x[i], weight[i], affine ? OptTensor(scale[i]) : OptTensor(),
        affine ? OptTensor(shift[i]) : OptTensor(), relu, {}, false, want_stats, stride, dilation[i]);
    std::get<0>(out).push_back(y);
    std::get<1>(out).push_back(count);
    std::get<2>(out).push_back(mean);
    std::get<3>(out).push_back(m2);
  }
  return out;
}

std::tuple<Tensor, Tensor> bn_fold(const Tensor& count, const Tensor& mean, const Tensor& m2,
                                   const OptTensor& gamma, const OptTensor& beta, double eps) {
  const c10::cuda::CUDAGuard guard(mean.device());
  Tensor scale = (m2.to(at::kDouble) / count + eps).rsqrt();
  if (gamma) scale = scale * *gamma;
  Tensor shift = -mean.to(at::kDouble) * scale;
  if (beta) shift = shift + *beta;
  return {scale.to(mean.scalar_type()), shift.to(mean.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bn_fold_backward(
    const Tensor& grad_scale, const Tensor& grad_shift, const Tensor& count, const Tensor& mean,
    const Tensor& m2, const OptTensor& gamma, double eps) {
  const c10::cuda::CUDAGuard guard(mean.device());
  const Tensor r = (m2.to(at::kDouble) / count + eps).rsqrt();
  const Tensor w = gamma ? r * *gamma : r;
  const Tensor d_v = grad_scale.to(at::kDouble) - grad_shift.to(at::kDouble) * mean;
  const auto type = mean.scalar_type();
  return {(-grad_shift.to(at::kDouble) * w).to(type), (d_v * w * r * r * -0.5 / count).to(type),
          (d_v * r).to(type), grad_shift.clone()};
}

// Eval-mode block: depthwise kernels of our own between the library's matrix products.
Tensor shuffle_block(const Tensor& x, at::TensorList weights, at::TensorList biases, int64_t kernel,
                     int64_t stride, int64_t method) {
  check_map(x, "x");
  TORCH_CHECK(stride == 1 || stride == 2, "stride: expected 1 or 2, got ", stride);
  TORCH_CHECK(method == 1 || method == 2, "method: expected 1 or 2, got ", method);
  const size_t main = kernel == 0 ? 6 : 3, count = main + (stride == 2 ? 2 : 0);
  TORCH_CHECK(weights.size() == count && biases.size() == count, "weights, biases: expected ", count,
              " tensors each, got ", weights.size(), " and ", biases.size());
  const c10::cuda::CUDAGuard guard(x.device());
  auto chain = [&](Tensor z, size_t first, size_t n) {
    int64_t s = stride;
    for (size_t i = first; i < first + n; ++i) {
      if (weights[i].size(2) > 1) {
        z = std::get<0>(depthwise_conv(z, weights[i], {}, {}, false, biases[i], false, false, s, 1));
        s = 1;
      } else {
        z = at::conv2d(z, weights[i], biases[i].to(z.scalar_type())).relu_();
      }
    }
    return z;
  };
  Tensor left, right = x;
  const int64_t half = x.size(1) / 2;
  if (stride == 2) {
    left = chain(as_map(x), main, 2);
  } else {
    // The halves of the shuffled input, as the kernel of shuffle_concat makes them.
    left = empty_map({x.size(0), half, x.size(2), x.size(3)}, x);
    right = at::empty_like(left);
    const Tensor map = as_map(x);
    if (x.numel() > 0)
      DETNAS_DISPATCH(x, "shuffle_block", [&] {
        Source<scalar_t> first = source<scalar_t>(map, {}, {}, false), second = first;
        second.data += half;
        Shuffle<scalar_t> s{first, second, static_cast<int>(half), static_cast<int>(half),
                            static_cast<int>(method), static_cast<int>(half),
                            left.data_ptr<scalar_t>(), right.data_ptr<scalar_t>(), half, half};
        launch_shuffle(s, pixel_count(x), stream());
      });
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return as_map(at::cat({left, chain(as_map(right), 0, main)}, 1));
}

}  // namespace
}  // namespace cuda
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CUDA, m) {
  m.impl("pointwise_conv", &detnas::cuda::pointwise_conv);
  m.impl("pointwise_conv_backward", &detnas::cuda::pointwise_conv_backward);
  m.impl("depthwise_conv", &detnas::cuda::depthwise_conv);
  m.impl("depthwise_conv_backward", &detnas::cuda::depthwise_conv_backward);
  m.impl("mixed_depthwise", &detnas::cuda::mixed_depthwise);
  m.impl("bn_fold", &detnas::cuda::bn_fold);
  m.impl("bn_fold_backward", &detnas::cuda::bn_fold_backward);
  m.impl("shuffle_block", &detnas::cuda::shuffle_block);
}
