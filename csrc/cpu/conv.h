// 1x1 and depthwise convolutions on raw pieces, shared by the ops that are made of them.
#pragma once
#include "../conv_checks.h"
#include "common.h"

namespace detnas {
namespace cpu {

// Packed (N, K) matrix for Kernels::gemm.
template <typename T>
void pack(const T* w, int64_t stride_n, int64_t stride_k, int64_t n, int64_t k, T* packed) {
  const int64_t grain = std::max<int64_t>((1 << 15) / std::max<int64_t>(kPanel * k, 1), 1);  // panels
  at::parallel_for(0, ceil_div(n, kPanel), grain, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kPanel;
    kernels<T>().pack_matrix(w + first * stride_n, stride_n, stride_k, std::min(n, end * kPanel) - first, k,
                             packed + first * k);
  });
}
template <typename T>
int64_t packed_size(int64_t n, int64_t k) {
  return round_up(n, kPanel) * k;
}

// (C, 1, k, k) to [slab][k * k][kSlab].
inline int64_t packed_depthwise_size(const Tensor& weight) {
  return weight.size(2) * weight.size(3) * round_up(weight.size(0), kSlab);
}
// `flip`: the last tap first, as the gradient of the input wants them.
template <typename T>
void pack_depthwise(const Tensor& weight, T* out, bool flip = false) {
  const int64_t channels = weight.size(0), taps = weight.size(2) * weight.size(3);
  const Tensor w = weight.contiguous();
  const T* in = w.template const_data_ptr<T>();
  for (int64_t c = 0; c < channels; c += kSlab, in += taps * kSlab, out += taps * kSlab) {
    const int64_t count = std::min(kSlab, channels - c);
    for (int64_t t = 0; t < taps; ++t) {
      T* row = out + (flip ? taps - 1 - t : t) * kSlab;
      for (int64_t i = 0; i < count; ++i) row[i] = in[i * taps + t];
      std::fill(row + count, row + kSlab, T(0));
    }
  }
}

// The gradients of input and weight both read that of the output: where it fits the caches, what is
// pending on it is applied only once.
constexpr int64_t kReadOnce = 4 << 20;  // bytes

template <typename T>
void read_once(Source<T>& source, int64_t rows, int64_t channels) {
  const int64_t ld = round_up(channels, kChannelPad) + kChannelPad;  // rows do not share a cache set
  if (source.plain() || rows * ld * static_cast<int64_t>(sizeof(T)) > kReadOnce) return;
  T* memory = workspace<T, 4>(rows * ld);
  for_tasks(rows, task_rows(rows), [&](int64_t, int64_t begin, int64_t end) {
    kernels<T>().read(source, begin, end, channels, memory + begin * ld, ld);
  });
  source = Source<T>();
  source.data = memory;
  source.ld = ld;
}

// The columns [first, first + count) of a product alone; first: a whole panel.
template <typename T>
GemmArgs<T> of_columns(GemmArgs<T> g, int64_t first, int64_t count) {
  g.packed += first * g.k;
  g.n = count;
  Sink<T>& s = g.sink;
  s.out += first;
  s.channels -= first;
  for (const T** p : {&s.bias, &s.x, &s.scale, &s.shift})
    if (*p) *p += first;
  if (s.ref) s.ref += first;
  for (double** p : {&s.sum, &s.sum_sq, &s.d_scale, &s.d_shift})
    if (*p) *p += first;
  return g;
}

// Columns that a task multiplies with its pixels. Results do not depend on it, so it follows the
// number of threads: each of them is to have a few tasks.
constexpr int64_t kColumns = 2 * kPanel;
inline int64_t task_columns(int64_t tasks, int64_t n, int64_t threads) {
  const int64_t blocks = threads == 1 ? 1 : std::max<int64_t>(ceil_div(4 * threads, std::max<int64_t>(tasks, 1)), 1);
  return round_up(ceil_div(n, std::min(blocks, ceil_div(n, kColumns))), kColumns);
}

// How many tasks the threads share: what bounds the speed-up, told to tests.
inline int64_t product_tasks(int64_t pixels, int64_t columns, int64_t threads) {
  const int64_t tasks = ceil_div(pixels, task_rows(pixels));
  return tasks * ceil_div(columns, task_columns(tasks, columns, threads));
}

// f(task among those of pixels, begin, end, first column, columns). All pixels of some columns come one after
// the other: where there are few, threads read different weights and have as many pixels each.
template <typename F>
void for_products(int64_t rows, int64_t per_task, int64_t n, F&& f) {
  const int64_t tasks = ceil_div(rows, per_task), columns = task_columns(tasks, n, at::get_num_threads());
  const int64_t blocks = ceil_div(n, columns);
  at::parallel_for(0, tasks * blocks, 1, [&](int64_t b, int64_t e) {
    for (int64_t i = b; i < e; ++i) {
      const int64_t t = i % tasks, first = i / tasks * columns;
      f(t, t * per_task, std::min(rows, (t + 1) * per_task), first, std::min(columns, n - first));
    }
  });
}

// Rows of output per depthwise task.
inline int64_t band_rows(int64_t images, int64_t channels, int64_t rows) {
  const int64_t slabs = ceil_div(channels, kSlab) * std::max<int64_t>(images, 1);
  const int64_t bands = std::min<int64_t>(std::max<int64_t>(ceil_div(64, slabs), 1),
                                          std::max<int64_t>(rows / 8, 1));
  return round_up(std::max<int64_t>(ceil_div(rows, bands), 1), 2);  // the kernel makes two at a time
}

// f(image, first channel, task among those of the slab, row_begin, row_end). All channels of a band come one after the
// other: a thread reads rows that mostly it has made itself, and leaves them to itself.
template <typename F>
void for_bands(int64_t images, int64_t channels, int64_t rows, F&& f) {
  const int64_t slabs = ceil_div(channels, kSlab), per = band_rows(images, channels, rows);
  const int64_t bands = ceil_div(rows, per);
  at::parallel_for(0, images * slabs * bands, 1, [&](int64_t b, int64_t e) {
    for (int64_t i = b; i < e; ++i) {
      const int64_t slab = i % slabs, band = i / slabs % bands, n = i / slabs / bands;
      f(n, slab * kSlab, n * bands + band, band * per, std::min(rows, (band + 1) * per));
    }
  });
}
inline int64_t band_tasks(int64_t images, int64_t channels, int64_t rows) {
  return images * ceil_div(rows, band_rows(images, channels, rows));
}

}  // namespace cpu
}  // namespace detnas
