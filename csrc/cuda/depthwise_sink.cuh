// What becomes of the sums that threads of depthwise convolutions make, in registers: results, and rows of
// statistics or of the gradients of what is pending.
#pragma once
#include "depthwise_tile.cuh"
#include "last_block.cuh"

namespace detnas {
namespace cuda {

// Running moments of a channel, merged by Chan's formula.
struct Running {
  float n = 0.f, mean = 0.f, m2 = 0.f;
  __device__ void merge(float n2, float mean2, float m2_2) {
    if (n2 == 0.f) return;
    const float share = n2 / (n + n2), delta = mean2 - mean;
    m2 += m2_2 + (n == 0.f ? 0.f : delta * delta * n * share);
    mean = n == 0.f ? mean2 : merged_mean(mean, mean2, share);
    n += n2;
  }
};

// What becomes of a thread's sums: bias, ReLU and moments, or, for gradients, back through what is
// pending on x, with the sums of g * x and g.
template <class T, bool Grad, typename S>
struct Sink {
  static constexpr int L = kEach<S, Grad>, kThreads = kLanes / L;  // along channels
  using Sums = float (&)[L][T::R][T::Q];
  const Depthwise<S>& a;
  int c;
  bool live;
  float bias[L], scale = 1.f, shift = 0.f;
  Running moments[L];
  float grad_scale = 0.f, grad_shift = 0.f;

  __device__ Sink(const Depthwise<S>& a_, int c_) : a(a_), c(c_), live(c_ < a_.channels) {
#pragma unroll
    for (int l = 0; l < L; ++l) bias[l] = !Grad && a.bias && c + l < a.channels ? a.bias[c + l] : 0.f;
    if (live && Grad && a.other.scale) scale = a.other.scale[c], shift = a.other.shift[c];
  }

  __device__ void operator()(const Place& at, Sums v) {
    int64_t pixel[T::R];
    bool row_in[T::R], col_in[T::Q];
    int out_step = a.out_step;
    opaque(out_step);
    const int x0 = at.out_x + tile_col<T>() * out_step;
#pragma unroll
    for (int r = 0; r < T::R; ++r) {
      const int y = at.out_y + (tile_row<T>() + r) * out_step;
      row_in[r] = live && y >= 0 && y < a.out_height;
      pixel[r] = (at.image * a.out_height + y) * a.out_width + x0;
    }
#pragma unroll
    for (int q = 0; q < T::Q; ++q)
      col_in[q] = x0 + q * out_step >= 0 && x0 + q * out_step < a.out_width;
    if constexpr (Grad) through_pending(pixel, row_in, col_in, out_step * static_cast<int>(a.other.ld), v[0]);
    else finish(row_in, col_in, v);
    const int step = out_step * a.channels;
    const bool whole = L == 2 && a.channels % 2 == 0;  // pairs of channels at multiples of their size
#pragma unroll
    for (int r = 0; r < T::R; ++r) {
      S* to = a.out + pixel[r] * a.channels + c;
#pragma unroll
      for (int q = 0; q < T::Q; ++q, to += step) {
        if (!row_in[r] || !col_in[q]) continue;
        if (whole) {
          *reinterpret_cast<Pack<S, L>*>(to) = pack(v, r, q);
          continue;
        }
        *to = static_cast<S>(v[0][r][q]);
        if (L == 2 && c + 1 < a.channels) to[L - 1] = static_cast<S>(v[L - 1][r][q]);
      }
    }
  }

  __device__ static Pack<S, L> pack(Sums v, int r, int q) {
    Pack<S, L> pack;
#pragma unroll
    for (int l = 0; l < L; ++l) pack.lane[l] = static_cast<S>(v[l][r][q]);
    return pack;
  }

  __device__ void finish(const bool (&row_in)[T::R], const bool (&col_in)[T::Q], Sums v) {
    int rows = 0, cols = 0;
    for (const bool in : row_in) rows += in;
    for (const bool in : col_in) cols += in;
    const float n = static_cast<float>(rows * cols);
#pragma unroll
    for (int l = 0; l < L; ++l) {
      float sum = 0.f, square = 0.f;
#pragma unroll
      for (int r = 0; r < T::R; ++r)
#pragma unroll
        for (int q = 0; q < T::Q; ++q) {
          const bool in = row_in[r] && col_in[q];
          v[l][r][q] += bias[l];
          sum += in ? v[l][r][q] : 0.f;
          if (a.out_relu) v[l][r][q] = v[l][r][q] < 0.f ? 0.f : v[l][r][q];
        }
      if (!a.partial) continue;
      const float mean = n > 0.f ? sum / n : 0.f;
#pragma unroll
      for (int r = 0; r < T::R; ++r)
#pragma unroll
        for (int q = 0; q < T::Q; ++q) {
          const float d = row_in[r] && col_in[q] ? v[l][r][q] - mean : 0.f;
          square += d * d;
        }
      moments[l].merge(n, mean, square);
    }
  }

  __device__ void through_pending(const int64_t (&pixel)[T::R], const bool (&row_in)[T::R],
                                  const bool (&col_in)[T::Q], int step, float (&v)[T::R][T::Q]) {
    if (!a.other.data) return;
#pragma unroll
    for (int r = 0; r < T::R; ++r) {
      const S* from = a.other.data + pixel[r] * a.other.ld + c;
      S x[T::Q];
#pragma unroll
      for (int q = 0; q < T::Q; ++q, from += step) x[q] = row_in[r] && col_in[q] ? *from : S(0.f);
#pragma unroll
      for (int q = 0; q < T::Q; ++q) {
        const float value = static_cast<float>(x[q]);
        float g = row_in[r] && col_in[q] ? v[r][q] : 0.f;
        if (a.other.relu && value * scale + shift <= 0.f) g = 0.f;
        grad_scale += g * value;
        grad_shift += g;
        v[r][q] = g * scale;
      }
    }
  }

  // Merges the block's rows of threads; the first writes the block's row: means, m2, the slabs' counts, or
  // sums of g * x, g.
  __device__ void write(float* shared, int slab, int row) {
    if (!a.partial) return;
    constexpr int kPlane = kLanes * kRows;
    __syncthreads();  // the tile's memory is used again
#pragma unroll
    for (int l = 0; l < L; ++l) {
      const int at = threadIdx.y * kLanes + threadIdx.x * L + l;
      shared[at] = Grad ? grad_scale : moments[l].n;
      shared[kPlane + at] = Grad ? grad_shift : moments[l].mean;
      if (!Grad) shared[2 * kPlane + at] = moments[l].m2;
    }
    __syncthreads();
    if (threadIdx.y != 0 || !live) return;
    if constexpr (Grad) {
      float* to = a.partial + row * row_size(a, true) + c;
      for (int w = 1; w < kRows; ++w) {
        grad_scale += shared[w * kLanes + threadIdx.x];
        grad_shift += shared[kPlane + w * kLanes + threadIdx.x];
      }
      to[0] = grad_scale;
      to[a.channels] = grad_shift;
    } else {
      float* to = a.partial + (static_cast<int64_t>(blockIdx.z) * a.rows + row) * row_size(a, false);
#pragma unroll
      for (int l = 0; l < L; ++l) {
        if (c + l >= a.channels) continue;
        const float* others = shared + threadIdx.x * L + l;
        for (int w = 1; w < kRows; ++w)
          moments[l].merge(others[w * kLanes], others[kPlane + w * kLanes], others[2 * kPlane + w * kLanes]);
        to[c + l] = moments[l].mean;
        to[a.channels + c + l] = moments[l].m2;
      }
      if (threadIdx.x == 0) to[2 * a.channels + slab] = moments[0].n;
    }
  }
};

}  // namespace cuda
}  // namespace detnas
