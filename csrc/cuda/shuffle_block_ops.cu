// shuffle_block on CUDA: a launch for the halves, then one for every convolution, bias and ReLU
// included; nothing is concatenated.
#include <torch/library.h>

#include "conv.cuh"
#include "shuffle_concat.cuh"

namespace detnas {
namespace cuda {
namespace {

Tensor shuffle_block(const Tensor& x, at::TensorList weights, at::TensorList biases, int64_t kernel,
                     int64_t stride, int64_t method) {
  check_block(x, weights, biases, kernel, stride, method);
  const size_t main = main_layers(kernel);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor map = as_map(x);
  const int64_t n = x.size(0), c = x.size(1), half = c / 2;
  const int64_t right_channels = weights[main - 1].size(0);
  const int64_t left_channels = stride == 2 ? weights[main + 1].size(0) : half;
  Tensor out = empty_map({n, left_channels + right_channels, conv_out(x.size(2), stride),
                          conv_out(x.size(3), stride)}, x);
  // The last convolution writes where its channels belong in the block's output.
  auto chain = [&](Tensor z, size_t first, size_t count, int64_t offset) {
    int64_t s = stride;
    for (size_t i = first; i < first + count; ++i) {
      if (weights[i].size(2) > 1) {
        z = std::get<0>(depthwise_conv(z, weights[i], {}, {}, false, biases[i], false, false, s, 1));
        s = 1;
      } else if (i + 1 < first + count) {
        z = std::get<0>(pointwise_conv(z, weights[i], {}, {}, false, biases[i], true, false, 1));
      } else {
        pointwise_relu_into(z, weights[i], biases[i], out, offset);
      }
    }
  };
  if (stride == 2) {
    chain(map, main, 2, 0);
    chain(map, 0, main, left_channels);
    return out;
  }
  // The halves of the shuffled input, the left one at its place in the output.
  Tensor right = empty_map({n, c - half, x.size(2), x.size(3)}, x);
  if (x.numel() > 0)
    DETNAS_DISPATCH(x, "shuffle_block", [&] {
      Source<scalar_t> first = source<scalar_t>(map, {}, {}, false), second = first;
      second.data += half;
      Shuffle<scalar_t> s{first, second, static_cast<int>(half), static_cast<int>(half),
                          static_cast<int>(method), static_cast<int>(half), out.data_ptr<scalar_t>(),
                          right.data_ptr<scalar_t>(), out.size(1), half};
      launch_shuffle(s, pixel_count(x), stream());
    });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  chain(right, 0, main, half);
  return out;
}

}  // namespace
}  // namespace cuda
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, DETNAS_DEVICE, m) {
  m.impl("shuffle_block", &detnas::cuda::shuffle_block);
}
