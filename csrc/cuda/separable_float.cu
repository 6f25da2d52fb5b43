#include "separable_kernels.cuh"

DETNAS_SEPARABLE_KERNELS(float)
