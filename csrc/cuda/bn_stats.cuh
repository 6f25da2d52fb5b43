// BatchNorm statistics: one read of the map, one row of partial moments per block, merged by Chan's
// formula in a second small kernel. No atomics: results are reproducible.
#pragma once
#include "platform.cuh"

namespace detnas {
namespace cuda {

struct Moments {
  float n, mean, m2;
  __device__ void merge(float n2, float mean2, float m2_2) {
    if (n2 == 0.f) return;
    const float total = n + n2, delta = mean2 - mean;
    mean = n == 0.f ? mean2 : mean + delta * (n2 / total);
    m2 = m2 + m2_2 + (n == 0.f ? 0.f : delta * delta * (n * n2 / total));
    n = total;
  }
};

// Merges the moments of a block's kRows rows of threads; row 0 writes partial[chunk].
template <int V>
__device__ void write_moments(Moments (&local)[V], int c, int channels, float* mean, float* m2,
                              float* count, int64_t chunk) {
  DETNAS_SHARED(Moments, shared);  // [kRows][kLanes * V]
  for (int i = 0; i < V; ++i) shared[threadIdx.y * kLanes * V + threadIdx.x * V + i] = local[i];
  __syncthreads();
  if (threadIdx.y == 0 && c < channels) {
    for (int i = 0; i < V; ++i) {
      Moments m = local[i];
      for (int r = 1; r < kRows; ++r) {
        const Moments o = shared[r * kLanes * V + threadIdx.x * V + i];
        m.merge(o.n, o.mean, o.m2);
      }
      mean[chunk * channels + c + i] = m.mean;
      m2[chunk * channels + c + i] = m.m2;
      if (c + i == 0) count[chunk] = m.n;
    }
  }
}

template <typename S, int V>
__global__ void stats_kernel(Source<S> x, int64_t pixels, int channels, int64_t per_chunk,
                             float* mean, float* m2, float* count) {
  const int c = (blockIdx.x * kLanes + threadIdx.x) * V;
  const int64_t begin = blockIdx.y * per_chunk;
  const int64_t end = begin + per_chunk < pixels ? begin + per_chunk : pixels;
  Moments local[V];
  float ref[V], sum[V], sq[V];
  for (int i = 0; i < V; ++i) ref[i] = sum[i] = sq[i] = 0.f;
  int64_t n = 0;
  if (c < channels) {
    for (int64_t p = begin + threadIdx.y; p < end; p += kRows) {
      float v[V];
      x.template read<V>(p, c, v);
      if (n == 0)  // sums of differences from the first value: no cancellation
        for (int i = 0; i < V; ++i) ref[i] = v[i] - v[i] == 0.f ? v[i] : 0.f;
      for (int i = 0; i < V; ++i) {
        const float d = v[i] - ref[i];
        sum[i] += d;
        sq[i] += d * d;
      }
      ++n;
    }
  }
  for (int i = 0; i < V; ++i) {
    const float k = static_cast<float>(n), m = n ? sum[i] / k : 0.f, s = sq[i] - sum[i] * m;
    local[i] = {k, ref[i] + m, s < 0.f ? 0.f : s};
  }
  write_moments<V>(local, c, channels, mean, m2, count, blockIdx.y);
}

// One thread per channel merges the chunks.
static __global__ void merge_moments_kernel(const float* mean, const float* m2, const float* count,
                                     int64_t chunks, int channels, float* out_mean, float* out_m2) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  double n = 0, mu = 0, m = 0;
  for (int64_t k = 0; k < chunks; ++k) {
    const double nk = count[k], mk = mean[k * channels + c];
    if (nk == 0) continue;
    const double total = n + nk, delta = mk - mu;
    m += m2[k * channels + c] + (n == 0 ? 0 : delta * delta * (n * nk / total));
    mu = n == 0 ? mk : mu + delta * (nk / total);
    n = total;
  }
  out_mean[c] = static_cast<float>(mu);
  out_m2[c] = static_cast<float>(m);
}

inline void launch_merge_moments(const float* partial, int64_t chunks, int channels, float* mean,
                                 float* m2, Stream stream) {
  auto kernel = &merge_moments_kernel;
  DETNAS_LAUNCH(kernel, dim3(ceil_div(channels, 128)), dim3(128), 0, stream, partial,
                partial + chunks * channels, partial + 2 * chunks * channels, chunks, channels, mean, m2);
}

// Partial moments: mean [chunks][channels], m2 [chunks][channels], count [chunks].
inline int64_t moments_size(int64_t chunks, int64_t channels) { return chunks * (2 * channels + 1); }

template <typename S, int V>
void launch_stats_v(const Source<S>& x, int64_t pixels, int channels, int64_t chunks, float* partial,
                    Stream stream) {
  auto kernel = &stats_kernel<S, V>;
  DETNAS_LAUNCH(kernel, dim3(ceil_div(channels, kLanes * V), chunks), dim3(kLanes, kRows),
                kRows * kLanes * V * sizeof(Moments), stream, x, pixels, channels,
                ceil_div(pixels, chunks), partial, partial + chunks * channels,
                partial + 2 * chunks * channels);
}

// pixels > 0. partial: moments_size(chunks, channels) floats, chunks = chunk_count(pixels, 1).
template <typename S>
void launch_stats(const Source<S>& x, int64_t pixels, int channels, int64_t chunks, float* partial,
                  float* mean, float* m2, Stream stream) {
  if (vectorizable(x, channels))
    launch_stats_v<S, 16 / sizeof(S)>(x, pixels, channels, chunks, partial, stream);
  else
    launch_stats_v<S, 1>(x, pixels, channels, chunks, partial, stream);
  launch_merge_moments(partial, chunks, channels, mean, m2, stream);
}

}  // namespace cuda
}  // namespace detnas
