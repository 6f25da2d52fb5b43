#include <c10/util/BFloat16.h>

#include "separable_kernels.cuh"

DETNAS_SEPARABLE_KERNELS(c10::BFloat16)
