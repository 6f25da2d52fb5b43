// What kernels may use of CUDA, so that the host emulator of tests/emulator can supply it too:
// threadIdx and its kin, __syncthreads, dynamic shared memory (DETNAS_SHARED), DETNAS_LAUNCH. A warp's
// matrix products: tensor_core.cuh; copies that go on meanwhile: async_copy.cuh.
#pragma once
#include <cstdint>

#ifdef DETNAS_EMULATE
#include "cuda_emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define DETNAS_SHARED(type, name)                                      \
  extern __shared__ __align__(128) unsigned char detnas_shared[];      \
  type* name = reinterpret_cast<type*>(detnas_shared)
#define DETNAS_LAUNCH(kernel, grid, block, shared, stream, ...) \
  kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
namespace detnas {
namespace cuda {
using Stream = cudaStream_t;
// Lets launches of a kernel have more than 48 KB of shared memory.
template <typename F>
void allow_shared(F kernel, int64_t bytes) {
  if (bytes > 48 * 1024)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}
#ifdef __CUDACC__
__device__ inline void trap() { __trap(); }
#endif
}
}  // namespace detnas
#endif

namespace detnas {
namespace cuda {

constexpr int kLanes = 32;   // threads of a block along channels
constexpr int kRows = 8;     // threads of a block along pixels
constexpr int kMostThreads = 1024;  // of a block: kernels that take as many say so, or registers run out
constexpr int kMaxMixed = 8; // maps that one launch of mixed_sum takes

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks that fill the current GPU if each of its multiprocessors takes so many.
inline int64_t fill(int64_t each) {
#ifdef DETNAS_EMULATE
  return each + 1;  // the emulator's small maps meet the forms for small and for large ones
#else
  int device = 0, multiprocessors = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  return each * (multiprocessors > 0 ? multiprocessors : 1);
#endif
}

// Bytes of shared memory that a block may have, on the current GPU, where its kernel is allowed them.
inline int64_t most_shared() {
#ifdef DETNAS_EMULATE
  return emulator::kMostShared;
#else
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
#endif
}

template <typename T>
__device__ inline T finite_or_zero(T v) {
  return v - v == T(0) ? v : T(0);  // inf - inf and NaN - NaN are NaN
}
// The mean of two sets of which the second has this share; of an infinite value it is infinite.
__device__ inline float merged_mean(float mean, float mean2, float share) {
  const float delta = mean2 - mean;
  return delta - delta == 0.f ? mean + delta * share : mean * (1.f - share) + mean2 * share;
}

template <typename S, int V>
struct alignas(sizeof(S) * V) Pack {
  S lane[V];
};

// V neighbours of a per-channel vector; 16 bytes at a time where V allows (see vectorizable).
template <int V>
__device__ inline void load_vector(const float* p, float (&out)[V]) {
  constexpr int kWide = V % 4 == 0 ? 4 : 1;
#pragma unroll
  for (int i = 0; i < V; i += kWide) {
    const Pack<float, kWide> pack = *reinterpret_cast<const Pack<float, kWide>*>(p + i);
#pragma unroll
    for (int k = 0; k < kWide; ++k) out[i + k] = pack.lane[k];
  }
}

// A map of pixels x channels and the per-channel function pending on it:
// relu?(scale * x + shift), or, for gradients, x + add + mul * (y - mean) or x where y > 0; add and
// mul times their factors.
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
  float add_factor = 1.f, mul_factor = 1.f;  // of add and mul

  template <int V>
  struct Raw {
    Pack<S, V> x, y;
  };

  // Values as they lie in memory: loads that can be in flight together, before apply uses them.
  template <int V>
  __device__ Raw<V> fetch(int64_t pixel, int c) const {
    Raw<V> raw;
    raw.x = *reinterpret_cast<const Pack<S, V>*>(data + pixel * ld + c);
    if (y) raw.y = *reinterpret_cast<const Pack<S, V>*>(y + pixel * ld_y + c);
    return raw;
  }

  template <int V>
  __device__ void apply(const Raw<V>& raw, int c, float (&out)[V]) const {
    float a[V], b[V], m[V];
#pragma unroll
    for (int i = 0; i < V; ++i) out[i] = static_cast<float>(raw.x.lane[i]);
    if (scale) {
      load_vector<V>(scale + c, a);
      load_vector<V>(shift + c, b);
#pragma unroll
      for (int i = 0; i < V; ++i) out[i] = out[i] * a[i] + b[i];
    }
    if (relu)
#pragma unroll
      for (int i = 0; i < V; ++i) out[i] = out[i] < 0.f ? 0.f : out[i];
    if (y && add) {
      load_vector<V>(add + c, a);
      load_vector<V>(mul + c, b);
      load_vector<V>(mean + c, m);
#pragma unroll
      for (int i = 0; i < V; ++i)
        out[i] += a[i] * add_factor + b[i] * mul_factor * (static_cast<float>(raw.y.lane[i]) - m[i]);
    } else if (y) {
#pragma unroll
      for (int i = 0; i < V; ++i) out[i] = static_cast<float>(raw.y.lane[i]) <= 0.f ? 0.f : out[i];
    }
  }

  template <int V>
  __device__ void read(int64_t pixel, int c, float (&out)[V]) const {
    apply<V>(fetch<V>(pixel, c), c, out);
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
  const float* vectors[] = {s.scale, s.shift, s.add, s.mul, s.mean};
  for (const float* vector : vectors)
    if (reinterpret_cast<uintptr_t>(vector) % 16 != 0) return false;
  return vectorizable<S>(s.data, s.ld, channels) && (!s.y || vectorizable<S>(s.y, s.ld_y, channels));
}

}  // namespace cuda
}  // namespace detnas
