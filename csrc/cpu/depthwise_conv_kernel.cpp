// depthwise_conv, its backward, and mixed_depthwise on the CPU.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "convolve.h"

namespace detnas {
namespace cpu {
namespace {

using ConvResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using ConvGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
DepthwiseArgs<T> geometry(const Tensor& x, const Tensor& weight, int64_t stride, int64_t dilation) {
  DepthwiseArgs<T> a;
  a.channels = x.size(1);
  a.height = x.size(2);
  a.width = x.size(3);
  a.out_height = conv_out(a.height, stride);
  a.out_width = conv_out(a.width, stride);
  a.kernel = weight.size(2);
  a.stride = stride;
  a.dilation = dilation;
  return a;
}

template <typename T>
ConvResult forward(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                   const OptTensor& shift, bool relu, const OptTensor& bias, bool out_relu,
                   bool want_stats, int64_t stride, int64_t dilation) {
  const Map<T> map = as_map<T>(x, true);
  DepthwiseArgs<T> args = geometry<T>(x, weight, stride, dilation);
  T* packed = workspace<T, 1>(packed_depthwise_size(weight));
  pack_depthwise<T>(weight, packed);
  const Padded<T> a(scale), b(shift), pb(bias);
  Tensor y = empty_map(map.n, map.c, args.out_height, args.out_width, x);
  args.source = map.source();
  args.source.scale = a.get();
  args.source.shift = b.get();
  args.source.relu = relu;
  args.w = packed;
  args.sink.out = y.data_ptr<T>();
  args.sink.ld = map.c;
  args.sink.bias = pb.get();
  args.sink.relu = out_relu;
  const bool empty = y.numel() == 0;
  const int64_t tasks = empty ? 0 : band_tasks(map.n, map.c, args.out_height);
  Partials<T> partials(want_stats ? tasks : 0, map.c);
  if (!empty) convolve_depthwise(args, map.n, want_stats ? &partials : nullptr);
  auto [count, mean, m2] = want_stats
      ? make_stats(partials, x, map.c, map.n * args.out_height * args.out_width)
      : no_stats(x);
  return {y, count, mean, m2};
}

ConvResult depthwise_conv(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                          const OptTensor& shift, bool relu, const OptTensor& bias, bool out_relu,
                          bool want_stats, int64_t stride, int64_t dilation) {
  check_depthwise(x, weight, scale, shift, bias, out_relu, want_stats, stride, dilation);
  if (is_reduced(x)) {
    auto [y, count, mean, m2] = depthwise_conv(x.to(at::kFloat), weight.to(at::kFloat), scale, shift,
                                               relu, bias, out_relu, want_stats, stride, dilation);
    return {y.to(x.scalar_type()), count, mean, m2};
  }
  return dispatch(x, "depthwise_conv", [&](auto zero) {
    return forward<decltype(zero)>(x, weight, scale, shift, relu, bias, out_relu, want_stats, stride,
                                   dilation);
  });
}

template <typename T>
ConvGradients backward(const Tensor& grad_y, const OptTensor& grad_mean, const OptTensor& grad_m2,
                       const Tensor& x, const Tensor& weight, const OptTensor& scale,
                       const OptTensor& shift, bool relu, const OptTensor& y, const OptTensor& mean,
                       bool out_relu, int64_t stride, int64_t dilation, std::array<bool, 3> mask) {
  const Map<T> map = as_map<T>(x);
  auto grad = grad_source<T>(grad_y, grad_mean, grad_m2, y, mean, out_relu);
  if (mask[0] && mask[1]) read_once(grad.source, grad.grad.pixels(), map.c);
  const Padded<T> a(scale), b(shift);
  DepthwiseArgs<T> args = geometry<T>(x, weight, stride, dilation);
  const auto options = x.options().memory_format(at::MemoryFormat::Contiguous);
  Tensor grad_x, grad_w, grad_scale, grad_shift, grad_bias;
  if (mask[0]) {
    grad_x = empty_map(map.n, map.c, map.h, map.w, x);
    Buffer<T> packed(packed_depthwise_size(weight));
    // Of stride 1 without dilation it is a convolution with the taps reversed.
    const bool reversed = stride == 1 && dilation == 1;
    const auto kernel = reversed ? kernels<T>().depthwise : kernels<T>().depthwise_grad_input;
    pack_depthwise<T>(weight, packed.data(), reversed);
    args.w = packed.data();
    args.source = grad.source;
    args.sink.out = grad_x.data_ptr<T>();
    args.sink.ld = map.c;
    if (scale || relu) {
      args.sink.x = map.data;
      args.sink.ld_x = map.ld;
      args.sink.scale = a.get();
      args.sink.shift = b.get();
      args.sink.x_relu = relu;
    }
    const bool empty = x.numel() == 0;
    Partials<T> partials(empty ? 0 : band_tasks(map.n, map.c, map.h), map.c);
    if (!empty)
      for_bands(map.n, map.c, map.h, [&](int64_t n, int64_t c, int64_t t, int64_t r0, int64_t r1) {
        DepthwiseArgs<T> mine = args;
        mine.sink.d_scale = partials.first(t);
        mine.sink.d_shift = partials.second(t);
        kernel(mine, n, c, r0, r1, workspace<T>(depthwise_workspace(mine)));
      });
    if (scale) {
      grad_scale = at::empty({map.c}, options);
      grad_shift = at::empty({map.c}, options);
      partials.totals(grad_scale.template data_ptr<T>(), grad_shift.template data_ptr<T>());
    }
  }
  if (mask[1]) {
    const int64_t taps = args.kernel * args.kernel, cp = round_up(map.c, kSlab);
    const bool empty = grad_y.numel() == 0;
    const int64_t tasks = empty ? 0 : band_tasks(map.n, map.c, args.out_height);
    T* acc = workspace<T, 2>(tasks * taps * cp);
    std::fill_n(acc, tasks * taps * cp, T(0));
    args.source = map.source();
    args.source.scale = a.get();
    args.source.shift = b.get();
    args.source.relu = relu;
    if (!empty)
      for_bands(map.n, map.c, args.out_height, [&](int64_t n, int64_t c, int64_t t, int64_t r0, int64_t r1) {
        kernels<T>().depthwise_grad_weight(args, grad.source, n, c, r0, r1,
                                           acc + t * taps * cp + c * taps,
                                           workspace<T>(depthwise_workspace(args)));
      });
    grad_w = at::zeros(weight.sizes(), options);
    T* out = grad_w.data_ptr<T>();
    for (int64_t t = 0; t < tasks; ++t)
      for (int64_t c = 0; c < map.c; ++c)
        for (int64_t i = 0; i < taps; ++i)
          out[c * taps + i] += acc[t * taps * cp + (c / kSlab * taps + i) * kSlab + c % kSlab];
  }
  if (mask[2]) {
    const int64_t rows = grad.grad.pixels(), per_task = task_rows(rows);
    grad_bias = at::zeros({map.c}, options);
    Partials<T> partials(ceil_div(rows, per_task), map.c);
    for_tasks(rows, per_task, [&](int64_t t, int64_t begin, int64_t end) {
      kernels<T>().stats_channels_last(grad.source, begin, end, map.c,
                                       {partials.ref(t), partials.first(t), partials.second(t)});
      for (int64_t c = 0; c < map.c; ++c)
        partials.first(t)[c] += static_cast<double>(partials.ref(t)[c]) * (end - begin);
    });
    partials.totals(grad_bias.data_ptr<T>(), nullptr);
  }
  return {grad_x, grad_w, grad_scale, grad_shift, grad_bias};
}

Tensor cast(const Tensor& t, at::ScalarType type) { return t.defined() ? t.to(type) : t; }

ConvGradients depthwise_conv_backward(const Tensor& grad_y, const OptTensor& grad_mean,
                                      const OptTensor& grad_m2, const Tensor& x,
                                      const Tensor& weight, const OptTensor& scale,
                                      const OptTensor& shift, bool relu, const OptTensor& y,
                                      const OptTensor& mean, bool out_relu, int64_t stride,
                                      int64_t dilation, std::array<bool, 3> mask) {
  check_depthwise_backward(grad_y, grad_mean, grad_m2, x, weight, scale, shift, y, mean, out_relu, stride,
                           dilation);
  if (is_reduced(x)) {
    const auto f = at::kFloat;
    auto [gx, gw, gs, gh, gb] = depthwise_conv_backward(
        grad_y.to(f), grad_mean, grad_m2, x.to(f), weight.to(f), scale, shift, relu, to_type(y, f),
        mean, out_relu, stride, dilation, mask);
    return {cast(gx, x.scalar_type()), cast(gw, x.scalar_type()), gs, gh, gb};
  }
  return dispatch(x, "depthwise_conv", [&](auto zero) {
    return backward<decltype(zero)>(grad_y, grad_mean, grad_m2, x, weight, scale, shift, relu, y,
                                    mean, out_relu, stride, dilation, mask);
  });
}

using Lists = std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>>;

Lists mixed_depthwise(at::TensorList x, at::TensorList weight, at::TensorList scale,
                      at::TensorList shift, bool relu, bool want_stats, int64_t stride,
                      at::IntArrayRef dilation) {
  check_mixed(x, weight, scale, shift, dilation);
  Lists out;
  for (size_t i = 0; i < x.size(); ++i) {
    auto [y, count, mean, m2] = depthwise_conv(x[i], weight[i], item(scale, i), item(shift, i), relu, {},
                                               false, want_stats, stride, dilation[i]);
    std::get<0>(out).push_back(y);
    std::get<1>(out).push_back(count);
    std::get<2>(out).push_back(mean);
    std::get<3>(out).push_back(m2);
  }
  return out;
}

Lists mixed_depthwise_backward(at::TensorList grad_y, at::TensorList grad_mean, at::TensorList grad_m2,
                               at::TensorList x, at::TensorList weight, at::TensorList scale,
                               at::TensorList shift, bool relu, at::TensorList y, at::TensorList mean,
                               int64_t stride, at::IntArrayRef dilation) {
  check_mixed_backward(grad_y, grad_mean, grad_m2, x, weight, scale, shift, y, mean, dilation);
  Lists out;
  for (size_t i = 0; i < x.size(); ++i) {
    auto [dx, dw, da, db, dbias] = depthwise_conv_backward(
        grad_y[i], item(grad_mean, i), item(grad_m2, i), x[i], weight[i], item(scale, i), item(shift, i),
        relu, item(y, i), item(mean, i), false, stride, dilation[i], {true, true, false});
    std::get<0>(out).push_back(dx);
    std::get<1>(out).push_back(dw);
    if (scale.empty()) continue;
    std::get<2>(out).push_back(da);
    std::get<3>(out).push_back(db);
  }
  return out;
}

// How many tasks the threads share: what bounds the speed-up, told to tests.
int64_t depthwise_tasks(int64_t images, int64_t channels, int64_t rows) {
  return band_tasks(images, channels, rows) * ceil_div(channels, kSlab);
}

}  // namespace
}  // namespace cpu
}  // namespace detnas

TORCH_LIBRARY_FRAGMENT(detnas_d2, m) {
  m.def("cpu_depthwise_tasks(int images, int channels, int rows) -> int", &detnas::cpu::depthwise_tasks);
}

TORCH_LIBRARY_IMPL(detnas_d2, CPU, m) {
  m.impl("depthwise_conv", &detnas::cpu::depthwise_conv);
  m.impl("depthwise_conv_backward", &detnas::cpu::depthwise_conv_backward);
  m.impl("mixed_depthwise", &detnas::cpu::mixed_depthwise);
  m.impl("mixed_depthwise_backward", &detnas::cpu::mixed_depthwise_backward);
}
