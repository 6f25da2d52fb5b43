// 1x1 and depthwise convolutions on raw pieces, shared by the ops that are made of them.
#pragma once
#include "../conv_checks.h"
#include "common.h"

namespace detnas {
namespace cpu {

// Packed (N, K) matrix for Kernels::gemm.
template <typename T>
void pack(const T* w, int64_t stride_n, int64_t stride_k, int64_t n, int64_t k, T* packed) {
  kernels<T>().pack_matrix(w, stride_n, stride_k, n, k, packed);
}
template <typename T>
int64_t packed_size(int64_t n, int64_t k) {
  return round_up(n, kPanel) * k;
}

// (C, 1, k, k) to [k * k][round_up(C, 16)].
inline int64_t packed_depthwise_size(const Tensor& weight) {
  return weight.size(2) * weight.size(3) * round_up(weight.size(0), kChannelPad) + kChannelPad;
}
template <typename T>
void pack_depthwise(const Tensor& weight, T* out) {
  const int64_t c = weight.size(0), taps = weight.size(2) * weight.size(3);
  const Tensor w = weight.contiguous();
  const T* in = w.template const_data_ptr<T>();
  const int64_t row = round_up(c, kChannelPad);
  std::fill_n(out, packed_depthwise_size(weight), T(0));
  for (int64_t i = 0; i < c; ++i)
    for (int64_t t = 0; t < taps; ++t) out[t * row + i] = in[i * taps + t];
}

// Rows of output per depthwise task.
inline int64_t band_rows(int64_t images, int64_t channels, int64_t rows) {
  const int64_t slabs = ceil_div(channels, kSlab) * std::max<int64_t>(images, 1);
  const int64_t bands = std::min<int64_t>(std::max<int64_t>(ceil_div(16, slabs), 1),
                                          std::max<int64_t>(rows / 8, 1));
  return std::max<int64_t>(ceil_div(rows, bands), 1);
}

// f(image, first channel, task among those of the slab, row_begin, row_end)
template <typename F>
void for_bands(int64_t images, int64_t channels, int64_t rows, F&& f) {
  const int64_t slabs = ceil_div(channels, kSlab), per = band_rows(images, channels, rows);
  const int64_t bands = ceil_div(rows, per);
  at::parallel_for(0, images * slabs * bands, 1, [&](int64_t b, int64_t e) {
    for (int64_t i = b; i < e; ++i) {
      const int64_t band = i % bands, slab = i / bands % slabs, n = i / bands / slabs;
      f(n, slab * kSlab, n * bands + band, band * per, std::min(rows, (band + 1) * per));
    }
  });
}
inline int64_t band_tasks(int64_t images, int64_t channels, int64_t rows) {
  return images * ceil_div(rows, band_rows(images, channels, rows));
}

}  // namespace cpu
}  // namespace detnas
