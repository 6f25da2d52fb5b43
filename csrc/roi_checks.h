// The checks of roi_align; see checks.h.
#pragma once
#include "checks.h"

namespace detnas {

inline void check_roi_align(at::TensorList xs, const Tensor& boxes, at::IntArrayRef levels,
                            at::ArrayRef<double> scales, int64_t size, int64_t sampling_ratio) {
  TORCH_CHECK(!xs.empty(), "x: expected at least one tensor");
  for (size_t i = 0; i < xs.size(); ++i) {
    const Name name("x", static_cast<int64_t>(i));
    check_map(xs[i], name);
    check_like(xs[i], xs[0], name, "x[0]");
    TORCH_CHECK(xs[i].size(1) == xs[0].size(1), name, ": expected ", xs[0].size(1), " channels, got ",
                xs[i].size(1));
  }
  check_like(boxes, xs[0], "boxes", "x[0]");
  check_shape(boxes, {static_cast<int64_t>(levels.size()), 5}, "boxes");
  TORCH_CHECK(scales.size() == xs.size(), "scales: expected one for each of ", xs.size(), " maps, got ",
              scales.size());
  for (const int64_t level : levels)
    TORCH_CHECK(level >= 0 && level < static_cast<int64_t>(xs.size()), "levels: expected 0 to ", xs.size() - 1,
                ", got ", level);
  TORCH_CHECK(size >= 1, "size: expected a positive number, got ", size);
  TORCH_CHECK(sampling_ratio >= 0, "sampling_ratio: expected no negative number, got ", sampling_ratio);
}

}  // namespace detnas
