// The gradient of shuffled concatenations, and so of a map's pending affine map and ReLU.
#pragma once
#include "shuffle_concat.cuh"

namespace detnas {
namespace cuda {

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
__global__ void __launch_bounds__(kBlock, 3)
affine_grad_kernel(AffineGrad<S> a, int64_t pixels, int64_t per_chunk) {
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
  const Segments<float> to{{sums[0], sums[1], sums[2], sums[3]}, {l, c, c + l, 2 * c}};
  launch_sum_chunks(a.partial, t.chunks, 2 * c, to, stream);
}

}  // namespace cuda
}  // namespace detnas
