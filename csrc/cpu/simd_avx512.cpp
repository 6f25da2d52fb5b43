// Vector kernels for machines with AVX-512 F, BW, DQ, VL (compiler flags: setup.py).
#include "kernels.h"

#define DETNAS_SIMD avx512
#define DETNAS_VEC_BYTES 64
#define DETNAS_GEMM_ROWS 14
#include "simd/all.h"

namespace detnas {

const Kernels<float>& kernels_avx512_float() {
  static const Kernels<float> kernels = avx512::make_kernels<float>("avx512");
  return kernels;
}

}  // namespace detnas
