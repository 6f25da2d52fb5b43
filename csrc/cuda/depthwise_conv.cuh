// Depthwise convolution and its gradient of the input; geometry: depthwise_plan.cuh.
#pragma once
#include "depthwise_tile.cuh"

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

// The slab's weights: loads first, so that they are in flight together with the tile's, then stores.
// They lie one channel after another; the odd k * k keeps the threads of a warp in different banks.
template <int Taps, typename S>
struct Weights {
  static constexpr int kThreads = kLanes * kRows, kEach = (kLanes * Taps + kThreads - 1) / kThreads;
  S held[kEach];
  __device__ void load(const S* weight, int slab, int channels) {
    const int thread = threadIdx.y * kLanes + threadIdx.x, left = channels - slab * kLanes;
    const int size = (left < kLanes ? left : kLanes) * Taps;
    const S* from = weight + static_cast<int64_t>(slab) * kLanes * Taps;
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      held[i] = thread + i * kThreads < size ? from[thread + i * kThreads] : S(0.f);
  }
  __device__ void store(float* to) const {
    const int thread = threadIdx.y * kLanes + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (thread + i * kThreads < kLanes * Taps) to[thread + i * kThreads] = static_cast<float>(held[i]);
  }
};

// Floats of a row of partial results: moments, or the gradients of scale and shift.
template <typename S>
__host__ __device__ int64_t row_size(const Depthwise<S>& a, bool gradient) {
  return 2 * static_cast<int64_t>(a.channels) + (gradient ? 0 : a.slabs);
}

// What becomes of a thread's sums: bias, ReLU and moments, or, for gradients, back through what is
// pending on x, with the sums of g * x and g.
template <class T, bool Grad, typename S>
struct Sink {
  const Depthwise<S>& a;
  int c;
  bool live;
  float bias = 0.f, scale = 1.f, shift = 0.f;
  Running moments;
  float grad_scale = 0.f, grad_shift = 0.f;

  __device__ Sink(const Depthwise<S>& a_, int c_) : a(a_), c(c_), live(c_ < a_.channels) {
    if (live && !Grad && a.bias) bias = a.bias[c];
    if (live && Grad && a.other.scale) scale = a.other.scale[c], shift = a.other.shift[c];
  }

  __device__ void operator()(const Place& at, float (&v)[T::R][T::Q]) {
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
    if constexpr (Grad) through_pending(pixel, row_in, col_in, out_step * static_cast<int>(a.other.ld), v);
    else finish(row_in, col_in, v);
    const int step = out_step * a.channels;
#pragma unroll
    for (int r = 0; r < T::R; ++r) {
      S* to = a.out + pixel[r] * a.channels + c;
#pragma unroll
      for (int q = 0; q < T::Q; ++q, to += step)
        if (row_in[r] && col_in[q]) *to = static_cast<S>(v[r][q]);
    }
  }

  __device__ void finish(const bool (&row_in)[T::R], const bool (&col_in)[T::Q], float (&v)[T::R][T::Q]) {
    int rows = 0, cols = 0;
    for (const bool in : row_in) rows += in;
    for (const bool in : col_in) cols += in;
    const float n = static_cast<float>(rows * cols);
    float sum = 0.f, square = 0.f;
#pragma unroll
    for (int r = 0; r < T::R; ++r)
#pragma unroll
      for (int q = 0; q < T::Q; ++q) {
        const bool in = row_in[r] && col_in[q];
        v[r][q] += bias;
        sum += in ? v[r][q] : 0.f;
        if (a.out_relu) v[r][q] = v[r][q] < 0.f ? 0.f : v[r][q];
      }
    if (!a.partial) return;
    const float mean = n > 0.f ? sum / n : 0.f;
#pragma unroll
    for (int r = 0; r < T::R; ++r)
#pragma unroll
      for (int q = 0; q < T::Q; ++q) {
        const float d = row_in[r] && col_in[q] ? v[r][q] - mean : 0.f;
        square += d * d;
      }
    moments.merge(n, mean, square);
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

  // Merges the block's warps; the first writes the block's row: means, m2, the slabs' counts, or sums of
  // g * x, g.
  __device__ void write(float* shared, int slab, int row) {
    if (!a.partial) return;
    constexpr int kPlane = kLanes * kRows;
    const int thread = threadIdx.y * kLanes + threadIdx.x;
    __syncthreads();  // the tile's memory is used again
    shared[thread] = Grad ? grad_scale : moments.n;
    shared[kPlane + thread] = Grad ? grad_shift : moments.mean;
    if (!Grad) shared[2 * kPlane + thread] = moments.m2;
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
      for (int w = 1; w < kRows; ++w)
        moments.merge(shared[w * kLanes + threadIdx.x], shared[kPlane + w * kLanes + threadIdx.x],
                      shared[2 * kPlane + w * kLanes + threadIdx.x]);
      to[c] = moments.mean;
      to[a.channels + c] = moments.m2;
      if (threadIdx.x == 0) to[2 * a.channels + slab] = moments.n;
    }
  }
};

template <class T, bool Grad, typename S>
__device__ void convolve(const Depthwise<S>& a, int slab, int row, float* tile) {
  float* shared_weights = tile + T::floats;
  Weights<T::taps, S> held;
  held.load(a.weight, slab, a.channels);
  Sink<T, Grad, S> sink(a, slab * kLanes + threadIdx.x);
#pragma unroll 1
  for (int t = row; t < a.tiles; t += a.rows) {
    const Place at = place<T>(a, t);
    if (t != row) __syncthreads();
    load_tile<T, Grad ? 2 : T::K == 3 ? 3 : 4, Grad>(a, at, slab, tile);
    if (t == row) held.store(shared_weights);
    __syncthreads();
    float w[T::taps];  // read again for each tile: not in the way while one is loaded
#pragma unroll
    for (int i = 0; i < T::taps; ++i)
      w[i] = shared_weights[threadIdx.x * T::taps + (Grad ? T::taps - 1 - i : i)];
    float v[T::R][T::Q];
#pragma unroll
    for (int r = 0; r < T::R; ++r)
#pragma unroll
      for (int q = 0; q < T::Q; ++q) v[r][q] = 0.f;
    for_taps<T>(window<T>(tile), [&](int r, int q, int tap, float value) { v[r][q] += w[tap] * value; });
    sink(at, v);
  }
  sink.write(tile, slab, row);
}

template <typename S, int K, bool Grad>
__device__ void convolve_block(const Depthwise<S>& a, int block) {
  DETNAS_SHARED(float, tile);
  // Slabs of a tile are neighbours in memory: they are read at the same time.
  const int slab = block % a.slabs, row = block / a.slabs;
  by_tile<K, Grad>(a, [&](auto type) { convolve<decltype(type), Grad>(a, slab, row, tile); });
  if constexpr (!Grad) {
    const int64_t batch = blockIdx.z, ld = row_size(a, false);
    if (!a.partial || !last_block(a.tickets + batch * a.slabs + slab, a.rows)) return;
    const float* means = a.partial + batch * a.rows * ld;
    const float* counts = means + 2 * a.channels + slab;
    merge_rows({means, means + a.channels, ld, a.rows}, [&](int64_t k) { return counts[k * ld]; },
               slab * kLanes, a.channels, reinterpret_cast<double*>(tile), skip(a.stats, batch * a.channels));
  }
}

template <typename S, int K, bool Grad>
__global__ void __launch_bounds__(kLanes* kRows, K == 3 && !Grad ? 3 : 2)
    depthwise_kernel(const __grid_constant__ Depthwise<S> a) {
  convolve_block<S, K, Grad>(a, blockIdx.x);
}

// The blocks of all entries, one after another, any kernel sizes.
template <typename S, bool Grad>
__global__ void __launch_bounds__(kLanes* kRows, 2)
    mixed_depthwise_kernel(const __grid_constant__ DepthwiseBatch<S> batch) {
  int block = blockIdx.x;
  const Depthwise<S>& a = batch.entry[find_entry(batch, block)];
  convolve_block<S, 0, Grad>(a, block);
}

// Floats that an entry's partial rows take, those of one batch.
template <typename S>
int64_t partial_size(const Depthwise<S>& a, bool gradient) {
  return a.rows * row_size(a, gradient);
}

template <typename S, bool Grad>
void launch_depthwise(const DepthwiseBatch<S>& batch, Stream stream, int64_t batches = 1) {
  const auto floats = [](const Depthwise<S>& a) {
    return tile_floats(a, Grad) + kLanes * a.kernel * a.kernel;
  };
  launch_batch(batch, &depthwise_kernel<S, 3, Grad>, &depthwise_kernel<S, 5, Grad>,
               &depthwise_kernel<S, 7, Grad>, &mixed_depthwise_kernel<S, Grad>, floats, stream, batches);
}

}  // namespace cuda
}  // namespace detnas
