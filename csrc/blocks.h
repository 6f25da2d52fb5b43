// Several blocks in one call.
#pragma once
#include "conv_checks.h"

namespace detnas {

// Several blocks one after the other; `ends`: after how many of them the output is wanted.
struct Blocks {
  at::IntArrayRef kernels, strides, methods, ends;

  size_t size() const { return kernels.size(); }
  size_t layers(size_t i) const { return block_layers(kernels[i], strides[i]); }
  size_t layers() const {
    size_t count = 0;
    for (size_t i = 0; i < size(); ++i) count += layers(i);
    return count;
  }
  // Whether the output of block i is wanted, where `output` of those wanted come before.
  bool wanted(size_t i, size_t output) const { return ends[output] == static_cast<int64_t>(i + 1); }
  // How it is shuffled: as a following block of stride 1 wants its halves, 0 where it is wanted itself.
  int64_t out_method(size_t i, size_t output) const {
    return !wanted(i, output) && strides[i + 1] == 1 ? methods[i + 1] : 0;
  }
  void check() const {
    const size_t count = kernels.size();
    TORCH_CHECK(count > 0 && strides.size() == count && methods.size() == count,
                "kernels, strides, methods: expected one of each block, got ", count, ", ", strides.size(), " and ",
                methods.size());
    for (size_t i = 0; i < count; ++i) {
      check_block_options(kernels[i], strides[i]);
      TORCH_CHECK(methods[i] == 1 || methods[i] == 2, "methods: expected 1 or 2, got ", methods[i]);
    }
    int64_t before = 0;
    for (const int64_t end : ends) {
      TORCH_CHECK(end > before, "ends: expected ascending from 1, got ", ends);
      before = end;
    }
    TORCH_CHECK(before == static_cast<int64_t>(count), "ends: expected ", count, " last, got ", ends);
  }
};

}  // namespace detnas
