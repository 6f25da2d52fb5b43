// Vector kernels for any machine: 16-byte vectors, lowered by the compiler to what there is.
#include "kernels.h"

#define DETNAS_SIMD baseline
#define DETNAS_VEC_BYTES 16
#define DETNAS_GEMM_ROWS 6
#include "simd/all.h"

namespace detnas {

const Kernels<float>& kernels_default_float() {
  static const Kernels<float> kernels = baseline::make_kernels<float>("default");
  return kernels;
}

const Kernels<double>& kernels_default_double() {
  static const Kernels<double> kernels = baseline::make_kernels<double>("default");
  return kernels;
}

}  // namespace detnas
