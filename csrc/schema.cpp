// Schemas of all operators. Their meaning: detnas_d2/ops/<op>.py.
//
// x: (N, C, H, W). scale, shift: the affine map pending on x, (C). mean, m2: (C), count: scalar;
// without want_stats the statistics are empty. Outputs are channels_last. batches: of how many batches of
// one size the N images are; where there are several, each has vectors of its own, (batches, C).
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(detnas_d2, m) {
  m.def("bn_stats(Tensor x, Tensor? scale, Tensor? shift, bool relu)"
        " -> (Tensor count, Tensor mean, Tensor m2)");
  m.def("bn_stats_list(Tensor[] x, Tensor? scale, Tensor? shift, bool relu)"
        " -> (Tensor count, Tensor mean, Tensor m2)");
  m.def("bn_stats_backward(Tensor grad_mean, Tensor grad_m2, Tensor x, Tensor mean, Tensor? scale,"
        " Tensor? shift, bool relu) -> (Tensor grad_x, Tensor grad_scale, Tensor grad_shift)");
  m.def("bn_fold(Tensor count, Tensor mean, Tensor m2, Tensor? gamma, Tensor? beta, float eps)"
        " -> (Tensor scale, Tensor shift)");
  m.def("bn_stats_fold(Tensor x, Tensor? scale, Tensor? shift, bool relu, Tensor? gamma, Tensor? beta,"
        " float eps, int batches=1)"
        " -> (Tensor count, Tensor mean, Tensor m2, Tensor out_scale, Tensor out_shift)");
  m.def("bn_fold_backward(Tensor grad_scale, Tensor grad_shift, Tensor count, Tensor mean,"
        " Tensor m2, Tensor? gamma, float eps)"
        " -> (Tensor grad_mean, Tensor grad_m2, Tensor grad_gamma, Tensor grad_beta)");

  m.def("pointwise_conv(Tensor x, Tensor weight, Tensor? scale, Tensor? shift, bool relu,"
        " Tensor? bias, bool out_relu, bool want_stats, int groups)"
        " -> (Tensor y, Tensor count, Tensor mean, Tensor m2)");
  m.def("pointwise_conv_bn(Tensor x, Tensor weight, Tensor? scale, Tensor? shift, bool relu,"
        " Tensor? bias, int groups, Tensor? gamma, Tensor? beta, float eps, int batches=1)"
        " -> (Tensor y, Tensor count, Tensor mean, Tensor m2, Tensor out_scale, Tensor out_shift)");
  m.def("pointwise_conv_backward(Tensor grad_y, Tensor? grad_mean, Tensor? grad_m2, Tensor x,"
        " Tensor weight, Tensor? scale, Tensor? shift, bool relu, Tensor? y, Tensor? mean,"
        " bool out_relu, int groups, bool[3] output_mask)"
        " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_scale, Tensor grad_shift,"
        " Tensor grad_bias)");

  m.def("depthwise_conv(Tensor x, Tensor weight, Tensor? scale, Tensor? shift, bool relu,"
        " Tensor? bias, bool out_relu, bool want_stats, int stride, int dilation)"
        " -> (Tensor y, Tensor count, Tensor mean, Tensor m2)");
  m.def("depthwise_conv_bn(Tensor x, Tensor weight, Tensor? scale, Tensor? shift, bool relu,"
        " Tensor? bias, int stride, int dilation, Tensor? gamma, Tensor? beta, float eps, int batches=1)"
        " -> (Tensor y, Tensor count, Tensor mean, Tensor m2, Tensor out_scale, Tensor out_shift)");
  m.def("depthwise_conv_backward(Tensor grad_y, Tensor? grad_mean, Tensor? grad_m2, Tensor x,"
        " Tensor weight, Tensor? scale, Tensor? shift, bool relu, Tensor? y, Tensor? mean,"
        " bool out_relu, int stride, int dilation, bool[3] output_mask)"
        " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_scale, Tensor grad_shift,"
        " Tensor grad_bias)");
  m.def("conv3x3(Tensor x, Tensor weight, Tensor? bias, bool out_relu, bool want_stats)"
        " -> (Tensor y, Tensor count, Tensor mean, Tensor m2)");
  m.def("pack_conv3x3(Tensor weight) -> Tensor");
  m.def("conv3x3_packed(Tensor[] x, Tensor weight, Tensor packed, Tensor? bias, bool out_relu) -> Tensor[]");
  m.def("mixed_depthwise(Tensor[] x, Tensor[] weight, Tensor[] scale, Tensor[] shift, bool relu,"
        " bool want_stats, int stride, int[] dilation)"
        " -> (Tensor[] y, Tensor[] count, Tensor[] mean, Tensor[] m2)");
  m.def("mixed_depthwise_backward(Tensor[] grad_y, Tensor[] grad_mean, Tensor[] grad_m2, Tensor[] x,"
        " Tensor[] weight, Tensor[] scale, Tensor[] shift, bool relu, Tensor[] y, Tensor[] mean,"
        " int stride, int[] dilation) -> (Tensor[] grad_x, Tensor[] grad_weight, Tensor[] grad_scale,"
        " Tensor[] grad_shift)");

  m.def("shuffle_concat(Tensor left, Tensor right, Tensor? left_scale, Tensor? left_shift,"
        " Tensor? right_scale, Tensor? right_shift, bool left_relu, bool right_relu, int method,"
        " bool split, int batches=1) -> (Tensor out_left, Tensor out_right)");
  m.def("shuffle_concat_backward(Tensor grad_left, Tensor grad_right, Tensor left, Tensor right,"
        " Tensor? left_scale, Tensor? left_shift, Tensor? right_scale, Tensor? right_shift,"
        " bool left_relu, bool right_relu, int method, bool split)"
        " -> (Tensor grad_left, Tensor grad_right, Tensor grad_left_scale,"
        " Tensor grad_left_shift, Tensor grad_right_scale, Tensor grad_right_shift)");

  m.def("mixed_sum(Tensor[] y, Tensor[] scale, Tensor[] shift, Tensor weights, Tensor? residual)"
        " -> Tensor");
  m.def("mixed_sum_backward(Tensor grad, Tensor[] y, Tensor[] scale, Tensor[] shift,"
        " Tensor weights) -> (Tensor[] grad_y, Tensor[] grad_scale, Tensor[] grad_shift,"
        " Tensor grad_weights)");

  m.def("roi_align(Tensor[] x, Tensor boxes, int[] levels, float[] scales, int size, int sampling_ratio,"
        " bool aligned) -> Tensor");
  m.def("digest(Tensor[] tensors, int[] counts) -> int[]");
  m.def("shuffle_block(Tensor x, Tensor[] weights, Tensor[] biases, int kernel, int stride,"
        " int method) -> Tensor");
  m.def("pack_shuffle_block(Tensor[] weights, int kernel, int stride, int out_method=0) -> Tensor[]");
  m.def("shuffle_block_packed(Tensor x, Tensor? right, Tensor[] weights, Tensor[] packed, Tensor[] biases,"
        " int kernel, int stride, int method, int out_method) -> (Tensor out_left, Tensor out_right)");
  m.def("shuffle_blocks_packed(Tensor x, Tensor[] weights, Tensor[] packed, Tensor[] biases, int[] kernels,"
        " int[] strides, int[] methods, int[] ends) -> Tensor[]");
  m.def("shuffle_block_stats(Tensor left, Tensor? right, Tensor? scale, Tensor? shift, bool relu,"
        " Tensor[] weights, Tensor[] gammas, Tensor[] betas, float[] eps, int kernel, int stride,"
        " int out_method, int batches=1) -> (Tensor out_left, Tensor out_right, Tensor[] count,"
        " Tensor[] mean, Tensor[] m2)");
  m.def("shuffle_block_training(Tensor left, Tensor? right, Tensor? scale, Tensor? shift, bool relu,"
        " Tensor[] weights, Tensor[] gammas, Tensor[] betas, float[] eps, int kernel, int stride,"
        " int out_method) -> (Tensor out_left, Tensor out_right, Tensor[] made)");
  m.def("shuffle_block_training_backward(Tensor grad_left, Tensor? grad_right, Tensor left, Tensor? right,"
        " Tensor? scale, Tensor? shift, bool relu, Tensor[] weights, Tensor[] gammas, Tensor[] betas,"
        " float[] eps, int kernel, int stride, int out_method, Tensor[] made, bool[] wanted)"
        " -> (Tensor d_left, Tensor d_right, Tensor d_scale, Tensor d_shift, Tensor[] d_weights,"
        " Tensor[] d_gammas, Tensor[] d_betas)");
  m.def("shuffle_blocks_stats(Tensor x, Tensor? scale, Tensor? shift, bool relu, Tensor[] weights,"
        " Tensor[] packed, Tensor[] gammas, Tensor[] betas, float[] eps, int[] kernels, int[] strides,"
        " int[] methods, int[] ends, int batches=1) -> (Tensor[] outputs, Tensor[] count, Tensor[] mean,"
        " Tensor[] m2)");
}
