// depthwise_conv and mixed_depthwise on CUDA.
#include <torch/library.h>

#include "conv.cuh"
#include "depthwise_conv.cuh"

namespace detnas {
namespace cuda {
namespace {

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

}  // namespace

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

namespace {

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

}  // namespace
}  // namespace cuda
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CUDA, m) {
  m.impl("depthwise_conv", &detnas::cuda::depthwise_conv);
  m.impl("depthwise_conv_backward", &detnas::cuda::depthwise_conv_backward);
  m.impl("mixed_depthwise", &detnas::cuda::mixed_depthwise);
}
