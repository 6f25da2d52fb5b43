// What the entry points of depthwise convolutions and of their gradients share.
#pragma once
#include "../conv_checks.h"
#include "common.cuh"
#include "depthwise_plan.cuh"

namespace detnas {
namespace cuda {

using ConvResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using ConvNormResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using ConvGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Bounds the rows of partial results.
inline int64_t convolve_blocks() { return 4 * fill(kDepthwiseBlocks); }

}  // namespace cuda
}  // namespace detnas
