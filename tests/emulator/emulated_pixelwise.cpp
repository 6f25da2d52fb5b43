// The CUDA launchers of statistics, shuffles and mixed sums behind a C interface, on the host emulator.
#include "cuda/bn_fold.cuh"
#include "cuda/bn_stats.cuh"
#include "cuda/mixed_sum_grad.cuh"
#include "cuda/pending.cuh"
#include "cuda/shuffle_concat_grad.cuh"
#include "emulated.h"

extern "C" {

void emu_stats(int dtype, int count, const void* const* x, const int64_t* pixels, int64_t ld,
               const float* scale, const float* shift, int relu, int channels, double* total,
               float* mean, float* m2) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    std::vector<StatsInput<S>> maps;
    for (int i = 0; i < count; ++i) maps.push_back({source<S>(x[i], ld, scale, shift, relu), pixels[i]});
    const StatsPlan plan = plan_stats(maps, channels);
    auto partial = buffer(plan.chunks > 1 ? moments_size(plan.chunks, channels) : 0);
    launch_stats(maps, plan, channels, partial.get(), mean, m2, total, 0);
  });
}

void emu_merge(const float* partial, int64_t chunks, int channels, double* total, float* mean, float* m2) {
  launch_merge_moments(partial, chunks, channels, mean, m2, total, 0);
}

void emu_fold(int channels, const double* count, const float* mean, const float* m2, const float* gamma,
              const float* beta, float* scale, float* shift, const float* grad_scale,
              const float* grad_shift, float* grads) {
  Fold<float> a{count, mean, m2, gamma, beta, 1e-5, channels, scale, shift};
  launch_fold(a, 0);
  a.grad_scale = grad_scale;
  a.grad_shift = grad_shift;
  a.grad_mean = grads;
  a.grad_m2 = grads + channels;
  a.grad_gamma = grads + 2 * channels;
  a.grad_beta = grads + 3 * channels;
  launch_fold(a, 0);
}

void emu_transform(int dtype, const void* x, int64_t ld, const float* scale, const float* shift,
                   int relu, int64_t pixels, int channels, void* out) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    launch_transform(source<S>(x, ld, scale, shift, relu), pixels, channels, static_cast<S*>(out), 0);
  });
}

void emu_transform_grad(int dtype, const void* grad, const void* y, const float* add, const float* mul,
                        const float* mean, int64_t pixels, int channels, void* out) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    launch_transform(gradient<S>(grad, y, add, mul, mean, channels), pixels, channels,
                     static_cast<S*>(out), 0);
  });
}

void emu_shuffle(int dtype, const void* left, const void* right, int64_t ld, const float* left_scale,
                 const float* left_shift, int left_relu, const float* right_scale,
                 const float* right_shift, int right_relu, int c_left, int c_right, int c_out_left,
                 int method, int64_t pixels, void* out_left, void* out_right) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    Shuffle<S> a{source<S>(left, ld, left_scale, left_shift, left_relu),
                 source<S>(right, ld, right_scale, right_shift, right_relu),
                 c_left, c_right, method, c_out_left,
                 static_cast<S*>(out_left), static_cast<S*>(out_right), c_out_left,
                 c_left + c_right - c_out_left};
    launch_shuffle(a, pixels, 0);
  });
}

// sums: scale of left and right, shift of left and right; null: none is wanted.
void emu_shuffle_grad(int dtype, const void* left, const void* right, int64_t ld, const float* left_scale,
                      const float* left_shift, int left_relu, const float* right_scale,
                      const float* right_shift, int right_relu, int c_left, int c_right,
                      int c_out_left, int method, int64_t pixels, const void* grad_left,
                      const void* grad_right, void* out_left, void* out_right, float* const* sums) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    AffineGrad<S> a{};
    a.left = source<S>(left, ld, left_scale, left_shift, left_relu);
    a.right = source<S>(right, ld, right_scale, right_shift, right_relu);
    a.c_left = c_left;
    a.c_right = c_right;
    a.method = method;
    a.c_out_left = c_out_left;
    a.grad_left = static_cast<const S*>(grad_left);
    a.grad_right = static_cast<const S*>(grad_right);
    a.ld_grad_left = c_out_left;
    a.ld_grad_right = c_left + c_right - c_out_left;
    a.out_left = static_cast<S*>(out_left);
    a.out_right = static_cast<S*>(out_right);
    auto partial = buffer(affine_grad_tiling(a, pixels).chunks * 2 * (c_left + c_right));
    if (sums) a.partial = partial.get();
    float* const none[4] = {};
    launch_affine_grad(a, pixels, sums ? *reinterpret_cast<float* const(*)[4]>(sums) : none, 0);
  });
}

// outputs: gradients of scales, then of shifts, then of the weights.
void emu_mixed_sum(int dtype, int count, const void* const* y, const float* const* scale,
                   const float* const* shift, const float* weights, const void* residual,
                   int64_t pixels, int channels, void* out, const void* grad, void* const* grad_y,
                   float* const* outputs) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    Mixed<S> a{};
    MixedSums sums{};
    for (int i = 0; i < count; ++i) {
      a.y[i] = static_cast<const S*>(y[i]);
      a.scale[i] = scale[i];
      a.shift[i] = shift[i];
      a.grad_y[i] = static_cast<S*>(grad_y[i]);
      sums.grad_scale[i] = outputs[i];
      sums.grad_shift[i] = outputs[count + i];
    }
    sums.grad_weights = outputs[2 * count];
    a.weights = weights;
    a.count = count;
    a.residual = static_cast<const S*>(residual);
    a.out = static_cast<S*>(out);
    launch_mixed_sum(a, pixels, channels, 0);
    a.grad = static_cast<const S*>(grad);
    const MixedPlan plan = plan_mixed_sum_grad(a, pixels, channels);
    auto partial = buffer(plan.maps_size + plan.shares_size);
    launch_mixed_sum_grad(a, plan, pixels, channels, partial.get(), sums, 0);
  });
}
}
