#include "depthwise_kernels.cuh"

DETNAS_DEPTHWISE_KERNELS(float)
