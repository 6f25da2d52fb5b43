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

constexpr int64_t kConvolveBlocks = 4 * kFill;  // bounds the rows of partial results

}  // namespace cuda
}  // namespace detnas
