// depthwise_conv and mixed_depthwise on CUDA: one launch, and one more for statistics.
#include <torch/library.h>

#include "depthwise.h"
#include "depthwise_conv.cuh"

namespace detnas {
namespace cuda {
namespace {

// One convolution: its arguments as the kernel takes them, and its results.
struct Call {
  Tensor x, weight;
  OptTensor scale, shift, bias;
  int64_t stride, dilation;
  Tensor y, count, mean, m2;

  Call(const Tensor& x_, const Tensor& weight_, const OptTensor& scale_, const OptTensor& shift_,
       const OptTensor& bias_, bool out_relu, bool want_stats, int64_t stride_, int64_t dilation_)
      : stride(stride_), dilation(dilation_) {
    check_depthwise(x_, weight_, scale_, shift_, bias_, out_relu, want_stats, stride, dilation);
    x = as_source(x_);
    weight = weight_.contiguous();
    scale = vector(scale_), shift = vector(shift_), bias = vector(bias_);
    const int64_t c = x.size(1), channels = want_stats ? c : 0;
    y = empty_map({x.size(0), c, conv_out(x.size(2), stride), conv_out(x.size(3), stride)}, x);
    count = at::empty({}, x.options().dtype(at::kDouble).memory_format(at::MemoryFormat::Contiguous));
    mean = floats(channels, x), m2 = floats(channels, x);
    if (y.numel() > 0) return;
    count.fill_(static_cast<double>(want_stats ? pixel_count(y) : 0));
    mean.zero_(), m2.zero_();
  }

  template <typename S>
  void fill(Depthwise<S>& a, bool relu, bool out_relu, bool want_stats) const {
    a.in = source<S>(x, scale, shift, relu);
    a.channels = static_cast<int>(x.size(1));
    a.kernel = static_cast<int>(weight.size(2));
    a.weight = weight.const_data_ptr<S>();
    a.bias = pointer(bias);
    a.out_relu = out_relu;
    a.out = y.data_ptr<S>();
    a.count = count.data_ptr<double>();
    a.outputs = want_stats ? static_cast<double>(pixel_count(y)) : 0;
    plan(a, x.size(0), x.size(2), x.size(3), static_cast<int>(stride), static_cast<int>(dilation),
         false, kConvolveBlocks);
  }
};

// Up to kMaxMixed convolutions that are not empty.
template <typename S>
void launch(const Call* const* calls, int count, bool relu, bool out_relu, bool want_stats) {
  DepthwiseBatch<S> batch;
  MomentsBatch moments;
  int64_t size = 0;
  batch.count = moments.count = count;
  for (int i = 0; i < count; ++i) {
    calls[i]->fill(batch.entry[i], relu, out_relu, want_stats);
    size += partial_size(batch.entry[i], false);
  }
  if (!want_stats) return launch_depthwise<S, false>(batch, stream());
  const Tensor partial = floats(size, calls[0]->x);
  float* next = partial.data_ptr<float>();
  for (int i = 0; i < count; ++i) {
    Depthwise<S>& a = batch.entry[i];
    a.partial = next;
    next += partial_size(a, false);
    moments.entry[i] = {a.partial, a.rows, a.channels, calls[i]->mean.template data_ptr<float>(),
                        calls[i]->m2.template data_ptr<float>()};
  }
  launch_depthwise<S, false>(batch, stream());
  launch_depthwise_moments(moments, stream());
}

void run(const std::vector<Call>& calls, bool relu, bool out_relu, bool want_stats) {
  for (size_t i = 0; i < calls.size();) {
    const Call* group[kMaxMixed];
    int count = 0;
    for (; i < calls.size() && count < kMaxMixed; ++i)
      if (calls[i].y.numel() > 0) group[count++] = &calls[i];
    if (count == 0) return;
    DETNAS_DISPATCH(group[0]->x, "depthwise_conv",
                    [&] { launch<scalar_t>(group, count, relu, out_relu, want_stats); });
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

}  // namespace

ConvResult depthwise_conv(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                          const OptTensor& shift, bool relu, const OptTensor& bias, bool out_relu,
                          bool want_stats, int64_t stride, int64_t dilation) {
  const c10::cuda::CUDAGuard guard(x.device());
  const std::vector<Call> calls{{x, weight, scale, shift, bias, out_relu, want_stats, stride, dilation}};
  run(calls, relu, out_relu, want_stats);
  return {calls[0].y, calls[0].count, calls[0].mean, calls[0].m2};
}

namespace {

using Lists =
    std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>>;

Lists mixed_depthwise(at::TensorList x, at::TensorList weight, at::TensorList scale,
                      at::TensorList shift, bool relu, bool want_stats, int64_t stride,
                      at::IntArrayRef dilation) {
  check_mixed(x, weight, scale, shift, dilation);
  Lists out;
  if (x.empty()) return out;
  const c10::cuda::CUDAGuard guard(x[0].device());
  std::vector<Call> calls;
  calls.reserve(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    calls.emplace_back(x[i], weight[i], item(scale, i), item(shift, i), OptTensor(), false, want_stats,
                       stride, dilation[i]);
  run(calls, relu, false, want_stats);
  for (const Call& call : calls) {
    std::get<0>(out).push_back(call.y);
    std::get<1>(out).push_back(call.count);
    std::get<2>(out).push_back(call.mean);
    std::get<3>(out).push_back(call.m2);
  }
  return out;
}

}  // namespace
}  // namespace cuda
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, DETNAS_DEVICE, m) {
  m.impl("depthwise_conv", &detnas::cuda::depthwise_conv);
  m.impl("mixed_depthwise", &detnas::cuda::mixed_depthwise);
}
