// Counters for last_block (last_block.cuh).
#pragma once
#include <ATen/core/Tensor.h>

namespace detnas {
namespace cuda {

// `count` counters for the next launch on the current stream, where x is, zero before and after it. The launches of a
// stream follow each other and share theirs. A graph has its own, for it may run beside other work of the
// stream that it was captured from.
unsigned* tickets(int64_t count, const at::Tensor& x);

}  // namespace cuda
}  // namespace detnas
