// DETNAS_SEPARABLE_KERNELS(S) compiles what launches depthwise separable convolutions of dtype S; a source for each.
#pragma once
#include "separable_conv.cuh"

#define DETNAS_SEPARABLE_KERNELS(S)                                        \
  namespace detnas {                                                       \
  namespace cuda {                                                         \
  template void launch_separable<S>(const Separable<S>&, Stream);          \
  }                                                                        \
  }
