// BatchNorm statistics: one read of the maps, one row of partial moments per chunk of pixels, merged
// by Chan's formula in the last block (last_block.cuh).
#pragma once
#include <vector>

#include "last_block.cuh"
#include "pixelwise.cuh"

namespace detnas {
namespace cuda {

constexpr int kMaxMaps = 8;        // maps that one launch of the statistics reads
constexpr int kStatsInFlight = 4;  // pixels that a thread reads at a time

struct Moments {
  float n, mean, m2;
  __device__ void merge(float n2, float mean2, float m2_2) {
    if (n2 == 0.f) return;
    const float total = n + n2, delta = mean2 - mean;
    mean = n == 0.f ? mean2 : merged_mean(mean, mean2, n2 / total);
    m2 = m2 + m2_2 + (n == 0.f ? 0.f : delta * delta * (n * n2 / total));
    n = total;
  }
};

// Maps of the same channels and what is pending on all of them; map m has chunks first[m] and on.
template <typename S>
struct StatsMaps {
  const S* data[kMaxMaps];
  int64_t ld[kMaxMaps], pixels[kMaxMaps];
  int first[kMaxMaps];
  int count;
  int64_t per_chunk;
  const float *scale, *shift;
  bool relu;
};

// Partial moments of all launches of some statistics: mean [rows][channels], m2 [rows][channels], count
// [slabs][rows]; null where the only row is the result. Those of a further batch follow.
struct PartialMoments {
  float* data;
  int64_t rows, first;  // first: of the launch
  unsigned* tickets;    // one for each slab, or null: another launch follows
};
__host__ __device__ inline int64_t moments_size(int64_t rows, int64_t channels, int64_t slabs) {
  return rows * (2 * channels + slabs);
}

// Pixels that thread row `row` of `rows` has among `pixels`.
__device__ inline int row_share(int64_t pixels, int row, int rows) {
  return pixels > row ? static_cast<int>((pixels - row + rows - 1) / rows) : 0;
}

// Moments of the block's pixels from those of its rows of threads, for V channels from c: put(channel,
// mean, m2).
template <int V, typename F>
__device__ void merge_threads(const float (&mean)[V], const float (&m2)[V], int64_t pixels, int c,
                              int channels, const F& put) {
  DETNAS_SHARED(float, means);  // [V][threads], then as much for m2
  const int lanes = blockDim.x, rows = blockDim.y, threads = lanes * rows;
  float* squares = means + V * threads;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    means[i * threads + threadIdx.y * lanes + threadIdx.x] = mean[i];
    squares[i * threads + threadIdx.y * lanes + threadIdx.x] = m2[i];
  }
  __syncthreads();
  if (c >= channels) return;
  for (int i = threadIdx.y; i < V; i += rows) {
    const int at = i * threads + threadIdx.x;
    const float ref = finite_or_zero(means[at]);
    float sum = 0.f, square = 0.f;
    for (int r = 0; r < rows; ++r) {
      const int n = row_share(pixels, r, rows);
      if (n > 0) sum += static_cast<float>(n) * (means[at + r * lanes] - ref);
    }
    const float delta = sum / static_cast<float>(pixels);
    for (int r = 0; r < rows; ++r) {
      const int n = row_share(pixels, r, rows);
      const float d = means[at + r * lanes] - ref - delta;
      if (n > 0) square += squares[at + r * lanes] + static_cast<float>(n) * d * d;
    }
    put(c + i, ref + delta, square);
  }
}

// What sums are of differences from: the mean of a thread's first values (at most U of `count`), so
// that nothing cancels and no single value decides.
template <int V, int U, typename R, typename Raw>
__device__ void first_mean(const R& reader, const Raw (&raw)[U], int count, float (&ref)[V]) {
  const float share = 1.f / static_cast<float>(count < U ? count : U);
  float base[V], sum[V];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    float v[V];
    reader.values(raw[u], v);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (u == 0) base[i] = finite_or_zero(v[i]), sum[i] = 0.f;
      sum[i] += u < count ? v[i] - base[i] : 0.f;
    }
  }
#pragma unroll
  for (int i = 0; i < V; ++i) ref[i] = base[i] + finite_or_zero(sum[i] * share);
}

template <typename S, int V>
__global__ void stats_kernel(StatsMaps<S> a, int channels, PartialMoments partial, StatsOut out) {
  Source<S> x;
  int64_t pixels = 0, chunk = 0;
#pragma unroll
  for (int m = 0; m < kMaxMaps; ++m)
    if (m < a.count && static_cast<int>(blockIdx.y) >= a.first[m]) {
      x.data = a.data[m];
      x.ld = a.ld[m];
      pixels = a.pixels[m];
      chunk = blockIdx.y - a.first[m];
    }
  x.scale = a.scale;
  x.shift = a.shift;
  x.relu = a.relu;
  x.data += blockIdx.z * pixels * x.ld;
  out = skip(out, static_cast<int64_t>(blockIdx.z) * channels);
  constexpr int U = kStatsInFlight;
  const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V, rows = blockDim.y;
  const int64_t begin = chunk * a.per_chunk;
  const int64_t end = begin + a.per_chunk < pixels ? begin + a.per_chunk : pixels;
  float ref[V], sum[V], sq[V];
#pragma unroll
  for (int i = 0; i < V; ++i) ref[i] = sum[i] = sq[i] = 0.f;
  if (c < channels) {
    const Reader<S, V> reader(x, c, static_cast<int>(blockIdx.z) * channels);
    for (int64_t p = begin + threadIdx.y; p < end; p += U * rows) {
      Pack<S, V> raw[U];
#pragma unroll
      for (int u = 0; u < U; ++u) raw[u] = reader.load(p + u * rows < end ? p + u * rows : p);
      if (p < begin + rows) first_mean<V, U>(reader, raw, row_share(end - p, 0, rows), ref);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        float v[V];
        reader.values(raw[u], v);
        const bool inside = p + u * rows < end;
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const float d = inside ? v[i] - ref[i] : 0.f;
          sum[i] += d;
          sq[i] += d * d;
        }
      }
    }
  }
  const int n = row_share(end - begin, threadIdx.y, rows);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float mean = n ? sum[i] / static_cast<float>(n) : 0.f, s = sq[i] - sum[i] * mean;
    ref[i] += mean;
    sq[i] = s < 0.f ? 0.f : s;
  }
  if (!partial.data) {
    merge_threads<V>(ref, sq, end - begin, c, channels, [&](int channel, float mean, float m2) {
      out.put(channel, static_cast<double>(end - begin), mean, m2);
    });
    return;
  }
  float* means = partial.data + blockIdx.z * moments_size(partial.rows, channels, gridDim.x);
  float* squares = means + partial.rows * channels;
  float* counts = squares + partial.rows * channels + blockIdx.x * partial.rows;
  const int64_t row = partial.first + blockIdx.y;
  merge_threads<V>(ref, sq, end - begin, c, channels, [&](int channel, float mean, float m2) {
    means[row * channels + channel] = mean;
    squares[row * channels + channel] = m2;
  });
  if (threadIdx.x == 0 && threadIdx.y == 0) counts[row] = static_cast<float>(end - begin);
  if (!partial.tickets || !last_block(partial.tickets + blockIdx.z * gridDim.x + blockIdx.x, gridDim.y)) return;
  DETNAS_SHARED(double, shared);
  const int slab = blockDim.x * V, begin_c = blockIdx.x * slab;
  const int end_c = begin_c + slab < channels ? begin_c + slab : channels;
  for (int c0 = begin_c; c0 < end_c; c0 += kLanes)
    merge_rows({means, squares, channels, partial.rows}, [&](int64_t k) { return counts[k]; }, c0, end_c,
               shared, out);
}

template <typename S>
struct StatsInput {
  Source<S> map;
  int64_t pixels;
};

// How the statistics of some maps together are made; chunks of all of them.
struct StatsPlan {
  Tiling tiling;
  bool vector;
  int64_t chunks;
};

// maps: at least one, none empty, with the same vectors pending; a batch of each.
template <typename S>
StatsPlan plan_stats(const std::vector<StatsInput<S>>& maps, int channels) {
  StatsPlan plan{{}, true, 0};
  int64_t pixels = 0;
  for (const StatsInput<S>& m : maps) {
    plan.vector = plan.vector && vectorizable(m.map, channels);
    pixels += m.pixels;
  }
  plan.tiling = reduction_tiling(pixels, plan.vector ? channels / (16 / sizeof(S)) : channels, kStatsInFlight);
  for (const StatsInput<S>& m : maps) plan.chunks += ceil_div(m.pixels, plan.tiling.per_chunk);
  return plan;
}

// Of every batch: partial: moments_size(plan.chunks, channels, plan.tiling.slabs) floats, and
// plan.tiling.slabs tickets; unused if there is one chunk.
template <typename S>
void launch_stats(const std::vector<StatsInput<S>>& maps, const StatsPlan& plan, int channels,
                  int64_t batches, float* partial, unsigned* tickets, const StatsOut& out, Stream stream) {
  auto kernel = plan.vector ? &stats_kernel<S, 16 / sizeof(S)> : &stats_kernel<S, 1>;
  const int64_t v = plan.vector ? 16 / sizeof(S) : 1, threads = plan.tiling.threads();
  const int64_t own = 2 * v * threads * static_cast<int64_t>(sizeof(float));
  const int64_t shared = plan.chunks > 1 && merge_shared(threads) > own ? merge_shared(threads) : own;
  PartialMoments rows{plan.chunks > 1 ? partial : nullptr, plan.chunks, 0, nullptr};
  for (size_t begin = 0; begin < maps.size(); begin += kMaxMaps) {
    StatsMaps<S> a{};
    int64_t chunks = 0;
    for (size_t i = begin; i < maps.size() && i < begin + kMaxMaps; ++i) {
      a.data[a.count] = maps[i].map.data;
      a.ld[a.count] = maps[i].map.ld;
      a.pixels[a.count] = maps[i].pixels;
      a.first[a.count++] = static_cast<int>(chunks);
      chunks += ceil_div(maps[i].pixels, plan.tiling.per_chunk);
    }
    a.per_chunk = plan.tiling.per_chunk;
    a.scale = maps[0].map.scale;
    a.shift = maps[0].map.shift;
    a.relu = maps[0].map.relu;
    if (begin + kMaxMaps >= maps.size()) rows.tickets = tickets;
    DETNAS_LAUNCH(kernel, dim3(plan.tiling.slabs, chunks, batches), plan.tiling.block(), shared, stream, a, channels,
                  rows, out);
    rows.first += chunks;
  }
}

}  // namespace cuda
}  // namespace detnas
