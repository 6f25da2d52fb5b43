#include "pointwise_kernels.cuh"

DETNAS_POINTWISE_KERNELS(, float)
