// Sums of up to kMaxMixed maps in one launch, each through its own affine map and weight.
#pragma once
#include "pixelwise.cuh"

namespace detnas {
namespace cuda {

// Maps are contiguous: [pixels][channels].
template <typename S>
struct Mixed {
  const S* y[kMaxMixed];
  const float* scale[kMaxMixed];
  const float* shift[kMaxMixed];
  const float* weights;
  int count;
  const S* residual;
  S* out;
  const float* from;  // the sum of earlier launches, or null
  float* to;          // where the sum goes for the next one, instead of to `out`, or null
  const S* grad;
  S* grad_y[kMaxMixed];
};

// N: registers for so many maps; count <= N. U: pixels in flight.
template <typename S, int V, int N, int U>
__global__ void __launch_bounds__(kBlock, 3)
mixed_sum_kernel(Mixed<S> a, int64_t pixels, int channels, int64_t per_chunk) {
  const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (c >= channels) return;
  float factor[N][V], constant[V];
#pragma unroll
  for (int i = 0; i < V; ++i) constant[i] = 0.f;
#pragma unroll
  for (int n = 0; n < N; ++n)
    if (n < a.count) {
      const float w = a.weights[n];
      float shift[V];
      load_vector<V>(a.scale[n] + c, factor[n]);
      load_vector<V>(a.shift[n] + c, shift);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        factor[n][i] *= w;
        constant[i] += w * shift[i];
      }
    }
  const int64_t begin = blockIdx.y * per_chunk, rows = blockDim.y;
  const int64_t end = begin + per_chunk < pixels ? begin + per_chunk : pixels;
  for (int64_t p = begin + threadIdx.y; p < end; p += U * rows) {
    Pack<S, V> raw[U][N], rest[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t at = (p + u * rows < end ? p + u * rows : p) * channels + c;
#pragma unroll
      for (int n = 0; n < N; ++n)
        if (n < a.count) raw[u][n] = load<S, V>(a.y[n] + at);
      if (a.residual) rest[u] = load<S, V>(a.residual + at);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float v[V];
#pragma unroll
      for (int i = 0; i < V; ++i)
        v[i] = constant[i] + (a.residual ? static_cast<float>(rest[u].lane[i]) : 0.f);
      const int64_t at = (p + u * rows) * channels + c;
      if (p + u * rows >= end) continue;
      if (a.from) {
        float before[V];
        load_vector<V>(a.from + at, before);
#pragma unroll
        for (int i = 0; i < V; ++i) v[i] += before[i];
      }
#pragma unroll
      for (int n = 0; n < N; ++n)
        if (n < a.count)
#pragma unroll
          for (int i = 0; i < V; ++i) v[i] += factor[n][i] * static_cast<float>(raw[u][n].lane[i]);
      if (a.to) store<float, V>(a.to + at, v);
      else store<S, V>(a.out + at, v);
    }
  }
}

template <typename S, int V>
void launch_mixed_sum_v(const Mixed<S>& a, int64_t pixels, int channels, Stream stream) {
  auto kernel = a.count <= 4 ? &mixed_sum_kernel<S, V, 4, V == 8 ? 1 : 2> : &mixed_sum_kernel<S, V, kMaxMixed, 1>;
  const Tiling t = tiling(pixels, channels / V, 2, 4096);
  DETNAS_LAUNCH(kernel, t.grid(), t.block(), 0, stream, a, pixels, channels, t.per_chunk);
}

template <typename S>
bool vectorizable(const Mixed<S>& a, int channels) {
  auto fits = [&](const S* p) { return vectorizable<S>(p, channels, channels); };
  bool all = fits(a.out) && fits(a.residual) && fits(a.grad) &&
      vectorizable<S>(a.from, channels, channels) && vectorizable<S>(a.to, channels, channels);
  for (int i = 0; i < a.count; ++i) {
    Source<S> y;
    y.data = a.y[i];
    y.ld = channels;
    y.scale = a.scale[i];
    y.shift = a.shift[i];
    all = all && vectorizable(y, channels) && fits(a.grad_y[i]);
  }
  return all;
}

// pixels, channels > 0.
template <typename S>
void launch_mixed_sum(const Mixed<S>& a, int64_t pixels, int channels, Stream stream) {
  if (vectorizable(a, channels)) launch_mixed_sum_v<S, 16 / sizeof(S)>(a, pixels, channels, stream);
  else launch_mixed_sum_v<S, 1>(a, pixels, channels, stream);
}

}  // namespace cuda
}  // namespace detnas
