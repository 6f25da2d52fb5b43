// Where a launch leaves statistics.
#pragma once
#include "platform.cuh"

namespace detnas {
namespace cuda {

// Where the statistics of channels go; scale is null where no BatchNorm follows.
struct StatsOut {
  float *mean, *m2;
  double* count;             // of all channels, or null
  const float *gamma, *beta;  // or null
  double eps;
  float *scale, *shift;

  __device__ void put(int c, double n, float channel_mean, float channel_m2) const;  // last_block.cuh
  // The same from channel c on.
  StatsOut at(int64_t c) const {
    StatsOut other = *this;
    if (mean) other.mean += c, other.m2 += c;
    if (gamma) other.gamma += c;
    if (beta) other.beta += c;
    if (scale) other.scale += c, other.shift += c;
    return other;
  }
};

}  // namespace cuda
}  // namespace detnas
