// shuffle_block_training and its gradients: operators one by one, as autograd would call them, in one call each.
//
// What an interpreter and autograd do around every operator takes as long as a small map, and on a GPU longer than
// the work itself.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <memory>

#include "shuffle_layers.h"

namespace detnas {
namespace {

// Of a layer: its map, the affine map pending on it, count, mean and squared deviations.
constexpr size_t kRow = 6;

std::tuple<Tensor, Tensor, std::vector<Tensor>> shuffle_block_training(
    const Tensor& left, const OptTensor& right, const OptTensor& scale, const OptTensor& shift, bool relu,
    at::TensorList weights, at::TensorList gammas, at::TensorList betas, at::ArrayRef<double> eps, int64_t kernel,
    int64_t stride, int64_t out_method) {
  check_block_stats(left, right, scale, shift, relu, weights, gammas, betas, eps, kernel, stride, out_method, 1);
  std::vector<Tensor> made;
  made.reserve(kRow * weights.size());
  const auto keep = [&](size_t, const ConvNorm& layer) {
    const auto& [y, count, mean, m2, a, b] = layer;
    made.insert(made.end(), {y, a, b, count, mean, m2});
  };
  auto [a, b] = run_block({weights, gammas, betas, eps, 1}, {left, scale, shift, relu}, right, kernel, stride,
                          out_method, keep);
  return {a, b, std::move(made)};
}

using ConvGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using ConvBackward = ConvGradients(const Tensor&, const OptTensor&, const OptTensor&, const Tensor&, const Tensor&,
                                   const OptTensor&, const OptTensor&, bool, const OptTensor&, const OptTensor&, bool,
                                   int64_t, std::array<bool, 3>);
using SpatialBackward = ConvGradients(const Tensor&, const OptTensor&, const OptTensor&, const Tensor&, const Tensor&,
                                      const OptTensor&, const OptTensor&, bool, const OptTensor&, const OptTensor&,
                                      bool, int64_t, int64_t, std::array<bool, 3>);
using FoldBackward = std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                                const Tensor&, const Tensor&, const OptTensor&,
                                                                double);
using ShuffleBackward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>(
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptTensor&, const OptTensor&, const OptTensor&,
    const OptTensor&, bool, bool, int64_t, bool);

// Gradients of a map and of what is pending on it; undefined where they are not wanted.
struct Back {
  Tensor x, scale, shift;
};

// The backward pass of a block's layers; gradients that are not wanted stay empty.
struct Gradients {
  at::TensorList weights, gammas, betas;
  at::ArrayRef<double> eps;
  at::TensorList made;
  c10::ArrayRef<bool> wanted;  // of weights, gammas, betas
  std::vector<Tensor> d_weights, d_gammas, d_betas;

  bool any(size_t i) const { return wanted[i] || wanted[i + eps.size()] || wanted[i + 2 * eps.size()]; }
  Pending map(size_t i) const {
    const Tensor* row = &made[kRow * i];
    return {row[0], row[1], row[2], weights[i].size(2) == 1};
  }

  // Of layers [first, last), which read `source`, from the gradient of what they leave.
  Back run(const Pending& source, size_t first, size_t last, int64_t stride, bool source_wanted, Back grad) {
    static const auto fold = handle<FoldBackward>("detnas_d2::bn_fold_backward");
    static const auto pointwise = handle<ConvBackward>("detnas_d2::pointwise_conv_backward");
    static const auto depthwise = handle<SpatialBackward>("detnas_d2::depthwise_conv_backward");
    size_t spatial = first;  // the depthwise convolution that strides
    while (weights[spatial].size(2) == 1) ++spatial;
    size_t lowest = first;  // the first layer that a gradient is wanted of
    while (!source_wanted && lowest < last && !any(lowest)) ++lowest;
    for (size_t i = last; i-- > first;) {
      const Pending p = i > first ? map(i - 1) : source;
      const Tensor *row = &made[kRow * i], &w = weights[i], &gamma = gammas[i], &beta = betas[i];
      auto [d_mean, d_m2, d_gamma, d_beta] = fold.call(grad.scale, grad.shift, row[3], row[4], row[5], gamma, eps[i]);
      const std::array<bool, 3> mask{source_wanted || i > lowest, wanted[i], false};
      auto [dx, dw, d_scale, d_shift, d_bias] = w.size(2) > 1
          ? depthwise.call(grad.x, d_mean, d_m2, p.x, w, p.scale, p.shift, p.relu, row[0], row[4], false,
                           i == spatial ? stride : 1, 1, mask)
          : pointwise.call(grad.x, d_mean, d_m2, p.x, w, p.scale, p.shift, p.relu, row[0], row[4], false, 1, mask);
      if (mask[1]) d_weights[i] = dw;
      if (wanted[i + eps.size()]) d_gammas[i] = d_gamma.to(gamma.scalar_type());
      if (wanted[i + 2 * eps.size()]) d_betas[i] = d_beta.to(beta.scalar_type());
      if (!mask[0]) return {};
      grad = {dx, d_scale, d_shift};
    }
    if (!source.scale) grad.scale = grad.shift = Tensor();
    return grad;
  }
};

using BlockGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>,
                                  std::vector<Tensor>>;

BlockGradients shuffle_block_training_backward(
    const Tensor& grad_a, const OptTensor& grad_b, const Tensor& left, const OptTensor& right, const OptTensor& scale,
    const OptTensor& shift, bool relu, at::TensorList weights, at::TensorList gammas, at::TensorList betas,
    at::ArrayRef<double> eps, int64_t kernel, int64_t stride, int64_t out_method, at::TensorList made,
    c10::List<bool> wanted) {
  check_block_stats(left, right, scale, shift, relu, weights, gammas, betas, eps, kernel, stride, out_method, 1);
  const size_t main = main_layers(kernel), count = block_layers(kernel, stride);
  TORCH_CHECK(made.size() == kRow * count, "made: expected ", kRow * count, " tensors, got ", made.size());
  for (size_t i = 0; i < made.size(); ++i) {
    const Name name("made", static_cast<int64_t>(i));
    const size_t what = i % kRow;
    if (what == 0) check_map(made[i], name);
    else if (what == 3) check_shape(made[i], {}, name);
    else check_vector(made[i], left, weights[i / kRow].size(0), name);
  }
  TORCH_CHECK(wanted.size() == 4 + 3 * count, "wanted: expected ", 4 + 3 * count, " flags, got ", wanted.size());
  const at::AutoDispatchBelowAutograd guard;
  static const auto shuffle = handle<ShuffleBackward>("detnas_d2::shuffle_concat_backward");
  std::unique_ptr<bool[]> flags(new bool[wanted.size()]);
  for (size_t i = 0; i < wanted.size(); ++i) flags[i] = wanted.get(i);
  const Tensor none = at::empty({0}, left.options());
  const std::vector<Tensor> nothing(count, none);
  const c10::ArrayRef<bool> of_parameters(flags.get() + 4, 3 * count);
  Gradients g{weights, gammas, betas, eps, made, of_parameters, nothing, nothing, nothing};

  const Pending input{left, scale, shift, relu};
  const Pending a = right ? input : g.map(count - 1), b = g.map(main - 1);
  auto [d_left, d_right, left_scale, left_shift, right_scale, right_shift] =
      shuffle.call(grad_a, grad_b ? *grad_b : at::empty({0}, grad_a.options()), a.x, b.x, a.scale, a.shift, b.scale,
                   b.shift, a.relu, b.relu, out_method, out_method != 0);
  const Back of_main{d_right, right_scale, right_shift};
  Back ends;
  Tensor d_second;
  if (right) {
    ends.x = d_left;
    d_second = g.run({*right, {}, {}, false}, 0, main, stride, flags[1], of_main).x;
  } else {
    const bool input_wanted = flags[0] || flags[1] || flags[2] || flags[3];
    const Back x = g.run(input, 0, main, stride, input_wanted, of_main);
    const Back y = g.run(input, main, count, stride, input_wanted, {d_left, left_scale, left_shift});
    const auto sum = [](const Tensor& u, const Tensor& v) { return u.defined() ? at::add(u, v) : u; };
    ends = Back{sum(x.x, y.x), sum(x.scale, y.scale), sum(x.shift, y.shift)};
  }
  const auto given = [&](const Tensor& t, size_t i) { return flags[i] && t.defined() ? t : none; };
  return {given(ends.x, 0), given(d_second, 1), given(ends.scale, 2), given(ends.shift, 3), std::move(g.d_weights),
          std::move(g.d_gammas), std::move(g.d_betas)};
}

}  // namespace
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CompositeImplicitAutograd, m) {
  m.impl("shuffle_block_training", &detnas::shuffle_block_training);
}

TORCH_LIBRARY_IMPL(detnas_d2, CompositeExplicitAutograd, m) {
  m.impl("shuffle_block_training_backward", &detnas::shuffle_block_training_backward);
}
