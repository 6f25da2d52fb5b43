// bn_stats, of one map or several, bn_fold and their backward on the CPU.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>

#include "common.h"

namespace detnas {
namespace cpu {
namespace {

// One map of a call: read as pixels x channels, or, in NCHW, plane by plane; nothing is converted.
template <typename T>
class Part {
 public:
  explicit Part(const Tensor& x) : x_(x), map_(as_map_or_planes(x)), pixels_(x.size(0) * x.size(2) * x.size(3)) {}

  int64_t pixels() const { return pixels_; }
  // Rows of partial sums; they follow from the shape alone.
  int64_t tasks() const { return planes() ? x_.size(0) : ceil_div(pixels_, task_rows(pixels_)); }

  void add(const Padded<T>& scale, const Padded<T>& shift, bool relu, Partials<T>& partials, int64_t first) {
    if (planes()) add_planes(scale, shift, relu, partials, first);
    else add_map(scale, shift, relu, partials, first);
  }

 private:
  static std::optional<Map<T>> as_map_or_planes(const Tensor& x) {
    const bool nchw = x.is_contiguous() && pixel_stride(x, 1) == 0;
    if (nchw && x.size(2) * x.size(3) >= 32) return std::nullopt;
    return as_map<T>(x);
  }
  bool planes() const { return !map_.has_value(); }

  void add_map(const Padded<T>& scale, const Padded<T>& shift, bool relu, Partials<T>& partials, int64_t first) {
    Source<T> source = map_->source();
    source.scale = scale.get();
    source.shift = shift.get();
    source.relu = relu;
    for_tasks(pixels_, task_rows(pixels_), [&](int64_t t, int64_t begin, int64_t end) {
      t += first;
      partials.set_count(t, end - begin);
      kernels<T>().stats_channels_last(source, begin, end, map_->c,
                                       {partials.ref(t), partials.first(t), partials.second(t)});
    });
  }

  // A task is an image and a range of channels.
  void add_planes(const Padded<T>& scale, const Padded<T>& shift, bool relu, Partials<T>& partials,
                  int64_t first) {
    const int64_t n = x_.size(0), c = x_.size(1), plane = x_.size(2) * x_.size(3);
    const T* data = x_.const_data_ptr<T>();
    for (int64_t i = 0; i < n; ++i) partials.set_count(first + i, plane);
    at::parallel_for(0, n * c, 1, [&](int64_t b, int64_t e) {
      for (int64_t i = b; i < e; ++i) {
        const int64_t t = first + i / c, ch = i % c;
        kernels<T>().stats_plane(data + i * plane, plane, scale.get() ? scale.get() + ch : nullptr,
                                 shift.get() ? shift.get() + ch : nullptr, relu, true, partials.ref(t) + ch,
                                 partials.first(t) + ch, partials.second(t) + ch);
      }
    });
  }

  Tensor x_;
  std::optional<Map<T>> map_;
  int64_t pixels_;
};

Stats bn_stats_list(at::TensorList x, const OptTensor& scale, const OptTensor& shift, bool relu) {
  check_stats(x, scale, shift);
  const Tensor like = is_reduced(x[0]) ? at::empty({0}, x[0].options().dtype(at::kFloat)) : x[0];
  return dispatch(like, "bn_stats", [&](auto zero) -> Stats {
    using T = decltype(zero);
    const Padded<T> a(scale), b(shift);
    std::vector<Part<T>> parts;
    int64_t tasks = 0, pixels = 0;
    for (const Tensor& t : x) {
      parts.emplace_back(t.to(like.scalar_type()));
      tasks += parts.back().tasks();
      pixels += parts.back().pixels();
    }
    Partials<T> partials(tasks, x[0].size(1));
    int64_t first = 0;
    for (Part<T>& part : parts) {
      part.add(a, b, relu, partials, first);
      first += part.tasks();
    }
    return make_stats(partials, like, x[0].size(1), pixels);
  });
}

Stats bn_stats(const Tensor& x, const OptTensor& scale, const OptTensor& shift, bool relu) {
  return bn_stats_list(x, scale, shift, relu);
}

std::tuple<Tensor, Tensor> bn_fold(const Tensor& count, const Tensor& mean, const Tensor& m2,
                                   const OptTensor& gamma, const OptTensor& beta, double eps) {
  check_fold(count, mean, m2, gamma, beta);
  return dispatch(mean, "bn_fold", [&](auto zero) -> std::tuple<Tensor, Tensor> {
    using T = decltype(zero);
    const int64_t channels = mean.size(0);
    const double n = count.item<double>();
    const Padded<T> mu(mean), m(m2), g(gamma), b(beta);
    Tensor scale = at::empty({channels}, mean.options()), shift = at::empty_like(scale);
    T *a = scale.data_ptr<T>(), *s = shift.data_ptr<T>();
    fold_norm(n, mu.get(), m.get(), g.get(), b.get(), eps, channels, a, s);
    return {scale, shift};
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bn_fold_backward(
    const Tensor& grad_scale, const Tensor& grad_shift, const Tensor& count, const Tensor& mean,
    const Tensor& m2, const OptTensor& gamma, double eps) {
  check_fold_backward(grad_scale, grad_shift, count, mean, m2, gamma);
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

}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CPU, m) {
  m.impl("bn_stats", &detnas::cpu::bn_stats);
  m.impl("bn_stats_list", &detnas::cpu::bn_stats_list);
  m.impl("bn_fold", &detnas::cpu::bn_fold);
  m.impl("bn_fold_backward", &detnas::cpu::bn_fold_backward);
}
