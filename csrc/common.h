// What every operator's entry point checks, CPU and CUDA alike: errors name the argument, what it
// was and what was expected.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace detnas {

using at::Tensor;
using OptTensor = std::optional<at::Tensor>;

inline void check_map(const Tensor& x, const char* name) {
  TORCH_CHECK(x.dim() == 4, name, ": expected a tensor (N, C, H, W), got shape ", x.sizes());
  TORCH_CHECK(x.is_floating_point(), name, ": expected a floating point tensor, got ",
              x.scalar_type());
}

inline void check_like(const Tensor& t, const Tensor& x, const char* name, const char* x_name) {
  TORCH_CHECK(t.device() == x.device(), name, ": expected device ", x.device(), " as ", x_name,
              ", got ", t.device());
  TORCH_CHECK(t.scalar_type() == x.scalar_type(), name, ": expected dtype ", x.scalar_type(),
              " as ", x_name, ", got ", t.scalar_type());
}

// A per-channel vector, if given.
inline void check_channels(const OptTensor& t, const Tensor& x, int64_t channels,
                           const char* name) {
  if (!t) return;
  TORCH_CHECK(t->dim() == 1 && t->size(0) == channels, name, ": expected shape [", channels,
              "], got ", t->sizes());
  TORCH_CHECK(t->device() == x.device(), name, ": expected device ", x.device(), ", got ",
              t->device());
  TORCH_CHECK(t->is_floating_point(), name, ": expected a floating point tensor, got ",
              t->scalar_type());
}

inline void check_affine(const OptTensor& scale, const OptTensor& shift, const Tensor& x,
                         const char* scale_name = "scale", const char* shift_name = "shift") {
  TORCH_CHECK(scale.has_value() == shift.has_value(), scale_name, " and ", shift_name,
              ": expected both or neither");
  check_channels(scale, x, x.size(1), scale_name);
  check_channels(shift, x, x.size(1), shift_name);
}

inline void check_same_shape(const Tensor& t, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK(t.sizes() == shape, name, ": expected shape ", shape, ", got ", t.sizes());
}

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

inline int64_t conv_out(int64_t size, int64_t stride) {  // padding keeps the size at stride 1
  return size == 0 ? 0 : (size - 1) / stride + 1;
}

}  // namespace detnas
