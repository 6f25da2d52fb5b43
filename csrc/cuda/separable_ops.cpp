// Depthwise convolutions of blocks in evaluation with the 1x1 convolution that reads them, on CUDA.
#include "block_part.cuh"
#include "conv.cuh"
#include "separable_plan.cuh"

namespace detnas {
namespace cuda {

bool separable_relu(const Tensor& x_in, const Tensor& taps_in, const Tensor& taps_bias_in, int64_t stride,
                    const Tensor& weight_in, const Tensor& bias_in, const BlockPart* part, Tensor& y) {
  if (x_in.numel() == 0 || !fuses_product(x_in, weight_in)) return false;
  const Tensor x = as_source(x_in), taps = taps_in.contiguous(), weight = weight_in.contiguous();
  const OptTensor taps_bias = vector(taps_bias_in), bias = vector(bias_in);
  bool done = false;
  DETNAS_DISPATCH(x, "separable_relu", [&] {
    Separable<scalar_t> g{};
    const Source<scalar_t> from = source<scalar_t>(x, {}, {}, false);
    g.x = from.data;
    g.ld = from.ld;
    g.images = x.size(0);
    g.taps = taps.const_data_ptr<scalar_t>();
    g.weight = weight.const_data_ptr<scalar_t>();
    g.taps_bias = pointer(taps_bias);
    g.bias = pointer(bias);
    g.channels = static_cast<int>(x.size(1));
    g.cols = static_cast<int>(weight.size(0));
    g.kernel = static_cast<int>(taps.size(2));
    g.stride = static_cast<int>(stride);
    g.height = static_cast<int>(x.size(2));
    g.width = static_cast<int>(x.size(3));
    g.out_height = static_cast<int>(conv_out(x.size(2), stride));
    g.out_width = static_cast<int>(conv_out(x.size(3), stride));
    if (!plan(g)) return;
    if (part) {
      g.join = join_of<scalar_t>(*part);
    } else {
      y = empty_map({g.images, g.cols, g.out_height, g.out_width}, x);
      g.out = y.data_ptr<scalar_t>();
    }
    if (!vectorizable(g)) return;
    launch_separable(g, stream());
    done = true;
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return done;
}

}  // namespace cuda
}  // namespace detnas
