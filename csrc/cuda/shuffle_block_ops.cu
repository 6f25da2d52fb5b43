// shuffle_block on CUDA: depthwise kernels of our own between the library's matrix products.
#include <ATen/ops/cat.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/relu.h>
#include <torch/library.h>

#include "conv.cuh"

namespace detnas {
namespace cuda {
namespace {

Tensor shuffle_block(const Tensor& x, at::TensorList weights, at::TensorList biases, int64_t kernel,
                     int64_t stride, int64_t method) {
  check_map(x, "x");
  TORCH_CHECK(stride == 1 || stride == 2, "stride: expected 1 or 2, got ", stride);
  TORCH_CHECK(method == 1 || method == 2, "method: expected 1 or 2, got ", method);
  const size_t main = kernel == 0 ? 6 : 3, count = main + (stride == 2 ? 2 : 0);
  TORCH_CHECK(weights.size() == count && biases.size() == count, "weights, biases: expected ", count,
              " tensors each, got ", weights.size(), " and ", biases.size());
  const c10::cuda::CUDAGuard guard(x.device());
  auto chain = [&](Tensor z, size_t first, size_t n) {
    int64_t s = stride;
    for (size_t i = first; i < first + n; ++i) {
      if (weights[i].size(2) > 1) {
        z = std::get<0>(depthwise_conv(z, weights[i], {}, {}, false, biases[i], false, false, s, 1));
        s = 1;
      } else {
        z = at::conv2d(z, weights[i], biases[i].to(z.scalar_type())).relu_();
      }
    }
    return z;
  };
  Tensor left, right = x;
  const int64_t half = x.size(1) / 2;
  if (stride == 2) {
    left = chain(as_map(x), main, 2);
  } else {
    // The halves of the shuffled input, as the kernel of shuffle_concat makes them.
    left = empty_map({x.size(0), half, x.size(2), x.size(3)}, x);
    right = at::empty_like(left);
    const Tensor map = as_map(x);
    if (x.numel() > 0)
      DETNAS_DISPATCH(x, "shuffle_block", [&] {
        Source<scalar_t> first = source<scalar_t>(map, {}, {}, false), second = first;
        second.data += half;
        Shuffle<scalar_t> s{first, second, static_cast<int>(half), static_cast<int>(half),
                            static_cast<int>(method), static_cast<int>(half),
                            left.data_ptr<scalar_t>(), right.data_ptr<scalar_t>(), half, half};
        launch_shuffle(s, pixel_count(x), stream());
      });
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return as_map(at::cat({left, chain(as_map(right), 0, main)}, 1));
}

}  // namespace
}  // namespace cuda
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CUDA, m) {
  m.impl("shuffle_block", &detnas::cuda::shuffle_block);
}
