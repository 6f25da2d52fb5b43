// Blocks in evaluation on CUDA: a launch for every 1x1 convolution, bias, ReLU and as a rule the depthwise convolution
// before it included. The last one of a branch writes to the block's output, concatenated or as the halves that a
// following block of stride 1 reads, and takes what passes by with it; nothing is concatenated, shuffled or split by a
// launch of its own.
#include <torch/library.h>

#include "block_part.cuh"
#include "conv.cuh"

namespace detnas {
namespace cuda {
namespace {

// The convolutions of a block.
struct Layers {
  at::TensorList weights, biases;
  int64_t stride;

  // z through `count` of them from `first` on, or with a `part` as that of the block's output.
  Tensor run(Tensor z, size_t first, size_t count, const BlockPart* part = nullptr) const {
    int64_t s = stride;
    const size_t end = first + count;
    for (size_t i = first; i < end; ++i) {
      if (weights[i].size(2) > 1) {  // a 1x1 convolution follows
        Tensor y;
        const bool both = separable_relu(z, weights[i], biases[i], s, weights[i + 1], biases[i + 1],
                                         i + 2 == end ? part : nullptr, y);
        if (!both) y = std::get<0>(depthwise_conv(z, weights[i], {}, {}, false, biases[i], false, false, s, 1));
        z = y;
        s = 1;
        i += both;
      } else if (part && i + 1 == end) {
        pointwise_relu_into(z, weights[i], biases[i], *part);
      } else {
        z = std::get<0>(pointwise_conv(z, weights[i], {}, {}, false, biases[i], true, false, 1));
      }
    }
    return z;
  }
};

// The right half of the shuffled map; the left one goes to `left`.
Tensor split(const Tensor& x, int64_t method, const Tensor& left) {
  const Tensor right = empty_map({x.size(0), x.size(1) / 2, x.size(2), x.size(3)}, x);
  if (x.numel() > 0) shuffled_halves(x, method, left, right);
  return right;
}

Tensor half_map(const Tensor& x) { return empty_map({x.size(0), x.size(1) / 2, x.size(2), x.size(3)}, x); }

// x, right: at stride 1 the halves of the shuffled input, or the input, shuffled by `method`.
std::tuple<Tensor, Tensor> run(const Tensor& x, const OptTensor& right, at::TensorList weights, at::TensorList biases,
                               int64_t kernel, int64_t stride, int64_t method, int64_t out_method) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Layers layers{weights, biases, stride};
  const size_t main = main_layers(kernel), projection = weights.size() - main;
  const bool strided = stride == 2, joined = out_method == 0;
  const int64_t c_right = weights[main - 1].size(0);
  const int64_t c_left = strided ? weights.back().size(0) : right ? x.size(1) : x.size(1) / 2;

  const bool in_place = joined && !right;  // the left half
  bool direct = strided || in_place || c_left == c_right;
  direct = direct && fuses_product(x, weights[main - 1]) && (!strided || fuses_product(x, weights.back()));
  if (!direct) {
    Tensor left = right || strided ? x : half_map(x);
    const Tensor rest = right ? *right : strided ? as_map(x) : split(x, method, left);
    if (strided) left = layers.run(rest, main, projection);
    return shuffle_concat(left, layers.run(rest, 0, main), {}, {}, {}, {}, false, false, out_method, !joined, 1);
  }

  const auto map = [&](int64_t channels) {
    return empty_map({x.size(0), channels, conv_out(x.size(2), stride), conv_out(x.size(3), stride)}, x);
  };
  const int64_t c = c_left + c_right;
  const BlockOutput out{map(joined ? c : c / 2), joined ? at::empty({0}, x.options()) : map(c / 2), out_method};
  if (out.first.numel() == 0) return {out.first, out.second};
  BlockPart part{out, c_left, {}};
  if (strided) {
    const Tensor input = as_map(x);
    layers.run(input, 0, main, &part);
    part.offset = 0;
    layers.run(input, main, projection, &part);
  } else if (right) {
    part.passing = as_source(x);
    layers.run(*right, 0, main, &part);
  } else if (in_place) {
    layers.run(split(x, method, out.first.narrow(1, 0, c_left)), 0, main, &part);
  } else {
    part.passing = half_map(x);
    layers.run(split(x, method, *part.passing), 0, main, &part);
  }
  return {out.first, out.second};
}

Tensor shuffle_block(const Tensor& x, at::TensorList weights, at::TensorList biases, int64_t kernel,
                     int64_t stride, int64_t method) {
  check_block(x, weights, biases, kernel, stride, method);
  return std::get<0>(run(x, {}, weights, biases, kernel, stride, method, 0));
}

std::tuple<Tensor, Tensor> shuffle_block_packed(const Tensor& x, const OptTensor& right, at::TensorList weights,
                                                at::TensorList packed, at::TensorList biases, int64_t kernel,
                                                int64_t stride, int64_t method, int64_t out_method) {
  check_chained_block(x, right, weights, biases, kernel, stride, method, out_method);
  TORCH_CHECK(packed.empty(), "packed: expected none, as pack_shuffle_block makes here, got ", packed.size());
  return run(x, right, weights, biases, kernel, stride, method, out_method);
}

// Products read weights as they are.
std::vector<Tensor> pack_shuffle_block(at::TensorList weights, int64_t kernel, int64_t stride, int64_t out_method) {
  check_pack_block(weights, kernel, stride);
  check_out_method(out_method);
  return {};
}

}  // namespace
}  // namespace cuda
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, DETNAS_DEVICE, m) {
  m.impl("shuffle_block", &detnas::cuda::shuffle_block);
  m.impl("shuffle_block_packed", &detnas::cuda::shuffle_block_packed);
  m.impl("pack_shuffle_block", &detnas::cuda::pack_shuffle_block);
}
