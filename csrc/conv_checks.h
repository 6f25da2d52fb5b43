// The checks of convolutions and of the blocks made of them; see checks.h.
#pragma once
#include "checks.h"

namespace detnas {

inline void check_pointwise(const Tensor& x, const Tensor& w, const OptTensor& scale,
                            const OptTensor& shift, const OptTensor& bias, bool out_relu,
                            bool want_stats, int64_t groups, int64_t batches = 1) {
  check_map(x, "x");
  check_like(w, x, "weight", "x");
  TORCH_CHECK(groups >= 1 && x.size(1) % groups == 0, "groups: expected a divisor of ", x.size(1),
              " channels, got ", groups);
  TORCH_CHECK(w.dim() == 4 && w.size(2) == 1 && w.size(3) == 1 && w.size(1) * groups == x.size(1) &&
                  w.size(0) % groups == 0,
              "weight: expected shape (out_channels, ", x.size(1) / groups,
              ", 1, 1) with out_channels divisible by ", groups, ", got ", w.sizes());
  check_affine(scale, shift, x, "scale", "shift", batches);
  check_vector(bias, x, w.size(0), "bias");
  TORCH_CHECK(!(out_relu && want_stats), "want_stats: statistics are of the raw output, not with out_relu");
}

inline void check_conv3x3(const Tensor& x, const Tensor& w, const OptTensor& bias, bool out_relu,
                          bool want_stats) {
  check_map(x, "x");
  check_like(w, x, "weight", "x");
  TORCH_CHECK(w.dim() == 4 && w.size(1) == x.size(1) && w.size(2) == 3 && w.size(3) == 3,
              "weight: expected shape (out_channels, ", x.size(1), ", 3, 3), got ", w.sizes());
  check_vector(bias, x, w.size(0), "bias");
  TORCH_CHECK(!(out_relu && want_stats), "want_stats: statistics are of the raw output, not with out_relu");
}

inline void check_pack_conv3x3(const Tensor& w) {
  check_map(w, "weight");
  TORCH_CHECK(w.size(2) == 3 && w.size(3) == 3, "weight: expected shape (out_channels, channels, 3, 3), got ",
              w.sizes());
}

inline void check_packed_conv3x3(at::TensorList xs, const Tensor& w, const Tensor& packed,
                                 const OptTensor& bias) {
  TORCH_CHECK(!xs.empty(), "x: expected at least one tensor");
  for (size_t i = 0; i < xs.size(); ++i) {
    check_map(xs[i], {"x", static_cast<int64_t>(i)});
    check_like(xs[i], xs[0], {"x", static_cast<int64_t>(i)}, "x[0]");
    TORCH_CHECK(xs[i].size(1) == xs[0].size(1), "x: expected ", xs[0].size(1), " channels in all, got ",
                xs[i].size(1));
  }
  check_conv3x3(xs[0], w, bias, false, false);
  check_device(packed, xs[0], "packed");
  TORCH_CHECK(packed.scalar_type() == stats_type(xs[0]), "packed: expected dtype ", stats_type(xs[0]), ", got ",
              packed.scalar_type());
  check_shape(packed, {36, (w.size(0) + 15) / 16, w.size(1), 16}, "packed");
  TORCH_CHECK(packed.is_contiguous(), "packed: expected a contiguous tensor, as pack_conv3x3 makes");
}

inline void check_depthwise(const Tensor& x, const Tensor& w, const OptTensor& scale,
                            const OptTensor& shift, const OptTensor& bias, bool out_relu,
                            bool want_stats, int64_t stride, int64_t dilation, int64_t batches = 1) {
  check_map(x, "x");
  check_like(w, x, "weight", "x");
  const int64_t k = w.dim() == 4 ? w.size(2) : 0;
  TORCH_CHECK((k == 3 || k == 5 || k == 7) && w.size(3) == k && w.size(1) == 1 && w.size(0) == x.size(1),
              "weight: expected shape (", x.size(1), ", 1, k, k) with k 3, 5 or 7, got ", w.sizes());
  TORCH_CHECK(stride == 1 || stride == 2, "stride: expected 1 or 2, got ", stride);
  TORCH_CHECK(dilation >= 1 && dilation <= 3, "dilation: expected 1, 2 or 3, got ", dilation);
  check_affine(scale, shift, x, "scale", "shift", batches);
  check_vector(bias, x, x.size(1), "bias");
  TORCH_CHECK(!(out_relu && want_stats), "want_stats: statistics are of the raw output, not with out_relu");
}

// What the gradients of a convolution get besides its inputs; `shape`: of the output.
inline void check_conv_gradients(const Tensor& grad_y, const OptTensor& grad_mean, const OptTensor& grad_m2,
                                 const Tensor& x, const OptTensor& y, const OptTensor& mean,
                                 bool out_relu, at::IntArrayRef shape) {
  check_map_like(grad_y, x, shape, "grad_y", "x");
  const bool stats = grad_mean.has_value();
  TORCH_CHECK(stats == grad_m2.has_value(), "grad_mean and grad_m2: expected both or neither");
  TORCH_CHECK(!(stats && out_relu), "out_relu: statistics are of the raw output, not with out_relu");
  TORCH_CHECK(y || !(stats || out_relu), "y: expected the output, for the gradient of statistics or ReLU");
  TORCH_CHECK(mean || !stats, "mean: expected the output's mean, for the gradient of statistics");
  if (y) check_map_like(*y, x, shape, "y", "x");
  check_vector(grad_mean, x, shape[1], "grad_mean");
  check_vector(grad_m2, x, shape[1], "grad_m2");
  check_vector(mean, x, shape[1], "mean");
}

inline void check_pointwise_backward(const Tensor& grad_y, const OptTensor& grad_mean,
                                     const OptTensor& grad_m2, const Tensor& x, const Tensor& w,
                                     const OptTensor& scale, const OptTensor& shift, const OptTensor& y,
                                     const OptTensor& mean, bool out_relu, int64_t groups) {
  check_pointwise(x, w, scale, shift, {}, false, false, groups);
  check_conv_gradients(grad_y, grad_mean, grad_m2, x, y, mean, out_relu,
                       {x.size(0), w.size(0), x.size(2), x.size(3)});
}

inline void check_depthwise_backward(const Tensor& grad_y, const OptTensor& grad_mean,
                                     const OptTensor& grad_m2, const Tensor& x, const Tensor& w,
                                     const OptTensor& scale, const OptTensor& shift, const OptTensor& y,
                                     const OptTensor& mean, bool out_relu, int64_t stride,
                                     int64_t dilation) {
  check_depthwise(x, w, scale, shift, {}, false, false, stride, dilation);
  check_conv_gradients(grad_y, grad_mean, grad_m2, x, y, mean, out_relu,
                       {x.size(0), x.size(1), conv_out(x.size(2), stride), conv_out(x.size(3), stride)});
}

// Lists, one item for each x; scale and shift may be empty. The items are checked one by one.
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
inline void check_mixed_backward(at::TensorList grad_y, at::TensorList grad_mean, at::TensorList grad_m2,
                                 at::TensorList x, at::TensorList weight, at::TensorList scale,
                                 at::TensorList shift, at::TensorList y, at::TensorList mean,
                                 at::IntArrayRef dilation) {
  check_mixed(x, weight, scale, shift, dilation);
  TORCH_CHECK(grad_y.size() == x.size(), "grad_y: expected ", x.size(), " tensors, got ", grad_y.size());
  for (const at::TensorList list : {grad_mean, grad_m2, y, mean})
    TORCH_CHECK(list.size() == grad_mean.size() && (list.empty() || list.size() == x.size()),
                "grad_mean, grad_m2, y, mean: expected lists of length 0 or ", x.size(), ", got ",
                grad_mean.size(), ", ", grad_m2.size(), ", ", y.size(), ", ", mean.size());
}

// Convolutions of a block's main branch, and with its projection at stride 2.
inline size_t main_layers(int64_t kernel) { return kernel == 0 ? 6 : 3; }
inline size_t block_layers(int64_t kernel, int64_t stride) {
  return main_layers(kernel) + (stride == 2 ? 2 : 0);
}

// Whether layer i is a depthwise convolution; the first of the projection is one.
inline bool is_depthwise(int64_t kernel, size_t i) {
  const size_t main = main_layers(kernel);
  return i >= main ? i == main : kernel == 0 ? i % 2 == 0 : i == 1;
}

inline void check_block_options(int64_t kernel, int64_t stride) {
  TORCH_CHECK(kernel == 0 || kernel == 3 || kernel == 5 || kernel == 7,
              "kernel: expected 3, 5, 7 or 0 for xception, got ", kernel);
  TORCH_CHECK(stride == 1 || stride == 2, "stride: expected 1 or 2, got ", stride);
}

// Weights in order: 1x1, depthwise, 1x1 (xception: three times depthwise, 1x1), and at stride 2 the
// projection's depthwise, 1x1. x: the main branch's input, `channels` of it; at stride 2 both branches'.
inline void check_block_weights(at::TensorList weights, const Tensor& x, int64_t channels, int64_t kernel) {
  const size_t main = main_layers(kernel);
  const int64_t k = kernel == 0 ? 3 : kernel;
  int64_t c = channels;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& w = weights[i];
    const Name name("weights", static_cast<int64_t>(i));
    if (i == main) c = channels;
    check_map(w, name);
    check_like(w, x, name, "x");
    if (is_depthwise(kernel, i)) {
      check_shape(w, {c, 1, k, k}, name);
    } else {
      TORCH_CHECK(w.size(1) == c && w.size(2) == 1 && w.size(3) == 1, name,
                  ": expected shape (out_channels, ", c, ", 1, 1), got ", w.sizes());
      c = w.size(0);
    }
  }
}

inline void check_block(const Tensor& x, at::TensorList weights, at::TensorList biases, int64_t kernel,
                        int64_t stride, int64_t method) {
  check_map(x, "x");
  check_block_options(kernel, stride);
  TORCH_CHECK(method == 1 || method == 2, "method: expected 1 or 2, got ", method);
  TORCH_CHECK(stride == 2 || x.size(1) % 2 == 0, "x: expected an even number of channels, got ", x.size(1));
  const size_t count = block_layers(kernel, stride);
  TORCH_CHECK(weights.size() == count && biases.size() == count, "weights, biases: expected ", count,
              " tensors each, got ", weights.size(), " and ", biases.size());
  check_block_weights(weights, x, stride == 1 ? x.size(1) / 2 : x.size(1), kernel);
  for (size_t i = 0; i < count; ++i)
    check_vector(biases[i], x, weights[i].size(0), {"biases", static_cast<int64_t>(i)});
}

inline void check_pack_block(at::TensorList weights, int64_t kernel, int64_t stride) {
  check_block_options(kernel, stride);
  TORCH_CHECK(weights.size() == block_layers(kernel, stride), "weights: expected ",
              block_layers(kernel, stride), " tensors, got ", weights.size());
  check_map(weights[0], {"weights", 0});
  check_block_weights(weights, weights[0], weights[0].size(kernel == 0 ? 0 : 1), kernel);
}

inline void check_out_method(int64_t out_method) {
  TORCH_CHECK(out_method >= 0 && out_method <= 2, "out_method: expected 0, 1 or 2, got ", out_method);
}

// Whether layer i of a block is the last one of a branch.
inline bool is_last_layer(size_t i, size_t count, int64_t kernel) {
  return i + 1 == main_layers(kernel) || i + 1 == count;
}

// Whether pack_shuffle_block parts the weights of branches' last layers: channels 0, 2, ... before 1, 3, ..., each
// half whole panels of 16.
inline bool are_parted(at::TensorList weights, int64_t kernel, int64_t out_method) {
  if (out_method != 2) return false;
  for (size_t i = 0; i < weights.size(); ++i)
    if (is_last_layer(i, weights.size(), kernel) && weights[i].size(0) % 32 != 0) return false;
  return true;
}

// A weight w as pack_shuffle_block packs it.
inline void check_packed_layer(const Tensor& p, const Tensor& w, const Tensor& x, bool parted, Name name) {
  check_device(p, x, name);
  TORCH_CHECK(p.scalar_type() == stats_type(x), name, ": expected dtype ", stats_type(x), ", got ",
              p.scalar_type());
  const int64_t depth = w.size(2) > 1 ? w.size(2) * w.size(3) : w.size(1);
  if (parted) check_shape(p, {2, w.size(0) / 32, depth, 16}, name);
  else check_shape(p, {(w.size(0) + 15) / 16, depth, 16}, name);
  TORCH_CHECK(p.is_contiguous(), name, ": expected a contiguous tensor, as pack_shuffle_block makes");
}

// x, right: at stride 1 the halves of the shuffled input, or the input.
inline void check_chained_block(const Tensor& x, const OptTensor& right, at::TensorList weights,
                                at::TensorList biases, int64_t kernel, int64_t stride, int64_t method,
                                int64_t out_method) {
  check_map(x, "x");
  check_block_options(kernel, stride);
  TORCH_CHECK(method == 1 || method == 2, "method: expected 1 or 2, got ", method);
  check_out_method(out_method);
  TORCH_CHECK(stride == 1 || !right, "right: expected at stride 1 only");
  if (right) {
    check_map(*right, "right");
    check_map_like(*right, x, {x.size(0), right->size(1), x.size(2), x.size(3)}, "right", "x");
  }
  TORCH_CHECK(stride == 2 || right || x.size(1) % 2 == 0, "x: expected an even number of channels, got ",
              x.size(1));
  const size_t count = block_layers(kernel, stride);
  TORCH_CHECK(weights.size() == count && biases.size() == count, "weights, biases: expected ", count,
              " tensors each, got ", weights.size(), " and ", biases.size());
  check_block_weights(weights, x, stride == 2 ? x.size(1) : right ? right->size(1) : x.size(1) / 2, kernel);
  for (size_t i = 0; i < count; ++i)
    check_vector(biases[i], x, weights[i].size(0), {"biases", static_cast<int64_t>(i)});
  const int64_t main_out = weights[main_layers(kernel) - 1].size(0);
  const int64_t passing = stride == 2 ? weights[count - 1].size(0) : right ? x.size(1) : x.size(1) / 2;
  TORCH_CHECK(out_method == 0 || (main_out + passing) % 2 == 0,
              "out_method: expected 0 for an odd number of output channels, ", main_out + passing, ", got ",
              out_method);
}

// Packed for this out_method.
inline void check_packed_block(const Tensor& x, const OptTensor& right, at::TensorList weights,
                               at::TensorList packed, at::TensorList biases, int64_t kernel,
                               int64_t stride, int64_t method, int64_t out_method) {
  check_chained_block(x, right, weights, biases, kernel, stride, method, out_method);
  TORCH_CHECK(packed.size() == weights.size(), "packed: expected ", weights.size(), " tensors, got ", packed.size());
  const bool parted = are_parted(weights, kernel, out_method);
  for (size_t i = 0; i < packed.size(); ++i)
    check_packed_layer(packed[i], weights[i], x, parted && is_last_layer(i, packed.size(), kernel),
                       {"packed", static_cast<int64_t>(i)});
}

inline void check_block_stats(const Tensor& left, const OptTensor& right, const OptTensor& scale,
                              const OptTensor& shift, bool relu, at::TensorList weights,
                              at::TensorList gammas, at::TensorList betas, at::ArrayRef<double> eps,
                              int64_t kernel, int64_t stride, int64_t out_method, int64_t batches) {
  check_map(left, "left");
  check_block_options(kernel, stride);
  check_out_method(out_method);
  TORCH_CHECK(right.has_value() == (stride == 1), "right: expected at stride 1, and only there");
  TORCH_CHECK(stride == 2 || !(scale || shift || relu),
              "scale, shift, relu: expected nothing pending on left at stride 1");
  check_affine(scale, shift, left, "scale", "shift", batches);
  if (right) {  // of another dtype under autocast
    check_map(*right, "right");
    check_shape(*right, {left.size(0), right->size(1), left.size(2), left.size(3)}, "right");
    check_device(*right, left, "right");
  }
  const size_t count = block_layers(kernel, stride);
  for (const size_t size : {weights.size(), gammas.size(), betas.size(), eps.size()})
    TORCH_CHECK(size == count, "weights, gammas, betas, eps: expected ", count, " each, got ",
                weights.size(), ", ", gammas.size(), ", ", betas.size(), " and ", eps.size());
  const Tensor& input = right ? *right : left;
  check_block_weights(weights, input, input.size(1), kernel);
  for (size_t i = 0; i < count; ++i) {
    check_vector(gammas[i], left, weights[i].size(0), {"gammas", static_cast<int64_t>(i)});
    check_vector(betas[i], left, weights[i].size(0), {"betas", static_cast<int64_t>(i)});
  }
  const int64_t main_out = weights[main_layers(kernel) - 1].size(0);
  const int64_t channels = main_out + (right ? left.size(1) : weights[count - 1].size(0));
  TORCH_CHECK(out_method == 0 || channels % 2 == 0,
              "out_method: expected 0 for an odd number of output channels, ", channels, ", got ", out_method);
}

}  // namespace detnas
