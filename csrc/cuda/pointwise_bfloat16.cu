#include "pointwise_kernels.cuh"

DETNAS_POINTWISE_KERNELS(, c10::BFloat16)
