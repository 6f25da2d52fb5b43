// Statistics of a launch by the launch itself: every block leaves a row of partial moments, and the last
// block of a slab of channels to finish merges the slab's rows and makes the affine map of the BatchNorm
// that follows. Which block is the last has no influence on results: rows are merged in their order.
#pragma once
#include "bn_fold.cuh"
#include "stats_out.cuh"

namespace detnas {
namespace cuda {

__device__ inline void StatsOut::put(int c, double n, float channel_mean, float channel_m2) const {
  mean[c] = channel_mean;
  m2[c] = channel_m2;
  if (c == 0 && count) *count = n;
  if (!scale) return;
  const double g = gamma ? gamma[c] : 1.f, b = beta ? beta[c] : 0.f;
  fold_channel(n, channel_mean, channel_m2, g, b, eps, scale[c], shift[c]);
}

// Of later batches: they have one weight, bias and count.
__device__ inline StatsOut skip(StatsOut of, int64_t vectors) {
  of.mean += vectors, of.m2 += vectors;
  if (vectors > 0) of.count = nullptr;
  if (of.scale) of.scale += vectors, of.shift += vectors;
  return of;
}

// Whether this is the last of `blocks` blocks to come here with this ticket, which is zero before and after
// a launch. The last one sees all that the others wrote before they came. All threads call it.
__device__ inline bool last_block(unsigned* ticket, unsigned blocks) {
  __threadfence();  // what this thread wrote, before its block is counted
  __syncthreads();
  bool last = false;
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    last = atomicAdd(ticket, 1u) == blocks - 1;
    if (last) *ticket = 0;
  }
  if (!__syncthreads_or(last)) return false;
  __threadfence();
  return true;
}

// Rows of partial moments: of channel c at [row * ld + c].
struct MomentRows {
  const float *mean, *m2;
  int64_t ld, rows;
};

// Bytes of shared memory that merge_rows takes of a block.
inline int64_t merge_shared(int64_t threads) { return 4 * threads * static_cast<int64_t>(sizeof(double)); }

// Statistics of kLanes channels from c0 on by a block's threads, at least kLanes. All call it. count(row):
// values per channel in a row; the first row has some. Sums of differences from the first row's mean, in
// double: no divisions in the loop, no cancellation, exact for constant channels. As if `ways` threads had
// a channel, each every ways-th row: sums do not depend on how many threads there are.
template <typename N>
__device__ void merge_rows(const MomentRows& from, const N& count, int c0, int channels, double* shared,
                           const StatsOut& out) {
  constexpr int kAtOnce = 2;
  const int threads = blockDim.x * blockDim.y / kLanes, plane = threads * kLanes;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  const int lane = thread % kLanes, row0 = thread / kLanes, c = c0 + lane;
  const bool live = row0 < threads && c < channels;
  const int64_t quarter = (from.rows + 3) / 4;
  const int ways = quarter < kLanes ? static_cast<int>(quarter) : kLanes;
  const double ref = live ? finite_or_zero(from.mean[c]) : 0.f;
  double n = 0, first = 0, second = 0, within = 0;
#pragma unroll 1
  for (int way0 = 0; way0 < ways; way0 += kAtOnce * threads) {
    double sums[kAtOnce][4];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[j][i] = 0;
    if (live)
#pragma unroll 2
      for (int64_t row = 0; row < from.rows; row += ways)
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          const int way = way0 + j * threads + row0;
          if (way >= ways || row + way >= from.rows) continue;
          const double k = count(row + way);
          const double d = k == 0 ? 0 : from.mean[(row + way) * from.ld + c] - ref;
          sums[j][0] += k;
          sums[j][1] += k * d;
          sums[j][2] += k * d * d;
          sums[j][3] += k == 0 ? 0.f : from.m2[(row + way) * from.ld + c];
        }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      __syncthreads();
      if (row0 < threads)
#pragma unroll
        for (int i = 0; i < 4; ++i) shared[i * plane + thread] = sums[j][i];
      __syncthreads();
      for (int r = 0; row0 == 0 && r < threads && way0 + j * threads + r < ways; ++r) {
        n += shared[r * kLanes + lane];
        first += shared[plane + r * kLanes + lane];
        second += shared[2 * plane + r * kLanes + lane];
        within += shared[3 * plane + r * kLanes + lane];
      }
    }
  }
  if (row0 != 0 || !live) return;
  const double shift = first / n, between = second - first * shift;
  out.put(c, n, static_cast<float>(ref + shift), static_cast<float>(within + (between < 0 ? 0 : between)));
}

}  // namespace cuda
}  // namespace detnas
