// shuffle_blocks_packed: blocks in evaluation one after the other, one call from Python for all of them.
// Between two blocks an interpreter's code and data have left the caches: each call would fetch them anew.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include <optional>

#include "conv_checks.h"
#include "handles.h"

namespace detnas {
namespace {

using Block = std::tuple<Tensor, Tensor>(const Tensor&, const OptTensor&, at::TensorList, at::TensorList,
                                         at::TensorList, int64_t, int64_t, int64_t, int64_t);

std::vector<Tensor> shuffle_blocks_packed(const Tensor& x, at::TensorList weights, at::TensorList packed,
                                          at::TensorList biases, at::IntArrayRef kernels, at::IntArrayRef strides,
                                          at::IntArrayRef methods, at::IntArrayRef ends) {
  const size_t count = kernels.size();
  TORCH_CHECK(strides.size() == count && methods.size() == count, "kernels, strides, methods: expected one of each",
              " block, got ", count, ", ", strides.size(), " and ", methods.size());
  size_t layers = 0;
  for (size_t i = 0; i < count; ++i) layers += block_layers(kernels[i], strides[i]);
  const bool packs = !packed.empty();  // on CUDA nothing is
  for (const size_t size : {weights.size(), packs ? packed.size() : layers, biases.size()})
    TORCH_CHECK(size == layers, "weights, packed, biases: expected ", layers, " tensors each, got ", weights.size(),
                ", ", packed.size(), " and ", biases.size());
  int64_t before = 0;
  for (const int64_t end : ends) {
    TORCH_CHECK(end > before, "ends: expected ascending from 1, got ", ends);
    before = end;
  }
  TORCH_CHECK(before == static_cast<int64_t>(count), "ends: expected ", count, " last, got ", ends);

  // Inner calls record no gradients: where they might, they are to refuse them.
  std::optional<at::AutoDispatchBelowAutograd> guard;
  if (!at::GradMode::is_enabled()) guard.emplace();
  static const auto block = handle<Block>("detnas_d2::shuffle_block_packed");
  std::vector<Tensor> outputs;
  Tensor left = x;
  OptTensor right;
  size_t first = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t size = block_layers(kernels[i], strides[i]);
    const bool wanted = ends[outputs.size()] == static_cast<int64_t>(i + 1);
    // A following block of stride 1 takes its halves, shuffled its way.
    const int64_t method = !wanted && strides[i + 1] == 1 ? methods[i + 1] : 0;
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
