// Tiles of the gathered map in shared memory: how they come there, and how taps read them.
#pragma once
#include <type_traits>

#include "depthwise_plan.cuh"

namespace detnas {
namespace cuda {

// Where a tile lies: its first output, and the first pixel in shared memory.
struct Place {
  int64_t image;
  int out_y, out_x, in_y, in_x;
};

template <class T, typename S>
__device__ Place place(const Depthwise<S>& a, int tile) {
  const int px = tile % a.phases, py = tile / a.phases % a.phases;
  tile /= a.phases * a.phases;  // neighbours in memory are made at the same time
  const int j = tile % a.tiles_x * T::cols + a.origin;
  const int i = tile / a.tiles_x % a.tiles_y * T::rows + a.origin;
  Place at;
  at.image = static_cast<int>(blockIdx.z) * a.images + tile / a.tiles_x / a.tiles_y;
  at.out_y = i * a.out_step + py * a.out_offset;
  at.out_x = j * a.out_step + px * a.out_offset;
  at.in_y = (i * T::Down / T::Up - T::halo) * a.in_step + py * a.in_offset;
  at.in_x = (j * T::Down / T::Up - T::halo) * a.in_step + px * a.in_offset;
  return at;
}

// Writes V values of neighbouring channels. Pairs of 16 bytes go in an order in which eight threads
// cover all banks.
template <int V>
__device__ void put(float* to, const float (&v)[V]) {
  if constexpr (V == 1) {
    *to = v[0];
  } else {
    Pack<float, 4>* packs = reinterpret_cast<Pack<float, 4>*>(to);
    const Pack<float, 4> first{v[0], v[1], v[2], v[3]};
    if constexpr (V == 4) {
      packs[0] = first;
    } else {
      const bool swap = threadIdx.x / 4 % 2 != 0;
      Pack<float, 4> one, two;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        one.lane[i] = swap ? v[4 + i] : v[i];
        two.lane[i] = swap ? v[i] : v[4 + i];
      }
      packs[swap ? 1 : 0] = one;
      packs[swap ? 0 : 1] = two;
    }
  }
}

// V neighbours as they lie in memory. Two values of 16 bits share a register until they are used: as
// values of their own each would take one.
template <typename S, int V>
struct Raw {
  static constexpr bool kPairs = V > 1 && sizeof(S) == 2;
  Pack<std::conditional_t<kPairs, uint32_t, S>, kPairs ? V / 2 : V> words;
  __device__ void load(const S* from) { words = *reinterpret_cast<const decltype(words)*>(from); }
  __device__ float value(int i) const {
    if constexpr (kPairs) {
      const uint32_t word = words.lane[i / 2];
      const uint16_t bits = static_cast<uint16_t>(i % 2 ? word >> 16 : word & 0xffff);
      return static_cast<float>(S(bits, S::from_bits()));
    } else {
      return static_cast<float>(words.lane[i]);
    }
  }
};

// The gathered pixels of a tile and a slab through what is pending on them; zero outside of the map.
// Flight: independent loads before the first is used.
template <class T, int V, int Flight, bool Grad, typename S>
__device__ void load_tile(const Depthwise<S>& a, const Place& at, int slab, float* tile) {
  constexpr int kPacks = kLanes / V, kStep = kLanes * kRows / kPacks;
  int thread = threadIdx.y * kLanes + threadIdx.x;
  opaque(thread);
  const int lane = thread % kPacks * V;
  const int c = slab * kLanes + lane;
  const bool live = c < a.channels;
  float add[V], mul[V], mean[V];  // of a gradient; else mul and add are scale and shift
#pragma unroll
  for (int i = 0; i < V; ++i) add[i] = 0.f, mul[i] = 1.f, mean[i] = 0.f;
  if (live && Grad && a.in.add) {
    load_vector<V>(a.in.add + c, add);
    load_vector<V>(a.in.mul + c, mul);
    load_vector<V>(a.in.mean + c, mean);
#pragma unroll
    for (int i = 0; i < V; ++i) add[i] *= a.in.add_factor, mul[i] *= a.in.mul_factor;
  }
  if (live && !Grad && a.in.scale) {
    int batch = blockIdx.z;
    opaque(batch);
    load_vector<V>(a.in.scale + batch * a.channels + c, mul);
    load_vector<V>(a.in.shift + batch * a.channels + c, add);
  }
  const int64_t first = at.image * a.in_height * a.in_width;
  const int ld = static_cast<int>(a.in.ld), ld_y = static_cast<int>(a.in.ld_y);
  const S* data = a.in.data + first * ld + c;
  const S* y = Grad && a.in.y ? a.in.y + first * ld_y + c : nullptr;
#pragma unroll 1
  for (int p0 = thread / kPacks; p0 < T::pixels; p0 += Flight * kStep) {
    Raw<S, V> raw[Flight], out[Grad ? Flight : 1];
    bool inside[Flight];
#pragma unroll
    for (int j = 0; j < Flight; ++j) {
      const int p = p0 + j * kStep;
      const int row = at.in_y + p / T::in_cols * a.in_step, col = at.in_x + p % T::in_cols * a.in_step;
      inside[j] = live && p < T::pixels && row >= 0 && row < a.in_height && col >= 0 && col < a.in_width;
      if (!inside[j]) continue;
      const int64_t pixel = static_cast<int64_t>(row) * a.in_width + col;
      raw[j].load(data + pixel * ld);
      if (Grad && y) out[Grad ? j : 0].load(y + pixel * ld_y);
    }
#pragma unroll
    for (int j = 0; j < Flight; ++j) {
      const int p = p0 + j * kStep;
      if (p >= T::pixels) continue;
      float v[V];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        v[i] = 0.f;
        if (!inside[j]) continue;
        v[i] = raw[j].value(i);
        if (Grad && y) {
          const float o = out[Grad ? j : 0].value(i);
          if (a.in.add) v[i] += add[i] + mul[i] * (o - mean[i]);
          else v[i] = o <= 0.f ? 0.f : v[i];
        }
        if (!Grad) {
          v[i] = v[i] * mul[i] + add[i];
          if (a.in.relu) v[i] = v[i] < 0.f ? 0.f : v[i];
        }
      }
      put<V>(tile + p * kLanes + lane, v);
    }
  }
}

template <class T, int Flight, bool Grad, typename S>
__device__ void load_tile(const Depthwise<S>& a, const Place& at, int slab, float* tile) {
  if (a.vector) load_tile<T, 16 / sizeof(S), Flight, Grad>(a, at, slab, tile);
  else load_tile<T, 1, Flight, Grad>(a, at, slab, tile);
}

// Position of the thread's outputs in its tile, and of the first value that they gather.
template <class T>
__device__ int tile_row() { return static_cast<int>(threadIdx.y) / 2 * T::R; }
template <class T>
__device__ int tile_col() { return static_cast<int>(threadIdx.y) % 2 * T::Q; }

// What a thread's outputs gather from, of a tile of floats.
template <class T>
struct Window {
  static constexpr int kEach = 1;
  const float* first;

  __device__ explicit Window(const float* tile) {
    const int row = tile_row<T>() * T::Down / T::Up, col = tile_col<T>() * T::Down / T::Up;
    first = tile + (row * T::in_cols + col) * kLanes + threadIdx.x;
  }
  __device__ void row(int i, float (&value)[1][T::window_cols]) const {
#pragma unroll
    for (int j = 0; j < T::window_cols; ++j) value[0][j] = first[(i * T::in_cols + j) * kLanes];
  }
};

// Calls f(channel, r, q, tap, value) for every tap of each of the thread's outputs, all indices constants.
// A row of the window is read once for all outputs and taps that use it.
template <class T, class W, typename F>
__device__ void for_taps(const W& window, const F& f) {
  constexpr int h = T::K / 2;
#pragma unroll
  for (int i = 0; i < T::window_rows; ++i) {
    float value[W::kEach][T::window_cols];
    window.row(i, value);
#pragma unroll
    for (int r = 0; r < T::R; ++r) {
      const int ky = (i - T::halo) * T::Up + h - T::Down * r;
      if (ky < 0 || ky >= T::K) continue;
#pragma unroll
      for (int q = 0; q < T::Q; ++q)
#pragma unroll
        for (int kx = 0; kx < T::K; ++kx) {
          const int position = T::Down * q + kx - h;
          if (position % T::Up != 0) continue;
#pragma unroll
          for (int l = 0; l < W::kEach; ++l)
            f(l, r, q, ky * T::K + kx, value[l][position / T::Up + T::halo]);
        }
    }
  }
}

}  // namespace cuda
}  // namespace detnas
