// depthwise_conv and mixed_depthwise on CUDA: one launch, statistics included.
#include <torch/library.h>

#include "conv.cuh"
#include "depthwise.h"

namespace detnas {
namespace cuda {
namespace {

// One convolution: its arguments as the kernel takes them, and its results.
struct Call {
  Tensor x, weight;
  OptTensor scale, shift, bias;
  int64_t stride, dilation;
  Tensor y;
  Statistics statistics;

  Call(const Tensor& x_, const Tensor& weight_, const OptTensor& scale_, const OptTensor& shift_,
       const OptTensor& bias_, int64_t stride_, int64_t dilation_, bool want_stats, Statistics statistics_)
      : stride(stride_), dilation(dilation_), statistics(std::move(statistics_)) {
    x = as_source(x_);
    weight = weight_.contiguous();
    scale = vector(scale_), shift = vector(shift_), bias = vector(bias_);
    y = empty_map({x.size(0), x.size(1), conv_out(x.size(2), stride), conv_out(x.size(3), stride)}, x);
    if (y.numel() > 0 || !want_stats) return;
    statistics.of_nothing();
    statistics.count.fill_(static_cast<double>(pixel_count(y)));
  }

  template <typename S>
  void fill(Depthwise<S>& a, bool relu, bool out_relu) const {
    a.in = source<S>(x, scale, shift, relu);
    a.channels = static_cast<int>(x.size(1));
    a.kernel = static_cast<int>(weight.size(2));
    a.weight = weight.const_data_ptr<S>();
    a.bias = pointer(bias);
    a.out_relu = out_relu;
    a.out = y.data_ptr<S>();
    plan(a, x.size(0) / statistics.batches, x.size(2), x.size(3), static_cast<int>(stride),
         static_cast<int>(dilation), false, convolve_blocks());
  }
};

// Up to kMaxMixed convolutions that are not empty, or one of several batches.
template <typename S>
void launch(const Call* const* calls, int count, bool relu, bool out_relu, bool want_stats) {
  DepthwiseBatch<S> batch;
  int64_t size = 0, slabs = 0;
  const int64_t batches = calls[0]->statistics.batches;
  batch.count = count;
  for (int i = 0; i < count; ++i) {
    calls[i]->fill(batch.entry[i], relu, out_relu);
    size += partial_size(batch.entry[i], false);
    slabs += batch.entry[i].slabs;
  }
  if (!want_stats) return launch_depthwise<S, false>(batch, stream());
  const Tensor partial = floats(batches * size, calls[0]->x);
  float* next = partial.data_ptr<float>();
  unsigned* ticket = tickets(batches * slabs, calls[0]->x);
  for (int i = 0; i < count; ++i) {
    Depthwise<S>& a = batch.entry[i];
    a.partial = next;
    a.tickets = ticket;
    a.stats = calls[i]->statistics.out();
    next += partial_size(a, false);
    ticket += a.slabs;
  }
  launch_depthwise<S, false>(batch, stream(), batches);
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
  check_depthwise(x, weight, scale, shift, bias, out_relu, want_stats, stride, dilation);
  const c10::cuda::CUDAGuard guard(x.device());
  const std::vector<Call> calls{{x, weight, scale, shift, bias, stride, dilation, want_stats,
                                 Statistics(want_stats ? x.size(1) : 0, x)}};
  run(calls, relu, out_relu, want_stats);
  const Statistics& found = calls[0].statistics;
  return {calls[0].y, found.count, found.mean, found.m2};
}

namespace {

ConvNormResult depthwise_conv_bn(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                                 const OptTensor& shift, bool relu, const OptTensor& bias, int64_t stride,
                                 int64_t dilation, const OptTensor& gamma, const OptTensor& beta, double eps,
                                 int64_t batches) {
  check_depthwise(x, weight, scale, shift, bias, false, true, stride, dilation, batches);
  check_norm(gamma, beta, x, x.size(1));
  if (batches > 1 && x.numel() == 0)
    return by_batch(batches, [&](int64_t i) {
      return depthwise_conv_bn(batch_of(x, batches, i), weight, vector_of(scale, i), vector_of(shift, i), relu,
                               bias, stride, dilation, gamma, beta, eps, 1);
    });
  const c10::cuda::CUDAGuard guard(x.device());
  const std::vector<Call> calls{{x, weight, scale, shift, bias, stride, dilation, true,
                                 Statistics(x.size(1), x, gamma, beta, eps, batches)}};
  run(calls, relu, false, true);
  const Statistics& found = calls[0].statistics;
  return {calls[0].y, found.count, found.mean, found.m2, found.scale, found.shift};
}

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
  for (size_t i = 0; i < x.size(); ++i) {
    check_depthwise(x[i], weight[i], item(scale, i), item(shift, i), {}, false, want_stats, stride, dilation[i]);
    calls.emplace_back(x[i], weight[i], item(scale, i), item(shift, i), OptTensor(), stride, dilation[i],
                       want_stats, Statistics(want_stats ? x[i].size(1) : 0, x[i]));
  }
  run(calls, relu, false, want_stats);
  for (const Call& call : calls) {
    std::get<0>(out).push_back(call.y);
    std::get<1>(out).push_back(call.statistics.count);
    std::get<2>(out).push_back(call.statistics.mean);
    std::get<3>(out).push_back(call.statistics.m2);
  }
  return out;
}

}  // namespace
}  // namespace cuda
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, DETNAS_DEVICE, m) {
  m.impl("depthwise_conv", &detnas::cuda::depthwise_conv);
  m.impl("depthwise_conv_bn", &detnas::cuda::depthwise_conv_bn);
  m.impl("mixed_depthwise", &detnas::cuda::mixed_depthwise);
}
