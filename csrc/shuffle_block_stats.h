// Blocks normalised with the statistics of their batch, made of other operators, for every device.
#pragma once
#include "blocks.h"

namespace detnas {

// Both outputs; counts, means and squared deviations of the layers.
using BlockStats = std::tuple<Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>>;

BlockStats composed_block_stats(const Tensor& left, const OptTensor& right, const OptTensor& scale,
                                const OptTensor& shift, bool relu, at::TensorList weights,
                                at::TensorList gammas, at::TensorList betas, at::ArrayRef<double> eps,
                                int64_t kernel, int64_t stride, int64_t out_method, int64_t batches);

// The outputs wanted; counts, means and squared deviations of all layers.
using BlocksStats =
    std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>>;

BlocksStats composed_blocks_stats(const Tensor& x, const OptTensor& scale, const OptTensor& shift, bool relu,
                                  at::TensorList weights, at::TensorList packed, at::TensorList gammas,
                                  at::TensorList betas, at::ArrayRef<double> eps, at::IntArrayRef kernels,
                                  at::IntArrayRef strides, at::IntArrayRef methods, at::IntArrayRef ends,
                                  int64_t batches);

void check_blocks_stats(const Tensor& x, const OptTensor& scale, const OptTensor& shift, at::TensorList weights,
                        at::TensorList packed, at::TensorList gammas, at::TensorList betas,
                        at::ArrayRef<double> eps, const Blocks& blocks, int64_t batches);

// What a block reads of a map: the map, or at stride 1 the halves of the shuffled one, on which nothing is pending
// any more.
struct BlockInput {
  Tensor left;
  OptTensor right, scale, shift;
  bool relu;
};
BlockInput block_input(const Tensor& x, const OptTensor& scale, const OptTensor& shift, bool relu, int64_t stride,
                       int64_t method, int64_t batches);

}  // namespace detnas
