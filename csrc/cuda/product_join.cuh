// Where the last product of a block in evaluation goes: to the block's output, in which other channels lie beside its
// own, concatenated, or shuffled and split as the next block wants it. What passes the block by is written by the
// threads that write the product: it needs no launch of its own, and sectors of memory are written whole.
#pragma once
#include "packs.cuh"

namespace detnas {
namespace cuda {

template <typename S>
struct Join {
  S *first = nullptr, *second = nullptr;  // of `half` channels each; all are in first with method 0
  int half = 0;
  int method = 0;
  int offset = 0;             // channel of the concatenation that the product begins at
  const S* left = nullptr;    // what passes by, from channel 0 on, as many channels as the product; or null
  int64_t ld_left = 0;

  // Whether 16 bytes at a time can be read, and written.
  bool wide(int64_t cols) const {
    return vectorizable<S>(first, half, cols) && (!second || vectorizable<S>(second, half, cols)) &&
           offset % (16 / sizeof(S)) == 0 && (!left || vectorizable<S>(left, ld_left, cols));
  }
  // Whether vectors of the product, with those that pass by, are vectors of the output.
  __device__ bool dense() const { return method != 1 || left; }

  // Channel j of the output.
  __device__ S* channel(int64_t pixel, int j) const {
    return (j < half ? first + j : second + (j - half)) + pixel * half;
  }
  // Channel q of the concatenation.
  __device__ S* at(int64_t pixel, int q) const {
    if (method == 1) q = q < half ? 2 * q : 2 * (q - half) + 1;
    if (method == 2) q = q / 2 + q % 2 * half;
    return channel(pixel, q);
  }

  // Vectors at column c of the product and of what passes by. dense.
  template <int V>
  __device__ void put(int64_t pixel, int c, const Pack<S, V>& product, const Pack<S, V>& passing) const {
    if (method == 1) {  // both sides of the shuffle have as many channels
      const Pack<S, V> from[2] = {passing, product};
      Pack<S, V> to[2];
      exchange<S, V>(1, from, to);
#pragma unroll
      for (int s = 0; s < 2; ++s) store<S, V>(channel(pixel, 2 * c + s * V), to[s]);
      return;
    }
    put_alone<V>(pixel, offset + c, product);
    if (left) put_alone<V>(pixel, c, passing);
  }

 private:
  // A vector at channel q of the concatenation, which goes to both halves or to none.
  template <int V>
  __device__ void put_alone(int64_t pixel, int q, const Pack<S, V>& v) const {
    if (method == 0) return store<S, V>(first + pixel * half + q, v);
    Pack<S, V / 2> from[2], to[2];
#pragma unroll
    for (int i = 0; i < V; ++i) from[2 * i / V].lane[i % (V / 2)] = v.lane[i];
    exchange<S, V / 2>(2, from, to);
    store<S, V / 2>(first + pixel * half + q / 2, to[0]);
    store<S, V / 2>(second + pixel * half + q / 2, to[1]);
  }
};

}  // namespace cuda
}  // namespace detnas
