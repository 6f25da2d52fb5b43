// The reference of csrc/cuda/last_block.cuh: rows of partial moments merged by a launch of its own.
#pragma once
#include "cuda/pixelwise.cuh"

namespace detnas {
namespace cuda {

// Blocks of kLanes channels, rows of threads along the rows of moments.
static __global__ void separate_merge_kernel(const float* mean, const float* m2, const float* count,
                                             int64_t rows, int channels, float* out_mean, float* out_m2) {
  DETNAS_SHARED(double, shared);  // [4][rows of threads][kLanes]
  const int c = blockIdx.x * kLanes + threadIdx.x, threads = blockDim.y * kLanes;
  const int thread = threadIdx.y * kLanes + threadIdx.x;
  const double ref = c < channels ? finite_or_zero(mean[c]) : 0.f;
  double n = 0, first = 0, second = 0, within = 0;
  if (c < channels)
    for (int64_t k = threadIdx.y; k < rows; k += blockDim.y) {
      const double nk = count[k], d = nk == 0 ? 0 : mean[k * channels + c] - ref;
      n += nk;
      first += nk * d;
      second += nk * d * d;
      within += nk == 0 ? 0.f : m2[k * channels + c];
    }
  shared[thread] = n;
  shared[threads + thread] = first;
  shared[2 * threads + thread] = second;
  shared[3 * threads + thread] = within;
  __syncthreads();
  if (threadIdx.y != 0 || c >= channels) return;
  for (int r = 1; r < static_cast<int>(blockDim.y); ++r) {
    n += shared[r * kLanes + threadIdx.x];
    first += shared[threads + r * kLanes + threadIdx.x];
    second += shared[2 * threads + r * kLanes + threadIdx.x];
    within += shared[3 * threads + r * kLanes + threadIdx.x];
  }
  const double shift = first / n, between = second - first * shift;
  out_mean[c] = static_cast<float>(ref + shift);
  out_m2[c] = static_cast<float>(within + (between < 0 ? 0 : between));
}

inline void separate_merge(const float* mean, const float* m2, const float* count, int64_t rows, int channels,
                           float* out_mean, float* out_m2) {
  auto kernel = &separate_merge_kernel;
  const dim3 block = column_block(rows);
  DETNAS_LAUNCH(kernel, dim3(ceil_div(channels, kLanes)), block, 4 * column_shared(block), 0, mean, m2, count,
                rows, channels, out_mean, out_m2);
}

}  // namespace cuda
}  // namespace detnas
