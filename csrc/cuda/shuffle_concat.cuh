// Shuffled concatenation of two maps, each read through what is pending on it.
//
// Terminology: q is a channel of the concatenation, j one of the shuffled result. A thread owns a
// pair of vectors, chosen so that both sides of the shuffle are whole vectors: method 2 reads two
// neighbours and writes one to each half; method 1 reads one of each half and writes two
// neighbours; method 0 copies two neighbours.
#pragma once
#include "pixelwise.cuh"

namespace detnas {
namespace cuda {

template <typename S>
struct Shuffle {
  Source<S> left, right;
  int c_left, c_right, method, c_out_left;
  S* out_left;
  S* out_right;
  int64_t ld_out_left, ld_out_right;
};

// First channels of a thread's two vectors; the second may lie behind the last channel.
struct PairAt {
  int q[2], j[2];
  bool inside[2];
};

template <int V>
__device__ inline PairAt pair_at(int method, int channels) {
  const int k = (blockIdx.x * blockDim.x + threadIdx.x) * V, half = channels / 2;
  const bool all = method == 0 ? 2 * k + V < channels : k < half;
  const bool any = method == 0 ? 2 * k < channels : k < half;
  PairAt at{{2 * k, 2 * k + V}, {2 * k, 2 * k + V}, {any, all}};
  if (method == 1) {
    at.q[0] = k;
    at.q[1] = half + k;
  }
  if (method == 2) {
    at.j[0] = k;
    at.j[1] = half + k;
  }
  if (!at.inside[1]) at.q[1] = at.q[0];  // read twice, written once
  if (!at.inside[1]) at.j[1] = at.j[0];
  return at;
}

// The side that channel q lies on, by value, so that no array of arguments is indexed.
template <typename S>
__device__ inline Source<S> side(const Source<S>& left, const Source<S>& right, bool is_left) {
  Source<S> s;
  s.data = is_left ? left.data : right.data;
  s.ld = is_left ? left.ld : right.ld;
  s.scale = is_left ? left.scale : right.scale;
  s.shift = is_left ? left.shift : right.shift;
  s.relu = is_left ? left.relu : right.relu;
  return s;
}
// batch: whose vectors are pending.
template <typename S, int V, typename A>
__device__ inline Reader<S, V> reader_at(const A& a, int q, int batch = 0) {
  const bool left = q < a.c_left;
  return Reader<S, V>(side(a.left, a.right, left), left ? q : q - a.c_left,
                      batch * (left ? a.c_left : a.c_right));
}

template <typename S, int V>
__global__ void shuffle_kernel(Shuffle<S> a, int64_t pixels, int64_t per_chunk) {
  constexpr int U = 2;  // pixels in flight
  const PairAt at = pair_at<V>(a.method, a.c_left + a.c_right);
  if (!at.inside[0]) return;
  const int batch = blockIdx.z;
  const Reader<S, V> first = reader_at<S, V>(a, at.q[0], batch), second = reader_at<S, V>(a, at.q[1], batch);
  S* out[2];
  int64_t ld[2];
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    const bool left = at.j[s] < a.c_out_left;
    out[s] = left ? a.out_left + at.j[s] : a.out_right + (at.j[s] - a.c_out_left);
    ld[s] = left ? a.ld_out_left : a.ld_out_right;
  }
  const int64_t begin = blockIdx.z * pixels + blockIdx.y * per_chunk, rows = blockDim.y;
  const int64_t last = (blockIdx.z + 1) * pixels, end = begin + per_chunk < last ? begin + per_chunk : last;
  for (int64_t p = begin + threadIdx.y; p < end; p += U * rows) {
    Pack<S, V> raw[U][2];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t pixel = p + u * rows < end ? p + u * rows : p;
      raw[u][0] = first.load(pixel);
      raw[u][1] = second.load(pixel);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t pixel = p + u * rows;
      float v[2][V];
      first.values(raw[u][0], v[0]);
      second.values(raw[u][1], v[1]);
      const Pack<S, V> from[2] = {pack<S, V>(v[0]), pack<S, V>(v[1])};
      Pack<S, V> to[2];
      exchange<S, V>(a.method, from, to);
#pragma unroll
      for (int s = 0; s < 2; ++s)
        if (pixel < end && at.inside[s]) store<S, V>(out[s] + pixel * ld[s], to[s]);
    }
  }
}

// Whether every vector of a pair lies on one side and is aligned.
template <typename S, typename A>
bool whole_vectors(const A& a) {
  const int v = 16 / sizeof(S), channels = a.c_left + a.c_right;
  return vectorizable(a.left, a.c_left) && vectorizable(a.right, a.c_right) && a.c_out_left % v == 0 &&
         channels % (a.method == 0 ? v : 2 * v) == 0;
}
// Threads along channels that the pairs need.
inline int64_t pair_count(int channels, int v) { return ceil_div(channels, 2 * v); }

template <typename S, int V>
void launch_shuffle_v(const Shuffle<S>& a, int64_t pixels, int64_t batches, Stream stream) {
  auto kernel = &shuffle_kernel<S, V>;
  const Tiling t = tiling(pixels, pair_count(a.c_left + a.c_right, V), 2, 4096);
  const dim3 grid(t.slabs, t.chunks, batches);
  DETNAS_LAUNCH(kernel, grid, t.block(), 0, stream, a, pixels, t.per_chunk);
}

// pixels > 0, of a batch; some channels.
template <typename S>
void launch_shuffle(const Shuffle<S>& a, int64_t pixels, Stream stream, int64_t batches = 1) {
  const int64_t rest = a.c_left + a.c_right - a.c_out_left;
  if (whole_vectors<S>(a) && vectorizable<S>(a.out_left, a.ld_out_left, a.c_out_left) &&
      (rest == 0 || vectorizable<S>(a.out_right, a.ld_out_right, rest)))
    launch_shuffle_v<S, 16 / sizeof(S)>(a, pixels, batches, stream);
  else
    launch_shuffle_v<S, 1>(a, pixels, batches, stream);
}

}  // namespace cuda
}  // namespace detnas
