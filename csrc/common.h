// What entry points share: types, dtypes and the layout of maps. checks.h: the checks of arguments.
#pragma once
#include <ATen/core/Tensor.h>

namespace detnas {

using at::Tensor;
using OptTensor = std::optional<at::Tensor>;

constexpr size_t kMostSums = 32;  // maps that mixed_sum takes

// What a list has for input i; an empty list stands for missing arguments.
inline OptTensor item(at::TensorList list, size_t i) { return list.empty() ? OptTensor() : list[i]; }

// The dtype of statistics and pending affines: float64 for float64, else float32.
inline at::ScalarType stats_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline bool is_reduced(const Tensor& x) {
  return x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
}

inline OptTensor to_type(const OptTensor& t, at::ScalarType type) {
  return t ? OptTensor(t->to(type)) : OptTensor();
}

// Distance of pixels if they are evenly spaced and channels `step` apart, else 0.
inline int64_t pixel_stride(const Tensor& x, int64_t step) {
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  if (c > 1 && x.stride(1) != step) return 0;
  const int64_t ld = w > 1 ? x.stride(3) : h > 1 ? x.stride(2) : n > 1 ? x.stride(0) : c * step;
  if (ld < (c - 1) * step + 1) return 0;
  if (h > 1 && x.stride(2) != ld * w) return 0;
  if (n > 1 && x.stride(0) != ld * w * h) return 0;
  return ld;
}

inline int64_t conv_out(int64_t size, int64_t stride) {  // padding keeps the size at stride 1
  return size == 0 ? 0 : (size - 1) / stride + 1;
}

}  // namespace detnas
