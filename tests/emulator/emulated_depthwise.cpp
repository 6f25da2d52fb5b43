// The CUDA launchers of depthwise convolutions behind a C interface, on the host emulator. Lists are
// of `count` convolutions, each with its own maps, vectors and sizes (images, channels, height, width,
// ld, kernel, dilation); null pointers stand for missing arguments.
#include "cuda/depthwise_conv.cuh"
#include "cuda/depthwise_grad.cuh"
#include "emulated.h"

namespace {

struct Sizes {
  int images, channels, height, width, ld, kernel, dilation;
  int64_t outputs(int stride) const {
    return int64_t(images) * ((height - 1) / stride + 1) * ((width - 1) / stride + 1);
  }
};

template <typename S>
Depthwise<S> entry(const Sizes& s, const void* x, const float* scale, const float* shift, int relu,
                   const void* weight, int stride, int blocks, int fill) {
  Depthwise<S> a{};
  a.channels = s.channels;
  a.kernel = s.kernel;
  a.weight = static_cast<const S*>(weight);
  a.in = source<S>(x, s.ld, scale, shift, relu);
  plan(a, s.images, s.height, s.width, stride, s.dilation, false, blocks, fill);
  return a;
}

}  // namespace

extern "C" {

void emu_depthwise(int dtype, int count, const Sizes* sizes, const void** x, const float** scale,
                   const float** shift, int relu, const void** weight, const float** bias, int out_relu,
                   int stride, int blocks, int fill, void** out,
                   double** counts, float** mean, float** m2) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    DepthwiseBatch<S> batch;
    MomentsBatch moments;
    std::vector<std::unique_ptr<float[]>> partials;
    batch.count = moments.count = count;
    for (int i = 0; i < count; ++i) {
      Depthwise<S>& a = batch.entry[i];
      a = entry<S>(sizes[i], x[i], scale[i], shift[i], relu, weight[i], stride, blocks, fill);
      a.bias = bias[i];
      a.out_relu = out_relu != 0;
      a.out = static_cast<S*>(out[i]);
      a.count = counts[i];
      a.outputs = static_cast<double>(sizes[i].outputs(stride));
      if (!mean[i]) continue;
      partials.push_back(buffer(partial_size(a, false)));
      a.partial = partials.back().get();
      moments.entry[i] = {a.partial, a.rows, a.channels, mean[i], m2[i]};
    }
    launch_depthwise<S, false>(batch, 0);
    if (mean[0]) launch_depthwise_moments(moments, 0);
  });
}

void emu_depthwise_grad(int dtype, int count, const Sizes* sizes, const void** grad, const void** y,
                        const float** grad_mean, const float** grad_m2, const float** mean,
                        const void** x, const float** scale, const float** shift, int relu,
                        const void** weight, int stride, int blocks, int fill, void** grad_x,
                        void** grad_weight, float** grad_scale, float** grad_shift, float** grad_bias) {
  with_type(dtype, [&](auto zero) {
    using S = decltype(zero);
    DepthwiseBatch<S> input, weights;
    SumsBatch<S> sums;
    std::vector<std::unique_ptr<float[]>> partials;
    input.count = weights.count = count;
    for (int i = 0; i < count; ++i) {
      const Sizes& s = sizes[i];
      Depthwise<S>& w = weights.entry[i];
      w = entry<S>(s, x[i], scale[i], shift[i], relu, weight[i], stride, blocks, fill);
      w.other = gradient<S>(grad[i], y[i], grad_mean[i], grad_m2[i], mean[i], s.channels);
      w.add_factor = 1.f / static_cast<float>(s.outputs(stride));
      w.mul_factor = 2.f;
      partials.push_back(buffer(partial_weight_size(w)));
      w.partial = partials.back().get();
      sums.add({w.partial, w.rows, w.channels, s.kernel * s.kernel, static_cast<S*>(grad_weight[i]),
                grad_bias[i], nullptr});
      Depthwise<S>& a = input.entry[i];
      a = w;
      std::swap(a.in, a.other);
      if (!scale[i] && !relu) a.other.data = nullptr;
      a.out = static_cast<S*>(grad_x[i]);
      a.partial = nullptr;
      plan(a, s.images, s.height, s.width, stride, s.dilation, true, blocks, fill);
      if (!grad_scale[i]) continue;
      partials.push_back(buffer(partial_size(a, true)));
      a.partial = partials.back().get();
      sums.add({a.partial, a.rows, a.channels, 0, nullptr, grad_scale[i], grad_shift[i]});
    }
    launch_depthwise<S, true>(input, 0);
    launch_depthwise_grad_weight(weights, 0);
    launch_depthwise_sums(sums, 0);
  });
}
}
