// The torch side of the CPU kernels: maps from tensors, workspaces, tasks, statistics.
//
// Work is cut into tasks by shape alone, never by the number of threads, and every task has its
// own partial sums, merged in task order: results do not depend on the number of threads.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "../checks.h"
#include "kernels.h"

namespace detnas {
namespace cpu {

// Memory that starts on a cache line: a vector load that straddles two costs twice.
template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* p, size_t) { ::operator delete(p, kLine); }
  bool operator==(const LineAllocator&) const { return true; }
  bool operator!=(const LineAllocator&) const { return false; }
};
template <typename T>
using Buffer = std::vector<T, LineAllocator<T>>;

// The kernels of the capability in use (dispatch.cpp).
template <typename T>
const Kernels<T>& kernels();

// Calls f(T()) with the type to compute in; half and bfloat16 must have been converted.
template <typename F>
auto dispatch(const Tensor& x, const char* op, F&& f) {
  if (x.scalar_type() == at::kDouble) return f(double());
  TORCH_CHECK(x.scalar_type() == at::kFloat, op, ": expected float32, float64, float16 or bfloat16, got ",
              x.scalar_type());
  return f(float());
}

// A tensor read as pixels x channels. Holds the tensor, which may be a converted copy.
template <typename T>
struct Map {
  Tensor tensor;
  const T* data;
  int64_t n, c, h, w, ld;
  Order order;
  int64_t pixels() const { return n * h * w; }
  Source<T> source() const {
    Source<T> s;
    s.data = data;
    s.ld = ld;
    s.order = order;
    return s;
  }
};

// `strided`: every second channel is read in place, too.
template <typename T>
Map<T> as_map(const Tensor& x, bool strided = false) {
  Map<T> m{x, nullptr, x.size(0), x.size(1), x.size(2), x.size(3), 0, Order::kPlain};
  m.ld = x.numel() == 0 ? x.size(1) : pixel_stride(x, 1);
  if (m.ld == 0 && strided && x.size(1) > 1) {
    m.ld = pixel_stride(x, 2);
    if (m.ld != 0) m.order = Order::kStrided;
  }
  if (m.ld == 0) {
    m.tensor = x.contiguous(at::MemoryFormat::ChannelsLast);
    m.ld = x.size(1);
  }
  m.data = m.tensor.template const_data_ptr<T>();
  return m;
}

// The halves of a map of some channels, one beside the other, shuffled by `method`; nothing is pending on it.
template <typename T>
std::pair<Source<T>, Source<T>> shuffled_halves(const Source<T>& map, int64_t channels, int64_t method) {
  Source<T> left = map, right = map;
  left.order = right.order = method == 2 ? Order::kStrided : Order::kInterleaved;
  left.half = right.half = channels / 2;
  if (method == 2) right.data += 1;
  else right.first = channels / 2;
  return {left, right};
}

inline Tensor empty_map(int64_t n, int64_t c, int64_t h, int64_t w, const Tensor& like) {
  return at::empty({n, c, h, w}, like.options().memory_format(at::MemoryFormat::ChannelsLast));
}

// A per-channel vector padded with zeros, as kernels want it; null if not given.
template <typename T>
class Padded {
 public:
  Padded() = default;
  explicit Padded(const OptTensor& t) {
    if (!t) return;
    const Tensor c = t->to(c10::CppTypeToScalarType<T>::value).contiguous();
    values_.assign(round_up(c.numel(), kChannelPad) + kChannelPad, T(0));
    std::copy_n(c.template const_data_ptr<T>(), c.numel(), values_.data());
  }
  explicit Padded(Buffer<T> values) : values_(std::move(values)) {
    values_.resize(round_up(values_.size(), kChannelPad) + kChannelPad, T(0));
  }
  const T* get() const { return values_.empty() ? nullptr : values_.data(); }

 private:
  Buffer<T> values_;
};

// Memory of the calling thread, kept between calls: large allocations cost page faults. Slots are
// for buffers in use at the same time: 0 the kernels, 1 packed weights, 2 accumulators, 3 folded weights,
// 4 gradients, 5 folded bias.
template <typename T, int Slot = 0>
T* workspace(int64_t size) {
  thread_local Buffer<T> memory;
#if defined(DETNAS_D2_CHECKED)  // tests/ops/sanitized.py: nothing beyond the size, nothing to reuse
  memory = Buffer<T>(size, std::numeric_limits<T>::quiet_NaN());
#endif
  if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
  return memory.data();
}

// Sums of the tasks: ref, sum and sum of squares per channel, or two plain sums.
template <typename T>
class Partials {
 public:
  Partials() = default;
  Partials(int64_t tasks, int64_t channels) { reset(tasks, channels); }
  // Begins again, in the memory that it has.
  void reset(int64_t tasks, int64_t channels) {
    channels_ = channels;
    padded_ = round_up(channels, kChannelPad) + kChannelPad;
    if (static_cast<int64_t>(refs_.size()) < tasks * padded_) refs_.resize(tasks * padded_);
    sums_.assign(2 * tasks * padded_, 0);
    counts_.assign(tasks, 0);
  }
  T* ref(int64_t t) { return refs_.data() + t * padded_; }
  double* first(int64_t t) { return sums_.data() + 2 * t * padded_; }
  double* second(int64_t t) { return first(t) + padded_; }
  void set_count(int64_t t, int64_t count) { counts_[t] = count; }

  // Mean and squared deviations of all tasks' values, merged in order: first the mean, from
  // differences to the first task's reference (always finite, so that an infinite value's mean is
  // infinite and constant channels are exact), then deviations within and between tasks.
  void moments(T* mean, T* m2) {
    merged_.assign(3 * channels_, 0);
    double *base = merged_.data(), *mu = base + channels_, *m = mu + channels_;
    double n = 0;
    for (const int64_t count : counts_) n += static_cast<double>(count);
    bool any = false;
    for (size_t t = 0; t < counts_.size(); ++t) {
      if (counts_[t] == 0) continue;
      if (!any) std::copy_n(ref(t), channels_, base);
      any = true;
      const double k = static_cast<double>(counts_[t]);
      for (int64_t c = 0; c < channels_; ++c) mu[c] += k * (ref(t)[c] - base[c]) + first(t)[c];
    }
    for (int64_t c = 0; any && c < channels_; ++c) mu[c] = base[c] + mu[c] / n;
    for (size_t t = 0; t < counts_.size(); ++t) {
      if (counts_[t] == 0) continue;
      const double k = static_cast<double>(counts_[t]), inverse = 1 / k;
      const T* r = ref(t);
      const double *sum = first(t), *square = second(t);
      for (int64_t c = 0; c < channels_; ++c) {
        const double within = square[c] - sum[c] * (sum[c] * inverse);
        const double delta = r[c] + sum[c] * inverse - mu[c];
        m[c] += (within < 0 ? 0 : within) + k * (delta * delta);
      }
    }
    std::copy_n(mu, channels_, mean);
    std::copy_n(m, channels_, m2);
  }

  // Totals of the two sums.
  void totals(T* a, T* b) {
    for (int64_t c = 0; c < channels_; ++c) {
      double x = 0, y = 0;
      for (size_t t = 0; t < counts_.size(); ++t) {
        x += first(t)[c];
        y += second(t)[c];
      }
      if (a) a[c] = static_cast<T>(x);
      if (b) b[c] = static_cast<T>(y);
    }
  }

 private:
  int64_t channels_ = 0, padded_ = 0;
  Buffer<T> refs_;
  std::vector<double> sums_, merged_;
  std::vector<int64_t> counts_;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Pixels per task, at most `tasks` tasks: enough for sixteen threads and more, and whole register
// tiles of AVX-512.
constexpr int64_t kTaskRows = 28;
inline int64_t task_rows(int64_t rows, int64_t tasks = 64) {
  return round_up(std::max<int64_t>(ceil_div(rows, tasks), 1), kTaskRows);
}

// f(task, begin, end) for tasks over `rows` pixels.
template <typename F>
void for_tasks(int64_t rows, int64_t per_task, F&& f) {
  const int64_t tasks = ceil_div(rows, per_task);
  at::parallel_for(0, tasks, 1, [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; ++t) f(t, t * per_task, std::min(rows, (t + 1) * per_task));
  });
}

// The BatchNorm with the statistics of n values as scale and shift; gamma, beta: null for ones and zeros.
template <typename T>
void fold_norm(double n, const T* mean, const T* m2, const T* gamma, const T* beta, double eps, int64_t channels,
               T* scale, T* shift) {
  for (int64_t c = 0; c < channels; ++c) {
    const double v = (gamma ? gamma[c] : 1.0) / std::sqrt(m2[c] / n + eps);
    scale[c] = static_cast<T>(v);
    shift[c] = static_cast<T>((beta ? beta[c] : 0.0) - mean[c] * v);
  }
}

inline Tensor count_of(const Tensor& x, int64_t pixels) {
  Tensor count = at::empty({}, x.options().dtype(at::kDouble));
  *count.data_ptr<double>() = static_cast<double>(pixels);
  return count;
}

using Stats = std::tuple<Tensor, Tensor, Tensor>;  // count, mean, m2

template <typename T>
Stats make_stats(Partials<T>& partials, const Tensor& like, int64_t channels, int64_t pixels) {
  const auto options = like.options().memory_format(at::MemoryFormat::Contiguous);
  Tensor mean = at::empty({channels}, options), m2 = at::empty({channels}, options);
  partials.moments(mean.template data_ptr<T>(), m2.template data_ptr<T>());
  return {count_of(like, pixels), mean, m2};
}

inline Stats no_stats(const Tensor& like) {
  const auto options = like.options().dtype(stats_type(like));
  return {at::zeros({}, like.options().dtype(at::kDouble)), at::empty({0}, options),
          at::empty({0}, options)};
}

// The source that turns the gradient of a convolution's outputs into that of its raw result.
template <typename T>
struct GradSource {
  Map<T> grad, y;
  Padded<T> add, mul, mu;
  Source<T> source;
};

// grad_y + grad_mean / n + 2 grad_m2 (y - mean), or grad_y where y > 0 with out_relu.
template <typename T>
GradSource<T> grad_source(const Tensor& grad_y, const OptTensor& grad_mean, const OptTensor& grad_m2,
                          const OptTensor& y, const OptTensor& mean, bool out_relu) {
  GradSource<T> g{as_map<T>(grad_y), {}, {}, {}, {}, {}};
  g.source = g.grad.source();
  const bool stats = grad_mean.has_value();
  if (!stats && !out_relu) return g;
  g.y = as_map<T>(*y);
  g.source.y = g.y.data;
  g.source.ld_y = g.y.ld;
  if (stats) {
    const int64_t c = grad_y.size(1);
    const double n = static_cast<double>(g.grad.pixels());
    const Padded<T> d_mean(grad_mean), d_m2(grad_m2);
    Buffer<T> add(c), mul(c);
    for (int64_t i = 0; i < c; ++i) {
      mul[i] = 2 * d_m2.get()[i];
      add[i] = static_cast<T>(d_mean.get()[i] / n);
    }
    g.add = Padded<T>(std::move(add));
    g.mul = Padded<T>(std::move(mul));
    g.mu = Padded<T>(mean);
    g.source.mean = g.mu.get();
    g.source.add = g.add.get();
    g.source.mul = g.mul.get();
  }
  return g;
}

}  // namespace cpu
}  // namespace detnas
