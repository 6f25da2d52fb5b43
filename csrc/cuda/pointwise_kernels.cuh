// DETNAS_POINTWISE_KERNELS(, S) compiles what launches products of dtype S, a source for each dtype;
// DETNAS_POINTWISE_KERNELS(extern, S) tells other sources that they need not.
#pragma once
#include "pointwise_conv.cuh"

#define DETNAS_POINTWISE_KERNELS(EXTERN, S)                                                           \
  namespace detnas {                                                                                  \
  namespace cuda {                                                                                    \
  EXTERN template void launch_gemm<Product::kForward, S>(Gemm<S>, int64_t, Stream, int64_t);          \
  EXTERN template void launch_gemm<Product::kGradX, S>(Gemm<S>, int64_t, Stream, int64_t);            \
  EXTERN template void launch_gemm<Product::kGradWeight, S>(Gemm<S>, int64_t, Stream, int64_t);       \
  }                                                                                                   \
  }
