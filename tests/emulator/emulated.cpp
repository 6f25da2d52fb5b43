// The CUDA launchers behind a C interface, on the host emulator. dtype: 0 float, 1 half,
// 2 bfloat16. Maps are channels_last; null pointers stand for missing arguments.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "cuda/depthwise_conv.cuh"

using namespace detnas::cuda;

namespace {

template <typename F>
void with_type(int dtype, F&& f) {
  if (dtype == 0) f(float());
  if (dtype == 1) f(c10::Half());
  if (dtype == 2) f(c10::BFloat16());
}

template <typename S>
Source<S> source(const void* data, int64_t ld, const float* scale, const float* shift, int relu) {
  Source<S> s;
  s.data = static_cast<const S*>(data);
  s.ld = ld;
  s.scale = scale;
  s.shift = shift;
  s.relu = relu != 0;
  return s;
}

// grad + add + mul * (y - mean), or masked by y > 0, or grad alone.
template <typename S>
Source<S> gradient(const void* grad, const void* y, const float* add, const float* mul,
                   const float* mean, int channels) {
  Source<S> s = source<S>(grad, channels, nullptr, nullptr, 0);
  s.y = static_cast<const S*>(y);
  s.ld_y = channels;
  s.add = add;
  s.mul = mul;
  s.mean = mean;
  return s;
}

// Exactly as long as asked, so that AddressSanitizer guards its end.
std::unique_ptr<float[]> buffer(int64_t size) { return std::unique_ptr<float[]>(new float[size]); }

}  // namespace

extern "C" {

void emu_seed(unsigned seed) { emulator::Scheduler::get().seed(seed); }

void emu_stats(int dtype, const void* x, int64_t ld, const float* scale, const float* shift, int relu,
               int64_t pixels, int channels, float* mean, float* m2) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    const int64_t chunks = chunk_count(pixels, 1);
    auto partial = buffer(moments_size(chunks, channels));
    launch_stats(source<S>(x, ld, scale, shift, relu), pixels, channels, chunks, partial.get(), mean,
                 m2, 0);
  });
}

void emu_transform(int dtype, const void* x, int64_t ld, const float* scale, const float* shift,
                   int relu, int64_t pixels, int channels, void* out) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    launch_transform(source<S>(x, ld, scale, shift, relu), pixels, channels, static_cast<S*>(out), 0);
  });
}

void emu_shuffle(int dtype, const void* left, const void* right, const float* right_scale,
                 const float* right_shift, int right_relu, int c_left, int c_right, int method,
                 int64_t pixels, void* out_left, void* out_right) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    Shuffle<S> a{source<S>(left, c_left, nullptr, nullptr, 0),
                 source<S>(right, c_right, right_scale, right_shift, right_relu),
                 c_left, c_right, method, (c_left + c_right) / 2,
                 static_cast<S*>(out_left), static_cast<S*>(out_right), 0, 0};
    a.ld_out_left = a.c_out_left;
    a.ld_out_right = c_left + c_right - a.c_out_left;
    launch_shuffle(a, pixels, 0);
  });
}

void emu_affine_grad(int dtype, const void* grad_left, const void* grad_right, int c_out_left,
                     int method, int all_channels, int offset, const void* x, const float* scale,
                     const float* shift, int relu, int64_t pixels, int channels, void* out,
                     float* sums) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    AffineGrad<S> a{static_cast<const S*>(grad_left), static_cast<const S*>(grad_right), c_out_left,
                    all_channels - c_out_left, c_out_left, method, all_channels, offset,
                    static_cast<const S*>(x), channels, scale, shift, relu != 0,
                    static_cast<S*>(out)};
    const int64_t chunks = chunk_count(pixels, ceil_div(channels, kLanes));
    auto partial = buffer(chunks * 2 * channels);
    launch_affine_grad(a, pixels, channels, chunks, partial.get(), sums, 0);
  });
}

void emu_mixed_sum(int dtype, int count, const void* const* y, const float* const* scale,
                   const float* const* shift, const float* weights, const void* residual,
                   int64_t pixels, int channels, void* out, const void* grad, void* const* grad_y,
                   float* sums) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    Mixed<S> a{};
    for (int i = 0; i < count; ++i) {
      a.y[i] = static_cast<const S*>(y[i]);
      a.scale[i] = scale[i];
      a.shift[i] = shift[i];
      if (grad) a.grad_y[i] = static_cast<S*>(grad_y[i]);
    }
    a.weights = weights;
    a.count = count;
    a.residual = static_cast<const S*>(residual);
    a.out = static_cast<S*>(out);
    a.grad = static_cast<const S*>(grad);
    if (!grad) return launch_mixed_sum(a, pixels, channels, 0);
    const int64_t chunks = chunk_count(pixels, ceil_div(channels, kLanes));
    auto partial = buffer(chunks * (1 + kMaxMixed) * channels);
    launch_mixed_sum_grad(a, pixels, channels, chunks, partial.get(), sums, 0);
  });
}

void emu_depthwise(int dtype, const void* x, const float* scale, const float* shift, int relu,
                   const float* weight, const float* bias, int out_relu, int images, int channels,
                   int height, int width, int kernel, int stride, int dilation, void* out,
                   float* mean, float* m2) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    Depthwise<S> a{};
    a.x = source<S>(x, channels, scale, shift, relu);
    a.weight = weight;
    a.bias = bias;
    a.out_relu = out_relu != 0;
    a.out = static_cast<S*>(out);
    a.channels = channels;
    a.height = height;
    a.width = width;
    a.out_height = (height - 1) / stride + 1;
    a.out_width = (width - 1) / stride + 1;
    a.kernel = kernel;
    a.stride = stride;
    a.dilation = dilation;
    const int64_t tiles = tile_count(a, images);
    auto partial = buffer(moments_size(tiles, channels));
    if (mean) {
      a.mean = partial.get();
      a.m2 = a.mean + tiles * channels;
      a.count = a.m2 + tiles * channels;
    }
    launch_depthwise(a, images, 0);
    if (mean) launch_merge_moments(partial.get(), tiles, channels, mean, m2, 0);
  });
}

void emu_depthwise_grad(int dtype, const void* grad, const void* y, const float* add,
                        const float* mul, const float* mean, const void* x, const float* scale,
                        const float* shift, int relu, const float* weight, int images, int channels,
                        int height, int width, int kernel, int stride, int dilation, void* grad_x,
                        float* grad_weight) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    Depthwise<S> a{};
    a.weight = weight;
    a.out = static_cast<S*>(grad_x);
    a.channels = channels;
    a.height = height;
    a.width = width;
    a.out_height = (height - 1) / stride + 1;
    a.out_width = (width - 1) / stride + 1;
    a.kernel = kernel;
    a.stride = stride;
    a.dilation = dilation;
    const Source<S> g = gradient<S>(grad, y, add, mul, mean, channels);
    a.x = g;
    launch_depthwise_grad_input(a, images, 0);
    a.x = source<S>(x, channels, scale, shift, relu);
    const int64_t pixels = int64_t(images) * a.out_height * a.out_width;
    const int64_t chunks = chunk_count(pixels, ceil_div(channels, kLanes));
    auto partial = buffer(chunks * kernel * kernel * channels);
    launch_depthwise_grad_weight(a, g, pixels, chunks, partial.get(), grad_weight, 0);
  });
}
}
