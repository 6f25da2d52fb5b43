#include <c10/util/BFloat16.h>

#include "depthwise_kernels.cuh"

DETNAS_DEPTHWISE_KERNELS(c10::BFloat16)
