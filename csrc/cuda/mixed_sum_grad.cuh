// The gradient of mixed sums: of every map, of its affine map and of its weight.
#pragma once
#include "mixed_sum.cuh"

namespace detnas {
namespace cuda {

// Partial sums of the gradient, per chunk: maps [chunks][1 + count][channels], sums of grad and of
// grad * y_n; shares [chunks * slabs][count] of the gradient of the weights.
struct MixedPartial {
  float *maps, *shares;
};

// Maps that a block takes: more would cost more registers than a thread has.
template <int V>
constexpr int mixed_group() { return V == 8 ? 4 : kMaxMixed; }

// list[n0 + n], n0 either 0 or N: no array of arguments is indexed by a variable.
template <int N, typename T>
__device__ inline T of_group(T const (&list)[kMaxMixed], int n0, int n) {
  return N < kMaxMixed && n0 ? list[(n + N) % kMaxMixed] : list[n];
}

// A block (x, y) reads grad and a group of maps once, groups beside each other in x.
template <typename S, int V>
__global__ void __launch_bounds__(kBlock, 3)
mixed_sum_grad_kernel(Mixed<S> a, int64_t pixels, int channels, int64_t per_chunk, int groups,
                      MixedPartial partial) {
  DETNAS_SHARED(float, shared);  // max(V, N) floats per thread, then N per lane
  constexpr int N = mixed_group<V>();
  const int slab = blockIdx.x / groups, n0 = blockIdx.x % groups * N;
  const int count = a.count - n0 < N ? a.count - n0 : N;
  const int c = (slab * blockDim.x + threadIdx.x) * V;
  const int64_t begin = blockIdx.y * per_chunk;
  const int64_t end = begin + per_chunk < pixels ? begin + per_chunk : pixels;
  float total[V], dot[N][V], factor[N][V], share[N];
#pragma unroll
  for (int i = 0; i < V; ++i) total[i] = 0.f;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    share[n] = 0.f;
#pragma unroll
    for (int i = 0; i < V; ++i) dot[n][i] = factor[n][i] = 0.f;
  }
  if (c < channels) {
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (n < count) {
        load_vector<V>(of_group<N>(a.scale, n0, n) + c, factor[n]);
#pragma unroll
        for (int i = 0; i < V; ++i) factor[n][i] *= a.weights[n0 + n];
      }
    for (int64_t p = begin + threadIdx.y; p < end; p += blockDim.y) {
      const int64_t at = p * channels + c;
      const Pack<S, V> grad = load<S, V>(a.grad + at);
      Pack<S, V> raw[N];
#pragma unroll
      for (int n = 0; n < N; ++n)
        if (n < count) raw[n] = load<S, V>(of_group<N>(a.y, n0, n) + at);
      float g[V], dy[V];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        g[i] = static_cast<float>(grad.lane[i]);
        total[i] += g[i];
      }
#pragma unroll
      for (int n = 0; n < N; ++n)
        if (n < count) {
#pragma unroll
          for (int i = 0; i < V; ++i) {
            dot[n][i] += g[i] * static_cast<float>(raw[n].lane[i]);
            dy[i] = g[i] * factor[n][i];
          }
          store<S, V>(of_group<N>(a.grad_y, n0, n) + at, dy);
        }
    }
    // The weights' gradient is the sum over channels of scale * dot + shift * total.
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (n < count) {
        float scale[V], shift[V];
        load_vector<V>(of_group<N>(a.scale, n0, n) + c, scale);
        load_vector<V>(of_group<N>(a.shift, n0, n) + c, shift);
#pragma unroll
        for (int i = 0; i < V; ++i) share[n] += scale[i] * dot[n][i] + shift[i] * total[i];
      }
  }
  float* row = c < channels ? partial.maps + blockIdx.y * (1 + a.count) * static_cast<int64_t>(channels) + c
                            : nullptr;
  if (n0 == 0) block_sums<V>(total, shared, row);
#pragma unroll
  for (int n = 0; n < N; ++n)
    if (n < count)
      block_sums<V>(dot[n], shared, row ? row + (1 + n0 + n) * static_cast<int64_t>(channels) : nullptr);
  const int lanes = blockDim.x, thread = threadIdx.y * lanes + threadIdx.x;
  float* columns = shared + (V > N ? V : N) * lanes * blockDim.y;
  block_sums<N>(share, shared, columns + threadIdx.x * N);
  if (thread >= count) return;
  float sum = 0.f;
  for (int lane = 0; lane < lanes; ++lane) sum += columns[lane * N + thread];
  const int64_t slabs = gridDim.x / groups;
  partial.shares[(blockIdx.y * slabs + slab) * a.count + n0 + thread] = sum;
}

// The gradients from their partial sums.
struct MixedSums {
  MixedPartial partial;
  int64_t chunks, shares;
  const float* weights;
  int count, channels;
  float* grad_scale[kMaxMixed];
  float* grad_shift[kMaxMixed];
  float* grad_weights;
};

// Block (x, n): channels of map n; behind them the weight of map n.
static __global__ void __launch_bounds__(kMostThreads) mixed_sum_finish_kernel(MixedSums a) {
  DETNAS_SHARED(double, shared);
  const int n = blockIdx.y, lane = threadIdx.x;
  if (blockIdx.x + 1 == gridDim.x) {
    const int64_t mine = a.shares > lane ? (a.shares - lane + kLanes - 1) / kLanes : 0;
    double sum = column_sum(a.partial.shares + lane * a.count + n, mine, kLanes * a.count, shared);
    if (threadIdx.y == 0) shared[lane] = sum;
    __syncthreads();
    if (lane != 0 || threadIdx.y != 0) return;
    for (int i = 1; i < kLanes; ++i) sum += shared[i];
    a.grad_weights[n] = static_cast<float>(sum);
    return;
  }
  const int c = blockIdx.x * kLanes + lane;
  const int64_t stride = (1 + a.count) * static_cast<int64_t>(a.channels);
  const int64_t chunks = c < a.channels ? a.chunks : 0;
  const float* maps = a.partial.maps + c;
  const double total = column_sum(maps, chunks, stride, shared);
  const double dot = column_sum(maps + (1 + n) * static_cast<int64_t>(a.channels), chunks, stride, shared);
  if (threadIdx.y != 0 || c >= a.channels) return;
  const double w = a.weights[n];
#pragma unroll
  for (int k = 0; k < kMaxMixed; ++k)
    if (k == n) {
      a.grad_scale[k][c] = static_cast<float>(w * dot);
      a.grad_shift[k][c] = static_cast<float>(w * total);
    }
}

// How the gradient of a mixed sum is cut; sizes of its partial sums in floats.
struct MixedPlan {
  Tiling tiling;
  bool vector;
  int groups;
  int64_t maps_size, shares_size;
};

template <typename S>
MixedPlan plan_mixed_sum_grad(const Mixed<S>& a, int64_t pixels, int channels) {
  constexpr int V = 16 / sizeof(S);
  MixedPlan plan;
  plan.vector = vectorizable(a, channels);
  const int of_group = plan.vector ? mixed_group<V>() : mixed_group<1>();
  plan.groups = static_cast<int>(ceil_div(a.count, of_group));
  plan.tiling = reduction_tiling(pixels, plan.vector ? channels / V : channels, 1);
  plan.maps_size = plan.tiling.chunks * (1 + a.count) * channels;
  plan.shares_size = plan.tiling.chunks * plan.tiling.slabs * a.count;
  return plan;
}

// a.grad, a.grad_y; partial: plan.maps_size + plan.shares_size floats; sums: where the results go.
template <typename S>
void launch_mixed_sum_grad(const Mixed<S>& a, const MixedPlan& plan, int64_t pixels, int channels,
                           float* partial, MixedSums sums, Stream stream) {
  constexpr int V = 16 / sizeof(S);
  const Tiling& t = plan.tiling;
  auto kernel = plan.vector ? &mixed_sum_grad_kernel<S, V> : &mixed_sum_grad_kernel<S, 1>;
  const int n = plan.vector ? mixed_group<V>() : mixed_group<1>(), v = plan.vector ? V : 1;
  const int64_t shared = ((v > n ? v : n) * t.threads() + n * t.lanes) * sizeof(float);
  sums.partial = {partial, partial + plan.maps_size};
  sums.chunks = t.chunks;
  sums.shares = t.chunks * t.slabs;
  sums.weights = a.weights;
  sums.count = a.count;
  sums.channels = channels;
  DETNAS_LAUNCH(kernel, dim3(t.slabs * plan.groups, t.chunks), t.block(), shared, stream, a, pixels, channels,
                t.per_chunk, plan.groups, sums.partial);
  auto finish = &mixed_sum_finish_kernel;
  const dim3 block = column_block(t.chunks);
  DETNAS_LAUNCH(finish, dim3(ceil_div(channels, kLanes) + 1, a.count), block, column_shared(block), stream,
                sums);
}

}  // namespace cuda
}  // namespace detnas
