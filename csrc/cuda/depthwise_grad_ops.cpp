// The gradients of depthwise_conv and mixed_depthwise on CUDA: one launch each for inputs, weights
// and, over all of them, the sums of partial results.
#include <torch/library.h>

#include "depthwise.h"

namespace detnas {
namespace cuda {
namespace {

using Mask = std::array<bool, 3>;  // gradients wanted: of x (and scale, shift), weight, bias

// One convolution: its arguments as the kernels take them, and its gradients.
struct Call {
  Tensor grad, x, weight, y;
  OptTensor scale, shift, grad_mean, grad_m2, mean;
  int64_t stride, dilation;
  bool relu;
  Tensor dx, dw, da, db, dbias;

  Call(const Tensor& grad_, const OptTensor& grad_mean_, const OptTensor& grad_m2_, const Tensor& x_,
       const Tensor& weight_, const OptTensor& scale_, const OptTensor& shift_, bool relu_,
       const OptTensor& y_, const OptTensor& mean_, bool out_relu, int64_t stride_, int64_t dilation_,
       Mask mask)
      : stride(stride_), dilation(dilation_), relu(relu_) {
    check_depthwise_backward(grad_, grad_mean_, grad_m2_, x_, weight_, scale_, shift_, y_, mean_, out_relu,
                             stride, dilation);
    grad = as_source(grad_), x = as_source(x_), weight = weight_.contiguous();
    scale = vector(scale_), shift = vector(shift_);
    const bool stats = grad_mean_.has_value();
    if (stats || out_relu) y = as_source(*y_);
    if (stats) {
      grad_mean = vector(grad_mean_), grad_m2 = vector(grad_m2_), mean = vector(mean_);
    }
    const int64_t c = x.size(1);
    dx = mask[0] ? empty_map(x.sizes(), x) : floats(0, x);
    da = floats(mask[0] && scale ? c : 0, x), db = floats(mask[0] && scale ? c : 0, x);
    dw = mask[1] ? at::empty(weight.sizes(), weight.options().memory_format(at::MemoryFormat::Contiguous))
                 : floats(0, x);
    dbias = floats(mask[2] ? c : 0, x);
    if (!empty()) return;
    for (Tensor& t : {std::ref(dw), std::ref(da), std::ref(db), std::ref(dbias)}) t.zero_();
  }

  bool empty() const { return grad.numel() == 0; }

  template <typename S>
  Source<S> gradient() const {
    Source<S> s = source<S>(grad, {}, {}, false);
    if (!y.defined()) return s;
    s.y = y.const_data_ptr<S>();
    s.ld_y = pixel_stride(y, 1);
    s.add = pointer(grad_mean), s.mul = pointer(grad_m2), s.mean = pointer(mean);
    s.add_factor = static_cast<float>(1. / static_cast<double>(pixel_count(grad)));
    s.mul_factor = 2.f;
    return s;
  }

  // For the gradient of x, or else of the weight.
  template <typename S>
  void fill(Depthwise<S>& a, bool input) const {
    a.in = gradient<S>();
    a.other = source<S>(x, scale, shift, relu);
    if (input && !scale && !relu) a.other.data = nullptr;  // nothing is pending
    if (!input) std::swap(a.in, a.other);
    a.channels = static_cast<int>(x.size(1));
    a.kernel = static_cast<int>(weight.size(2));
    a.weight = weight.const_data_ptr<S>();
    if (input) a.out = dx.data_ptr<S>();
    plan(a, x.size(0), x.size(2), x.size(3), static_cast<int>(stride), static_cast<int>(dilation), input,
         input ? convolve_blocks() : detnas::cuda::fill(kDepthwiseBlocks));
  }
};

// Up to kMaxMixed convolutions that are not empty.
template <typename S>
void launch(const Call* const* calls, int count, Mask mask) {
  DepthwiseBatch<S> input, weight;
  SumsBatch<S> sums;
  const bool weights = mask[1] || mask[2];
  int64_t size = 0;
  for (int i = 0; i < count; ++i) {
    if (mask[0]) {
      Depthwise<S>& a = input.entry[input.count++];
      calls[i]->fill(a, true);
      if (calls[i]->scale) size += partial_size(a, true);
    }
    if (weights) {
      Depthwise<S>& a = weight.entry[weight.count++];
      calls[i]->fill(a, false);
      size += partial_weight_size(a);
    }
  }
  const Tensor partial = floats(size, calls[0]->x);
  float* next = partial.data_ptr<float>();
  for (int i = 0; i < count; ++i) {
    const Call& call = *calls[i];
    if (mask[0] && call.scale) {
      Depthwise<S>& a = input.entry[i];
      a.partial = next;
      next += partial_size(a, true);
      sums.add({a.partial, a.rows, a.channels, 0, nullptr, call.da.template data_ptr<float>(),
                call.db.template data_ptr<float>()});
    }
    if (weights) {
      Depthwise<S>& a = weight.entry[i];
      a.partial = next;
      next += partial_weight_size(a);
      sums.add({a.partial, a.rows, a.channels, a.kernel * a.kernel,
                mask[1] ? call.dw.template data_ptr<S>() : nullptr,
                mask[2] ? call.dbias.template data_ptr<float>() : nullptr, nullptr});
    }
  }
  if (mask[0]) launch_depthwise<S, true>(input, stream());
  if (weights) launch_depthwise_grad_weight(weight, stream());
  launch_depthwise_sums(sums, stream());
}

void run(const std::vector<Call>& calls, Mask mask) {
  if (!mask[0] && !mask[1] && !mask[2]) return;
  for (size_t i = 0; i < calls.size();) {
    const Call* group[kMaxMixed];
    int count = 0;
    for (; i < calls.size() && count < kMaxMixed; ++i)
      if (!calls[i].empty()) group[count++] = &calls[i];
    if (count == 0) return;
    DETNAS_DISPATCH(group[0]->x, "depthwise_conv_backward", [&] { launch<scalar_t>(group, count, mask); });
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

ConvGradients depthwise_conv_backward(const Tensor& grad_y, const OptTensor& grad_mean,
                                      const OptTensor& grad_m2, const Tensor& x, const Tensor& weight,
                                      const OptTensor& scale, const OptTensor& shift, bool relu,
                                      const OptTensor& y, const OptTensor& mean, bool out_relu,
                                      int64_t stride, int64_t dilation, Mask mask) {
  const c10::cuda::CUDAGuard guard(x.device());
  std::vector<Call> calls;
  calls.emplace_back(grad_y, grad_mean, grad_m2, x, weight, scale, shift, relu, y, mean, out_relu, stride,
                     dilation, mask);
  run(calls, mask);
  return {calls[0].dx, calls[0].dw, calls[0].da, calls[0].db, calls[0].dbias};
}

using Lists =
    std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>>;

Lists mixed_depthwise_backward(at::TensorList grad_y, at::TensorList grad_mean, at::TensorList grad_m2,
                               at::TensorList x, at::TensorList weight, at::TensorList scale,
                               at::TensorList shift, bool relu, at::TensorList y, at::TensorList mean,
                               int64_t stride, at::IntArrayRef dilation) {
  check_mixed_backward(grad_y, grad_mean, grad_m2, x, weight, scale, shift, y, mean, dilation);
  Lists out;
  if (x.empty()) return out;
  const c10::cuda::CUDAGuard guard(x[0].device());
  const Mask mask{true, true, false};
  std::vector<Call> calls;
  calls.reserve(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    calls.emplace_back(grad_y[i], item(grad_mean, i), item(grad_m2, i), x[i], weight[i], item(scale, i),
                       item(shift, i), relu, item(y, i), item(mean, i), false, stride, dilation[i], mask);
  run(calls, mask);
  for (const Call& call : calls) {
    std::get<0>(out).push_back(call.dx);
    std::get<1>(out).push_back(call.dw);
    if (scale.empty()) continue;
    std::get<2>(out).push_back(call.da);
    std::get<3>(out).push_back(call.db);
  }
  return out;
}

}  // namespace
}  // namespace cuda
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, DETNAS_DEVICE, m) {
  m.impl("depthwise_conv_backward", &detnas::cuda::depthwise_conv_backward);
  m.impl("mixed_depthwise_backward", &detnas::cuda::mixed_depthwise_backward);
}
