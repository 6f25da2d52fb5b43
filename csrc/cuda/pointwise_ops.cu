// pointwise_conv on CUDA.
//
// Where something is pending on the input, or statistics or ReLU follow, one product on tensor cores
// does it all (pointwise_conv.cuh). Plain products, and float32 unless the user allows TF32 to
// convolutions, are the library's, with passes before and after.
#include <ATen/Context.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>

#include "block_part.cuh"
#include "conv.cuh"
#include "pointwise_kernels.cuh"

DETNAS_POINTWISE_KERNELS(extern, float)
DETNAS_POINTWISE_KERNELS(extern, c10::Half)
DETNAS_POINTWISE_KERNELS(extern, c10::BFloat16)

namespace detnas {
namespace cuda {
namespace {

// Where cuDNN's settings for convolutions and recurrent networks differ, torch refuses to answer (and
// how to ask for one of them differs between its versions): exact products then.
bool allows_tf32() {
  try {
    return at::globalContext().allowTF32CuDNN();
  } catch (const c10::Error&) {
    return false;
  }
}

// Whether tensor cores compute with this dtype, in the device and in what was compiled for it.
bool on_tensor_cores(const Tensor& x) {
  static const int compiled = [] {
    cudaFuncAttributes attributes{};
    C10_CUDA_CHECK(cudaFuncGetAttributes(&attributes, sum_chunks_kernel<float>));
    return attributes.ptxVersion;
  }();
  const auto* device = at::cuda::getCurrentDeviceProperties();
  const int capability = std::min(compiled, 10 * device->major + device->minor);
  if (x.scalar_type() == at::kHalf) return capability >= 75;
  return capability >= 80 && (x.scalar_type() == at::kBFloat16 || (x.scalar_type() == at::kFloat && allows_tf32()));
}

OptTensor as_type(const OptTensor& t, const Tensor& like) {
  return t ? OptTensor(t->to(like.scalar_type())) : OptTensor();
}

// A source at the channels of a group.
template <typename S>
Source<S> at_channel(Source<S> s, int64_t c) {
  s.data += c;
  if (s.y) s.y += c;
  for (auto vector : {&s.scale, &s.shift, &s.add, &s.mul, &s.mean})
    if (*vector) *vector += c;
  return s;
}

// The weights of a group: [out channels][in channels].
template <typename S>
Source<S> weights_of(const Tensor& weight, int64_t group, int64_t out_channels) {
  Source<S> s;
  s.ld = weight.size(1);
  s.data = weight.const_data_ptr<S>() + group * out_channels * s.ld;
  return s;
}

// y = x * weight + bias on tensor cores, or, without y and of one group, `part` of a block's output. statistics:
// of y, or null; of several batches only where there are some pixels and channels.
void product(const Tensor& x, const Tensor& weight_in, const OptTensor& scale, const OptTensor& shift,
             bool relu, const OptTensor& bias, bool out_relu, int64_t groups, const Tensor& y,
             Statistics* statistics, const BlockPart* part = nullptr) {
  const Tensor weight = weight_in.contiguous();
  const int64_t batches = statistics ? statistics->batches : 1, rows = pixel_count(x) / batches;
  const int64_t n = weight.size(0), ng = n / groups, kg = weight.size(1);
  if (rows == 0 || n == 0) {
    if (!statistics) return;
    statistics->of_nothing();
    statistics->count.fill_(static_cast<double>(rows));
    return;
  }
  DETNAS_DISPATCH(x, "pointwise_conv", [&] {
    const int64_t tiles = gemm_row_tiles(rows, ng);
    Tensor partial;
    if (statistics) partial = floats(batches * 2 * tiles * n, x);
    for (int64_t i = 0; i < groups; ++i) {
      Gemm<scalar_t> g{};
      g.a = at_channel(source<scalar_t>(x, scale, shift, relu), i * kg);
      g.b = weights_of<scalar_t>(weight, i, ng);
      g.rows = rows;
      g.depth = kg;
      g.cols = static_cast<int>(ng);
      if (part) {
        g.join = join_of<scalar_t>(*part);
      } else {
        g.out = y.data_ptr<scalar_t>() + i * ng;
        g.ld_out = y.size(1);
      }
      g.bias = bias ? pointer(bias) + i * ng : nullptr;
      g.out_relu = out_relu;
      g.channels = n;
      g.in_channels = static_cast<int>(x.size(1));
      if (statistics) {
        g.mean = partial.data_ptr<float>() + i * ng;
        g.m2 = g.mean + tiles * n;
        g.tickets = tickets(batches * gemm_col_tiles(ng), x);
        g.stats = statistics->out().at(i * ng);
      }
      launch_gemm<Product::kForward>(g, 1, stream(), batches);
    }
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

bool fuses_product(const Tensor& x, const Tensor& weight) { return weight.size(1) > 0 && on_tensor_cores(x); }

namespace {

// The convolution; its arguments are checked.
Tensor convolve(const Tensor& x_in, const Tensor& weight, const OptTensor& scale, const OptTensor& shift,
                bool relu, const OptTensor& bias, bool out_relu, int64_t groups, Statistics* statistics) {
  const Tensor x = as_map(x_in);
  const bool fused = (scale || relu || out_relu || statistics) && fuses_product(x, weight);
  if (fused || pixel_count(x) == 0) {  // the library refuses empty maps
    Tensor y = empty_map({x.size(0), weight.size(0), x.size(2), x.size(3)}, x);
    product(x, weight, vector(scale), vector(shift), relu, vector(bias), out_relu, groups, y, statistics);
    return y;
  }
  const Tensor z = materialise(x, vector(scale), vector(shift), relu);
  Tensor y = as_map(at::conv2d(z, weight, as_type(bias, x), at::IntArrayRef({1, 1}), at::IntArrayRef({0, 0}),
                               at::IntArrayRef({1, 1}), groups));
  if (out_relu) y = y.relu_();
  if (statistics) stats_of(y, {}, {}, false, *statistics);
  return y;
}

}  // namespace

ConvResult pointwise_conv(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                          const OptTensor& shift, bool relu, const OptTensor& bias, bool out_relu,
                          bool want_stats, int64_t groups) {
  check_pointwise(x, weight, scale, shift, bias, out_relu, want_stats, groups);
  const c10::cuda::CUDAGuard guard(x.device());
  Statistics found(want_stats ? weight.size(0) : 0, x);
  const Tensor y = convolve(x, weight, scale, shift, relu, bias, out_relu, groups, want_stats ? &found : nullptr);
  return {y, found.count, found.mean, found.m2};
}

void pointwise_relu_into(const Tensor& x, const Tensor& weight, const Tensor& bias, const BlockPart& part) {
  check_pointwise(x, weight, {}, {}, bias, true, false, 1);
  product(x, weight, {}, {}, false, vector(bias), true, 1, {}, nullptr, &part);
}

namespace {

ConvNormResult pointwise_conv_bn(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                                 const OptTensor& shift, bool relu, const OptTensor& bias, int64_t groups,
                                 const OptTensor& gamma, const OptTensor& beta, double eps, int64_t batches) {
  check_pointwise(x, weight, scale, shift, bias, false, true, groups, batches);
  check_norm(gamma, beta, x, weight.size(0));
  const c10::cuda::CUDAGuard guard(x.device());
  // The library's products need not be the same in a larger batch.
  if (batches > 1 && (x.numel() == 0 || weight.numel() == 0 || !fuses_product(x, weight)))
    return by_batch(batches, [&](int64_t i) {
      return pointwise_conv_bn(batch_of(x, batches, i), weight, vector_of(scale, i), vector_of(shift, i), relu,
                               bias, groups, gamma, beta, eps, 1);
    });
  Statistics found(weight.size(0), x, gamma, beta, eps, batches);
  const Tensor y = convolve(x, weight, scale, shift, relu, bias, false, groups, &found);
  return {y, found.count, found.mean, found.m2, found.scale, found.shift};
}

// grad_x on tensor cores, through the map that is pending on x; gradients of scale and shift.
template <typename S>
void grad_x_product(const Source<S>& grad, const Tensor& weight, const Source<S>& x, int64_t rows,
                    int64_t channels, int64_t groups, S* out, float* partial, float* d_scale, float* d_shift) {
  const int64_t kg = weight.size(1), ng = weight.size(0) / groups;
  for (int64_t i = 0; i < groups; ++i) {
    Gemm<S> g{};
    g.a = at_channel(grad, i * ng);
    g.b = weights_of<S>(weight, i, ng);
    g.rows = rows;
    g.depth = ng;
    g.cols = static_cast<int>(kg);
    g.out = out + i * kg;
    g.ld_out = channels;
    g.channels = channels;
    if (x.scale || x.relu) g.x = at_channel(x, i * kg);
    g.sums = partial ? partial + i * kg : nullptr;
    launch_gemm<Product::kGradX>(g, 1, stream());
  }
  if (!partial) return;
  const int64_t c = channels;
  const Segments<float> to{{d_scale, d_shift}, {c, 2 * c, 2 * c, 2 * c}};
  launch_sum_chunks(partial, gemm_row_tiles(rows, kg), 2 * c, to, stream());
}

template <typename S>
Tensor grad_weight_product(const Source<S>& grad, const Source<S>& x, const Tensor& weight, int64_t pixels,
                           int64_t groups) {
  const int64_t kg = weight.size(1), ng = weight.size(0) / groups;
  const int64_t splits = gemm_splits(ng, kg, pixels);
  const Tensor out = at::empty_like(weight, at::MemoryFormat::Contiguous);
  const Tensor partial = floats(splits * ng * kg, weight);
  for (int64_t i = 0; i < groups; ++i) {
    Gemm<S> g{};
    g.a = at_channel(grad, i * ng);
    g.b = at_channel(x, i * kg);
    g.rows = ng;
    g.depth = pixels;
    g.cols = static_cast<int>(kg);
    g.partial = partial.data_ptr<float>();
    launch_gemm<Product::kGradWeight>(g, splits, stream());
    launch_sum_chunks(g.partial, splits, ng * kg, out.data_ptr<S>() + i * ng * kg, stream());
  }
  return out;
}

ConvGradients pointwise_conv_backward(const Tensor& grad_y, const OptTensor& grad_mean,
                                      const OptTensor& grad_m2, const Tensor& x_in,
                                      const Tensor& weight_in, const OptTensor& scale_in,
                                      const OptTensor& shift_in, bool relu, const OptTensor& y,
                                      const OptTensor& mean, bool out_relu, int64_t groups,
                                      std::array<bool, 3> mask) {
  check_pointwise_backward(grad_y, grad_mean, grad_m2, x_in, weight_in, scale_in, shift_in, y, mean, out_relu,
                           groups);
  const c10::cuda::CUDAGuard guard(x_in.device());
  const Tensor x = as_map(x_in), weight = weight_in.contiguous();
  const OptTensor scale = vector(scale_in), shift = vector(shift_in);
  const GradArgs grad(grad_y, grad_mean, grad_m2, y, mean, out_relu);
  const int64_t rows = pixel_count(x), c = x.size(1);
  Tensor dx, dw, da, db, dbias;  // those that nobody wants stay undefined
  if (x.numel() == 0 || weight.numel() == 0) {
    const auto wide = x.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous);
    const Tensor none = at::zeros({mask[0] && scale ? c : 0}, wide);
    return {at::zeros_like(x), at::zeros_like(weight), none, none.clone(), at::zeros({weight.size(0)}, wide)};
  }
  if (!(scale || relu || grad.y.defined()) || !on_tensor_cores(x)) {
    const Tensor g = materialise(grad), z = materialise(x, scale, shift, relu);
    const int64_t out_channels[] = {weight.size(0)};
    std::tie(dx, dw, dbias) = at::convolution_backward(g, z, weight, at::IntArrayRef(out_channels), {1, 1},
                                                       {0, 0}, {1, 1}, false, {0, 0}, groups, mask);
    if (mask[0]) std::tie(dx, da, db) = through_pending(as_map(dx), x, scale, shift, relu);
    if (mask[1]) dw = dw.contiguous();
    if (dbias.defined()) dbias = dbias.to(at::kFloat);
    return {dx, dw, da, db, dbias};
  }
  if (mask[0]) {
    dx = empty_map(x.sizes(), x);
    da = floats(scale ? c : 0, x), db = floats(scale ? c : 0, x);
    Tensor partial;
    if (scale) partial = floats(gemm_row_tiles(rows, c / groups) * 2 * c, x);
    DETNAS_DISPATCH(x, "pointwise_conv_backward", [&] {
      grad_x_product(grad.get<scalar_t>(), weight, source<scalar_t>(x, scale, shift, relu), rows, c, groups,
                     dx.data_ptr<scalar_t>(), scale ? partial.data_ptr<float>() : nullptr,
                     da.data_ptr<float>(), db.data_ptr<float>());
    });
  }
  if (mask[1])
    DETNAS_DISPATCH(x, "pointwise_conv_backward", [&] {
      dw = grad_weight_product(grad.get<scalar_t>(), source<scalar_t>(x, scale, shift, relu), weight, rows,
                               groups);
    });
  if (mask[2]) dbias = materialise(grad).to(at::kFloat).sum({0, 2, 3});
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {dx, dw, da, db, dbias};
}

}  // namespace
}  // namespace cuda
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, DETNAS_DEVICE, m) {
  m.impl("pointwise_conv", &detnas::cuda::pointwise_conv);
  m.impl("pointwise_conv_bn", &detnas::cuda::pointwise_conv_bn);
  m.impl("pointwise_conv_backward", &detnas::cuda::pointwise_conv_backward);
}
