// Depthwise convolution and its gradient of the input; geometry: depthwise_plan.cuh.
#pragma once
#include "depthwise_launch.cuh"
#include "depthwise_pairs.cuh"
#include "depthwise_sink.cuh"

namespace detnas {
namespace cuda {

// The slab's weights: loads first, so that they are in flight together with the tile's, then stores.
// As floats they lie one channel after another; the odd k * k keeps the threads of a warp in different
// banks.
template <int Taps, int Lanes, typename S>
struct Weights {
  static constexpr int kThreads = Lanes * kRows, kHeld = (kLanes * Taps + kThreads - 1) / kThreads;
  S held[kHeld];
  __device__ void load(const S* weight, int slab, int channels) {
    const int thread = threadIdx.y * Lanes + threadIdx.x, left = channels - slab * kLanes;
    const int size = (left < kLanes ? left : kLanes) * Taps;
    const S* from = weight + static_cast<int64_t>(slab) * kLanes * Taps;
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      held[i] = thread + i * kThreads < size ? from[thread + i * kThreads] : S(0.f);
  }
  // put(i, weight): the i-th of the slab.
  template <typename F>
  __device__ void store(const F& put) const {
    const int thread = threadIdx.y * Lanes + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      if (thread + i * kThreads < kLanes * Taps) put(thread + i * kThreads, held[i]);
  }
};

template <int L, int R, int Q>
__device__ void clear(float (&v)[L][R][Q]) {
#pragma unroll
  for (int l = 0; l < L; ++l)
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int q = 0; q < Q; ++q) v[l][r][q] = 0.f;
}

// A tile of floats at a time.
template <class T, bool Grad, typename S>
__device__ void convolve_floats(const Depthwise<S>& a, int slab, int row, float* tile) {
  float* shared_weights = tile + T::floats;
  Weights<T::taps, kLanes, S> held;
  held.load(a.weight, slab, a.channels);
  Sink<T, Grad, S> sink(a, slab * kLanes + threadIdx.x);
#pragma unroll 1
  for (int t = row; t < a.tiles; t += a.rows) {
    const Place at = place<T>(a, t);
    if (t != row) __syncthreads();
    load_tile<T, Grad ? 2 : T::K == 3 ? 3 : 4, Grad>(a, at, slab, tile);
    if (t == row) held.store([&](int i, S weight) { shared_weights[i] = static_cast<float>(weight); });
    __syncthreads();
    float w[T::taps];  // read again for each tile: not in the way while one is loaded
#pragma unroll
    for (int i = 0; i < T::taps; ++i)
      w[i] = shared_weights[threadIdx.x * T::taps + (Grad ? T::taps - 1 - i : i)];
    float v[1][T::R][T::Q];
    clear(v);
    for_taps<T>(Window<T>(tile), [&](int l, int r, int q, int tap, float value) { v[l][r][q] += w[tap] * value; });
    sink(at, v);
  }
  sink.write(tile, slab, row);
}

// A tile of 16-bit values, while the next one is copied. The same sums in the same order.
template <class T, typename S>
__device__ void convolve_pairs(const Depthwise<S>& a, int slab, int row, S* shared) {
  using Shared = PairTile<T>;
  S* tile = shared + Shared::kWeights;
  S* other = tile + Shared::kSize;
  const int c = slab * kLanes + 2 * threadIdx.x;
  copy_tile<T>(a, place<T>(a, row), slab, tile);
  Weights<T::taps, kLanes / 2, S> held;
  held.load(a.weight, slab, a.channels);
  held.store([&](int i, S weight) { shared[i % T::taps * Shared::kTap + i / T::taps] = weight; });
  Sink<T, false, S> sink(a, c);
  const PairPending pending(a, c);
#pragma unroll 1
  for (int t = row; t < a.tiles; t += a.rows) {
    wait_copies();
    __syncthreads();  // the tile is there, and nobody reads the one before it any more
    if (t + a.rows < a.tiles) copy_tile<T>(a, place<T>(a, t + a.rows), slab, other);
    const Place at = place<T>(a, t);
    const PairWindow<T, S> window(a, at, pending, tile, shared);
    float v[2][T::R][T::Q];
    clear(v);
    for_taps<T>(window, [&](int l, int r, int q, int tap, float value) {
      v[l][r][q] += window.weight(l, tap) * value;
    });
    sink(at, v);
    S* const used = tile;
    tile = other, other = used;
  }
  sink.write(reinterpret_cast<float*>(shared), slab, row);
}

template <typename S, int K, bool Grad>
__device__ void convolve_block(const Depthwise<S>& a, int block) {
  DETNAS_SHARED(float, shared);
  // Slabs of a tile are neighbours in memory: they are read at the same time.
  const int slab = block % a.slabs, row = block / a.slabs;
  by_tile<K, Grad>(a, [&](auto type) {
    using T = decltype(type);
    if constexpr (kEach<S, Grad> == 2) convolve_pairs<T>(a, slab, row, reinterpret_cast<S*>(shared));
    else convolve_floats<T, Grad>(a, slab, row, shared);
  });
  if constexpr (!Grad) {
    const int64_t batch = blockIdx.z, ld = row_size(a, false);
    if (!a.partial || !last_block(a.tickets + batch * a.slabs + slab, a.rows)) return;
    const float* means = a.partial + batch * a.rows * ld;
    const float* counts = means + 2 * a.channels + slab;
    merge_rows({means, means + a.channels, ld, a.rows}, [&](int64_t k) { return counts[k * ld]; },
               slab * kLanes, a.channels, reinterpret_cast<double*>(shared), skip(a.stats, batch * a.channels));
  }
}

template <typename S, bool Grad>
constexpr int kConvolveThreads = kLanes / kEach<S, Grad> * kRows;
// Blocks of a multiprocessor: what registers are limited for.
template <typename S, bool Grad, int K>
constexpr int kConvolveBlocks = kEach<S, Grad> == 2 ? 4 : K == 3 && !Grad ? 3 : 2;

template <typename S, int K, bool Grad>
__global__ void __launch_bounds__(kConvolveThreads<S, Grad>, kConvolveBlocks<S, Grad, K>)
    depthwise_kernel(const __grid_constant__ Depthwise<S> a) {
  convolve_block<S, K, Grad>(a, blockIdx.x);
}

// The blocks of all entries, one after another, any kernel sizes.
template <typename S, bool Grad>
__global__ void __launch_bounds__(kConvolveThreads<S, Grad>, kConvolveBlocks<S, Grad, 0>)
    mixed_depthwise_kernel(const __grid_constant__ DepthwiseBatch<S> batch) {
  int block = blockIdx.x;
  const Depthwise<S>& a = batch.entry[find_entry(batch, block)];
  convolve_block<S, 0, Grad>(a, block);
}

template <typename S, bool Grad>
void launch_depthwise(const DepthwiseBatch<S>& batch, Stream stream, int64_t batches) {
  const auto bytes = [](const Depthwise<S>& a) -> int64_t {
    if (kEach<S, Grad> == 1) return (tile_floats(a, Grad) + kLanes * a.kernel * a.kernel) * 4;
    const int stages = a.rows < a.tiles ? 2 : 1;  // no next tile: no memory for one
    return of_tile(a, Grad, [&](auto tile) -> int64_t {
      using Shared = PairTile<decltype(tile)>;
      return (Shared::kWeights + stages * Shared::kSize) * 2;
    });
  };
  launch_batch(batch, &depthwise_kernel<S, 3, Grad>, &depthwise_kernel<S, 5, Grad>,
               &depthwise_kernel<S, 7, Grad>, &mixed_depthwise_kernel<S, Grad>, bytes,
               kLanes / kEach<S, Grad>, stream, batches);
}

}  // namespace cuda
}  // namespace detnas
