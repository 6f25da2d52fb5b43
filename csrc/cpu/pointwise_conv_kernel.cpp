// pointwise_conv and its backward on the CPU.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "convolve.h"

namespace detnas {
namespace cpu {
namespace {

using ConvResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using ConvGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
ConvResult forward(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                   const OptTensor& shift, bool relu, const OptTensor& bias, bool out_relu,
                   bool want_stats, int64_t groups) {
  const Map<T> map = as_map<T>(x, true);
  const int64_t n = weight.size(0), k = weight.size(1), ng = n / groups;
  Tensor y = empty_map(map.n, n, map.h, map.w, x);
  const int64_t rows = map.pixels();
  Partials<T> partials(want_stats ? ceil_div(rows, task_rows(rows)) : 0, n);
  const Padded<T> a(scale), b(shift), pb(bias);
  const int64_t size = packed_size<T>(ng, k);
  const Tensor w = weight.contiguous();
  T* packed = workspace<T, 1>(size * groups);
  for (int64_t g = 0; g < groups; ++g)
    pack<T>(w.const_data_ptr<T>() + g * ng * k, k, 1, ng, k, packed + g * size);
  for (int64_t g = 0; g < groups && rows > 0; ++g) {
    GemmArgs<T> args;
    args.source = map.source();
    args.source.data += g * k * (map.order == Order::kPlain ? 1 : 2);
    // Groups other than the first read shifted copies of the padded vectors, which stay readable.
    args.source.scale = a.get() ? a.get() + g * k : nullptr;
    args.source.shift = b.get() ? b.get() + g * k : nullptr;
    args.source.relu = relu;
    args.sink.out = y.data_ptr<T>() + g * ng;
    args.sink.ld = n;
    args.sink.bias = pb.get() ? pb.get() + g * ng : nullptr;
    args.sink.relu = out_relu;
    args.packed = packed + g * size;
    args.n = ng;
    args.k = k;
    multiply(args, rows, want_stats ? &partials : nullptr, g * ng);
  }
  auto [count, mean, m2] = want_stats ? make_stats(partials, x, n, rows) : no_stats(x);
  return {y, count, mean, m2};
}

ConvResult pointwise_conv(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                          const OptTensor& shift, bool relu, const OptTensor& bias, bool out_relu,
                          bool want_stats, int64_t groups) {
  check_pointwise(x, weight, scale, shift, bias, out_relu, want_stats, groups);
  if (is_reduced(x)) {
    auto [y, count, mean, m2] = pointwise_conv(x.to(at::kFloat), weight.to(at::kFloat), scale, shift,
                                               relu, bias, out_relu, want_stats, groups);
    return {y.to(x.scalar_type()), count, mean, m2};
  }
  return dispatch(x, "pointwise_conv", [&](auto zero) {
    return forward<decltype(zero)>(x, weight, scale, shift, relu, bias, out_relu, want_stats, groups);
  });
}

// Sum of a gradient source over pixels, per channel.
template <typename T>
Tensor sum_pixels(const Source<T>& source, int64_t rows, int64_t channels, const Tensor& like) {
  Tensor out = at::zeros({channels}, like.options().memory_format(at::MemoryFormat::Contiguous));
  const int64_t per_task = task_rows(rows);
  Partials<T> partials(ceil_div(rows, per_task), channels);
  for_tasks(rows, per_task, [&](int64_t t, int64_t begin, int64_t end) {
    kernels<T>().stats_channels_last(source, begin, end, channels,
                                     {partials.ref(t), partials.first(t), partials.second(t)});
    for (int64_t c = 0; c < channels; ++c)
      partials.first(t)[c] += static_cast<double>(partials.ref(t)[c]) * (end - begin);
  });
  partials.totals(out.data_ptr<T>(), nullptr);
  return out;
}

template <typename T>
ConvGradients backward(const Tensor& grad_y, const OptTensor& grad_mean, const OptTensor& grad_m2,
                       const Tensor& x, const Tensor& weight, const OptTensor& scale,
                       const OptTensor& shift, bool relu, const OptTensor& y, const OptTensor& mean,
                       bool out_relu, int64_t groups, std::array<bool, 3> mask) {
  const Map<T> map = as_map<T>(x);
  auto grad = grad_source<T>(grad_y, grad_mean, grad_m2, y, mean, out_relu);
  const int64_t n = weight.size(0), k = weight.size(1), ng = n / groups, c = x.size(1);
  const int64_t rows = map.pixels(), per_task = task_rows(rows);
  if (mask[0] && mask[1]) read_once(grad.source, rows, n);
  const Padded<T> a(scale), b(shift);
  const Tensor w = weight.contiguous();
  const auto vector_options = x.options().memory_format(at::MemoryFormat::Contiguous);
  Tensor grad_x, grad_w, grad_scale, grad_shift, grad_bias;

  auto of_group = [&](Source<T> s, int64_t offset) {
    s.data += offset;
    for (auto p : {&s.scale, &s.shift, &s.y, &s.add, &s.mul, &s.mean})
      if (*p) *p += offset;
    return s;
  };
  if (mask[0]) {
    grad_x = empty_map(map.n, c, map.h, map.w, x);
    Partials<T> partials(ceil_div(rows, per_task), c);
    T* packed = workspace<T, 1>(packed_size<T>(k, ng));
    for (int64_t g = 0; g < groups && rows > 0; ++g) {
      // grad_x[m, k] = sum_n grad[m, n] w[n, k]: the transposed matrix, n is the depth.
      pack<T>(w.const_data_ptr<T>() + g * ng * k, 1, k, k, ng, packed);
      GemmArgs<T> args;
      args.source = of_group(grad.source, g * ng);
      args.sink.out = grad_x.data_ptr<T>() + g * k;
      args.sink.ld = c;
      if (scale || relu) {
        args.sink.x = map.data + g * k;
        args.sink.ld_x = map.ld;
        args.sink.scale = a.get() ? a.get() + g * k : nullptr;
        args.sink.shift = b.get() ? b.get() + g * k : nullptr;
        args.sink.x_relu = relu;
      }
      args.packed = packed;
      args.n = k;
      args.k = ng;
      for_products(rows, per_task, k, [&](int64_t t, int64_t begin, int64_t end, int64_t first, int64_t count) {
        GemmArgs<T> mine = args;
        mine.sink.d_scale = partials.first(t) + g * k;
        mine.sink.d_shift = partials.second(t) + g * k;
        kernels<T>().gemm(of_columns(mine, first, count), begin, end, workspace<T>(gemm_workspace(ng)));
      });
    }
    if (scale) {
      grad_scale = at::empty({c}, vector_options);
      grad_shift = at::empty({c}, vector_options);
      partials.totals(grad_scale.template data_ptr<T>(), grad_shift.template data_ptr<T>());
    }
  }
  if (mask[1]) {
    grad_w = at::empty_like(w);
    // Few tasks, each with a matrix of its own; their number follows from the shape alone.
    const int64_t per = task_rows(rows, n * k > 65536 ? 4 : 8), tasks = ceil_div(rows, per);
    const int64_t ld = round_up(k, 32), size = ng * ld + 64;
    const int64_t total = std::max<int64_t>(tasks, 1) * size;
    T* acc = workspace<T, 2>(total);
    for (int64_t g = 0; g < groups; ++g) {
      if (tasks == 0) std::fill_n(acc, total, T(0));
      GemmGradArgs<T> args;
      args.grad = of_group(grad.source, g * ng);
      Source<T> source = map.source();
      source.scale = a.get();
      source.shift = b.get();
      source.relu = relu;
      args.source = of_group(source, g * k);
      args.n = ng;
      args.k = k;
      for_tasks(rows, per, [&](int64_t t, int64_t begin, int64_t end) {
        kernels<T>().gemm_grad_weight(args, begin, end, acc + t * size,
                                      workspace<T>(gemm_grad_workspace(ng, k)));
      });
      T* out = grad_w.data_ptr<T>() + g * ng * k;
      for (int64_t i = 0; i < ng; ++i)
        for (int64_t t = 0; t < std::max<int64_t>(tasks, 1); ++t) {
          const T* in = acc + t * size + i * ld;
          for (int64_t j = 0; j < k; ++j) out[i * k + j] = (t ? out[i * k + j] : T(0)) + in[j];
        }
    }
  }
  if (mask[2]) grad_bias = sum_pixels<T>(grad.source, rows, n, x);
  return {grad_x, grad_w, grad_scale, grad_shift, grad_bias};
}

Tensor cast(const Tensor& t, at::ScalarType type) { return t.defined() ? t.to(type) : t; }

ConvGradients pointwise_conv_backward(const Tensor& grad_y, const OptTensor& grad_mean,
                                      const OptTensor& grad_m2, const Tensor& x,
                                      const Tensor& weight, const OptTensor& scale,
                                      const OptTensor& shift, bool relu, const OptTensor& y,
                                      const OptTensor& mean, bool out_relu, int64_t groups,
                                      std::array<bool, 3> mask) {
  check_pointwise_backward(grad_y, grad_mean, grad_m2, x, weight, scale, shift, y, mean, out_relu, groups);
  if (is_reduced(x)) {
    const auto f = at::kFloat;
    auto [gx, gw, gs, gh, gb] = pointwise_conv_backward(grad_y.to(f), grad_mean, grad_m2, x.to(f), weight.to(f),
                                                        scale, shift, relu, to_type(y, f), mean,
                                                        out_relu, groups, mask);
    return {cast(gx, x.scalar_type()), cast(gw, x.scalar_type()), gs, gh, gb};
  }
  return dispatch(x, "pointwise_conv", [&](auto zero) {
    return backward<decltype(zero)>(grad_y, grad_mean, grad_m2, x, weight, scale, shift, relu, y,
                                    mean, out_relu, groups, mask);
  });
}

}  // namespace
}  // namespace cpu
}  // namespace detnas

TORCH_LIBRARY_FRAGMENT(detnas_d2, m) {
  m.def("cpu_product_tasks(int pixels, int columns, int threads) -> int", &detnas::cpu::product_tasks);
}

TORCH_LIBRARY_IMPL(detnas_d2, CPU, m) {
  m.impl("pointwise_conv", &detnas::cpu::pointwise_conv);
  m.impl("pointwise_conv_backward", &detnas::cpu::pointwise_conv_backward);
}
