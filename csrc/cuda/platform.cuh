// What kernels may use of CUDA, so that the host emulator of tests/emulator can supply it too:
// threadIdx and its kin, __syncthreads, dynamic shared memory (DETNAS_SHARED), DETNAS_LAUNCH.
#pragma once
#include <cstdint>

#ifdef DETNAS_EMULATE
#include "cuda_emulator.h"
#else
#include <cuda_runtime.h>

#define DETNAS_SHARED(type, name)                                      \
  extern __shared__ __align__(16) unsigned char detnas_shared[];       \
  type* name = reinterpret_cast<type*>(detnas_shared)
#define DETNAS_LAUNCH(kernel, grid, block, shared, stream, ...) \
  kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
namespace detnas {
namespace cuda {
using Stream = cudaStream_t;
}
}  // namespace detnas
#endif

namespace detnas {
namespace cuda {

constexpr int kLanes = 32;   // threads of a block along channels
constexpr int kRows = 8;     // threads of a block along pixels
constexpr int kMaxMixed = 8; // maps that mixed_sum takes

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Number of chunks that a reduction over `pixels` is cut into, each a row of partial sums. It
// follows from the shape alone, so results are reproducible.
inline int64_t chunk_count(int64_t pixels, int64_t channel_blocks) {
  const int64_t wanted = 1024 / (channel_blocks > 0 ? channel_blocks : 1) + 1;
  const int64_t useful = ceil_div(pixels, 64);
  return wanted < useful ? wanted : (useful > 0 ? useful : 1);
}

template <typename S, int V>
struct alignas(sizeof(S) * V) Pack {
  S lane[V];
};

// A map of pixels x channels and the per-channel function pending on it:
// relu?(scale * x + shift), or, for gradients, x + add + mul * (y - mean) or x where y > 0.
template <typename S>
struct Source {
  const S* data = nullptr;
  int64_t ld = 0;
  const float* scale = nullptr;
  const float* shift = nullptr;
  bool relu = false;
  const S* y = nullptr;
  int64_t ld_y = 0;
  const float* add = nullptr;
  const float* mul = nullptr;
  const float* mean = nullptr;

  template <int V>
  __device__ void read(int64_t pixel, int c, float (&out)[V]) const {
    const Pack<S, V> raw = *reinterpret_cast<const Pack<S, V>*>(data + pixel * ld + c);
    for (int i = 0; i < V; ++i) out[i] = static_cast<float>(raw.lane[i]);
    if (scale)
      for (int i = 0; i < V; ++i) out[i] = out[i] * scale[c + i] + shift[c + i];
    if (relu)
      for (int i = 0; i < V; ++i) out[i] = out[i] < 0.f ? 0.f : out[i];
    if (y) {
      const Pack<S, V> other = *reinterpret_cast<const Pack<S, V>*>(y + pixel * ld_y + c);
      for (int i = 0; i < V; ++i) {
        const float v = static_cast<float>(other.lane[i]);
        if (add) out[i] += add[c + i] + mul[c + i] * (v - mean[c + i]);
        else out[i] = v <= 0.f ? 0.f : out[i];
      }
    }
  }
};

// Whether maps of C channels may be read 16 bytes at a time.
template <typename S>
inline bool vectorizable(const void* p, int64_t ld, int64_t channels) {
  const int64_t v = 16 / sizeof(S);
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && ld % v == 0 && channels % v == 0;
}
template <typename S>
inline bool vectorizable(const Source<S>& s, int64_t channels) {
  return vectorizable<S>(s.data, s.ld, channels) && (!s.y || vectorizable<S>(s.y, s.ld_y, channels));
}

}  // namespace cuda
}  // namespace detnas
