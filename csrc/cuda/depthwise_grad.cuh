// The depthwise convolution's gradients of weight and bias, and the sums of partial gradients.
#pragma once
#include "depthwise_launch.cuh"
#include "depthwise_tile.cuh"

namespace detnas {
namespace cuda {

constexpr int kSumsAtOnce = kRows;  // sums that a block's warps exchange at a time

// A gradient through what is pending on it: of statistics, or of a ReLU.
template <typename S>
__device__ float through(const Source<S>& from, float grad, S y, const float (&add)[3]) {
  if (!from.y) return grad;
  const float o = static_cast<float>(y);
  if (from.add) return grad + add[0] + add[1] * (o - add[2]);
  return o <= 0.f ? 0.f : grad;
}

// The thread's gradients of outputs at `at` (zero outside), from `a.other`, added to `total`.
template <class T, typename S>
__device__ void read_gradients(const Depthwise<S>& a, const Place& at, int c, const float (&add)[3],
                               float (&g)[T::R][T::Q], float& total) {
  const Source<S>& from = a.other;
  int out_step = a.out_step;
  opaque(out_step);
  const int x0 = at.out_x + tile_col<T>() * out_step;
  const int step = out_step * static_cast<int>(from.ld);
  const int step_y = out_step * static_cast<int>(from.ld_y);
#pragma unroll
  for (int r = 0; r < T::R; ++r) {
    const int row = at.out_y + (tile_row<T>() + r) * out_step;
    const int64_t pixel = (at.image * a.out_height + row) * a.out_width + x0;
    const int64_t first = pixel * from.ld + c, first_y = pixel * from.ld_y + c;
    const bool row_in = c < a.channels && row < a.out_height;
    S grad[T::Q], y[T::Q];
#pragma unroll
    for (int q = 0; q < T::Q; ++q) {
      const bool in = row_in && x0 + q * out_step < a.out_width;
      grad[q] = in ? from.data[first + q * step] : S(0.f);
      y[q] = in && from.y ? from.y[first_y + q * step_y] : S(0.f);
    }
#pragma unroll
    for (int q = 0; q < T::Q; ++q) {
      const float v = through(from, static_cast<float>(grad[q]), y[q], add);
      g[r][q] = row_in && x0 + q * out_step < a.out_width ? v : 0.f;
      total += g[r][q];
    }
  }
}

// Writes the block's sums, [k * k + 1][channels] of row `row`, the last one that of the bias.
template <int Sums>
__device__ void write_block_sums(const float (&sum)[Sums], int c, int channels, float* shared,
                                 float* partial, int row) {
#pragma unroll
  for (int first = 0; first < Sums; first += kSumsAtOnce) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSumsAtOnce; ++i)
      if (first + i < Sums) shared[(i * kRows + threadIdx.y) * kLanes + threadIdx.x] = sum[first + i];
    __syncthreads();
    const int mine = first + threadIdx.y;
    if (mine >= Sums || c >= channels) continue;
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < kRows; ++w) total += shared[(threadIdx.y * kRows + w) * kLanes + threadIdx.x];
    partial[(static_cast<int64_t>(row) * Sums + mine) * channels + c] = total;
  }
}

// The products of a tile, one output after the other, of outputs and inputs inside their maps alone.
// Slow: for_taps multiplies what lies beside a map by zero, which is right but for NaN and infinity.
template <class T, typename S>
__device__ void add_inside(const Depthwise<S>& a, const Place& at, int c, const float (&add)[3],
                           const float* tile, float (&sum)[T::taps + 1]) {
  if (c >= a.channels) return;
  const Source<S>& from = a.other;
#pragma unroll 1
  for (int o = 0; o < T::R * T::Q; ++o) {
    const int row = tile_row<T>() + o / T::Q, col = tile_col<T>() + o % T::Q;
    const int out_y = at.out_y + row * a.out_step, out_x = at.out_x + col * a.out_step;
    if (out_y >= a.out_height || out_x >= a.out_width) continue;
    const int64_t pixel = (at.image * a.out_height + out_y) * a.out_width + out_x;
    const S y = from.y ? from.y[pixel * from.ld_y + c] : S(0.f);
    const float g = through(from, static_cast<float>(from.data[pixel * from.ld + c]), y, add);
    sum[T::taps] += g;
#pragma unroll
    for (int tap = 0; tap < T::taps; ++tap) {
      const int i = row * T::Down + tap / T::K, j = col * T::Down + tap % T::K;
      const int in_y = at.in_y + i * a.in_step, in_x = at.in_x + j * a.in_step;
      if (in_y >= 0 && in_y < a.in_height && in_x >= 0 && in_x < a.in_width)
        sum[tap] += g * tile[(i * T::in_cols + j) * kLanes + threadIdx.x];
    }
  }
}

template <class T, typename S>
__device__ void correlate(const Depthwise<S>& a, int slab, int row, float* tile) {
  const int c = slab * kLanes + threadIdx.x;
  float sum[T::taps + 1], add[3] = {0.f, 0.f, 0.f};
  if (c < a.channels && a.other.add) {
    add[0] = a.other.add[c] * a.other.add_factor;
    add[1] = a.other.mul[c] * a.other.mul_factor;
    add[2] = a.other.mean[c];
  }
#pragma unroll 1
  for (bool again = false;; again = true) {  // where a sum is not finite, once more
#pragma unroll
    for (int i = 0; i <= T::taps; ++i) sum[i] = 0.f;
#pragma unroll 1
    for (int t = row; t < a.tiles; t += a.rows) {
      const Place at = place<T>(a, t);
      if (t != row) __syncthreads();
      load_tile<T, 2, false>(a, at, slab, tile);
      if (again) {
        __syncthreads();
        add_inside<T>(a, at, c, add, tile, sum);
        continue;
      }
      float g[T::R][T::Q];
      read_gradients<T>(a, at, c, add, g, sum[T::taps]);
      __syncthreads();
      for_taps<T>(Window<T>(tile), [&](int, int r, int q, int tap, float value) { sum[tap] += g[r][q] * value; });
    }
    bool bad = false;
#pragma unroll
    for (int i = 0; i < T::taps; ++i) bad = bad || !(sum[i] - sum[i] == 0.f);
    if (again || !__syncthreads_or(bad)) break;
  }
  write_block_sums<T::taps + 1>(sum, c, a.channels, tile, a.partial, row);
}

// `in` is x, `other` the gradient of the output. Grid: as for depthwise_kernel.
template <typename S, int K>
__device__ void correlate_block(const Depthwise<S>& a, int block) {
  DETNAS_SHARED(float, tile);
  const int slab = block % a.slabs, row = block / a.slabs;
  by_tile<K, false>(a, [&](auto type) { correlate<decltype(type)>(a, slab, row, tile); });
}

template <typename S, int K>
__global__ void __launch_bounds__(kLanes* kRows, 2)
    depthwise_grad_weight_kernel(const __grid_constant__ Depthwise<S> a) {
  correlate_block<S, K>(a, blockIdx.x);
}

template <typename S>
__global__ void __launch_bounds__(kLanes* kRows, 2)
    mixed_depthwise_grad_weight_kernel(const __grid_constant__ DepthwiseBatch<S> batch) {
  int block = blockIdx.x;
  const Depthwise<S>& a = batch.entry[find_entry(batch, block)];
  correlate_block<S, 0>(a, block);
}

template <typename S>
void launch_depthwise_grad_weight(const DepthwiseBatch<S>& batch, Stream stream) {
  const auto bytes = [](const Depthwise<S>& a) {
    const int64_t tile = tile_floats(a, false), sums = kSumsAtOnce * kRows * kLanes;
    return (tile > sums ? tile : sums) * static_cast<int64_t>(sizeof(float));
  };
  launch_batch(batch, &depthwise_grad_weight_kernel<S, 3>, &depthwise_grad_weight_kernel<S, 5>,
               &depthwise_grad_weight_kernel<S, 7>, &mixed_depthwise_grad_weight_kernel<S>, bytes, kLanes, stream);
}

template <typename S>
__global__ void __launch_bounds__(kMostThreads)
    depthwise_sums_kernel(const __grid_constant__ SumsBatch<S> batch) {
  DETNAS_SHARED(double, shared);  // [rows of threads][kLanes]
  int block = blockIdx.x, e = 0;
  while (block >= (batch.entry[e].columns() + kLanes - 1) / kLanes)
    block -= (batch.entry[e++].columns() + kLanes - 1) / kLanes;
  const auto& a = batch.entry[e];
  const int i = block * kLanes + threadIdx.x, columns = a.columns();
  double total = 0;
  if (i < columns)
#pragma unroll 4
    for (int row = threadIdx.y; row < a.rows; row += blockDim.y)
      total += a.partial[static_cast<int64_t>(row) * columns + i];
  shared[threadIdx.y * kLanes + threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y != 0 || i >= columns) return;
  for (int r = 1; r < static_cast<int>(blockDim.y); ++r) total += shared[r * kLanes + threadIdx.x];
  const int t = i / a.channels, c = i % a.channels;
  const float value = static_cast<float>(total);
  if (t < a.taps) {
    if (a.weight) a.weight[static_cast<int64_t>(c) * a.taps + t] = static_cast<S>(value);
  } else if (t == a.taps) {
    if (a.vector) a.vector[c] = value;
  } else if (a.second) {
    a.second[c] = value;
  }
}

template <typename S>
void launch_depthwise_sums(const SumsBatch<S>& batch, Stream stream) {
  auto kernel = &depthwise_sums_kernel<S>;
  int64_t blocks = 0;
  for (int e = 0; e < batch.count; ++e) blocks += ceil_div(batch.entry[e].columns(), kLanes);
  if (blocks == 0) return;
  DETNAS_LAUNCH(kernel, dim3(blocks), dim3(kLanes, batch.block_rows),
                batch.block_rows * kLanes * sizeof(double), stream, batch);
}

}  // namespace cuda
}  // namespace detnas
