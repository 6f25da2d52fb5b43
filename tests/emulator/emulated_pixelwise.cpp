// The CUDA launchers of statistics, shuffles and mixed sums behind a C interface, on the host emulator.
#include "cuda/bn_stats.cuh"
#include "cuda/pixelwise.cuh"
#include "emulated.h"

extern "C" {

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
}
