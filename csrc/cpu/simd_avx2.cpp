// Vector kernels for machines with AVX2 and FMA (compiler flags: setup.py).
#include "kernels.h"

#define DETNAS_SIMD avx2
#define DETNAS_VEC_BYTES 32
#define DETNAS_GEMM_ROWS 6
#include "simd/all.h"

namespace detnas {

const Kernels<float>& kernels_avx2_float() {
  static const Kernels<float> kernels = avx2::make_kernels<float>("avx2");
  return kernels;
}

}  // namespace detnas
