// Tiles of operands on their way through registers into shared memory, with what is pending on them.
#pragma once
#include "tensor_core.cuh"

namespace detnas {
namespace cuda {

// What may be pending on an operand:
//   kAffine    a map, relu?(scale * x + shift), applied while a tile is stored
//   kGradient  what makes the gradient of a convolution's raw output, the same way
//   kFolded    a map without ReLU, pending on the other operand: this one is multiplied by scale, and its
//              products with shift are added up (leave_constants)
enum class Pending { kNothing, kAffine, kGradient, kFolded };

template <typename S>
__device__ inline S to_element(float v) {
  if constexpr (std::is_same<S, float>::value) return to_tf32(v);
  else return static_cast<S>(v);
}

// ROWS x DEPTH of a matrix that has its depth along minor, or its rows; by a block's THREADS.
template <typename S, int V, bool DEPTH_MINOR, int ROWS, int DEPTH, Pending PENDING, int THREADS>
struct ProductTile {
  static constexpr int kMinor = DEPTH_MINOR ? DEPTH : ROWS, kMajor = DEPTH_MINOR ? ROWS : DEPTH;
  // Rows start in different banks, as load_fragments wants them.
  static constexpr int kLd = kMinor + (DEPTH_MINOR || sizeof(S) == 2 ? 16 / static_cast<int>(sizeof(S)) : 8);
  static constexpr int kSize = kMajor * kLd;
  static constexpr int kAcross = kMinor / V, kVectors = kMajor * kAcross;
  static constexpr int kPer = (kVectors + THREADS - 1) / THREADS;
  static constexpr bool kFolds = PENDING == Pending::kFolded;
  static_assert(!kFolds || (DEPTH_MINOR && 32 % kAcross == 0), "a row lies in one warp");

  typename Source<S>::template Raw<V> raw[kPer];
  float constants[kFolds ? kPer : 1];
  int64_t major0, majors, minor0, minors;

  __device__ ProductTile() {
#pragma unroll
    for (float& constant : constants) constant = 0.f;
  }
  __device__ void place(int64_t row0, int64_t rows, int64_t depth0, int64_t depth_end) {
    major0 = DEPTH_MINOR ? row0 : depth0;
    majors = DEPTH_MINOR ? rows : depth_end;
    minor0 = DEPTH_MINOR ? depth0 : row0;
    minors = DEPTH_MINOR ? depth_end : rows;
  }
  // Vector i of this thread, and whether it lies inside the matrix.
  __device__ bool at(int i, int& major, int& minor) const {
    const int v = static_cast<int>(threadIdx.x) + i * THREADS;
    major = v / kAcross;
    minor = v % kAcross * V;
    return v < kVectors && major0 + major < majors && minor0 + minor < minors;
  }
  __device__ void fetch(const Source<S>& m) {
    const Source<S> from = only_pending(m);
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      int major, minor;
      if (at(i, major, minor)) raw[i] = from.template fetch<V>(major0 + major, static_cast<int>(minor0) + minor);
    }
  }
  // vectors: what is pending begins so many channels on.
  __device__ void store(const Source<S>& m, S* shared, int vectors = 0) {
    const Source<S> from = only_pending(m);
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      int major, minor;
      const bool inside = at(i, major, minor);
      Pack<S, V> pack;
      if constexpr (PENDING == Pending::kNothing && sizeof(S) == 2) {
        pack = inside ? raw[i].x : Pack<S, V>{};
      } else {
        const int c = vectors + static_cast<int>(minor0) + minor;
        float v[V];
#pragma unroll
        for (int k = 0; k < V; ++k) v[k] = 0.f;
        if (inside) from.template apply<V>(raw[i], c, v);
        if (kFolds && inside && m.scale) fold(m, c, v, constants[kFolds ? i : 0]);
#pragma unroll
        for (int k = 0; k < V; ++k) pack.lane[k] = to_element<S>(v[k]);
      }
      if (static_cast<int>(threadIdx.x) + i * THREADS >= kVectors) continue;
      *reinterpret_cast<Pack<S, V>*>(shared + major * kLd + minor) = pack;
    }
  }
  static __device__ void fragments(uint32_t (&to)[4], const S* shared, int row, int depth) {
    load_fragments<S, DEPTH_MINOR, kLd>(to, shared, row, depth);
  }

  // The sums over all stored tiles of each row times shift, to [ROWS]. All threads call it.
  __device__ void leave_constants(float* to) const {
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      float sum = constants[kFolds ? i : 0];
#pragma unroll
      for (int distance = 1; distance < kAcross; distance *= 2) sum += __shfl_xor_sync(~0u, sum, distance);
      const int v = static_cast<int>(threadIdx.x) + i * THREADS;
      if (v < kVectors && v % kAcross == 0) to[v / kAcross] = sum;
    }
  }

 private:
  // What the compiler need not ask for is gone.
  static __device__ Source<S> only_pending(Source<S> m) {
    if (PENDING != Pending::kGradient) m.y = nullptr;
    if (PENDING != Pending::kAffine) m.scale = nullptr, m.relu = false;
    return m;
  }
  static __device__ void fold(const Source<S>& m, int c, float (&v)[V], float& constant) {
    float scale[V], shift[V];
    load_vector<V>(m.scale + c, scale);
    load_vector<V>(m.shift + c, shift);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      constant += v[k] * shift[k];
      v[k] *= scale[k];
    }
  }
};

}  // namespace cuda
}  // namespace detnas
