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

// At least one map, all like the first but for the batch and the size.
inline void check_maps(at::TensorList maps, const char* name) {
  TORCH_CHECK(!maps.empty(), name, ": expected at least one tensor");
  for (const Tensor& x : maps) {
    check_map(x, name);
    check_like(x, maps[0], name, "the first");
    TORCH_CHECK(x.size(1) == maps[0].size(1), name, ": expected ", maps[0].size(1),
                " channels as the first, got shape ", x.sizes());
  }
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

inline void check_pointwise(const Tensor& x, const Tensor& w, const OptTensor& scale,
                            const OptTensor& shift, const OptTensor& bias, bool out_relu,
                            bool want_stats, int64_t groups) {
  check_map(x, "x");
  check_like(w, x, "weight", "x");
  TORCH_CHECK(groups >= 1 && x.size(1) % groups == 0, "groups: expected a divisor of ", x.size(1),
              " channels, got ", groups);
  TORCH_CHECK(w.dim() == 4 && w.size(2) == 1 && w.size(3) == 1 && w.size(1) * groups == x.size(1) &&
                  w.size(0) % groups == 0,
              "weight: expected shape (out_channels, ", x.size(1) / groups,
              ", 1, 1) with out_channels divisible by ", groups, ", got ", w.sizes());
  check_affine(scale, shift, x);
  check_channels(bias, x, w.size(0), "bias");
  TORCH_CHECK(!(out_relu && want_stats), "want_stats: statistics are of the raw output, not with out_relu");
}

inline void check_depthwise(const Tensor& x, const Tensor& w, const OptTensor& scale,
                            const OptTensor& shift, const OptTensor& bias, bool out_relu,
                            bool want_stats, int64_t stride, int64_t dilation) {
  check_map(x, "x");
  check_like(w, x, "weight", "x");
  const int64_t k = w.dim() == 4 ? w.size(2) : 0;
  TORCH_CHECK((k == 3 || k == 5 || k == 7) && w.size(3) == k && w.size(1) == 1 && w.size(0) == x.size(1),
              "weight: expected shape (", x.size(1), ", 1, k, k) with k 3, 5 or 7, got ", w.sizes());
  TORCH_CHECK(stride == 1 || stride == 2, "stride: expected 1 or 2, got ", stride);
  TORCH_CHECK(dilation >= 1 && dilation <= 3, "dilation: expected 1, 2 or 3, got ", dilation);
  check_affine(scale, shift, x);
  check_channels(bias, x, x.size(1), "bias");
  TORCH_CHECK(!(out_relu && want_stats), "want_stats: statistics are of the raw output, not with out_relu");
}

// Lists, one item for each x; scale and shift may be empty.
inline void check_mixed(at::TensorList x, at::TensorList weight, at::TensorList scale,
                        at::TensorList shift, at::IntArrayRef dilation) {
  TORCH_CHECK(x.size() == weight.size() && x.size() == dilation.size(),
              "x, weight, dilation: expected lists of one length, got ", x.size(), ", ", weight.size(),
              ", ", dilation.size());
  TORCH_CHECK((scale.empty() || scale.size() == x.size()) && scale.size() == shift.size(),
              "scale, shift: expected lists of length 0 or ", x.size(), ", got ", scale.size(), ", ",
              shift.size());
  for (const Tensor& t : x) check_like(t, x[0], "x", "the first");
}

// The lists of its backward; all but grad_y may be empty, where no statistics have a gradient.
inline void check_mixed_gradients(at::TensorList grad_y, at::TensorList grad_mean, at::TensorList grad_m2,
                                  at::TensorList x, at::TensorList y, at::TensorList mean) {
  TORCH_CHECK(grad_y.size() == x.size(), "grad_y: expected ", x.size(), " tensors, got ", grad_y.size());
  for (const at::TensorList list : {grad_mean, grad_m2, y, mean})
    TORCH_CHECK(list.size() == grad_mean.size() && (list.empty() || list.size() == x.size()),
                "grad_mean, grad_m2, y, mean: expected lists of length 0 or ", x.size(), ", got ",
                grad_mean.size(), ", ", grad_m2.size(), ", ", y.size(), ", ", mean.size());
}

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
