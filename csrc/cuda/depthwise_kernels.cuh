// DETNAS_DEPTHWISE_KERNELS(S) compiles what launches depthwise convolutions of dtype S. A source for each
// dtype: they compile at the same time, and without torch's headers but for the type itself.
#pragma once
#include "depthwise_conv.cuh"
#include "depthwise_grad.cuh"

#define DETNAS_DEPTHWISE_KERNELS(S)                                                        \
  namespace detnas {                                                                       \
  namespace cuda {                                                                         \
  template void launch_depthwise<S, false>(const DepthwiseBatch<S>&, Stream, int64_t);     \
  template void launch_depthwise<S, true>(const DepthwiseBatch<S>&, Stream, int64_t);      \
  template void launch_depthwise_grad_weight<S>(const DepthwiseBatch<S>&, Stream);         \
  template void launch_depthwise_sums<S>(const SumsBatch<S>&, Stream);                     \
  }                                                                                        \
  }
