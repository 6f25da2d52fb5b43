// What every operator's entry point checks, CPU and CUDA alike: each tensor's shape, dtype and
// device, and that no tangent would be lost. Errors name the argument, what was expected and what came.
#pragma once
#include <c10/util/Exception.h>

#include <ostream>
#include <utility>

#include "common.h"

namespace detnas {

// An argument, or an item of one that is a list.
struct Name {
  const char* name;
  int64_t index;
  Name(const char* n, int64_t i = -1) : name(n), index(i) {}
};
inline std::ostream& operator<<(std::ostream& out, const Name& n) {
  out << n.name;
  return n.index < 0 ? out : out << '[' << n.index << ']';
}

inline void check_tangent(const Tensor& t, Name name) {
  TORCH_CHECK_NOT_IMPLEMENTED(!t._fw_grad(0).defined(), name, ": expected no tangent, operators have no ",
                              "forward derivative; the functions of detnas_d2.ops have");
}

inline void check_map(const Tensor& x, Name name) {
  check_tangent(x, name);
  TORCH_CHECK(x.dim() == 4, name, ": expected a tensor (N, C, H, W), got shape ", x.sizes());
  TORCH_CHECK(x.is_floating_point(), name, ": expected a floating point tensor, got ", x.scalar_type());
}

inline void check_device(const Tensor& t, const Tensor& x, Name name) {
  check_tangent(t, name);
  TORCH_CHECK(t.device() == x.device(), name, ": expected device ", x.device(), ", got ", t.device());
}

inline void check_like(const Tensor& t, const Tensor& x, Name name, Name x_name) {
  check_device(t, x, name);
  TORCH_CHECK(t.scalar_type() == x.scalar_type(), name, ": expected dtype ", x.scalar_type(), " as ",
              x_name, ", got ", t.scalar_type());
}

inline void check_shape(const Tensor& t, at::IntArrayRef shape, Name name) {
  TORCH_CHECK(t.sizes() == shape, name, ": expected shape ", shape, ", got ", t.sizes());
}

// A map like x, but for its shape.
inline void check_map_like(const Tensor& t, const Tensor& x, at::IntArrayRef shape, Name name, Name x_name) {
  check_shape(t, shape, name);
  check_like(t, x, name, x_name);
}

// A vector, if given; it may be of another floating dtype than the map that it belongs to.
inline void check_vector(const OptTensor& t, const Tensor& x, int64_t size, Name name) {
  if (!t) return;
  check_shape(*t, {size}, name);
  check_device(*t, x, name);
  TORCH_CHECK(t->is_floating_point(), name, ": expected a floating point tensor, got ", t->scalar_type());
}

// The images of x as so many batches of one size.
inline void check_batches(int64_t batches, const Tensor& x) {
  TORCH_CHECK(batches >= 1 && x.size(0) % batches == 0, "batches: expected a divisor of ", x.size(0),
              " images, got ", batches);
}

// A map for each batch of x.
inline void check_affine(const OptTensor& scale, const OptTensor& shift, const Tensor& x,
                         Name scale_name = "scale", Name shift_name = "shift", int64_t batches = 1) {
  check_batches(batches, x);
  TORCH_CHECK(scale.has_value() == shift.has_value(), scale_name, " and ", shift_name,
              ": expected both or neither");
  for (const auto& [vector, name] : {std::pair(&scale, scale_name), std::pair(&shift, shift_name)}) {
    if (batches == 1 || !*vector) {
      check_vector(*vector, x, x.size(1), name);
    } else {
      check_shape(**vector, {batches, x.size(1)}, name);
      check_vector((*vector)->select(0, 0), x, x.size(1), name);
    }
  }
}

inline void check_stats(const Tensor& x, const OptTensor& scale, const OptTensor& shift, int64_t batches = 1) {
  check_map(x, "x");
  check_affine(scale, shift, x, "scale", "shift", batches);
}

// At least one map, all like the first but for the batch and the size.
inline void check_stats(at::TensorList maps, const OptTensor& scale, const OptTensor& shift) {
  TORCH_CHECK(!maps.empty(), "x: expected at least one tensor");
  for (const Tensor& x : maps) {
    check_map(x, "x");
    check_like(x, maps[0], "x", "the first");
    TORCH_CHECK(x.size(1) == maps[0].size(1), "x: expected ", maps[0].size(1),
                " channels as the first, got shape ", x.sizes());
  }
  check_affine(scale, shift, maps[0]);
}

inline void check_stats_backward(const Tensor& grad_mean, const Tensor& grad_m2, const Tensor& x,
                                 const Tensor& mean, const OptTensor& scale, const OptTensor& shift) {
  check_stats(x, scale, shift);
  check_vector(grad_mean, x, x.size(1), "grad_mean");
  check_vector(grad_m2, x, x.size(1), "grad_m2");
  check_vector(mean, x, x.size(1), "mean");
}

inline void check_fold(const Tensor& count, const Tensor& mean, const Tensor& m2, const OptTensor& gamma,
                       const OptTensor& beta) {
  check_tangent(mean, "mean");
  TORCH_CHECK(mean.dim() == 1, "mean: expected shape [C], got ", mean.sizes());
  TORCH_CHECK(mean.scalar_type() == at::kFloat || mean.scalar_type() == at::kDouble,
              "mean: expected dtype Float or Double, got ", mean.scalar_type());
  check_shape(m2, mean.sizes(), "m2");
  check_like(m2, mean, "m2", "mean");
  TORCH_CHECK(count.numel() == 1 && count.is_floating_point(),
              "count: expected one floating point value, got shape ", count.sizes(), " of ",
              count.scalar_type());
  check_device(count, mean, "count");
  check_vector(gamma, mean, mean.size(0), "gamma");
  check_vector(beta, mean, mean.size(0), "beta");
}

// Of the BatchNorm that follows an operator with as many channels as come out of it.
inline void check_norm(const OptTensor& gamma, const OptTensor& beta, const Tensor& x, int64_t channels) {
  check_vector(gamma, x, channels, "gamma");
  check_vector(beta, x, channels, "beta");
}

inline void check_fold_backward(const Tensor& grad_scale, const Tensor& grad_shift, const Tensor& count,
                                const Tensor& mean, const Tensor& m2, const OptTensor& gamma) {
  check_fold(count, mean, m2, gamma, {});
  check_vector(grad_scale, mean, mean.size(0), "grad_scale");
  check_vector(grad_shift, mean, mean.size(0), "grad_shift");
}

inline void check_shuffle(const Tensor& left, const Tensor& right, const OptTensor& left_scale,
                          const OptTensor& left_shift, const OptTensor& right_scale,
                          const OptTensor& right_shift, int64_t method, bool split, int64_t batches = 1) {
  check_map(left, "left");
  check_map(right, "right");
  check_like(right, left, "right", "left");
  TORCH_CHECK(left.size(0) == right.size(0) && left.size(2) == right.size(2) && left.size(3) == right.size(3),
              "right: expected the batch and size of left, ", left.sizes(), ", got ", right.sizes());
  check_affine(left_scale, left_shift, left, "left_scale", "left_shift", batches);
  check_affine(right_scale, right_shift, right, "right_scale", "right_shift", batches);
  TORCH_CHECK(method >= 0 && method <= 2, "method: expected 0, 1 or 2, got ", method);
  TORCH_CHECK((!split && method == 0) || (left.size(1) + right.size(1)) % 2 == 0,
              "left, right: expected an even number of channels together, got ", left.size(1), " and ",
              right.size(1));
}

// Without a split grad_right is that of an empty output.
inline void check_shuffle_backward(const Tensor& grad_left, const Tensor& grad_right, const Tensor& left,
                                   const Tensor& right, const OptTensor& left_scale,
                                   const OptTensor& left_shift, const OptTensor& right_scale,
                                   const OptTensor& right_shift, int64_t method, bool split) {
  check_shuffle(left, right, left_scale, left_shift, right_scale, right_shift, method, split);
  const int64_t n = left.size(0), h = left.size(2), w = left.size(3), c = left.size(1) + right.size(1);
  check_map_like(grad_left, left, {n, split ? c / 2 : c, h, w}, "grad_left", "left");
  if (split) check_map_like(grad_right, left, {n, c - c / 2, h, w}, "grad_right", "left");
  else check_map_like(grad_right, left, {0}, "grad_right", "left");
}

inline void check_mixed_sum(at::TensorList y, at::TensorList scale, at::TensorList shift,
                            const Tensor& weights, const OptTensor& residual = {}) {
  TORCH_CHECK(!y.empty() && y.size() <= kMostSums, "y: expected 1 to ", kMostSums, " tensors, got ", y.size());
  TORCH_CHECK(scale.size() == y.size() && shift.size() == y.size(), "scale, shift: expected ",
              y.size(), " vectors as y, got ", scale.size(), " and ", shift.size());
  check_vector(weights, y[0], static_cast<int64_t>(y.size()), "weights");
  check_map(y[0], "y");
  for (size_t i = 0; i < y.size(); ++i) {
    const auto n = static_cast<int64_t>(i);
    check_map_like(y[i], y[0], y[0].sizes(), {"y", n}, "the first");
    check_vector(scale[i], y[0], y[0].size(1), {"scale", n});
    check_vector(shift[i], y[0], y[0].size(1), {"shift", n});
  }
  if (residual) check_map_like(*residual, y[0], y[0].sizes(), "residual", "y");
}

inline void check_mixed_sum_backward(const Tensor& grad, at::TensorList y, at::TensorList scale,
                                     at::TensorList shift, const Tensor& weights) {
  check_mixed_sum(y, scale, shift, weights);
  check_map_like(grad, y[0], y[0].sizes(), "grad", "y");
}

}  // namespace detnas
