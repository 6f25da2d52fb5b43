// shuffle_block_stats: a block normalised with the statistics of its batch, without gradients.
//
// Made of the operators' own kernels, called through the dispatcher: one implementation for every
// device, and one call from Python for a block instead of two for each convolution. The CPU has its own
// (cpu/shuffle_block_stats_kernel.cpp), with the same bits.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include "shuffle_layers.h"

namespace detnas {

BlockStats composed_block_stats(const Tensor& left, const OptTensor& right, const OptTensor& scale,
                                const OptTensor& shift, bool relu, at::TensorList weights,
                                at::TensorList gammas, at::TensorList betas, at::ArrayRef<double> eps,
                                int64_t kernel, int64_t stride, int64_t out_method, int64_t batches) {
  check_block_stats(left, right, scale, shift, relu, weights, gammas, betas, eps, kernel, stride, out_method,
                    batches);
  // The inner calls are neither differentiated nor, under autocast, cast again.
  const at::AutoDispatchBelowAutograd guard;
  std::vector<Tensor> counts(weights.size()), means(weights.size()), m2s(weights.size());
  const auto keep = [&](size_t i, const ConvNorm& made) {
    counts[i] = std::get<1>(made);
    means[i] = std::get<2>(made);
    m2s[i] = std::get<3>(made);
  };
  auto [a, b] = run_block({weights, gammas, betas, eps, batches}, {left, scale, shift, relu}, right, kernel, stride,
                          out_method, keep);
  return {a, b, std::move(counts), std::move(means), std::move(m2s)};
}

void check_blocks_stats(const Tensor& x, const OptTensor& scale, const OptTensor& shift, at::TensorList weights,
                        at::TensorList packed, at::TensorList gammas, at::TensorList betas,
                        at::ArrayRef<double> eps, const Blocks& blocks, int64_t batches) {
  check_map(x, "x");
  check_affine(scale, shift, x, "scale", "shift", batches);
  blocks.check();
  const size_t count = blocks.layers();
  for (const size_t size : {weights.size(), gammas.size(), betas.size(), eps.size()})
    TORCH_CHECK(size == count, "weights, gammas, betas, eps: expected ", count, " each, got ", weights.size(),
                ", ", gammas.size(), ", ", betas.size(), " and ", eps.size());
  TORCH_CHECK(packed.empty() || (x.is_cpu() && packed.size() == count), "packed: expected on the CPU alone, ", count,
              " or none, got ", packed.size());
  int64_t channels = x.size(1);
  size_t first = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const size_t main = main_layers(blocks.kernels[i]), size = blocks.layers(i);
    const at::TensorList own = weights.slice(first, size);
    const bool halved = blocks.strides[i] == 1;
    TORCH_CHECK(!halved || channels % 2 == 0, "x, weights: expected an even number of channels for block ", i,
                " of stride 1, got ", channels);
    check_block_weights(own, x, halved ? channels / 2 : channels, blocks.kernels[i]);
    channels = own[main - 1].size(0) + (halved ? channels / 2 : own[size - 1].size(0));
    first += size;
  }
  for (size_t i = 0; i < count; ++i) {
    const auto index = static_cast<int64_t>(i);
    check_vector(gammas[i], x, weights[i].size(0), {"gammas", index});
    check_vector(betas[i], x, weights[i].size(0), {"betas", index});
    if (!packed.empty()) check_packed_layer(packed[i], weights[i], x, false, {"packed", index});
  }
}

BlockInput block_input(const Tensor& x, const OptTensor& scale, const OptTensor& shift, bool relu, int64_t stride,
                       int64_t method, int64_t batches) {
  if (stride == 2) return {x, {}, scale, shift, relu};
  static const auto shuffle = handle<Shuffle>("detnas_d2::shuffle_concat");
  const int64_t half = x.size(1) / 2;
  const auto part = [&](const OptTensor& v, int64_t from) {
    return v ? OptTensor(v->narrow(-1, from, half)) : OptTensor();
  };
  auto [left, right] = shuffle.call(x.narrow(1, 0, half), x.narrow(1, half, half), part(scale, 0), part(shift, 0),
                                    part(scale, half), part(shift, half), relu, relu, method, true, batches);
  return {left, right, {}, {}, false};
}

BlocksStats composed_blocks_stats(const Tensor& x, const OptTensor& scale, const OptTensor& shift, bool relu,
                                  at::TensorList weights, at::TensorList packed, at::TensorList gammas,
                                  at::TensorList betas, at::ArrayRef<double> eps, at::IntArrayRef kernels,
                                  at::IntArrayRef strides, at::IntArrayRef methods, at::IntArrayRef ends,
                                  int64_t batches) {
  const Blocks blocks{kernels, strides, methods, ends};
  check_blocks_stats(x, scale, shift, weights, packed, gammas, betas, eps, blocks, batches);
  const at::AutoDispatchBelowAutograd guard;
  static const auto block = handle<decltype(composed_block_stats)>("detnas_d2::shuffle_block_stats");
  BlocksStats result;
  auto& [outputs, counts, means, m2s] = result;
  BlockInput in = block_input(x, scale, shift, relu, strides[0], methods[0], batches);
  size_t first = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const size_t size = blocks.layers(i);
    const int64_t method = blocks.out_method(i, outputs.size());
    auto [a, b, count, mean, m2] = block.call(
        in.left, in.right, in.scale, in.shift, in.relu, weights.slice(first, size), gammas.slice(first, size),
        betas.slice(first, size), eps.slice(first, size), kernels[i], strides[i], method, batches);
    for (auto [all, own] : {std::pair(&counts, &count), std::pair(&means, &mean), std::pair(&m2s, &m2)})
      std::move(own->begin(), own->end(), std::back_inserter(*all));
    if (blocks.wanted(i, outputs.size())) outputs.push_back(a);
    if (method) in = {std::move(a), std::move(b), {}, {}, false};
    else if (i + 1 < blocks.size()) in = block_input(a, {}, {}, false, strides[i + 1], methods[i + 1], batches);
    first += size;
  }
  return result;
}

}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CompositeExplicitAutograd, m) {
  m.impl("shuffle_block_stats", &detnas::composed_block_stats);
  m.impl("shuffle_blocks_stats", &detnas::composed_blocks_stats);
}
