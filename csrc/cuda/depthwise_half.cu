#include <c10/util/Half.h>

#include "depthwise_kernels.cuh"

DETNAS_DEPTHWISE_KERNELS(c10::Half)
