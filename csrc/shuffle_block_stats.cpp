// shuffle_block_stats: a block normalised with the statistics of its batch, without gradients.
//
// Made of the operators' own kernels, called through the dispatcher: one implementation for every
// device, and one call from Python for a block instead of two for each convolution. The CPU has its own
// (cpu/shuffle_block_stats_kernel.cpp), with the same bits.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/ScalarType.h>
#include <torch/library.h>

#include "handles.h"
#include "shuffle_block_stats.h"

namespace detnas {
namespace {

using Pointwise = ConvNorm(const Tensor&, const Tensor&, const OptTensor&, const OptTensor&, bool,
                           const OptTensor&, int64_t, const OptTensor&, const OptTensor&, double, int64_t);
using Depthwise = ConvNorm(const Tensor&, const Tensor&, const OptTensor&, const OptTensor&, bool,
                           const OptTensor&, int64_t, int64_t, const OptTensor&, const OptTensor&, double,
                           int64_t);
using Shuffle = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const OptTensor&,
                                           const OptTensor&, const OptTensor&, const OptTensor&, bool,
                                           bool, int64_t, bool, int64_t);

// A map and what its reader applies to it.
struct Pending {
  Tensor x;
  OptTensor scale, shift;
  bool relu = false;
};

struct Layers {
  at::TensorList weights, gammas, betas;
  at::ArrayRef<double> eps;
  int64_t batches;
  std::vector<Tensor> counts, means, m2s;

  // Layers [first, last), the first depthwise convolution with `stride`.
  Pending run(Pending p, size_t first, size_t last, int64_t stride) {
    static const auto pointwise = handle<Pointwise>("detnas_d2::pointwise_conv_bn");
    static const auto depthwise = handle<Depthwise>("detnas_d2::depthwise_conv_bn");
    for (size_t i = first; i < last; ++i) {
      const Tensor& w = weights[i];
      const bool spatial = w.size(2) > 1;
      auto [y, count, mean, m2, scale, shift] = spatial
          ? depthwise.call(p.x, w, p.scale, p.shift, p.relu, {}, stride, 1, gammas[i], betas[i], eps[i], batches)
          : pointwise.call(p.x, w, p.scale, p.shift, p.relu, {}, 1, gammas[i], betas[i], eps[i], batches);
      if (spatial) stride = 1;
      p = {std::move(y), std::move(scale), std::move(shift), !spatial};
      counts[i] = std::move(count);
      means[i] = std::move(mean);
      m2s[i] = std::move(m2);
    }
    return p;
  }
};

}  // namespace

BlockStats composed_block_stats(const Tensor& left, const OptTensor& right, const OptTensor& scale,
                                const OptTensor& shift, bool relu, at::TensorList weights,
                                at::TensorList gammas, at::TensorList betas, at::ArrayRef<double> eps,
                                int64_t kernel, int64_t stride, int64_t out_method, int64_t batches) {
  check_block_stats(left, right, scale, shift, relu, weights, gammas, betas, eps, kernel, stride, out_method,
                    batches);
  const size_t main = main_layers(kernel), count = block_layers(kernel, stride);

  // The inner calls are neither differentiated nor, under autocast, cast again.
  const at::AutoDispatchBelowAutograd guard;
  static const auto shuffle = handle<Shuffle>("detnas_d2::shuffle_concat");
  Layers layers{weights, gammas, betas, eps, batches, std::vector<Tensor>(count), std::vector<Tensor>(count),
                std::vector<Tensor>(count)};
  Pending l{left, scale, shift, relu};
  Pending r = layers.run(stride == 1 ? Pending{*right, {}, {}, false} : l, 0, main, stride);
  if (stride == 2) l = layers.run(l, main, count, 2);
  if (l.x.scalar_type() != r.x.scalar_type()) {  // under autocast; as torch.cat
    const auto type = c10::promoteTypes(l.x.scalar_type(), r.x.scalar_type());
    l.x = l.x.to(type);
    r.x = r.x.to(type);
  }
  auto [a, b] = shuffle.call(l.x, r.x, l.scale, l.shift, r.scale, r.shift, l.relu, r.relu, out_method,
                             out_method != 0, batches);
  return {a, b, std::move(layers.counts), std::move(layers.means), std::move(layers.m2s)};
}

void Blocks::check() const {
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

void check_blocks_stats(const Tensor& x, const OptTensor& scale, const OptTensor& shift, at::TensorList weights,
                        at::TensorList packed, at::TensorList gammas, at::TensorList betas,
                        at::ArrayRef<double> eps, const Blocks& blocks, int64_t batches) {
  check_map(x, "x");
  check_affine(scale, shift, x, "scale", "shift", batches);
  blocks.check();
  size_t count = 0;
  for (size_t i = 0; i < blocks.size(); ++i) count += blocks.layers(i);
  for (const size_t size : {weights.size(), gammas.size(), betas.size(), eps.size()})
    TORCH_CHECK(size == count, "weights, gammas, betas, eps: expected ", count, " each, got ", weights.size(),
                ", ", gammas.size(), ", ", betas.size(), " and ", eps.size());
  TORCH_CHECK(packed.empty() || (x.is_cpu() && packed.size() == count), "packed: expected on the CPU alone, ", count,
              " or none, got ", packed.size());
  int64_t channels = x.size(1);
  size_t first = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const size_t main = main_layers(blocks.kernels[i]), size = blocks.layers(i);
    const at::TensorList own = weights.slice(first, size);
    const bool halved = blocks.strides[i] == 1;
    TORCH_CHECK(!halved || channels % 2 == 0, "x, weights: expected an even number of channels for block ", i,
                " of stride 1, got ", channels);
    check_block_weights(own, x, halved ? channels / 2 : channels, blocks.kernels[i]);
    channels = own[main - 1].size(0) + (halved ? channels / 2 : own[size - 1].size(0));
    first += size;
  }
  for (size_t i = 0; i < count; ++i) {
    const auto index = static_cast<int64_t>(i);
    check_vector(gammas[i], x, weights[i].size(0), {"gammas", index});
    check_vector(betas[i], x, weights[i].size(0), {"betas", index});
    if (!packed.empty()) check_packed_layer(packed[i], weights[i], x, false, {"packed", index});
  }
}

BlocksInput blocks_input(const Tensor& x, const OptTensor& scale, const OptTensor& shift, bool relu,
                         const Blocks& blocks, int64_t batches) {
  if (blocks.strides[0] == 2) return {x, {}, scale, shift, relu};
  static const auto shuffle = handle<Shuffle>("detnas_d2::shuffle_concat");
  const int64_t half = x.size(1) / 2;
  const auto part = [&](const OptTensor& v, int64_t from) {
    return v ? OptTensor(v->narrow(-1, from, half)) : OptTensor();
  };
  auto [left, right] = shuffle.call(x.narrow(1, 0, half), x.narrow(1, half, half), part(scale, 0), part(shift, 0),
                                    part(scale, half), part(shift, half), relu, relu, blocks.methods[0], true,
                                    batches);
  return {left, right, {}, {}, false};
}

BlocksStats composed_blocks_stats(const Tensor& x, const OptTensor& scale, const OptTensor& shift, bool relu,
                                  at::TensorList weights, at::TensorList packed, at::TensorList gammas,
                                  at::TensorList betas, at::ArrayRef<double> eps, at::IntArrayRef kernels,
                                  at::IntArrayRef strides, at::IntArrayRef methods, at::IntArrayRef ends,
                                  int64_t batches) {
  const Blocks blocks{kernels, strides, methods, ends};
  check_blocks_stats(x, scale, shift, weights, packed, gammas, betas, eps, blocks, batches);
  const at::AutoDispatchBelowAutograd guard;
  static const auto block = handle<decltype(composed_block_stats)>("detnas_d2::shuffle_block_stats");
  BlocksStats result;
  auto& [outputs, counts, means, m2s] = result;
  BlocksInput in = blocks_input(x, scale, shift, relu, blocks, batches);
  size_t first = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const size_t size = blocks.layers(i);
    const int64_t method = blocks.out_method(i, outputs.size());
    auto [a, b, count, mean, m2] = block.call(
        in.left, in.right, in.scale, in.shift, in.relu, weights.slice(first, size), gammas.slice(first, size),
        betas.slice(first, size), eps.slice(first, size), kernels[i], strides[i], method, batches);
    for (auto [all, own] : {std::pair(&counts, &count), std::pair(&means, &mean), std::pair(&m2s, &m2)})
      std::move(own->begin(), own->end(), std::back_inserter(*all));
    if (ends[outputs.size()] == static_cast<int64_t>(i + 1)) outputs.push_back(a);
    // A block of stride 1 after an output that is wanted shuffles it.
    const bool more = i + 1 < blocks.size(), halve = more && strides[i + 1] == 1 && method == 0;
    if (halve) in = blocks_input(a, {}, {}, false, {kernels.slice(i + 1), strides.slice(i + 1), methods.slice(i + 1), {}}, batches);
    else in = {std::move(a), method ? OptTensor(std::move(b)) : OptTensor(), {}, {}, false};
    first += size;
  }
  return result;
}

}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CompositeExplicitAutograd, m) {
  m.impl("shuffle_block_stats", &detnas::composed_block_stats);
  m.impl("shuffle_blocks_stats", &detnas::composed_blocks_stats);
}
