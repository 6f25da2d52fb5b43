// What the convolutions share on the torch side: maps through what is pending on them, and back.
#pragma once
#include "../conv_checks.h"
#include "common.cuh"

namespace detnas {
namespace cuda {

using ConvResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
// With the affine map of the BatchNorm that follows.
using ConvNormResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using ConvGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

struct BlockPart;  // block_part.cuh

// Defined in pointwise_ops.cu and depthwise_ops.cpp; their arguments: schema.cpp.
ConvResult pointwise_conv(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                          const OptTensor& shift, bool relu, const OptTensor& bias, bool out_relu,
                          bool want_stats, int64_t groups);
// Whether 1x1 convolutions run on tensor cores, with what is fused with them.
bool fuses_product(const Tensor& x, const Tensor& weight);
// relu(x * weight + bias), groups 1, as a part of a block's output, which is not empty. fuses_product.
void pointwise_relu_into(const Tensor& x, const Tensor& weight, const Tensor& bias, const BlockPart& part);
ConvResult depthwise_conv(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                          const OptTensor& shift, bool relu, const OptTensor& bias, bool out_relu,
                          bool want_stats, int64_t stride, int64_t dilation);
// relu(depthwise(x, taps) * weight + bias), the depthwise convolution with a bias of its own, as one launch: to y, or,
// with a part, to that of a block's output, which is not empty. False where two launches have to do it, or do it better.
// Defined in separable_ops.cpp.
bool separable_relu(const Tensor& x, const Tensor& taps, const Tensor& taps_bias, int64_t stride, const Tensor& weight,
                    const Tensor& bias, const BlockPart* part, Tensor& y);
// Defined in pixelwise_ops.cu; the second: the halves of x, which is not empty, shuffled by `method`; left is a map.
std::tuple<Tensor, Tensor> shuffle_concat(const Tensor& left, const Tensor& right,
                                          const OptTensor& left_scale, const OptTensor& left_shift,
                                          const OptTensor& right_scale, const OptTensor& right_shift,
                                          bool left_relu, bool right_relu, int64_t method, bool split,
                                          int64_t batches);
void shuffled_halves(const Tensor& x, int64_t method, const Tensor& left, const Tensor& right);

// x through the map that is pending on it, or x itself where nothing is.
Tensor materialise(const Tensor& x, const OptTensor& scale, const OptTensor& shift, bool relu);
Tensor materialise(const GradArgs& g);
// Sends the gradient of a materialised input back through its pending map.
std::tuple<Tensor, Tensor, Tensor> through_pending(const Tensor& grad, const Tensor& x,
                                                   const OptTensor& scale, const OptTensor& shift,
                                                   bool relu);

}  // namespace cuda
}  // namespace detnas
