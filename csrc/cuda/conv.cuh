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

// Defined in pointwise_ops.cu and depthwise_ops.cu; their arguments: schema.cpp.
ConvResult pointwise_conv(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                          const OptTensor& shift, bool relu, const OptTensor& bias, bool out_relu,
                          bool want_stats, int64_t groups);
// relu(x * weight + bias), groups 1, at channels `offset` and on of the channels_last map y.
void pointwise_relu_into(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y,
                         int64_t offset);
ConvResult depthwise_conv(const Tensor& x, const Tensor& weight, const OptTensor& scale,
                          const OptTensor& shift, bool relu, const OptTensor& bias, bool out_relu,
                          bool want_stats, int64_t stride, int64_t dilation);

// Defined in pixelwise_ops.cu.
// x through the map that is pending on it, or x itself where nothing is.
Tensor materialise(const Tensor& x, const OptTensor& scale, const OptTensor& shift, bool relu);
Tensor materialise(const GradArgs& g);
// Sends the gradient of a materialised input back through its pending map.
std::tuple<Tensor, Tensor, Tensor> through_pending(const Tensor& grad, const Tensor& x,
                                                   const OptTensor& scale, const OptTensor& shift,
                                                   bool relu);

}  // namespace cuda
}  // namespace detnas
