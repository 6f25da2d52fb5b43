#include <c10/util/Half.h>

#include "separable_kernels.cuh"

DETNAS_SEPARABLE_KERNELS(c10::Half)
