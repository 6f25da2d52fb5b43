// Where the last product of a branch of a block in evaluation goes (product_join.cuh), on the torch side.
#pragma once
#include "common.cuh"
#include "product_join.cuh"

namespace detnas {
namespace cuda {

// What a block in evaluation leaves: its branches concatenated (method 0, second is empty), or shuffled and split.
struct BlockOutput {
  Tensor first, second;
  int64_t method;
};
// A branch of it: its channels of the concatenation from `offset` on, and, where it is the only one, the half
// that passes by, which lies before it and has as many.
struct BlockPart {
  const BlockOutput& out;
  int64_t offset;
  OptTensor passing;
};

template <typename S>
Join<S> join_of(const BlockPart& part) {
  Join<S> join;
  join.first = part.out.first.data_ptr<S>();
  if (part.out.method) join.second = part.out.second.data_ptr<S>();
  join.half = static_cast<int>(part.out.first.size(1));
  join.method = static_cast<int>(part.out.method);
  join.offset = static_cast<int>(part.offset);
  if (!part.passing) return join;
  const Source<S> passing = source<S>(*part.passing, {}, {}, false);
  join.left = passing.data;
  join.ld_left = passing.ld;
  return join;
}

}  // namespace cuda
}  // namespace detnas
