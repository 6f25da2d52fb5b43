// The CUDA launchers of 1x1 convolutions behind a C interface, on the host emulator.
#include "cuda/pending.cuh"
#include "cuda/pointwise_conv.cuh"
#include "emulated.h"

namespace {

template <typename S>
Source<S> weights(const void* weight, int in) {
  return source<S>(weight, in, nullptr, nullptr, 0);
}

}  // namespace

extern "C" {

void emu_pointwise(int dtype, const void* x, int64_t ld, const float* scale, const float* shift, int relu,
                   const void* weight, const float* bias, int out_relu, int64_t rows, int in, int out,
                   void* y, int64_t ld_out, float* mean, float* m2) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    const int64_t tiles = gemm_row_tiles(rows, out);
    auto partial = buffer(moments_size(tiles, out));
    Gemm<S> g{};
    g.a = source<S>(x, ld, scale, shift, relu);
    g.b = weights<S>(weight, in);
    g.rows = rows;
    g.depth = in;
    g.cols = out;
    g.out = static_cast<S*>(y);
    g.ld_out = ld_out;
    g.bias = bias;
    g.out_relu = out_relu != 0;
    g.channels = out;
    if (mean) {
      g.mean = partial.get();
      g.m2 = g.mean + tiles * out;
      g.count = g.m2 + tiles * out;
    }
    launch_gemm<Product::kForward>(g, 1, 0);
    if (mean) launch_merge_moments(partial.get(), tiles, out, mean, m2, 0);
  });
}

// sums: [2][in], gradients of scale and shift; null where nothing is pending on x.
void emu_pointwise_grad(int dtype, const void* grad, const void* y, const float* add, const float* mul,
                        const float* mean, const void* x, const float* scale, const float* shift, int relu,
                        const void* weight, int64_t rows, int in, int out, int splits, void* grad_x,
                        float* sums, float* grad_weight) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    Gemm<S> g{};
    g.a = gradient<S>(grad, y, add, mul, mean, out);
    g.b = weights<S>(weight, in);
    g.rows = rows;
    g.depth = out;
    g.cols = in;
    g.out = static_cast<S*>(grad_x);
    g.ld_out = in;
    g.channels = in;
    const Source<S> input = source<S>(x, in, scale, shift, relu);
    if (scale || relu) g.x = input;
    const int64_t tiles = gemm_row_tiles(rows, in);
    auto partial = buffer(tiles * 2 * in);
    if (sums) g.sums = partial.get();
    launch_gemm<Product::kGradX>(g, 1, 0);
    if (sums) launch_sum_chunks(partial.get(), tiles, 2 * in, sums, 0);

    Gemm<S> w{};
    w.a = g.a;
    w.b = input;
    w.rows = out;
    w.depth = rows;
    w.cols = in;
    auto parts = buffer(int64_t(splits) * out * in);
    w.partial = parts.get();
    launch_gemm<Product::kGradWeight>(w, splits, 0);
    launch_sum_chunks(parts.get(), splits, int64_t(out) * in, grad_weight, 0);
  });
}
}
