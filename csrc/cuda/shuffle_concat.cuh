// Shuffled concatenation of two maps, each read through what is pending on it, and its gradient.
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

// The gradient of Shuffle: forward's sources and the gradients of its outputs; out_left and
// out_right are those of left and right, contiguous. A source without data is not read: nothing is
// pending on it. partial: [chunk][2][channels], the sums of g * x and g, or null.
template <typename S>
struct AffineGrad {
  Source<S> left, right;
  int c_left, c_right, method, c_out_left;
  const S* grad_left;
  const S* grad_right;
  int64_t ld_grad_left, ld_grad_right;
  S* out_left;
  S* out_right;
  float* partial;
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

// From the order of q to that of j; the methods 1 and 2 are each other's inverse.
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
template <typename S, int V, typename A>
__device__ inline Reader<S, V> reader_at(const A& a, int q) {
  return Reader<S, V>(side(a.left, a.right, q < a.c_left), q < a.c_left ? q : q - a.c_left);
}

template <typename S, int V>
__global__ void shuffle_kernel(Shuffle<S> a, int64_t pixels, int64_t per_chunk) {
  constexpr int U = 2;  // pixels in flight
  const PairAt at = pair_at<V>(a.method, a.c_left + a.c_right);
  if (!at.inside[0]) return;
  const Reader<S, V> first = reader_at<S, V>(a, at.q[0]), second = reader_at<S, V>(a, at.q[1]);
  S* out[2];
  int64_t ld[2];
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    const bool left = at.j[s] < a.c_out_left;
    out[s] = left ? a.out_left + at.j[s] : a.out_right + (at.j[s] - a.c_out_left);
    ld[s] = left ? a.ld_out_left : a.ld_out_right;
  }
  const int64_t begin = blockIdx.y * per_chunk, rows = blockDim.y;
  const int64_t end = begin + per_chunk < pixels ? begin + per_chunk : pixels;
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

// The gradient through one source: writes that of x, adds to the sums of g * x and g.
template <typename S, int V>
__device__ inline void grad_through(const Reader<S, V>& reader, const Pack<S, V>& raw,
                                    const Pack<S, V>& grad, S* out, float (&dot)[V], float (&total)[V]) {
  float dx[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float x = static_cast<float>(raw.lane[i]);
    const bool stopped = reader.relu && x * reader.scale[i] + reader.shift[i] <= 0.f;
    const float g = stopped ? 0.f : static_cast<float>(grad.lane[i]);
    dot[i] += g * x;
    total[i] += g;
    dx[i] = g * reader.scale[i];
  }
  store<S, V>(out, dx);
}

template <typename S, int V>
__global__ void __launch_bounds__(kBlock, 3) affine_grad_kernel(AffineGrad<S> a, int64_t pixels, int64_t per_chunk) {
  DETNAS_SHARED(float, shared);
  const int channels = a.c_left + a.c_right;
  const PairAt at = pair_at<V>(a.method, channels);
  const int64_t begin = blockIdx.y * per_chunk;
  const int64_t end = begin + per_chunk < pixels ? begin + per_chunk : pixels;
  float dot[2][V], total[2][V];
#pragma unroll
  for (int s = 0; s < 2; ++s)
#pragma unroll
    for (int i = 0; i < V; ++i) dot[s][i] = total[s][i] = 0.f;
  if (at.inside[0]) {
    const Reader<S, V> first = reader_at<S, V>(a, at.q[0]), second = reader_at<S, V>(a, at.q[1]);
    const S* grad[2];
    S* out[2];
    int64_t ld[2], ld_out[2];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const bool from_left = at.j[s] < a.c_out_left, left = at.q[s] < a.c_left;
      grad[s] = from_left ? a.grad_left + at.j[s] : a.grad_right + (at.j[s] - a.c_out_left);
      ld[s] = from_left ? a.ld_grad_left : a.ld_grad_right;
      out[s] = left ? a.out_left + at.q[s] : a.out_right + (at.q[s] - a.c_left);
      ld_out[s] = left ? a.c_left : a.c_right;
    }
    for (int64_t p = begin + threadIdx.y; p < end; p += blockDim.y) {
      Pack<S, V> g[2], x[2];
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        g[s] = load<S, V>(grad[s] + p * ld[s]);
#pragma unroll
        for (int i = 0; i < V; ++i) x[s].lane[i] = static_cast<S>(0.f);
      }
      if (first.data) x[0] = first.load(p);
      if (second.data) x[1] = second.load(p);
      Pack<S, V> to[2];
      exchange<S, V>(a.method == 0 ? 0 : 3 - a.method, g, to);
      grad_through<S, V>(first, x[0], to[0], out[0] + p * ld_out[0], dot[0], total[0]);
      if (at.inside[1])
        grad_through<S, V>(second, x[1], to[1], out[1] + p * ld_out[1], dot[1], total[1]);
    }
  }
  if (!a.partial) return;
  float* row = a.partial + blockIdx.y * 2 * static_cast<int64_t>(channels);
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    block_sums<V>(dot[s], shared, at.inside[s] ? row + at.q[s] : nullptr);
    block_sums<V>(total[s], shared, at.inside[s] ? row + channels + at.q[s] : nullptr);
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
void launch_shuffle_v(const Shuffle<S>& a, int64_t pixels, Stream stream) {
  auto kernel = &shuffle_kernel<S, V>;
  const Tiling t = tiling(pixels, pair_count(a.c_left + a.c_right, V), 2, 4096);
  DETNAS_LAUNCH(kernel, t.grid(), t.block(), 0, stream, a, pixels, t.per_chunk);
}

// pixels > 0; some channels.
template <typename S>
void launch_shuffle(const Shuffle<S>& a, int64_t pixels, Stream stream) {
  const int64_t rest = a.c_left + a.c_right - a.c_out_left;
  if (whole_vectors<S>(a) && vectorizable<S>(a.out_left, a.ld_out_left, a.c_out_left) &&
      (rest == 0 || vectorizable<S>(a.out_right, a.ld_out_right, rest)))
    launch_shuffle_v<S, 16 / sizeof(S)>(a, pixels, stream);
  else
    launch_shuffle_v<S, 1>(a, pixels, stream);
}

template <typename S>
bool vector_grad(const AffineGrad<S>& a) {
  const int64_t rest = a.c_left + a.c_right - a.c_out_left;
  return whole_vectors<S>(a) && vectorizable<S>(a.grad_left, a.ld_grad_left, a.c_out_left) &&
         (rest == 0 || vectorizable<S>(a.grad_right, a.ld_grad_right, rest)) &&
         vectorizable<S>(a.out_left, a.c_left, a.c_left) && vectorizable<S>(a.out_right, a.c_right, a.c_right);
}
template <typename S>
Tiling affine_grad_tiling(const AffineGrad<S>& a, int64_t pixels) {
  return reduction_tiling(pixels, pair_count(a.c_left + a.c_right, vector_grad(a) ? 16 / sizeof(S) : 1), 1);
}

// a.partial: affine_grad_tiling(a, pixels).chunks * 2 * channels floats, or null without `sums`.
// sums: of the scale of left and right, then of the shift of left and right; each may be null.
template <typename S>
void launch_affine_grad(const AffineGrad<S>& a, int64_t pixels, float* const (&sums)[4], Stream stream) {
  const Tiling t = affine_grad_tiling(a, pixels);
  const bool vector = vector_grad(a);
  auto kernel = vector ? &affine_grad_kernel<S, 16 / sizeof(S)> : &affine_grad_kernel<S, 1>;
  const int64_t shared = a.partial ? (vector ? 16 / sizeof(S) : 1) * t.threads() * sizeof(float) : 0;
  DETNAS_LAUNCH(kernel, t.grid(), t.block(), shared, stream, a, pixels, t.per_chunk);
  if (!a.partial) return;
  const int64_t l = a.c_left, c = l + a.c_right;
  const Segments to{{sums[0], sums[1], sums[2], sums[3]}, {l, c, c + l, 2 * c}};
  launch_sum_chunks(a.partial, t.chunks, 2 * c, to, stream);
}

}  // namespace cuda
}  // namespace detnas
