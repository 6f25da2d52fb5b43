// Neighbouring channels at a time: from and to memory, and through a shuffle.
#pragma once
#include "platform.cuh"

namespace detnas {
namespace cuda {

template <typename S, int V>
__device__ inline Pack<S, V> load(const S* p) {
  return *reinterpret_cast<const Pack<S, V>*>(p);
}

template <typename S, int V>
__device__ inline Pack<S, V> pack(const float (&v)[V]) {
  Pack<S, V> packed;
#pragma unroll
  for (int i = 0; i < V; ++i) packed.lane[i] = static_cast<S>(v[i]);
  return packed;
}

template <typename S, int V>
__device__ inline void store(S* p, const Pack<S, V>& packed) {
  *reinterpret_cast<Pack<S, V>*>(p) = packed;
}
template <typename S, int V>
__device__ inline void store(S* p, const float (&v)[V]) {
  store<S, V>(p, pack<S, V>(v));
}

// Vectors at two places of a concatenation to those of the shuffled map (shuffle_concat.cuh), whose methods 1 and 2
// are each other's inverse.
template <typename S, int V>
__device__ inline void exchange(int method, const Pack<S, V> (&from)[2], Pack<S, V> (&to)[2]) {
#pragma unroll
  for (int i = 0; i < V; ++i)
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      if (method == 0) to[s].lane[i] = from[s].lane[i];
      if (method == 1) to[(2 * i + s) / V].lane[(2 * i + s) % V] = from[s].lane[i];
      if (method == 2) to[s].lane[i] = from[(2 * i + s) / V].lane[(2 * i + s) % V];
    }
}

}  // namespace cuda
}  // namespace detnas
