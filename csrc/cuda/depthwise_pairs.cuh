// Tiles of 16-bit maps as they lie in memory: copied while the tile before is multiplied, and read by
// pairs of channels, through what is pending on them.
#pragma once
#include <limits>

#include "async_copy.cuh"
#include "depthwise_tile.cuh"

namespace detnas {
namespace cuda {

// A warp has 16 pairs of channels at two places that are T::Q outputs apart: one pixel is left free for
// every so many, so that both read different banks.
template <class T>
struct PairTile {
  static constexpr int kEvery = T::Q * T::Down / T::Up, kRow = T::in_cols + (T::in_cols - 1) / kEvery;
  static constexpr int kThreads = kLanes / 2 * kRows;
  static constexpr int kSize = T::in_rows * kRow * kLanes;  // elements
  // Weights lie one tap after another; an odd number of words keeps threads that store them in
  // different banks.
  static constexpr int kTap = kLanes + 2, kWeights = (T::taps * kTap + 7) / 8 * 8;
  static_assert(kEvery % 2 == 0 && (T::Q * T::Down) % T::Up == 0, "both places in the same banks");
  static_assert(2 * (kWeights + 2 * kSize) <= 48 * 1024, "more than a launch may ask for");
  static_assert(2 * (kWeights + kSize) >= 4 * kThreads * sizeof(double), "a tile is too small for merge_rows");

  __device__ static int offset(int row, int col) { return (row * kRow + col + col / kEvery) * kLanes; }
};

// Starts to copy the gathered pixels of a tile and a slab; zero outside of the map.
template <class T, typename S>
__device__ void copy_tile(const Depthwise<S>& a, const Place& at, int slab, S* tile) {
  using Shared = PairTile<T>;
  int thread = threadIdx.y * (kLanes / 2) + threadIdx.x;
  opaque(thread);
  const int ld = static_cast<int>(a.in.ld), left = a.channels - slab * kLanes;
  const S* data = a.in.data + at.image * a.in_height * a.in_width * ld + slab * kLanes;
  const auto find = [&](int p, int64_t& pixel) {
    const int row = at.in_y + p / T::in_cols * a.in_step, col = at.in_x + p % T::in_cols * a.in_step;
    pixel = static_cast<int64_t>(row) * a.in_width + col;
    return row >= 0 && row < a.in_height && col >= 0 && col < a.in_width;
  };
  int64_t pixel;
  if (a.vector) {
    constexpr int kPacks = kLanes / 8;
    const int lane = thread % kPacks * 8;
#pragma unroll 4
    for (int p = thread / kPacks; p < T::pixels; p += Shared::kThreads / kPacks) {
      const bool inside = find(p, pixel) && lane < left;
      S* to = tile + Shared::offset(p / T::in_cols, p % T::in_cols) + lane;
      copy_async(to, inside ? data + pixel * ld + lane : a.in.data, inside);
    }
  } else {
    const int lane = thread % kLanes;
#pragma unroll 4
    for (int p = thread / kLanes; p < T::pixels; p += Shared::kThreads / kLanes) {
      const bool inside = find(p, pixel) && lane < left;
      tile[Shared::offset(p / T::in_cols, p % T::in_cols) + lane] = inside ? data[pixel * ld + lane] : S(0.f);
    }
  }
}

// The larger of both; NaN if v is.
__device__ inline float at_least(float v, float least) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(v), "f"(least));
  return larger;
#else
  return v < least ? least : v;
#endif
}

// What is pending on a thread's two channels.
struct PairPending {
  bool any;
  float scale[2] = {1.f, 1.f}, shift[2] = {0.f, 0.f}, least;

  template <typename S>
  __device__ PairPending(const Depthwise<S>& a, int c) : any(a.in.scale || a.in.relu) {
    least = a.in.relu ? 0.f : -std::numeric_limits<float>::infinity();
    if (!a.in.scale) return;
#pragma unroll
    for (int l = 0; l < 2; ++l) {
      if (c + l >= a.channels) continue;
      scale[l] = a.in.scale[blockIdx.z * a.channels + c + l];
      shift[l] = a.in.shift[blockIdx.z * a.channels + c + l];
    }
  }
};

// What a thread's outputs gather from, and the weights of its channels.
template <class T, typename S>
struct PairWindow {
  static constexpr int kEach = 2;
  const S *first, *weights;
  const PairPending& pending;
  int row0, row_step, height;
  unsigned cols = 0;  // a bit for each column: whether it lies inside of the map

  __device__ PairWindow(const Depthwise<S>& a, const Place& at, const PairPending& pending_, const S* tile,
                        const S* weights_)
      : weights(weights_ + 2 * threadIdx.x), pending(pending_), row_step(a.in_step), height(a.in_height) {
    const int row = tile_row<T>() * T::Down / T::Up, col = tile_col<T>() * T::Down / T::Up;
    first = tile + PairTile<T>::offset(row, col) + 2 * threadIdx.x;
    row0 = at.in_y + row * row_step;
    if (!pending.any) return;
#pragma unroll
    for (int j = 0; j < T::window_cols; ++j) {
      const int x = at.in_x + (col + j) * a.in_step;
      cols |= static_cast<unsigned>(x >= 0 && x < a.in_width) << j;
    }
  }

  __device__ void row(int i, float (&value)[2][T::window_cols]) const {
#pragma unroll
    for (int j = 0; j < T::window_cols; ++j) {
      Raw<S, 2> raw;
      raw.load(first + PairTile<T>::offset(i, j));
      value[0][j] = raw.value(0), value[1][j] = raw.value(1);
    }
    if (!pending.any) return;
    const int y = row0 + i * row_step;
    const unsigned inside = y >= 0 && y < height ? cols : 0;
#pragma unroll
    for (int j = 0; j < T::window_cols; ++j) {
      if (!(inside >> j & 1)) continue;  // zero, whatever is pending
#pragma unroll
      for (int l = 0; l < 2; ++l)
        value[l][j] = at_least(value[l][j] * pending.scale[l] + pending.shift[l], pending.least);
    }
  }

  __device__ float weight(int l, int tap) const {
    Raw<S, 2> raw;
    raw.load(weights + tap * PairTile<T>::kTap);
    return raw.value(l);
  }
};

}  // namespace cuda
}  // namespace detnas
