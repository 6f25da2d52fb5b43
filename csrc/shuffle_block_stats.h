// shuffle_block_stats made of other operators, for every device.
#pragma once
#include "conv_checks.h"

namespace detnas {

// Both outputs; counts, means and squared deviations of the layers.
using BlockStats = std::tuple<Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>>;

BlockStats composed_block_stats(const Tensor& left, const OptTensor& right, const OptTensor& scale,
                                const OptTensor& shift, bool relu, at::TensorList weights,
                                at::TensorList gammas, at::TensorList betas, at::ArrayRef<double> eps,
                                int64_t kernel, int64_t stride, int64_t out_method, int64_t batches);

}  // namespace detnas
