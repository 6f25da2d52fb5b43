// bn_stats, bn_fold and their backward on the CPU.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>

#include "common.h"

namespace detnas {
namespace cpu {
namespace {

template <typename T>
Stats stats_of_map(const Map<T>& map, const Padded<T>& scale, const Padded<T>& shift, bool relu,
                   const Tensor& x) {
  Source<T> source = map.source();
  source.scale = scale.get();
  source.shift = shift.get();
  source.relu = relu;
  const int64_t pixels = map.pixels(), per_task = task_rows(pixels);
  Partials<T> partials(ceil_div(pixels, per_task), map.c);
  for_tasks(pixels, per_task, [&](int64_t t, int64_t begin, int64_t end) {
    partials.set_count(t, end - begin);
    kernels<T>().stats_channels_last(source, begin, end, map.c,
                                     {partials.ref(t), partials.first(t), partials.second(t)});
  });
  return make_stats(partials, x, map.c, pixels);
}

// NCHW: a task is an image and a range of channels; nothing is converted.
template <typename T>
Stats stats_of_planes(const Tensor& x, const Padded<T>& scale, const Padded<T>& shift, bool relu) {
  const int64_t n = x.size(0), c = x.size(1), plane = x.size(2) * x.size(3);
  const T* data = x.const_data_ptr<T>();
  Partials<T> partials(n, c);
  for (int64_t i = 0; i < n; ++i) partials.set_count(i, plane);
  at::parallel_for(0, n * c, 1, [&](int64_t b, int64_t e) {
    for (int64_t i = b; i < e; ++i) {
      const int64_t image = i / c, ch = i % c;
      kernels<T>().stats_plane(data + i * plane, plane, scale.get() ? scale.get() + ch : nullptr,
                               shift.get() ? shift.get() + ch : nullptr, relu, true,
                               partials.ref(image) + ch, partials.first(image) + ch,
                               partials.second(image) + ch);
    }
  });
  return make_stats(partials, x, c, n * plane);
}

Stats bn_stats(const Tensor& x_in, const OptTensor& scale, const OptTensor& shift, bool relu) {
  check_map(x_in, "x");
  check_affine(scale, shift, x_in);
  const Tensor x = is_reduced(x_in) ? x_in.to(at::kFloat) : x_in;
  return dispatch(x, "bn_stats", [&](auto zero) -> Stats {
    using T = decltype(zero);
    const Padded<T> a(scale), b(shift);
    const bool nchw = x.is_contiguous() && pixel_stride(x, 1) == 0;
    if (nchw && x.size(2) * x.size(3) >= 32) return stats_of_planes<T>(x, a, b, relu);
    return stats_of_map(as_map<T>(x), a, b, relu, x);
  });
}

std::tuple<Tensor, Tensor> bn_fold(const Tensor& count, const Tensor& mean, const Tensor& m2,
                                   const OptTensor& gamma, const OptTensor& beta, double eps) {
  TORCH_CHECK(mean.dim() == 1, "mean: expected shape [C], got ", mean.sizes());
  check_same_shape(m2, mean.sizes(), "m2");
  return dispatch(mean, "bn_fold", [&](auto zero) -> std::tuple<Tensor, Tensor> {
    using T = decltype(zero);
    const int64_t channels = mean.size(0);
    const double n = count.item<double>();
    const Padded<T> mu(mean), m(m2), g(gamma), b(beta);
    Tensor scale = at::empty({channels}, mean.options()), shift = at::empty_like(scale);
    T *a = scale.data_ptr<T>(), *s = shift.data_ptr<T>();
    for (int64_t c = 0; c < channels; ++c) {
      const double v = (g.get() ? g.get()[c] : 1.0) / std::sqrt(m.get()[c] / n + eps);
      a[c] = static_cast<T>(v);
      s[c] = static_cast<T>((b.get() ? b.get()[c] : 0.0) - mu.get()[c] * v);
    }
    return {scale, shift};
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bn_fold_backward(
    const Tensor& grad_scale, const Tensor& grad_shift, const Tensor& count, const Tensor& mean,
    const Tensor& m2, const OptTensor& gamma, double eps) {
  return dispatch(mean, "bn_fold", [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    using T = decltype(zero);
    const int64_t channels = mean.size(0);
    const double n = count.item<double>();
    const Padded<T> gs(grad_scale), gb(grad_shift), mu(mean), m(m2), g(gamma);
    Tensor d_mean = at::empty({channels}, mean.options()), d_m2 = at::empty_like(d_mean);
    Tensor d_gamma = at::empty_like(d_mean), d_beta = at::empty_like(d_mean);
    for (int64_t c = 0; c < channels; ++c) {
      const double r = 1 / std::sqrt(m.get()[c] / n + eps), w = g.get() ? g.get()[c] : 1.0;
      const double d_v = double(gs.get()[c]) - double(gb.get()[c]) * mu.get()[c];
      d_mean.data_ptr<T>()[c] = static_cast<T>(-double(gb.get()[c]) * w * r);
      d_m2.data_ptr<T>()[c] = static_cast<T>(-0.5 * d_v * w * r * r * r / n);
      d_gamma.data_ptr<T>()[c] = static_cast<T>(d_v * r);
      d_beta.data_ptr<T>()[c] = gb.get()[c];
    }
    return {d_mean, d_m2, d_gamma, d_beta};
  });
}

}  // namespace
}  // namespace cpu

// Any device: rarely needed, since convolutions take the gradient of their statistics themselves.
std::tuple<Tensor, Tensor, Tensor> bn_stats_backward(const Tensor& grad_mean, const Tensor& grad_m2,
                                                     const Tensor& x, const Tensor& mean,
                                                     const OptTensor& scale, const OptTensor& shift,
                                                     bool relu) {
  const auto type = stats_type(x);
  const double n = std::max<double>(1, static_cast<double>(x.numel()) / std::max<int64_t>(1, x.size(1)));
  auto wide = [&](const Tensor& t) { return t.to(type).view({1, -1, 1, 1}); };
  const Tensor raw = x.to(type);
  Tensor v = scale ? raw * wide(*scale) + wide(*shift) : raw;
  const Tensor passed = v;
  if (relu) v = v.relu();
  Tensor g = wide(grad_mean) / n + 2 * wide(grad_m2) * (v - wide(mean));
  if (relu) g = g * (passed > 0);
  const Tensor none = at::empty({0}, grad_mean.options());
  if (!scale) return {g.to(x.scalar_type()), none, none};
  return {(g * wide(*scale)).to(x.scalar_type()), (g * raw).sum({0, 2, 3}), g.sum({0, 2, 3})};
}

}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CPU, m) {
  m.impl("bn_stats", &detnas::cpu::bn_stats);
  m.impl("bn_fold", &detnas::cpu::bn_fold);
  m.impl("bn_fold_backward", &detnas::cpu::bn_fold_backward);
}
TORCH_LIBRARY_IMPL(detnas_d2, CompositeExplicitAutograd, m) {
  m.impl("bn_stats_backward", &detnas::bn_stats_backward);
}
