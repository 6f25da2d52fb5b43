// The CUDA launchers of depthwise convolutions behind a C interface, on the host emulator.
#include "cuda/depthwise_conv.cuh"
#include "emulated.h"

extern "C" {

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
