// Maps in memory that earlier ones have given back: large allocations cost page faults.
#pragma once
#include <ATen/core/Tensor.h>

namespace detnas {
namespace cpu {

// A channels_last map on the CPU with nothing in it yet.
at::Tensor recycled_map(at::IntArrayRef sizes, at::ScalarType type);

}  // namespace cpu
}  // namespace detnas
