// Several batches in one call where no kernel takes them together: one after the other, joined.
#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <tuple>
#include <utility>
#include <vector>

#include "common.h"

namespace detnas {

// Batch i of a map, and of vectors of which each batch has its own.
inline Tensor batch_of(const Tensor& x, int64_t batches, int64_t i) {
  const int64_t images = x.size(0) / batches;
  return x.narrow(0, i * images, images);
}
inline OptTensor vector_of(const OptTensor& vectors, int64_t i) {
  return vectors ? OptTensor(vectors->select(0, i)) : OptTensor();
}

// Maps of all batches as one, their vectors as rows; they have one count.
inline Tensor join(const std::vector<Tensor>& parts) {
  if (parts[0].dim() == 0) return parts[0];
  if (parts[0].dim() == 4) return at::cat(parts).contiguous(at::MemoryFormat::ChannelsLast);
  return at::stack(parts);
}
template <typename Results, size_t... I>
Results join(const std::vector<Results>& parts, std::index_sequence<I...>) {
  const auto column = [&](auto index) {
    std::vector<Tensor> of_batches;
    for (const Results& part : parts) of_batches.push_back(std::get<decltype(index)::value>(part));
    return join(of_batches);
  };
  return {column(std::integral_constant<size_t, I>())...};
}

// The results of call(i), a tuple of tensors, for every batch i.
template <typename F>
auto by_batch(int64_t batches, const F& call) {
  using Results = decltype(call(int64_t{0}));
  // Autocast, where an operator takes any dtype, would refuse to join some and widen others.
  const c10::impl::ExcludeDispatchKeyGuard as_they_are(c10::autocast_dispatch_keyset);
  std::vector<Results> parts;
  for (int64_t i = 0; i < batches; ++i) parts.push_back(call(i));
  return join(parts, std::make_index_sequence<std::tuple_size_v<Results>>());
}

}  // namespace detnas
