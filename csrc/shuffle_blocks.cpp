// shuffle_blocks_packed: blocks in evaluation one after the other, one call from Python for all of them.
// Between two blocks an interpreter's code and data have left the caches: each call would fetch them anew.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include <optional>

#include "blocks.h"
#include "handles.h"

namespace detnas {
namespace {

using Block = std::tuple<Tensor, Tensor>(const Tensor&, const OptTensor&, at::TensorList, at::TensorList,
                                         at::TensorList, int64_t, int64_t, int64_t, int64_t);

std::vector<Tensor> shuffle_blocks_packed(const Tensor& x, at::TensorList weights, at::TensorList packed,
                                          at::TensorList biases, at::IntArrayRef kernels, at::IntArrayRef strides,
                                          at::IntArrayRef methods, at::IntArrayRef ends) {
  const Blocks blocks{kernels, strides, methods, ends};
  blocks.check();
  const size_t count = blocks.size(), layers = blocks.layers();
  const bool packs = !packed.empty();  // on CUDA nothing is
  for (const size_t size : {weights.size(), packs ? packed.size() : layers, biases.size()})
    TORCH_CHECK(size == layers, "weights, packed, biases: expected ", layers, " tensors each, got ", weights.size(),
                ", ", packed.size(), " and ", biases.size());

  // Inner calls record no gradients: where they might, they are to refuse them.
  std::optional<at::AutoDispatchBelowAutograd> guard;
  if (!at::GradMode::is_enabled()) guard.emplace();
  static const auto block = handle<Block>("detnas_d2::shuffle_block_packed");
  std::vector<Tensor> outputs;
  Tensor left = x;
  OptTensor right;
  size_t first = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t size = blocks.layers(i);
    const bool wanted = blocks.wanted(i, outputs.size());
    const int64_t method = blocks.out_method(i, outputs.size());
    auto [a, b] = block.call(left, right, weights.slice(first, size), packs ? packed.slice(first, size) : packed,
                             biases.slice(first, size), kernels[i], strides[i], methods[i], method);
    left = std::move(a);
    right = method ? OptTensor(std::move(b)) : OptTensor();
    if (wanted) outputs.push_back(left);
    first += size;
  }
  return outputs;
}

}  // namespace
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CompositeImplicitAutograd, m) {
  m.impl("shuffle_blocks_packed", &detnas::shuffle_blocks_packed);
}
